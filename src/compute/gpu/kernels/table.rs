//! The kernel table: for every kernel its name, its push constants in order, and its workgroup size.
//!
//! The same facts stand in the header of the kernel's source and in its assembled words; a test compares all three.

use super::super::super::Precision;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Type of a push constant. Each is aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// 64-bit address of the first element of a view; 0 where the operand is absent.
    Address,
    /// Unsigned 32-bit integer.
    Word,
    /// 32-bit float.
    Real,
}

impl FieldKind {
    pub const fn bytes(self) -> usize {
        match self {
            FieldKind::Address => 8,
            FieldKind::Word | FieldKind::Real => 4,
        }
    }
}

/// One push constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub kind: FieldKind,
}

/// One kernel, in both precisions or, if it works on cooperative matrices, in f16 alone.
#[derive(Debug)]
pub struct Kernel {
    /// Name of the source without precision and suffix.
    pub name: &'static str,
    /// Push constants in the order of their offsets, without gaps.
    pub fields: &'static [Field],
    pub push_bytes: u32,
    /// Invocations of a workgroup, all in its first dimension; 0 if the specialization constant `LOCAL` says.
    pub local_size: u32,
    /// Specialization constants in the order of their numbers. Only kernels of the matrix tier have some.
    pub specs: &'static [&'static str],
}

impl Kernel {
    /// Precisions in which there is a module.
    #[cfg(test)]
    pub fn precisions(&self) -> &'static [Precision] {
        if self.specs.is_empty() { &[Precision::F32, Precision::F16] } else { &[Precision::F16] }
    }

    /// Name of the module in a precision: that of its source file.
    pub fn module(&self, precision: Precision) -> String {
        let suffix = match precision {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
        };
        format!("{}_{suffix}", self.name)
    }

    /// The SPIR-V module.
    pub fn words(&self, precision: Precision) -> &'static [u32] {
        let name = self.module(precision);
        let found = MODULES.binary_search_by(|(n, _)| (*n).cmp(&name));
        MODULES[found.expect("the contract test finds a module for every kernel and precision")].1
    }
}

const fn push_bytes(fields: &[Field]) -> u32 {
    let (mut total, mut i) = (0, 0);
    while i < fields.len() {
        assert!(total % fields[i].kind.bytes() == 0, "push constants must be aligned to their sizes");
        total += fields[i].kind.bytes();
        i += 1;
    }
    assert!(total <= super::PUSH_BYTES_MAX, "too many push constants");
    total as u32
}

macro_rules! kernels {
    ($($id:ident $name:literal $local:literal $(($($spec:ident)+))? [$($field:ident: $kind:ident),* $(,)?])*) => {
        /// Names a kernel of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum KernelId { $($id),* }

        /// Every kernel, in the order of [`KernelId`].
        pub static KERNELS: &[Kernel] = &[$({
            const FIELDS: &[Field] = &[$(Field { name: stringify!($field), kind: FieldKind::$kind }),*];
            const SPECS: &[&str] = &[$($(stringify!($spec)),+)?];
            assert!(SPECS.len() <= super::SPECS_MAX, "too many specialization constants");
            Kernel { name: $name, fields: FIELDS, push_bytes: push_bytes(FIELDS), local_size: $local, specs: SPECS }
        }),*];
    };
}

impl KernelId {
    pub fn kernel(self) -> &'static Kernel {
        &KERNELS[self as usize]
    }
}

kernels! {
    Add "add" 64 [
        a: Address, b: Address, y: Address, rows: Word, cols: Word, span: Word, a_stride: Word, b_stride: Word,
        y_stride: Word,
    ]
    AttentionCm "attention_cm" 0 (LOCAL LANES CM CN CK HEAD KEYS) [
        q: Address, k: Address, v: Address, y: Address, count_at: Address, count_step: Word, lq: Word, lk: Word,
        hd8: Word, q_stride8: Word, k_stride8: Word, v_stride8: Word, y_stride8: Word, q_group8: Word,
        k_group8: Word, v_group8: Word, y_group8: Word, scale: Real,
    ]
    AttentionRing "attention_ring" 0 (LOCAL PARTS) [
        q: Address, k: Address, v: Address, y: Address, count_at: Address, table: Address, rows: Word, window: Word,
        heads: Word, q_stride8: Word, k_row8: Word, k_key8: Word, v_row8: Word, v_key8: Word, y_stride8: Word,
        scale: Real, count_step: Word, seat_rows: Word,
    ]
    AttentionRow "attention_row" 32 [
        q: Address, k: Address, v: Address, bias: Address, y: Address, count_at: Address, lq: Word, lk: Word,
        hd: Word, q_stride: Word, k_row: Word, k_key: Word, v_row: Word, v_key: Word, y_stride: Word,
        scale: Real, flags: Word, count_step: Word, table: Address, seat_rows: Word,
    ]
    AttentionRows "attention_rows" 0 (
        LOCAL LANES CM CN CK HEAD WIDTH8 KEYS BANDS SPAN LINES TURNS AHEAD CT TSPAN
    ) [
        q: Address, k: Address, v: Address, y: Address, count_at: Address, count_step: Word, lq: Word, lk: Word,
        q_stride8: Word, k_stride8: Word, v_stride8: Word, y_stride8: Word, q_group8: Word, k_group8: Word,
        v_group8: Word, y_group8: Word, scale: Real,
    ]
    AttentionTile "attention_tile" 32 [
        q: Address, k: Address, v: Address, bias: Address, y: Address, count_at: Address, lq: Word, lk: Word,
        hd4: Word, q_stride4: Word, k_stride4: Word, v_stride4: Word, y_stride4: Word, scale: Real, flags: Word,
    ]
    Axpy "axpy" 64 [
        x: Address, v: Address, y: Address, rows: Word, cols: Word, x_stride: Word, v_stride: Word,
        y_stride: Word, alpha: Real, beta: Real,
    ]
    Conv3x3Any "conv3x3_any" 64 [
        x: Address, w: Address, bias: Address, res: Address, y: Address, height: Word, width: Word, cin: Word,
        cout: Word, x_stride: Word, res_stride: Word, y_stride: Word, act: Word, flags: Word,
    ]
    Conv3x3Cm "conv3x3_cm" 0 (LOCAL LANES BM BN BK WM WN CM CN CK STAGES TAIL AHEAD ACT FLAGS) [
        x: Address, w: Address, bias: Address, res: Address, y: Address, m: Word, n: Word, k: Word, height: Word,
        width: Word, cin: Word, x_stride: Word, res_stride: Word, y_stride: Word,
    ]
    Conv3x3Tile "conv3x3_tile" 32 [
        x: Address, w: Address, bias: Address, res: Address, y: Address, height: Word, width: Word, cin: Word,
        cout: Word, x_stride: Word, res_stride: Word, y_stride: Word, act: Word, flags: Word,
    ]
    Deliver "deliver" 64 [
        x: Address, table: Address, units: Word, all: Word,
    ]
    Copy "copy" 64 [
        x: Address, y: Address, rows: Word, cols: Word, x_stride: Word, y_stride: Word,
    ]
    GatedGelu "gated_gelu" 64 [
        a: Address, b: Address, y: Address, rows: Word, cols: Word, a_stride: Word, b_stride: Word,
        y_stride: Word,
    ]
    GroupMean "group_mean" 64 [
        x: Address, y: Address, rows: Word, cols: Word, size: Word, x_stride: Word, y_stride: Word,
    ]
    HeadNorm "head_norm" 32 [
        x: Address, weight: Address, cos: Address, sin: Address, rows: Word, hd: Word, x_stride: Word,
        rope_rows: Word, eps: Real, flags: Word, rope_each: Word,
    ]
    HeadNormParts "head_norm_parts" 0 (LOCAL PARTS TEAM) [
        x: Address, weight: Address, weight_rest: Address, cos: Address, sin: Address, rows: Word, heads: Word,
        heads_first: Word, x_stride4: Word, rope_rows: Word, eps: Real, flags: Word, rope_each: Word,
    ]
    LinearAny "linear_any" 32 [
        x: Address, w: Address, bias: Address, gate: Address, res: Address, y: Address, m: Word, n: Word,
        k: Word, x_stride: Word, gate_stride: Word, res_stride: Word, y_stride: Word, span: Word, act: Word,
        flags: Word,
    ]
    LinearCm "linear_cm" 0 (LOCAL LANES BM BN BK WM WN CM CN CK STAGES TAIL AHEAD ACT FLAGS) [
        x: Address, w: Address, bias: Address, gate: Address, res: Address, y: Address, m: Word, n: Word,
        k: Word, x_stride: Word, gate_stride: Word, res_stride: Word, y_stride: Word, span: Word,
    ]
    LinearGemv "linear_gemv" 32 [
        x: Address, w: Address, bias: Address, gate: Address, res: Address, y: Address, m: Word, n: Word,
        k: Word, x_stride: Word, gate_stride: Word, res_stride: Word, y_stride: Word, span: Word, act: Word,
        flags: Word,
    ]
    LinearTile "linear_tile" 32 [
        x: Address, w: Address, bias: Address, gate: Address, res: Address, y: Address, m: Word, n: Word,
        k: Word, x_stride: Word, gate_stride: Word, res_stride: Word, y_stride: Word, span: Word, act: Word,
        flags: Word,
    ]
    Map "map" 64 [
        x: Address, y: Address, rows: Word, cols: Word, x_stride: Word, y_stride: Word, act: Word,
    ]
    MatrixLayout "matrix_layout" 0 (LOCAL LANES CM CN CK) [
        out: Address,
    ]
    NormFilm "norm_film" 32 [
        x: Address, scale: Address, shift: Address, gate: Address, y: Address, rows: Word, cols: Word,
        scale_span: Word, shift_span: Word, gate_span: Word, x_stride: Word, scale_stride: Word,
        shift_stride: Word, gate_stride: Word, y_stride: Word, eps: Real,
    ]
    NormModulate "norm_modulate" 32 [
        x: Address, scale: Address, shift: Address, y: Address, rows: Word, cols: Word, scale_span: Word,
        shift_span: Word, x_stride: Word, scale_stride: Word, shift_stride: Word, y_stride: Word, eps: Real,
    ]
    NormRows "norm_rows" 0 (LOCAL LANES CHUNKS KIND WEIGHT ACT) [
        x: Address, weight: Address, scale: Address, shift: Address, gate: Address, y: Address, rows: Word,
        cols8: Word, x_stride8: Word, y_stride8: Word, scale_span: Word, shift_span: Word, gate_span: Word,
        scale_stride8: Word, shift_stride8: Word, gate_stride8: Word, eps: Real,
    ]
    NormWeight "norm_weight" 32 [
        x: Address, weight: Address, y: Address, rows: Word, cols: Word, x_stride: Word, y_stride: Word,
        eps: Real, act: Word, flags: Word,
    ]
    RingStep "ring_step" 0 (LOCAL PARTS HEADS) [
        q: Address, q_weight: Address, k_weight: Address, cos: Address, sin: Address, k_ring: Address,
        slot_at: Address, table: Address, y: Address, count_word: Word, v_ring8: Word, k_at8: Word, v_at8: Word,
        rows: Word, x_stride8: Word, y_stride8: Word, rope_rows: Word, rope_each: Word, window: Word,
        seat_rows: Word, step: Word, eps: Real, scale: Real,
    ]
    RingWrite "ring_write" 64 [
        x: Address, ring: Address, slot_at: Address, rows: Word, cols: Word, x_stride: Word, slot_step: Word,
        table: Address, seat_rows: Word,
    ]
    SeatCopy "seat_copy" 64 [
        table: Address, inside: Address, outside: Address, rows: Word, cols: Word, seat_rows: Word,
        inside_stride: Word, outside_stride: Word, stores: Word,
    ]
    Shuffle "shuffle" 64 [
        x: Address, shortcut: Address, y: Address, rows: Word, cols: Word, width: Word, r: Word, repeat: Word,
        x_stride: Word, s_stride: Word, y_stride: Word,
    ]
    ToI420 "to_i420" 64 [
        x: Address, y: Address, width: Word, x_stride: Word, out_width: Word, out_height: Word, r: Word,
        x_each: Word, y_each: Word,
    ]
    Unshuffle "unshuffle" 64 [
        x: Address, y: Address, rows: Word, cols: Word, width: Word, r: Word, x_stride: Word, y_stride: Word,
    ]
}
