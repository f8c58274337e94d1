//! The harness of the executors' tests: one-operation plans over random data, run on any executor and compared.
//!
//! [`cases`] lists every operation with many shapes; [`run_case`] runs one; [`compare`] judges. Tensors that an
//! operation writes are inputs filled with random values first, so that a write outside its view shows as well.

mod batches;
mod cases;

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::op::Op;
use super::{
    ComputeError, Executor, Output, Param, PlanBuilder, Precision, Run, Shape, StateLayout, Storage, Tensor, View,
    WeightSet,
};

pub use cases::cases;

/// How a tensor of a case reaches the executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Input,
    Weight(Storage),
    State,
    Picture,
}

/// One tensor of a case.
#[derive(Clone, Debug)]
struct Arg {
    source: Source,
    shape: Shape,
    written: bool,
}

/// A view that the operation gets: argument, offset, rows, columns, stride.
#[derive(Clone, Copy, Debug)]
struct Part {
    arg: usize,
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

/// Names a view of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(usize);

/// What an operation is made of when a case becomes a plan.
pub struct Parts<'a> {
    views: &'a [View],
    params: &'a [Param],
}

impl Parts<'_> {
    pub fn view(&self, handle: Handle) -> View {
        self.views[handle.0]
    }

    pub fn tensor(&self, handle: Handle) -> Tensor {
        self.views[handle.0].tensor
    }

    /// The `index`-th param of the case.
    pub fn param(&self, index: usize) -> Param {
        self.params[index]
    }
}

type Make = Box<dyn Fn(&Parts<'_>) -> Op + Send + Sync>;

/// One operation with its shapes and random data.
pub struct Case {
    pub name: String,
    args: Vec<Arg>,
    parts: Vec<Part>,
    params: Vec<u32>,
    /// Seats of the plan, and how many of them have a session.
    seats: usize,
    sessions: usize,
    make: Make,
    weights: Arc<WeightSet>,
}

/// Declares a case.
pub struct Declare {
    name: String,
    args: Vec<Arg>,
    parts: Vec<Part>,
    params: Vec<u32>,
    seats: usize,
    sessions: usize,
}

impl Declare {
    pub fn new(name: impl Into<String>) -> Declare {
        let name = name.into();
        Declare { name, args: Vec::new(), parts: Vec::new(), params: Vec::new(), seats: 1, sessions: 1 }
    }

    /// A plan of `seats` seats, in which `sessions` sessions sit. Inputs and outputs are declared with the rows of all
    /// seats; what the seats without a session compute is not compared. Params are one less with every seat.
    pub fn seats(&mut self, seats: usize, sessions: usize) {
        (self.seats, self.sessions) = (seats, sessions);
    }

    fn arg(&mut self, source: Source, dims: &[usize]) -> Handle {
        let shape = Shape::new(dims);
        self.args.push(Arg { source, shape, written: source == Source::Picture });
        let (rows, cols) = match source {
            Source::Picture => (1, shape.elements()),
            _ => (shape.rows(), shape.cols()),
        };
        self.parts.push(Part { arg: self.args.len() - 1, offset: 0, rows, cols, stride: cols });
        Handle(self.parts.len() - 1)
    }

    /// An activation of `[rows, cols]`.
    pub fn input(&mut self, rows: usize, cols: usize) -> Handle {
        self.arg(Source::Input, &[rows, cols])
    }

    /// Columns `from .. from + cols` of an activation of `[rows, stride]`.
    pub fn strided(&mut self, rows: usize, cols: usize, from: usize, stride: usize) -> Handle {
        let whole = self.input(rows, stride);
        self.columns(whole, from, cols)
    }

    /// Columns of a view declared before.
    pub fn columns(&mut self, of: Handle, from: usize, cols: usize) -> Handle {
        let part = self.parts[of.0];
        assert!(from + cols <= part.cols, "{}: columns {from}+{cols} of {}", self.name, part.cols);
        self.parts.push(Part { offset: part.offset + from, cols, ..part });
        Handle(self.parts.len() - 1)
    }

    /// Rows of a view declared before.
    pub fn rows(&mut self, of: Handle, from: usize, rows: usize) -> Handle {
        let part = self.parts[of.0];
        assert!(from + rows <= part.rows, "{}: rows {from}+{rows} of {}", self.name, part.rows);
        self.parts.push(Part { offset: part.offset + from * part.stride, rows, ..part });
        Handle(self.parts.len() - 1)
    }

    /// A weight in the plan's precision.
    pub fn matrix(&mut self, dims: &[usize]) -> Handle {
        self.arg(Source::Weight(Storage::Matrix), dims)
    }

    /// A weight that stays f32.
    pub fn vector(&mut self, dims: &[usize]) -> Handle {
        self.arg(Source::Weight(Storage::Vector), dims)
    }

    /// A tensor of the session's state, in the plan's precision.
    pub fn state(&mut self, dims: &[usize]) -> Handle {
        self.arg(Source::State, dims)
    }

    /// A picture of `len` bytes, written by the operation.
    pub fn picture(&mut self, len: usize) -> Handle {
        self.arg(Source::Picture, &[len])
    }

    /// A param with its value in the run.
    pub fn param(&mut self, value: u32) {
        self.params.push(value);
    }

    /// Closes the case; the tensors of `writes` are compared after a run.
    pub fn op<O: Into<Op>>(
        mut self,
        writes: &[Handle],
        make: impl Fn(&Parts<'_>) -> O + Send + Sync + 'static,
    ) -> Case {
        for handle in writes {
            self.args[self.parts[handle.0].arg].written = true;
        }
        Case {
            name: self.name,
            args: self.args,
            parts: self.parts,
            params: self.params,
            seats: self.seats,
            sessions: self.sessions,
            make: Box::new(move |parts| make(parts).into()),
            weights: Arc::new(WeightSet::default()),
        }
    }
}

/// Gives cases one weight set with the weights of all of them, for [`Executor::load_weights`].
pub fn share_weights(cases: &mut [Case]) -> Arc<WeightSet> {
    let mut set = WeightSet::default();
    for case in cases.iter() {
        for (i, arg) in case.args.iter().enumerate() {
            if let Source::Weight(storage) = arg.source {
                set.insert(case.weight_name(i), arg.shape.dims(), storage, case.values(i));
            }
        }
    }
    let set = Arc::new(set);
    for case in cases.iter_mut() {
        case.weights = Arc::clone(&set);
    }
    set
}

impl Case {
    /// The weights of the list this case is from; load them once into every executor.
    pub fn weights(&self) -> &Arc<WeightSet> {
        &self.weights
    }

    fn weight_name(&self, arg: usize) -> String {
        format!("{}/{arg}", self.name)
    }

    /// Params of every session.
    fn all_params(&self) -> Vec<u32> {
        let of = |seat: u32| self.params.iter().map(move |p| p.saturating_sub(seat).max(1.min(*p)));
        (0..self.sessions as u32).flat_map(of).collect()
    }

    /// [`Case::values`] of the state of a session.
    fn state_values(&self, arg: usize, session: usize) -> Vec<f32> {
        self.random(arg, session as u64)
    }

    /// Random values in [-1, 1) that depend on the case's name and the argument only.
    fn values(&self, arg: usize) -> Vec<f32> {
        self.random(arg, 0)
    }

    fn random(&self, arg: usize, session: u64) -> Vec<f32> {
        // FNV-1a: any stable hash does.
        let hash =
            self.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut rng = ChaCha8Rng::seed_from_u64(hash ^ arg as u64 ^ (session << 32));
        let unit = 1.0 / (1u32 << 23) as f32;
        (0..self.args[arg].shape.elements()).map(|_| (rng.next_u32() >> 8) as f32 * unit - 1.0).collect()
    }
}

/// A tensor after a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    Bytes(Vec<u8>),
}

/// Runs a case on an executor that has loaded [`Case::weights`] and returns every tensor that it writes, whole.
/// Errors: whatever the plan's checks or the executor report.
pub fn run_case(case: &Case, executor: &mut dyn Executor, precision: Precision) -> Result<Vec<Values>, ComputeError> {
    let mut layout = StateLayout::default();
    let states: Vec<Option<usize>> = case
        .args
        .iter()
        .enumerate()
        .map(|(i, a)| {
            (a.source == Source::State).then(|| layout.add(format!("state{i}"), a.shape.dims(), precision.dtype()))
        })
        .collect();
    let layout = Arc::new(layout);
    let mut b = PlanBuilder::new(case.name.clone(), precision, Arc::clone(&case.weights), Arc::clone(&layout))
        .for_seats(case.seats);
    let mut tensors = Vec::new();
    for (i, arg) in case.args.iter().enumerate() {
        tensors.push(match arg.source {
            Source::Input => b.input(&format!("arg{i}"), arg.shape.dims(), precision.dtype()),
            Source::Weight(_) => b.weight(&case.weight_name(i))?,
            Source::State => b.state(states[i].unwrap_or_default()),
            Source::Picture => b.bytes(&format!("arg{i}"), arg.shape.elements()),
        });
    }
    let view =
        |p: &Part| View { tensor: tensors[p.arg], offset: p.offset, rows: p.rows, cols: p.cols, stride: p.stride };
    let views: Vec<View> = case.parts.iter().map(view).collect();
    let params: Vec<Param> = case.params.iter().map(|_| b.param()).collect();
    b.push("op", (case.make)(&Parts { views: &views, params: &params }))?;
    for (arg, &t) in case.args.iter().zip(&tensors) {
        if arg.written && arg.source != Source::State {
            b.output(t);
        }
    }
    let plan = executor.prepare(Arc::new(b.finish()?))?;
    let mut sessions = Vec::new();
    for session in 0..case.sessions {
        let state = executor.create_state(&layout)?;
        for (i, index) in states.iter().enumerate() {
            if let Some(index) = *index {
                executor.write_state(state, index, &case.state_values(i, session))?;
            }
        }
        sessions.push(state);
    }

    let data: Vec<Vec<f32>> = (0..case.args.len()).map(|i| case.values(i)).collect();
    let mut inputs: Vec<(Tensor, &[f32])> = Vec::new();
    for i in (0..case.args.len()).filter(|i| case.args[*i].source == Source::Input) {
        let seats = data[i].chunks_exact(data[i].len() / case.seats);
        inputs.extend(seats.take(case.sessions).map(|values| (tensors[i], values)));
    }
    let mut results: Vec<Option<Values>> = case.args.iter().map(|arg| room(arg, case)).collect();
    let mut outputs: Vec<(Tensor, Output<'_>)> = Vec::new();
    for (i, result) in results.iter_mut().enumerate() {
        let (t, of_state) = (tensors[i], case.args[i].source == Source::State);
        match result {
            Some(Values::F32(v)) if !of_state => {
                let each = v.len() / case.sessions;
                outputs.extend(v.chunks_exact_mut(each).map(|v| (t, Output::F32(v))));
            }
            Some(Values::Bytes(v)) => {
                let each = v.len() / case.sessions;
                outputs.extend(v.chunks_exact_mut(each).map(|v| (t, Output::Bytes(v))));
            }
            _ => {}
        }
    }
    let (outputs, params) = (&mut outputs[..], &case.all_params()[..]);
    executor.run(Run { plan, states: &sessions, inputs: &inputs, params, outputs, profile: None })?;
    for (result, index) in results.iter_mut().zip(&states) {
        if let (Some(Values::F32(v)), Some(index)) = (result, *index) {
            let each = v.len() / case.sessions;
            for (part, state) in v.chunks_exact_mut(each).zip(&sessions) {
                executor.read_state(*state, index, part)?;
            }
        }
    }
    sessions.into_iter().for_each(|state| executor.destroy_state(state));
    Ok(results.into_iter().flatten().collect())
}

/// Space for what an argument holds after the run; `None` if it is only read.
fn room(arg: &Arg, case: &Case) -> Option<Values> {
    let n = match arg.source {
        Source::State => arg.shape.elements() * case.sessions,
        _ => arg.shape.elements() / case.seats * case.sessions,
    };
    arg.written.then(|| match arg.source {
        Source::Picture => Values::Bytes(vec![0; n]),
        _ => Values::F32(vec![0.0; n]),
    })
}

/// Largest deviation between two runs of a case. Values `a` and `b` deviate by `|a - b| / (1 + |a|)`; bytes by their
/// difference, of which 1 is free since a sum in another order may round to the other side.
/// Errors: a sentence naming the case and the first element that deviates by more than `tolerance`.
pub fn compare(case: &Case, expected: &[Values], got: &[Values], tolerance: f32) -> Result<f32, String> {
    if expected.len() != got.len() {
        return Err(format!("{}: {} outputs, expected {}", case.name, got.len(), expected.len()));
    }
    let mut worst = 0.0f32;
    for (n, pair) in expected.iter().zip(got).enumerate() {
        let deviations: Vec<f32> = match pair {
            (Values::F32(a), Values::F32(b)) if a.len() == b.len() => {
                a.iter().zip(b).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).collect()
            }
            (Values::Bytes(a), Values::Bytes(b)) if a.len() == b.len() => {
                a.iter().zip(b).map(|(a, b)| f32::from(a.abs_diff(*b).saturating_sub(1))).collect()
            }
            _ => return Err(format!("{}: output {n} has another type or length", case.name)),
        };
        let max = deviations.iter().fold(0.0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(*d) });
        let bad = |d: &f32| d.is_nan() || *d > tolerance;
        if let Some(i) = deviations.iter().position(bad) {
            let (want, have) = match pair {
                (Values::F32(a), Values::F32(b)) => (a[i].to_string(), b[i].to_string()),
                (Values::Bytes(a), Values::Bytes(b)) => (a[i].to_string(), b[i].to_string()),
                _ => Default::default(),
            };
            let count = deviations.iter().filter(|d| bad(d)).count();
            return Err(format!(
                "{}: output {n} differs first at {i}: {have}, expected {want}; {count} of {} elements, worst {max:e}, \
                 tolerance {tolerance:e}",
                case.name,
                deviations.len()
            ));
        }
        worst = worst.max(max);
    }
    Ok(worst)
}

/// Runs every case on two executors that get the cases' weights first. Returns the number of cases and the worst
/// deviation.
/// Errors: one line for each case that fails.
pub fn check(
    cases: &[Case],
    expected: &mut dyn Executor,
    got: &mut dyn Executor,
    precision: Precision,
    tolerance: f32,
) -> Result<(usize, f32), String> {
    if let Some(case) = cases.first() {
        expected.load_weights(case.weights()).map_err(|e| format!("weights: {e}"))?;
        got.load_weights(case.weights()).map_err(|e| format!("weights: {e}"))?;
    }
    let mut worst = 0.0f32;
    let mut failures = Vec::new();
    for case in cases {
        let a = run_case(case, expected, precision).map_err(|e| format!("{}: {e}", case.name))?;
        let judged = run_case(case, got, precision)
            .map_err(|e| format!("{}: {e}", case.name))
            .and_then(|b| compare(case, &a, &b, tolerance));
        match judged {
            Ok(max) => worst = worst.max(max),
            Err(e) => failures.push(e),
        }
    }
    if failures.is_empty() { Ok((cases.len(), worst)) } else { Err(failures.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::reference::ReferenceExecutor;

    /// Every value of every case, changed a little, must fail the comparison: also outside the views, where an
    /// operation must leave what was there.
    #[test]
    fn a_wrong_value_is_noticed_in_every_case() {
        let cases = cases();
        let mut executor = ReferenceExecutor::new(Precision::F32);
        executor.load_weights(cases[0].weights()).expect("the reference takes any weights");
        for case in &cases {
            let right = run_case(case, &mut executor, Precision::F32).expect("cases are valid plans");
            assert_eq!(compare(case, &right, &right, 0.0), Ok(0.0));
            for n in 0..right.len() {
                let len = match &right[n] {
                    Values::F32(v) => v.len(),
                    Values::Bytes(v) => v.len(),
                };
                for at in [0, len / 2, len - 1] {
                    let mut wrong = right.clone();
                    match &mut wrong[n] {
                        Values::F32(v) => v[at] += 3e-4 * (1.0 + v[at].abs()),
                        Values::Bytes(v) => v[at] = v[at].wrapping_add(2),
                    }
                    let message = compare(case, &right, &wrong, 1e-4).expect_err("one value is wrong");
                    assert!(message.contains(&format!("differs first at {at}: ")), "{message}");
                }
            }
            let nan = right.iter().map(|v| match v {
                Values::F32(v) => Values::F32(vec![f32::NAN; v.len()]),
                Values::Bytes(v) => Values::Bytes(v.iter().map(|b| b ^ 128).collect()),
            });
            compare(case, &right, &nan.collect::<Vec<_>>(), 1e-4).expect_err("not a number is wrong");
        }
    }

    #[test]
    fn an_operation_that_does_something_else_is_noticed() {
        use crate::compute::op::{Act, Map};
        let act = |name: &str, act: Act| {
            let mut d = Declare::new(name);
            let (x, y) = (d.input(3, 5), d.input(3, 5));
            d.op(&[y], move |p| Map { x: p.view(x), act, y: p.view(y) })
        };
        let mut executor = ReferenceExecutor::new(Precision::F32);
        let (silu, none) = (act("same data", Act::Silu), act("same data", Act::None));
        executor.load_weights(silu.weights()).expect("the reference takes any weights");
        let a = run_case(&silu, &mut executor, Precision::F32).expect("a valid plan");
        let b = run_case(&none, &mut executor, Precision::F32).expect("a valid plan");
        compare(&silu, &a, &b, 1e-2).expect_err("silu is not the identity");
    }
}
