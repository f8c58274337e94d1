//! What the modules share: layers by their checkpoint names, recorded into a plan.
//!
//! Views are `[rows, columns]`: tokens or pixels by channels.

use std::sync::Arc;

use crate::compute::op::{
    Act, Attention, Conv3x3, Copy, Groups, HeadNorm, Linear, Norm, NormKind, Op, RingAttention, RingWrite, Rope,
};
use crate::compute::{ComputeError, Param, Plan, PlanBuilder, Precision, StateLayout, Tensor, View, WeightSet};

/// What a matrix product does besides: `y = res + gate * act(x W^T + bias)`.
#[derive(Clone, Copy)]
pub struct Fuse {
    pub act: Act,
    pub gate: Option<View>,
    pub res: Option<View>,
    /// Where the result goes; a new temporary by default.
    pub into: Option<View>,
}

impl Default for Fuse {
    fn default() -> Fuse {
        Fuse { act: Act::None, gate: None, res: None, into: None }
    }
}

impl Fuse {
    pub fn act(act: Act) -> Fuse {
        Fuse { act, ..Fuse::default() }
    }

    /// Adds to `h` in place, times a gate if there is one.
    pub fn add_to(h: View, gate: Option<View>) -> Fuse {
        Fuse { gate, res: Some(h), into: Some(h), ..Fuse::default() }
    }

    /// Writes into `y`.
    pub fn into(y: View) -> Fuse {
        Fuse { into: Some(y), ..Fuse::default() }
    }
}

/// A finished plan with the intermediate values that were asked for.
pub struct Recorded {
    pub plan: Arc<Plan>,
    /// Name and tensor of every probe; empty unless the plan was recorded with probes.
    pub probes: Vec<(String, Tensor)>,
}

/// A plan under construction, at some place in the tree of modules.
pub struct Net {
    builder: PlanBuilder,
    weights: Arc<WeightSet>,
    /// Where in the tree of weights names are looked up, such as `transformer.transformer_blocks.0.`.
    path: String,
    /// What stands before the names of steps, such as `step 1: `.
    pub label: String,
    probes: Option<Vec<(String, Tensor)>>,
}

impl Net {
    /// `probing`: keep the values that modules name by [`Net::probe`] and make them outputs.
    pub fn new(
        name: &str,
        precision: Precision,
        weights: &Arc<WeightSet>,
        state: &Arc<StateLayout>,
        probing: bool,
    ) -> Net {
        Net::for_seats(name, precision, (weights, state), probing, 1)
    }

    /// A plan for several sessions at once. Everywhere below the rows of all of them follow one another, seat by seat.
    pub fn for_seats(
        name: &str,
        precision: Precision,
        (weights, state): (&Arc<WeightSet>, &Arc<StateLayout>),
        probing: bool,
        seats: usize,
    ) -> Net {
        Net {
            builder: PlanBuilder::new(name, precision, weights.clone(), state.clone()).for_seats(seats),
            weights: weights.clone(),
            path: String::new(),
            label: String::new(),
            probes: probing.then(Vec::new),
        }
    }

    /// Runs `build` with `part` appended to the path of weights.
    pub fn at<R>(&mut self, part: &str, build: impl FnOnce(&mut Net) -> R) -> R {
        let length = self.path.len();
        self.path.push_str(part);
        self.path.push('.');
        let result = build(self);
        self.path.truncate(length);
        result
    }

    /// Records an operation under its place in the tree.
    pub fn push(&mut self, name: &str, op: impl Into<Op>) -> Result<(), ComputeError> {
        let name = format!("{}{}{name}", self.label, self.path);
        self.builder.push(&name, op)
    }

    /// A temporary of `rows` x `cols`.
    pub fn temp(&mut self, name: &str, rows: usize, cols: usize) -> View {
        let t = self.builder.temp(&format!("{}{name}", self.path), &[rows, cols]);
        self.builder.view(t)
    }

    /// The whole of a tensor as a matrix.
    pub fn view(&self, t: Tensor) -> View {
        self.builder.view(t)
    }

    /// Sessions of the plan.
    pub fn seats(&self) -> usize {
        self.builder.tensors().seats()
    }

    /// What every seat's session has in its state [R, C], one after the other [seats * R, C]. With one seat it is the
    /// state itself, else a copy of it.
    pub fn gather(&mut self, name: &str, state: View) -> Result<View, ComputeError> {
        if self.seats() == 1 {
            return Ok(state);
        }
        let y = self.temp(name, self.seats() * state.rows, state.cols);
        self.push(&format!("{name}.gather"), Copy { x: state, y })?;
        Ok(y)
    }

    /// A tensor of the session's state as a matrix.
    pub fn state(&mut self, index: usize) -> View {
        let t = self.builder.state(index);
        self.builder.view(t)
    }

    /// The recorder itself, for inputs, outputs and parameters.
    pub fn builder(&mut self) -> &mut PlanBuilder {
        &mut self.builder
    }

    /// A weight at this place.
    pub fn weight(&mut self, name: &str) -> Result<Tensor, ComputeError> {
        self.builder.weight(&format!("{}{name}", self.path))
    }

    fn optional(&mut self, name: &str) -> Option<Tensor> {
        let full = format!("{}{name}", self.path);
        self.weights.find(&full)?;
        self.builder.weight(&full).ok()
    }

    /// `name.weight` [N, K] and, where the model has it, `name.bias` [N]: `x` [M, K] -> [M, N].
    pub fn linear(&mut self, name: &str, x: View, fuse: Fuse) -> Result<View, ComputeError> {
        let bias = self.optional(&format!("{name}.bias"));
        self.matrix(name, &format!("{name}.weight"), bias, x, fuse)
    }

    /// As [`Net::linear`] with the weight's own name and a bias given by hand.
    pub fn matrix(
        &mut self,
        name: &str,
        weight: &str,
        bias: Option<Tensor>,
        x: View,
        fuse: Fuse,
    ) -> Result<View, ComputeError> {
        let w = self.weight(weight)?;
        let n = self.builder.tensors().shape(w).rows();
        let y = fuse.into.unwrap_or_else(|| self.temp(name, x.rows, n));
        self.push(name, Linear { x, w, bias, act: fuse.act, gate: fuse.gate, res: fuse.res, y })?;
        Ok(y)
    }

    /// `name.weight` [Cout, 3, 3, Cin] and `name.bias`: `x` [h * w, Cin] -> [h * w, Cout], for one picture or more.
    pub fn conv3x3(
        &mut self,
        name: &str,
        x: View,
        (height, width): (usize, usize),
        act: Act,
    ) -> Result<View, ComputeError> {
        let w = self.weight(&format!("{name}.weight"))?;
        let bias = self.optional(&format!("{name}.bias"));
        let n = self.builder.tensors().shape(w).dims()[0];
        let y = self.temp(name, x.rows, n);
        self.push(name, Conv3x3 { x, height, width, w, bias, act, res: None, y })?;
        Ok(y)
    }

    /// Row-wise RMS normalisation of `x` [M, D] into a new temporary.
    pub fn norm(&mut self, name: &str, x: View, kind: NormKind, eps: f32) -> Result<View, ComputeError> {
        let y = self.temp(name, x.rows, x.cols);
        self.push(name, Norm { x, kind, eps, y })?;
        Ok(y)
    }

    /// [`Net::norm`] with the weight `name.weight` [D].
    pub fn weighted_norm(&mut self, name: &str, x: View, act: Act, eps: f32) -> Result<View, ComputeError> {
        let weight = Some(self.weight(&format!("{name}.weight"))?);
        self.norm(name, x, NormKind::Weight { weight, act }, eps)
    }

    /// RMS normalisation of every head of `x` in place, times `name.weight` [hd], then rotary positions.
    pub fn head_norm(
        &mut self,
        name: &str,
        x: View,
        heads: usize,
        rope: Option<Rope>,
        eps: f32,
    ) -> Result<(), ComputeError> {
        let weight = self.weight(&format!("{name}.weight"))?;
        self.push(name, HeadNorm { x, heads, weight, rope, eps })
    }

    /// Attention of `q` [Lq, D] to the first `key_count` rows of `k` and `v` [Lk, D], into a new temporary; with
    /// several seats each attends to its own.
    pub fn attention(
        &mut self,
        q: View,
        (k, v): (View, View),
        heads: usize,
        scale: f32,
        key_count: Option<Param>,
        bias: Option<Tensor>,
    ) -> Result<View, ComputeError> {
        let y = self.temp("attention", q.rows, q.cols);
        let groups = Groups::blocks(self.seats());
        self.push("attention", Attention { q, k, v, heads, scale, key_count, bias, groups, y })?;
        Ok(y)
    }

    /// Puts `k` and `v` [N, D] into slot `slot` of the rings, then attends with `q` to the first `count` slots.
    pub fn ring_attention(
        &mut self,
        q: View,
        (k, v): (View, View),
        (k_ring, v_ring): (usize, usize),
        heads: usize,
        (slot, count): (Param, Param),
    ) -> Result<View, ComputeError> {
        for (name, x, ring) in [("ring_k", k, k_ring), ("ring_v", v, v_ring)] {
            let whole = self.state(ring);
            self.push(name, RingWrite { x, ring: whole.tensor, slot, whole })?;
        }
        let (k_ring, v_ring) = (self.state(k_ring).tensor, self.state(v_ring).tensor);
        let y = self.temp("ring_attention", q.rows, q.cols);
        let scale = 1.0 / ((q.cols / heads) as f32).sqrt();
        self.push("ring_attention", RingAttention { q, k_ring, v_ring, heads, scale, count, y })?;
        Ok(y)
    }

    /// Names an intermediate value. Does nothing unless the plan is recorded with probes.
    pub fn probe(&mut self, name: &str, x: View) -> Result<(), ComputeError> {
        if self.probes.is_none() {
            return Ok(());
        }
        // A copy, since the value may be updated in place later.
        let y = self.temp("probe", x.rows, x.cols);
        self.push(&format!("probe {name}"), Copy { x, y })?;
        self.builder.output(y.tensor);
        if let Some(probes) = &mut self.probes {
            probes.push((name.to_string(), y.tensor));
        }
        Ok(())
    }

    /// Closes the plan.
    pub fn finish(self) -> Result<Recorded, ComputeError> {
        Ok(Recorded { plan: Arc::new(self.builder.finish()?), probes: self.probes.unwrap_or_default() })
    }
}
