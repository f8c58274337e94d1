//! The kernels and how operations become dispatches of them.
//!
//! [`table`] lists the kernels of `kernels/*.spvasm`; [`lower`] chooses a kernel for an operation, fills in its push
//! constants and its grid. Choice and grid depend on shapes only, never on addresses, so lowering twice gives the same
//! kernels. Shapes, types and aliasing were checked when the plan was built: this module trusts them.

mod attention;
mod fuse;
mod heads;
mod image;
mod linear;
mod norm;
mod pointwise;
mod rows;
pub mod table;
pub mod tile;

#[cfg(test)]
mod choice;
#[cfg(test)]
mod contract;

use std::collections::BTreeMap;

use super::super::op::{Act, Op};
use super::super::plan::Plan;
use super::super::tensor::{Param, Precision, Tensor, View};

pub use fuse::{Lowered, lower_plan};
pub use heads::Heads;
use rows::RowCut;
pub use rows::{RowLayout, Tail, layout_probe};
pub use table::{Field, FieldKind, KernelId};
pub use tile::{Finish, Matrix, Product, Tile};

/// Push constants that every Vulkan device has room for.
pub const PUSH_BYTES_MAX: usize = 128;

/// Specialization constants of a kernel at most.
pub const SPECS_MAX: usize = 16;

/// Fewest lanes of a subgroup: kernels spread values over eight of them.
pub const SUBGROUP_MIN: u32 = 8;

/// Workgroups in the first dimension of a grid; more go to the third. Kernels know this number, see their headers.
const GRID_X_MAX: usize = 32768;

/// Where the values of a plan are on the device.
pub trait Addresses {
    /// Address of a tensor's first element.
    fn tensor(&self, t: Tensor) -> u64;
    /// Address of the 32-bit word that holds a param of a seat.
    fn param(&self, p: Param, seat: usize) -> u64;
    /// Address of the table of the seats' states: a 64-bit address for each, 0 for a seat without a session. To it
    /// is added what [`tensor`](Self::tensor) gives for a tensor of the state if the plan has several seats.
    fn seat_table(&self) -> u64;
}

/// Push constants of one dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    bytes: [u8; PUSH_BYTES_MAX],
    len: usize,
}

impl Push {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Specialization constants of one pipeline, by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spec {
    values: [u32; SPECS_MAX],
    len: usize,
}

impl Spec {
    /// # Panics
    /// If there are more than [`SPECS_MAX`]; the table has no such kernel.
    pub fn new(values: &[u32]) -> Spec {
        let mut all = [0; SPECS_MAX];
        all[..values.len()].copy_from_slice(values);
        Spec { values: all, len: values.len() }
    }

    pub fn values(&self) -> &[u32] {
        &self.values[..self.len]
    }
}

/// What names a pipeline: a kernel with its specialization constants.
pub type Variant = (KernelId, Spec);

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    pub kernel: KernelId,
    pub spec: Spec,
    pub push: Push,
    /// Workgroups in each dimension.
    pub grid: [u32; 3],
    /// It needs what the dispatch before it of the same operation wrote.
    pub waits: bool,
}

impl Dispatch {
    pub fn variant(&self) -> Variant {
        (self.kernel, self.spec)
    }

    /// The kernel, and its tile if it has one, as profiles name it.
    pub fn label(&self) -> String {
        let (kernel, spec) = (self.kernel.kernel(), self.spec.values());
        let value = |name: &str| kernel.specs.iter().position(|s| *s == name).map(|i| spec[i].to_string());
        let sides: Vec<String> = ["BM", "BN", "BK", "KEYS"].into_iter().filter_map(value).collect();
        if sides.is_empty() { kernel.name.to_string() } else { format!("{} {}", kernel.name, sides.join("x")) }
    }
}

/// What operations are lowered for.
#[derive(Clone, Debug)]
pub struct Target {
    pub precision: Precision,
    /// The matrix tier, if the device has it and it is wanted; it works in f16.
    pub matrix: Option<Matrix>,
    /// The tiles that were measured to be the best.
    pub tuned: BTreeMap<Product, Tile>,
    /// Where lanes have the elements of matrices, if that is known.
    pub layout: Option<RowLayout>,
    /// The tile of this number among those of the device for every product that has one: for tests.
    pub forced: Option<usize>,
}

impl Target {
    /// The tile of a product.
    pub fn tile(&self, matrix: &Matrix, product: &Product) -> Tile {
        let forced = self.forced.and_then(|n| matrix.tiles().nth(n));
        let measured = || self.tuned.get(product).copied();
        forced.or_else(measured).unwrap_or_else(|| matrix.guess(product))
    }
}

/// Addresses of a product's operands and its result.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    pub x: u64,
    pub w: u64,
    pub y: u64,
}

/// A bare product with a tile, to be measured.
pub fn sample(target: &Target, product: &Product, tile: Tile, operands: Operands) -> Dispatch {
    linear::sample(target, product, tile, operands)
}

/// The product behind an operation, if the matrix tier computes it.
pub fn product(op: &Op, plan: &Plan, ctx: &dyn Addresses, target: &Target) -> Option<Product> {
    let l = Lowering { plan, ctx, target, elem_bytes: target.precision.dtype().bytes() as u64 };
    match op {
        Op::Linear(op) => linear::linear_product(&l, op),
        Op::Conv3x3(op) => linear::conv_product(&l, op),
        _ => None,
    }
}

/// The dispatches of an operation, in order.
///
/// **Batches.** Equal rows must give equal bits in plans of any number of seats: what decides the order of a sum must
/// not be chosen by the number of all rows, but by that of one seat ([`Lowering::seat_rows`]).
pub fn lower(op: &Op, plan: &Plan, ctx: &dyn Addresses, target: &Target) -> Vec<Dispatch> {
    let lowering = Lowering { plan, ctx, target, elem_bytes: target.precision.dtype().bytes() as u64 };
    let l = &lowering;
    let one = match op {
        // An operation over several pictures or sequences becomes a dispatch for each, which do not wait for another.
        Op::Conv3x3(op) => return linear::conv3x3(l, op),
        Op::Attention(op) => return attention::attention(l, op),
        Op::ToI420(op) => image::to_i420(l, op),
        Op::Linear(op) => linear::linear(l, op),
        Op::Norm(op) => norm::norm(l, op),
        Op::HeadNorm(op) => norm::head_norm(l, op),
        Op::RingAttention(op) => attention::ring_attention(l, op),
        Op::RingWrite(op) => attention::ring_write(l, op),
        Op::Copy(op) => pointwise::copy(l, op),
        Op::Add(op) => pointwise::add(l, op),
        Op::Axpy(op) => pointwise::axpy(l, op),
        Op::GatedGelu(op) => pointwise::gated_gelu(l, op),
        Op::Map(op) => pointwise::map(l, op),
        Op::Unshuffle(op) => image::unshuffle(l, op),
        Op::GroupMean(op) => image::group_mean(l, op),
        Op::Shuffle(op) => image::shuffle(l, op),
    };
    vec![one]
}

/// Bytes that [`deliver`] moves at once; targets and pictures are multiples of it.
pub const DELIVERED_BYTES: usize = 16;

/// Copies `bytes` bytes of each of `seats` seats from `x` to the targets in a table of addresses; 0 there means none.
pub fn deliver(x: u64, table: u64, bytes: usize, seats: usize) -> Dispatch {
    let units = bytes / DELIVERED_BYTES;
    let fill = Fill::new(KernelId::Deliver).address("x", x).address("table", table);
    let fill = fill.word("units", units).word("all", units * seats);
    let local = KernelId::Deliver.kernel().local_size as usize;
    fill.over((units * seats).div_ceil(local), 1)
}

/// What lowering an operation needs to know.
struct Lowering<'a> {
    plan: &'a Plan,
    ctx: &'a dyn Addresses,
    target: &'a Target,
    elem_bytes: u64,
}

impl Lowering<'_> {
    /// The matrix tier, if every one of these views can be loaded by eights.
    fn matrix(&self, views: &[Option<View>]) -> Option<&Matrix> {
        let half = self.target.precision == Precision::F16;
        self.target.matrix.as_ref().filter(|_| half && views.iter().flatten().all(|v| by(8, v)))
    }

    /// Rows of one seat, of `rows` rows of all. See [`lower`].
    fn seat_rows(&self, rows: usize) -> usize {
        (rows / self.plan.seats()).max(1)
    }

    /// The table of the seats' states and the words from one seat's params to the next's; zeros if the plan has one
    /// seat, whose state's tensors have addresses of their own.
    fn seats(&self) -> (u64, usize) {
        match self.plan.seats() {
            1 => (0, 0),
            _ => (self.ctx.seat_table(), self.plan.param_count),
        }
    }

    /// Address of a view's first element.
    fn view(&self, v: &View) -> u64 {
        self.ctx.tensor(v.tensor) + v.offset as u64 * self.elem_bytes
    }

    fn optional_view(&self, v: Option<&View>) -> u64 {
        v.map_or(0, |v| self.view(v))
    }

    fn optional_tensor(&self, t: Option<Tensor>) -> u64 {
        t.map_or(0, |t| self.ctx.tensor(t))
    }
}

/// Fills in push constants in the order of the table.
struct Fill {
    kernel: KernelId,
    spec: Spec,
    push: Push,
    next: usize,
}

impl Fill {
    fn new(kernel: KernelId) -> Fill {
        Fill { kernel, spec: Spec::default(), push: Push { bytes: [0; PUSH_BYTES_MAX], len: 0 }, next: 0 }
    }

    /// Takes a kernel with its specialization constants; what was filled in so far must be its push constants as well.
    fn variant(self, (kernel, spec): Variant) -> Fill {
        Fill { kernel, spec, ..self }
    }

    /// # Panics
    /// If the next field of the kernel is another one: lowering and table disagree, which tests of every kernel show.
    fn put(mut self, name: &'static str, kind: FieldKind, bytes: &[u8]) -> Fill {
        let kernel = self.kernel.kernel();
        assert_eq!(kernel.fields.get(self.next), Some(&Field { name, kind }), "push constant of {}", kernel.name);
        self.push.bytes[self.push.len..self.push.len + bytes.len()].copy_from_slice(bytes);
        self.push.len += bytes.len();
        self.next += 1;
        self
    }

    fn address(self, name: &'static str, value: u64) -> Fill {
        self.put(name, FieldKind::Address, &value.to_le_bytes())
    }

    fn word(self, name: &'static str, value: usize) -> Fill {
        let value = u32::try_from(value).expect("tensors of a plan have fewer than 2^32 elements");
        self.put(name, FieldKind::Word, &value.to_le_bytes())
    }

    fn real(self, name: &'static str, value: f32) -> Fill {
        self.put(name, FieldKind::Real, &value.to_le_bytes())
    }

    /// Runs `groups` workgroups, `across` times in the second dimension.
    ///
    /// # Panics
    /// If a push constant is missing, see [`put`](Self::put).
    fn over(self, groups: usize, across: usize) -> Dispatch {
        self.grid([groups.min(GRID_X_MAX), across, groups.div_ceil(GRID_X_MAX)])
    }

    /// Runs as many workgroups as `grid` says in each dimension.
    ///
    /// # Panics
    /// If a constant is missing, see [`put`](Self::put).
    fn grid(self, grid: [usize; 3]) -> Dispatch {
        let kernel = self.kernel.kernel();
        assert_eq!(self.next, kernel.fields.len(), "push constants of {}", kernel.name);
        assert_eq!(self.spec.len, kernel.specs.len(), "specialization constants of {}", kernel.name);
        let grid = grid.map(|n| u32::try_from(n).expect("a grid is no larger than its tensors"));
        Dispatch { kernel: self.kernel, spec: self.spec, push: self.push, grid, waits: false }
    }
}

/// An activation as kernels know it.
fn act_code(act: Act) -> usize {
    match act {
        Act::None => 0,
        Act::Gelu => 1,
        Act::Silu => 2,
    }
}

/// Bit set of the operands that are present.
fn flags(present: &[(bool, usize)]) -> usize {
    present.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum()
}

/// Kernels may load four neighbouring elements of this view at once.
fn by_fours(v: &View) -> bool {
    by(4, v)
}

/// Kernels may load `count` neighbouring elements of this view at once.
fn by(count: usize, v: &View) -> bool {
    let stride_fits = v.rows == 1 || v.stride.is_multiple_of(count);
    v.offset.is_multiple_of(count) && v.cols.is_multiple_of(count) && stride_fits
}
