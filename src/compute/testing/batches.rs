//! Operations over several seats, sequences and pictures, with seats that are vacant.

use super::super::op::{
    Act, Attention, Conv3x3, Copy, Groups, HeadNorm, Linear, RingAttention, RingWrite, Rope, ToI420,
};
use super::{Case, Declare};

const EPS: f32 = 1e-6;

/// Seats and sessions in them.
const SEATS: [(usize, usize); 4] = [(2, 2), (3, 2), (4, 4), (8, 5)];

pub fn batches(all: &mut Vec<Case>) {
    for (seats, sessions) in SEATS {
        ring(all, seats, sessions);
        copies(all, seats, sessions);
        linear(all, seats, sessions);
        attention(all, seats, sessions);
    }
    sequences(all);
    pictures(all);
    positions(all);
}

fn declare(name: String, (seats, sessions): (usize, usize)) -> Declare {
    let mut d = Declare::new(format!("{name} seats={sessions}/{seats}"));
    d.seats(seats, sessions);
    d
}

fn ring(all: &mut Vec<Case>, seats: usize, sessions: usize) {
    for (n, heads, hd, slots, count) in [(1, 1, 2, 1, 1), (5, 3, 6, 6, 6), (60, 2, 64, 16, 9)] {
        let cols = heads * hd;
        let mut d = declare(format!("ring_attention {n} {heads}x{hd} slots={slots}"), (seats, sessions));
        let q = d.strided(seats * n, cols, cols, 3 * cols);
        let (k, v) = (d.state(&[slots, n, cols]), d.state(&[slots, n, cols]));
        let y = d.input(seats * n, cols);
        d.param(count);
        all.push(d.op(&[y], move |p| RingAttention {
            q: p.view(q),
            k_ring: p.tensor(k),
            v_ring: p.tensor(v),
            heads,
            scale: 1.0 / (hd as f32).sqrt(),
            count: p.param(0),
            y: p.view(y),
        }));

        let mut d = declare(format!("ring_write {n}x{cols} slots={slots}"), (seats, sessions));
        let x = d.strided(seats * n, cols, 1, cols + 2);
        let ring = d.state(&[slots, n, cols]);
        d.param(count - 1);
        all.push(d.op(&[ring], move |p| RingWrite {
            x: p.view(x),
            ring: p.tensor(ring),
            slot: p.param(0),
            whole: p.view(ring),
        }));
    }
}

fn copies(all: &mut Vec<Case>, seats: usize, sessions: usize) {
    for (m, n) in [(1, 3), (7, 64), (60, 50)] {
        let mut d = declare(format!("copy {m}x{n} out of states"), (seats, sessions));
        let inside = d.state(&[m + 2, n + 1]);
        let inside = d.rows(inside, 1, m);
        let (x, y) = (d.columns(inside, 1, n), d.strided(seats * m, n, 2, n + 2));
        all.push(d.op(&[y], move |p| Copy { x: p.view(x), y: p.view(y) }));

        let mut d = declare(format!("copy {m}x{n} into states"), (seats, sessions));
        let inside = d.state(&[m + 1, n + 3]);
        let inside = d.rows(inside, 1, m);
        let (x, y) = (d.strided(seats * m, n, 0, n + 2), d.columns(inside, 2, n));
        all.push(d.op(&[y], move |p| Copy { x: p.view(x), y: p.view(y) }));
    }
}

fn linear(all: &mut Vec<Case>, seats: usize, sessions: usize) {
    for (m, k, n) in [(1, 64, 48), (2, 12, 20), (15, 32, 130)] {
        let mut d = declare(format!("linear {m}x{k}x{n}"), (seats, sessions));
        let (x, w, bias, y) = (d.input(seats * m, k), d.matrix(&[n, k]), d.vector(&[n]), d.input(seats * m, n));
        // A gate for every seat, a few rows apart.
        let gate = d.strided(seats, n, n, 4 * n);
        all.push(d.op(&[y], move |p| Linear {
            x: p.view(x),
            w: p.tensor(w),
            bias: Some(p.tensor(bias)),
            act: Act::Silu,
            gate: Some(p.view(gate)),
            res: Some(p.view(y)),
            y: p.view(y),
        }));
    }
}

/// Every seat with its own number of keys.
fn attention(all: &mut Vec<Case>, seats: usize, sessions: usize) {
    for (lq, lk, heads, hd, count) in [(5, 9, 2, 8, 9), (9, 17, 1, 7, 12), (60, 40, 2, 64, 33), (260, 101, 1, 72, 99)] {
        let mut d = declare(format!("attention {lq}x{lk} {heads}x{hd} count={count}"), (seats, sessions));
        let n = heads * hd;
        let (q, kv, y) = (d.input(seats * lq, n), d.input(seats * lk, 2 * n), d.input(seats * lq, n));
        let (k, v) = (d.columns(kv, 0, n), d.columns(kv, n, n));
        d.param(count);
        all.push(d.op(&[y], move |p| Attention {
            q: p.view(q),
            k: p.view(k),
            v: p.view(v),
            heads,
            scale: 1.0 / (hd as f32).sqrt(),
            key_count: Some(p.param(0)),
            bias: None,
            groups: Groups::blocks(seats),
            y: p.view(y),
        }));
    }
}

/// Sequences of one plan with one seat, one after the other or taking turns.
fn sequences(all: &mut Vec<Case>) {
    for (count, l, heads, hd) in [(3, 5, 2, 16), (7, 26, 1, 72), (60, 4, 2, 8), (5, 1, 3, 6)] {
        for groups in [Groups::blocks(count), Groups::interleaved(count)] {
            let mut d = Declare::new(format!("attention {groups:?} of {l}, {heads}x{hd}"));
            let n = heads * hd;
            let qkv = d.input(count * l, 3 * n);
            let (q, k, v) = (d.columns(qkv, 0, n), d.columns(qkv, n, n), d.columns(qkv, 2 * n, n));
            let y = d.input(count * l, n);
            all.push(d.op(&[y], move |p| Attention {
                q: p.view(q),
                k: p.view(k),
                v: p.view(v),
                heads,
                scale: 1.0 / (hd as f32).sqrt(),
                key_count: None,
                bias: None,
                groups,
                y: p.view(y),
            }));
        }
    }
}

fn pictures(all: &mut Vec<Case>) {
    for (count, height, width, cin, cout) in [(2, 1, 1, 3, 2), (3, 4, 5, 16, 24), (5, 6, 10, 32, 33), (2, 7, 3, 6, 5)] {
        let m = height * width;
        let mut d = Declare::new(format!("conv3x3 {count} pictures of {height}x{width} {cin}->{cout}"));
        let (x, w, bias) = (d.input(count * m, cin), d.matrix(&[cout, 3, 3, cin]), d.vector(&[cout]));
        let y = d.strided(count * m, cout, 4, cout + 8);
        all.push(d.op(&[y], move |p| Conv3x3 {
            x: p.view(x),
            height,
            width,
            w: p.tensor(w),
            bias: Some(p.tensor(bias)),
            act: Act::Gelu,
            res: Some(p.view(y)),
            y: p.view(y),
        }));
    }
    for (count, r, height, width, out_height, out_width) in [(2, 4, 3, 5, 10, 18), (3, 8, 2, 3, 16, 22)] {
        let mut d = Declare::new(format!("to_i420 {count} pictures of {height}x{width} of {r}"));
        let x = d.input(count * height * width, 3 * r * r);
        let y = d.picture(count * out_height * out_width * 3 / 2);
        all.push(d.op(&[y], move |p| ToI420 {
            x: p.view(x),
            height,
            width,
            r,
            out_height,
            out_width,
            y: p.tensor(y),
            whole: p.view(y),
        }));
    }
}

/// Tables that pictures share, and positions that many rows share.
fn positions(all: &mut Vec<Case>) {
    for (rows, table, each, heads, hd) in [(12, 4, 1, 2, 8), (12, 3, 4, 1, 6), (24, 2, 3, 3, 64), (5, 1, 5, 2, 16)] {
        let n = heads * hd;
        let mut d = Declare::new(format!("head_norm {rows}x{heads}x{hd} rope={table} each={each}"));
        let x = d.strided(rows, n, n, 3 * n);
        let (weight, cos, sin) = (d.vector(&[hd]), d.vector(&[table, hd]), d.vector(&[table, hd]));
        all.push(d.op(&[x], move |p| HeadNorm {
            x: p.view(x),
            heads,
            weight: p.tensor(weight),
            rope: Some(Rope { cos: p.tensor(cos), sin: p.tensor(sin), each }),
            eps: EPS,
        }));
    }
}
