//! Attention.

use super::super::op::{Attention, RingAttention, RingWrite};
use super::super::tensor::Param;
use super::Values;
use super::linear::dot;

/// Softmax in place.
fn softmax(scores: &mut [f32]) {
    let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
    let mut sum = 0.0;
    for s in scores.iter_mut() {
        *s = (*s - max).exp();
        sum += *s;
    }
    for s in scores {
        *s /= sum;
    }
}

/// A param's value. The run's params were checked before.
fn value(param: Param, params: &[u32]) -> usize {
    param.value(params).unwrap_or(0) as usize
}

pub fn attention(op: &Attention, values: &mut Values, params: &[u32]) {
    let (lq, lk, hd) = (op.q.rows, op.k.rows, op.q.cols / op.heads);
    let count = op.key_count.map_or(lk, |p| value(p, params));
    for head in 0..op.heads {
        let cols = head * hd..(head + 1) * hd;
        for i in 0..lq {
            let q = &values.row(&op.q, i)[cols.clone()];
            let mut scores = Vec::new();
            for j in 0..count {
                let bias = op.bias.map_or(0.0, |b| values.all(b)[(head * lq + i) * lk + j]);
                scores.push(dot(q, &values.row(&op.k, j)[cols.clone()]) * op.scale + bias);
            }
            softmax(&mut scores);
            for col in cols.clone() {
                let mut sum = 0.0;
                for (j, score) in scores.iter().enumerate() {
                    sum += score * values.at(&op.v, j, col);
                }
                values.set(&op.y, i, col, sum);
            }
        }
    }
}

pub fn ring_attention(op: &RingAttention, values: &mut Values, params: &[u32]) {
    let (n, d) = (op.q.rows, op.q.cols);
    let (hd, count) = (d / op.heads, value(op.count, params));
    for token in 0..n {
        for head in 0..op.heads {
            let q = &values.row(&op.q, token)[head * hd..(head + 1) * hd];
            let first = |slot: usize| (slot * n + token) * d + head * hd;
            let mut scores = Vec::new();
            for slot in 0..count {
                scores.push(dot(q, &values.all(op.k_ring)[first(slot)..first(slot) + hd]) * op.scale);
            }
            softmax(&mut scores);
            for col in 0..hd {
                let mut sum = 0.0;
                for (slot, score) in scores.iter().enumerate() {
                    sum += score * values.all(op.v_ring)[first(slot) + col];
                }
                values.set(&op.y, token, head * hd + col, sum);
            }
        }
    }
}

pub fn ring_write(op: &RingWrite, values: &mut Values, params: &[u32]) {
    let slot = value(op.slot, params);
    for row in 0..op.x.rows {
        let x = values.row(&op.x, row).to_vec();
        values.row_mut(&op.whole, slot * op.x.rows + row).copy_from_slice(&x);
    }
}
