//! Every operation with shapes that kernels get wrong: one, primes, just over a tile, strided, in place, in groups.

use super::super::op::{
    Act, Add, Attention, Axpy, Conv3x3, Copy, GatedGelu, GroupMean, Groups, HeadNorm, Linear, Map, Norm, NormKind,
    RingAttention, RingWrite, Rope, Shuffle, ToI420, Unshuffle,
};
use super::{Case, Declare, share_weights};

const EPS: f32 = 1e-6;
const ACTS: [Act; 3] = [Act::None, Act::Gelu, Act::Silu];

/// Rows and columns for element-wise and row-wise operations.
const PLANES: [(usize, usize); 8] = [(1, 1), (1, 48), (2, 7), (3, 64), (5, 97), (60, 96), (61, 130), (17, 384)];

/// All cases, with one weight set for all of them.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    linear(&mut all);
    conv(&mut all);
    norm(&mut all);
    modulated(&mut all);
    head_norm(&mut all);
    attention(&mut all);
    attention_by_eights(&mut all);
    ring(&mut all);
    pointwise(&mut all);
    image(&mut all);
    super::batches::batches(&mut all);
    share_weights(&mut all);
    all
}

/// The optional parts of a linear operation.
#[derive(Clone, Copy, Default)]
struct Fused {
    bias: bool,
    gate_groups: usize,
    res: bool,
    in_place: bool,
    strided: bool,
}

fn linear_case(m: usize, k: usize, n: usize, act: Act, f: Fused) -> Case {
    let Fused { bias, gate_groups, res, in_place, strided } = f;
    let mut d = Declare::new(format!(
        "linear {m}x{k}x{n} {act:?} bias={bias} gate={gate_groups} res={res} in_place={in_place} strided={strided}"
    ));
    let x = if strided { d.strided(m, k, 3, k + 5) } else { d.input(m, k) };
    let w = d.matrix(&[n, k]);
    let bias = bias.then(|| d.vector(&[n]));
    let gate = (gate_groups > 0).then(|| d.strided(gate_groups, n, n, 3 * n));
    let y = if strided { d.strided(m, n, 2, n + 9) } else { d.input(m, n) };
    let res = match (res, in_place) {
        (false, _) => None,
        (true, true) => Some(y),
        (true, false) => Some(d.input(m, n)),
    };
    d.op(&[y], move |p| Linear {
        x: p.view(x),
        w: p.tensor(w),
        bias: bias.map(|b| p.tensor(b)),
        act,
        gate: gate.map(|g| p.view(g)),
        res: res.map(|r| p.view(r)),
        y: p.view(y),
    })
}

fn linear(all: &mut Vec<Case>) {
    let shapes = [
        (1, 1, 1),
        (1, 7, 13),
        (1, 384, 130),
        (1, 65, 768),
        (2, 3, 5),
        (4, 40, 17),
        (5, 17, 33),
        (6, 16, 16),
        (7, 16, 15),
        (16, 16, 16),
        (17, 31, 65),
        (60, 96, 100),
        (61, 37, 64),
        (64, 64, 128),
        (65, 129, 66),
        (128, 32, 48),
        (257, 24, 31),
    ];
    for (i, (m, k, n)) in shapes.into_iter().enumerate() {
        all.push(linear_case(m, k, n, Act::None, Fused::default()));
        let groups = if m % 2 == 0 { 2 } else { 1 };
        let fused = Fused { bias: true, gate_groups: groups, res: true, in_place: i % 2 == 0, strided: i % 3 == 0 };
        all.push(linear_case(m, k, n, ACTS[i % 3], fused));
    }
    for act in ACTS {
        for in_place in [false, true] {
            let fused = Fused { bias: act != Act::None, gate_groups: 3, res: true, in_place, strided: true };
            all.push(linear_case(33, 48, 70, act, fused));
        }
        all.push(linear_case(1, 96, 96, act, Fused { bias: true, ..Fused::default() }));
    }
    all.push(linear_case(12, 20, 36, Act::None, Fused { gate_groups: 12, ..Fused::default() }));
    // Loaded by eights, as cooperative matrices need: every edge of their tiles and of their stages.
    for (i, (m, k, n)) in
        [(1, 384, 72), (3, 8, 8), (33, 200, 136), (130, 72, 40), (240, 384, 152)].into_iter().enumerate()
    {
        let groups = if m % 3 == 0 { 3 } else { 1 };
        all.push(linear_case(
            m,
            k,
            n,
            ACTS[i % 3],
            Fused { bias: true, gate_groups: groups, res: true, ..Fused::default() },
        ));
        all.push(linear_case(m, k, n, Act::None, Fused { in_place: true, res: true, ..Fused::default() }));
    }
    all.push(linear_by_eights());

    let mut d = Declare::new("linear 9x20x18 by an activation");
    let (x, w, y) = (d.input(9, 20), d.input(18, 20), d.input(9, 18));
    all.push(d.op(&[y], move |p| Linear {
        x: p.view(x),
        w: p.tensor(w),
        bias: None,
        act: Act::None,
        gate: None,
        res: None,
        y: p.view(y),
    }));
}

/// Views with offsets and strides of eight, the form of queries, keys and values.
fn linear_by_eights() -> Case {
    let mut d = Declare::new("linear 37x40x24 by eights");
    let (x, w, y) = (d.strided(37, 40, 16, 64), d.matrix(&[24, 40]), d.strided(37, 24, 8, 48));
    let (gate, res) = (d.strided(37, 24, 24, 72), d.strided(37, 24, 32, 56));
    d.op(&[y], move |p| Linear {
        x: p.view(x),
        w: p.tensor(w),
        bias: None,
        act: Act::Silu,
        gate: Some(p.view(gate)),
        res: Some(p.view(res)),
        y: p.view(y),
    })
}

fn conv(all: &mut Vec<Case>) {
    let shapes = [
        (1, 1, 8, 8),
        (12, 20, 64, 40),
        (23, 9, 24, 72),
        (1, 1, 1, 1),
        (1, 5, 3, 2),
        (5, 1, 2, 3),
        (2, 2, 16, 16),
        (3, 4, 5, 7),
        (6, 10, 16, 24),
        (7, 9, 33, 17),
        (12, 20, 32, 48),
        (13, 17, 16, 65),
        (5, 33, 40, 16),
    ];
    for (i, (h, w, cin, cout)) in shapes.into_iter().enumerate() {
        all.push(conv_case(h, w, cin, cout, i, Fused::default()));
        let fused = Fused { bias: true, res: true, in_place: i % 2 == 1, strided: i % 3 == 1, ..Fused::default() };
        all.push(conv_case(h, w, cin, cout, i, fused));
    }
}

fn conv_case(height: usize, width: usize, cin: usize, cout: usize, i: usize, f: Fused) -> Case {
    let act = if f.bias { ACTS[i % 3] } else { Act::None };
    let Fused { bias, res, in_place, strided, .. } = f;
    let mut d = Declare::new(format!(
        "conv3x3 {height}x{width} {cin}->{cout} {act:?} bias={bias} res={res} in_place={in_place} strided={strided}"
    ));
    let m = height * width;
    let x = if strided { d.strided(m, cin, 1, cin + 3) } else { d.input(m, cin) };
    let w = d.matrix(&[cout, 3, 3, cin]);
    let bias = bias.then(|| d.vector(&[cout]));
    let y = if strided { d.strided(m, cout, 4, cout + 5) } else { d.input(m, cout) };
    let res = match (res, in_place) {
        (false, _) => None,
        (true, true) => Some(y),
        (true, false) => Some(d.input(m, cout)),
    };
    d.op(&[y], move |p| Conv3x3 {
        x: p.view(x),
        height,
        width,
        w: p.tensor(w),
        bias: bias.map(|b| p.tensor(b)),
        act,
        res: res.map(|r| p.view(r)),
        y: p.view(y),
    })
}

fn norm(all: &mut Vec<Case>) {
    for (i, (m, n)) in PLANES.into_iter().enumerate() {
        for weighted in [false, true] {
            let (act, in_place) = (ACTS[(i + usize::from(weighted)) % 3], i % 2 == 1);
            let mut d = Declare::new(format!("norm {m}x{n} weight={weighted} {act:?} in_place={in_place}"));
            let x = d.strided(m, n, 1, n + 2);
            let y = if in_place { x } else { d.strided(m, n, 0, n + 3) };
            let weight = weighted.then(|| d.vector(&[n]));
            all.push(d.op(&[y], move |p| Norm {
                x: p.view(x),
                kind: NormKind::Weight { weight: weight.map(|w| p.tensor(w)), act },
                eps: EPS,
                y: p.view(y),
            }));
        }
    }
}

fn modulated(all: &mut Vec<Case>) {
    for (i, (m, n)) in PLANES.into_iter().enumerate() {
        let groups = if m % 2 == 0 { m / 2 } else { 1 };
        for film in [false, true] {
            let in_place = i % 2 == 0;
            let kind = if film { "film" } else { "modulate" };
            let mut d = Declare::new(format!("norm {m}x{n} {kind} groups={groups} in_place={in_place}"));
            let x = d.input(m, n);
            let y = if in_place { x } else { d.input(m, n) };
            let table = d.input(groups, 3 * n);
            let (scale, shift, gate) = (d.columns(table, 0, n), d.columns(table, n, n), d.columns(table, 2 * n, n));
            all.push(d.op(&[y], move |p| {
                let (scale, shift, gate) = (p.view(scale), p.view(shift), p.view(gate));
                let kind =
                    if film { NormKind::Film { scale, shift, gate } } else { NormKind::Modulate { scale, shift } };
                Norm { x: p.view(x), kind, eps: EPS, y: p.view(y) }
            }));
        }
    }
}

fn head_norm(all: &mut Vec<Case>) {
    let shapes =
        [(1, 1, 2), (1, 3, 4), (2, 2, 6), (5, 3, 34), (60, 4, 32), (61, 2, 48), (7, 1, 128), (9, 6, 64), (19, 16, 72)];
    for (m, heads, hd) in shapes {
        let forms: &[usize] = if m == 1 { &[0, 1] } else { &[0, 1, m] };
        for &rope_rows in forms {
            let n = heads * hd;
            let mut d = Declare::new(format!("head_norm {m}x{heads}x{hd} rope={rope_rows}"));
            let x = d.strided(m, n, n, 3 * n);
            let weight = d.vector(&[hd]);
            let rope = (rope_rows > 0).then(|| (d.vector(&[rope_rows, hd]), d.vector(&[rope_rows, hd])));
            all.push(d.op(&[x], move |p| HeadNorm {
                x: p.view(x),
                heads,
                weight: p.tensor(weight),
                rope: rope.map(|(cos, sin)| Rope { cos: p.tensor(cos), sin: p.tensor(sin), each: 1 }),
                eps: EPS,
            }));
        }
    }
}

fn attention(all: &mut Vec<Case>) {
    // Queries, keys, heads, columns of a head, keys that count (0: all).
    let shapes = [
        (1, 1, 1, 2, 0),
        (1, 9, 2, 8, 5),
        (3, 5, 1, 7, 0),
        (5, 17, 3, 16, 16),
        (7, 16, 2, 34, 1),
        (60, 60, 6, 64, 0),
        (61, 33, 2, 32, 33),
        (13, 130, 4, 48, 77),
        (24, 64, 1, 128, 64),
        (6, 257, 2, 16, 0),
    ];
    for (i, (lq, lk, heads, hd, count)) in shapes.into_iter().enumerate() {
        for biased in [false, true] {
            let mut d = Declare::new(format!("attention {lq}x{lk} {heads}x{hd} count={count} bias={biased}"));
            let n = heads * hd;
            let (q, k, v) = if lq == lk {
                let qkv = d.input(lq, 3 * n);
                (d.columns(qkv, 0, n), d.columns(qkv, n, n), d.columns(qkv, 2 * n, n))
            } else {
                let kv = d.input(lk, 2 * n);
                (d.input(lq, n), d.columns(kv, 0, n), d.columns(kv, n, n))
            };
            let y = if i % 2 == 0 { d.strided(lq, n, 1, n + 3) } else { d.input(lq, n) };
            let bias = biased.then(|| d.vector(&[heads, lq, lk]));
            if count > 0 {
                d.param(count);
            }
            // A scale above 1 / sqrt(hd) makes peaked distributions, which show errors in the maximum.
            let scale = if i % 3 == 2 { 3.0 } else { 1.0 / (hd as f32).sqrt() };
            all.push(d.op(&[y], move |p| Attention {
                q: p.view(q),
                k: p.view(k),
                v: p.view(v),
                heads,
                scale,
                key_count: (count > 0).then(|| p.param(0)),
                bias: bias.map(|b| p.tensor(b)),
                groups: Groups::ONE,
                y: p.view(y),
            }));
        }
    }
}

/// Attention of several sequences whose views start and step by eights, as cooperative matrices need.
fn attention_by_eights(all: &mut Vec<Case>) {
    // Queries and keys of a sequence, heads, columns of a head, keys that count (0: all), sequences, how peaked the
    // weights are: where the scale is large a row's most rises from block to block.
    let shapes = [
        (26, 26, 2, 72, 0, Groups::interleaved(3), 2.0),
        (70, 70, 1, 64, 0, Groups::blocks(2), 2.0),
        (9, 40, 3, 24, 33, Groups::ONE, 2.0),
        (65, 33, 2, 128, 0, Groups::ONE, 2.0),
        (1, 65, 2, 8, 64, Groups::blocks(4), 2.0),
        (261, 101, 1, 72, 0, Groups::blocks(2), 2.0),
        (259, 331, 1, 72, 0, Groups::ONE, 40.0),
        (257, 520, 1, 72, 517, Groups::ONE, 40.0),
        (300, 131, 2, 64, 120, Groups::interleaved(2), 40.0),
        (270, 97, 1, 128, 90, Groups::ONE, 2.0),
        (3, 95, 1, 72, 0, Groups::ONE, 40.0),
        (258, 32, 1, 72, 20, Groups::blocks(2), 40.0),
        (17, 17, 3, 40, 0, Groups::interleaved(2), 2.0),
        (33, 16, 2, 72, 11, Groups::ONE, 2.0),
    ];
    for (lq, lk, heads, hd, count, groups, peak) in shapes {
        let mut d = Declare::new(format!("attention by eights {lq}x{lk} {heads}x{hd} count={count} {groups:?}"));
        let n = heads * hd;
        let kv = d.input(lk * groups.count, 2 * n + 8);
        let (k, v) = (d.columns(kv, 8, n), d.columns(kv, n + 8, n));
        let (q, y) = (d.strided(lq * groups.count, n, 16, n + 24), d.strided(lq * groups.count, n, 8, n + 8));
        if count > 0 {
            d.param(count);
        }
        all.push(d.op(&[y], move |p| Attention {
            q: p.view(q),
            k: p.view(k),
            v: p.view(v),
            heads,
            scale: peak / (hd as f32).sqrt(),
            key_count: (count > 0).then(|| p.param(0)),
            bias: None,
            groups,
            y: p.view(y),
        }));
    }
}

fn ring(all: &mut Vec<Case>) {
    // Tokens, heads, columns of a head, slots, count.
    let shapes = [
        (1, 1, 2, 1, 1),
        (5, 3, 7, 4, 3),
        (60, 6, 64, 16, 16),
        (7, 2, 34, 16, 1),
        (13, 4, 32, 5, 5),
        (12, 2, 8, 7, 6),
        (4, 1, 128, 16, 13),
    ];
    for (n, heads, hd, slots, count) in shapes {
        let cols = heads * hd;
        let mut d = Declare::new(format!("ring_attention {n} {heads}x{hd} slots={slots} count={count}"));
        let q = d.strided(n, cols, cols, 3 * cols);
        let (k, v) = (d.state(&[slots, n, cols]), d.state(&[slots, n, cols]));
        let y = d.strided(n, cols, 0, cols + if n % 4 == 0 { 8 } else { 1 });
        d.param(count);
        all.push(d.op(&[y], move |p| RingAttention {
            q: p.view(q),
            k_ring: p.tensor(k),
            v_ring: p.tensor(v),
            heads,
            scale: 1.5 / (hd as f32).sqrt(),
            count: p.param(0),
            y: p.view(y),
        }));

        let mut d = Declare::new(format!("ring_write {n}x{cols} slots={slots} slot={}", count - 1));
        let x = d.strided(n, cols, 1, cols + 2);
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

fn pointwise(all: &mut Vec<Case>) {
    for (i, (m, n)) in PLANES.into_iter().enumerate() {
        let mut d = Declare::new(format!("copy {m}x{n} into columns"));
        let (x, y) = (d.strided(m, n, 1, n + 1), d.strided(m, n, 2, 2 * n + 2));
        all.push(d.op(&[y], move |p| Copy { x: p.view(x), y: p.view(y) }));

        let mut d = Declare::new(format!("copy {m}x{n} inside one tensor"));
        let whole = d.input(2 * m, n);
        let (x, y) = (d.rows(whole, m, m), d.rows(whole, 0, m));
        all.push(d.op(&[y], move |p| Copy { x: p.view(x), y: p.view(y) }));

        for (kind, groups) in [("one row", 1), ("all rows", m)] {
            let in_place = i % 2 == 0;
            let mut d = Declare::new(format!("add {m}x{n} {kind} in_place={in_place}"));
            let (a, b) = (d.strided(m, n, 1, n + 1), d.strided(groups, n, 2, n + 2));
            let y = if in_place { a } else { d.input(m, n) };
            all.push(d.op(&[y], move |p| Add { a: p.view(a), b: p.view(b), y: p.view(y) }));
        }

        for in_place in [false, true] {
            let mut d = Declare::new(format!("axpy {m}x{n} in_place={in_place}"));
            let (x, v) = (d.strided(m, n, 0, n + 1), d.input(m, n));
            let y = if in_place { x } else { d.strided(m, n, 1, n + 2) };
            let (alpha, beta) = (0.75, -1.25);
            all.push(d.op(&[y], move |p| Axpy { x: p.view(x), v: p.view(v), alpha, beta, y: p.view(y) }));

            let mut d = Declare::new(format!("gated_gelu {m}x{n} in_place={in_place}"));
            let ab = d.input(m, 2 * n);
            let (a, b) = (d.columns(ab, 0, n), d.columns(ab, n, n));
            let y = if in_place { a } else { d.input(m, n) };
            all.push(d.op(&[y], move |p| GatedGelu { a: p.view(a), b: p.view(b), y: p.view(y) }));
        }

        for act in ACTS {
            let in_place = i % 2 == 1;
            let mut d = Declare::new(format!("map {m}x{n} {act:?} in_place={in_place}"));
            let x = d.strided(m, n, 1, n + 1);
            let y = if in_place { x } else { d.input(m, n) };
            all.push(d.op(&[y], move |p| Map { x: p.view(x), act, y: p.view(y) }));
        }
    }
}

fn image(all: &mut Vec<Case>) {
    let shapes =
        [(1, 1, 3, 1), (2, 2, 1, 2), (6, 10, 5, 2), (8, 12, 3, 4), (12, 20, 16, 2), (24, 40, 3, 8), (8, 8, 3, 8)];
    for (height, width, c, r) in shapes {
        let (p, rr) = (height * width, r * r);
        let mut d = Declare::new(format!("unshuffle {height}x{width}x{c} by {r}"));
        let (x, y) = (d.strided(p, c, 1, c + 2), d.strided(p / rr, c * rr, 2, c * rr + 3));
        all.push(d.op(&[y], move |v| Unshuffle { x: v.view(x), height, width, r, y: v.view(y) }));

        // Channels of the shortcut: none, half of and as many as those of x.
        for short in [0, (c * rr).div_ceil(2), c * rr] {
            let mut d = Declare::new(format!("shuffle {height}x{width}x{c} by {r} shortcut={short}"));
            let x = d.strided(p, c * rr, 1, c * rr + 2);
            let shortcut = (short > 0).then(|| d.strided(p, short, 0, short + 1));
            let y = d.strided(p * rr, c, 1, c + 1);
            let view = move |v: &super::Parts<'_>| shortcut.map(|s| v.view(s));
            all.push(d.op(&[y], move |v| Shuffle { x: v.view(x), shortcut: view(v), height, width, r, y: v.view(y) }));
        }
    }
    for (m, out, g) in [(1, 1, 1), (3, 5, 2), (60, 16, 8), (7, 13, 3)] {
        let mut d = Declare::new(format!("group_mean {m}x{out} of {g}"));
        let (x, y) = (d.strided(m, out * g, 1, out * g + 2), d.strided(m, out, 0, out + 1));
        all.push(d.op(&[y], move |p| GroupMean { x: p.view(x), y: p.view(y) }));
    }
    let pictures = [
        (4, 1, 1, 2, 4),
        (4, 2, 3, 8, 12),
        (4, 3, 5, 10, 18),
        (4, 12, 20, 48, 80),
        (8, 1, 1, 2, 6),
        (8, 3, 5, 22, 34),
        (8, 12, 20, 90, 160),
        (2, 3, 3, 4, 6),
    ];
    for (r, height, width, out_height, out_width) in pictures {
        let mut d = Declare::new(format!("to_i420 {height}x{width} of {r} to {out_width}x{out_height}"));
        let x = d.strided(height * width, 3 * r * r, 1, 3 * r * r + 2);
        let y = d.picture(out_height * out_width * 3 / 2);
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
