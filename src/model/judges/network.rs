//! The judges' networks, recorded into plans: space to channel by 2, stages of residual blocks, each at half the size
//! of the one before, made of what the autoencoder is made of.
//!
//! P places of a stage; C channels; D channels of the last stage; J joints.

use std::sync::Arc;

use super::Part;
use super::config::JudgeConfig;
use crate::compute::op::{Act, Add};
use crate::compute::{
    ComputeError, Executor, Output, Plan, PlanId, Precision, Run, StateId, StateLayout, Storage, Tensor, View,
    WeightSet,
};
use crate::model::ModelError;
use crate::model::net::{Fuse, Net};
use crate::model::vae;
use crate::model::weights::{Expected, HostTensors, Kind};

/// The stage whose features the pose judge enlarges, to add them to those of the one before.
const POSE_STAGE: usize = 2;

/// The tensors of a judge's file.
pub fn expected(c: &JudgeConfig, part: Part) -> Vec<Expected> {
    let mut all = Vec::new();
    vae::conv3x3(&mut all, "trunk.conv_in", c.channels[0], 4 * c.in_channels);
    for (s, &width) in c.channels.iter().enumerate() {
        if s > 0 {
            vae::pointwise(&mut all, &format!("trunk.down.{s}.downsample.conv"), width, 4 * c.channels[s - 1]);
        }
        for j in 0..c.blocks[s] {
            vae::residual(&mut all, &format!("trunk.down.{s}.block.{j}"), width);
        }
    }
    let places = place_stage(c, part);
    let (height, width) = c.size_at(places);
    all.push(Expected::new("position", &[1, c.channels[places], height, width], Kind::Host));
    let last = if part == Part::Pose { c.channels[POSE_STAGE - 1] } else { c.channels[places] };
    if part == Part::Pose {
        vae::pointwise(&mut all, "up.upsample.conv", 4 * last, c.channels[POSE_STAGE]);
        vae::residual(&mut all, "up.block.0", last);
        vae::pointwise(&mut all, "heat", c.joints, last);
    } else {
        vae::residual(&mut all, "mix.block.0", last);
    }
    all.push(Expected::new("norm_out.weight", &[last], Kind::Vector));
    let head = head_name(part);
    all.push(Expected::new(format!("{head}.weight"), &[c.outputs(), last], Kind::Host));
    all.push(Expected::new(format!("{head}.bias"), &[c.outputs()], Kind::Host));
    all
}

/// The stage to whose features a learned map of places is added.
fn place_stage(c: &JudgeConfig, part: Part) -> usize {
    if part == Part::Pose { POSE_STAGE } else { c.channels.len() - 1 }
}

fn head_name(part: Part) -> &'static str {
    if part == Part::Pose { "seen" } else { "head" }
}

/// The last layer of a judge: it works on the mean over all places, which the host takes.
#[derive(Clone, Debug)]
pub struct Head {
    /// [outputs, D] and [outputs].
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Head {
    /// Takes the head out of the tensors on the host, and puts the map of places into the set.
    pub fn new(c: &JudgeConfig, part: Part, mut host: HostTensors, set: &mut WeightSet) -> Head {
        let stage = place_stage(c, part);
        let (channels, (height, width)) = (c.channels[stage], c.size_at(stage));
        let map = host.remove("position").unwrap_or_default(); // [1, C, h, w]
        let places = height * width;
        let rows: Vec<f32> =
            (0..places).flat_map(|p| (0..channels).map(move |k| k * places + p)).map(|i| map[i]).collect();
        set.insert(format!("{}.position", part.name()), &[places, channels], Storage::Matrix, rows);
        let mut take = |name: &str| host.remove(&format!("{}.{name}", head_name(part))).unwrap_or_default();
        Head { weight: take("weight"), bias: take("bias") }
    }

    /// Features [D] to one number for each output.
    pub fn apply(&self, features: &[f32]) -> Vec<f32> {
        let row = |(w, b): (&[f32], &f32)| b + w.iter().zip(features).map(|(w, x)| w * x).sum::<f32>();
        self.weight.chunks_exact(features.len()).zip(&self.bias).map(row).collect()
    }
}

/// Mean over the places of features [P, D]: [D].
pub fn mean(features: &[f32], channels: usize) -> Vec<f32> {
    let mut sums = vec![0.0; channels];
    for row in features.chunks_exact(channels) {
        sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
    }
    let places = (features.len() / channels).max(1) as f32;
    sums.iter().map(|s| s / places).collect()
}

/// A judge's plan, ready to run.
pub struct Network {
    plan: Arc<Plan>,
    id: PlanId,
    /// [96 * 160, in_channels].
    input: Tensor,
    /// Features [P, D]; the pose judge's heat maps [P, J] come after them.
    outputs: Vec<Tensor>,
}

impl Network {
    /// Records and prepares a judge's plan.
    pub fn new(
        c: &JudgeConfig,
        part: Part,
        executor: &mut dyn Executor,
        (weights, layout): (&Arc<WeightSet>, &Arc<StateLayout>),
    ) -> Result<Network, ComputeError> {
        let precision: Precision = executor.device().precision;
        let mut net = Net::new(&format!("judge {}", part.name()), precision, weights, layout, false);
        let input = net.builder().input("pixels", &[c.height * c.width, c.in_channels], precision.dtype());
        let x = net.view(input);
        let outputs = net.at(part.name(), |net| forward(net, c, part, x))?;
        outputs.iter().for_each(|view| net.builder().output(view.tensor));
        let plan = net.finish()?.plan;
        let id = executor.prepare(plan.clone())?;
        Ok(Network { plan, id, input, outputs: outputs.iter().map(|view| view.tensor).collect() })
    }

    /// Values of the outputs for pixels [96 * 160, in_channels].
    pub fn run(
        &self,
        executor: &mut dyn Executor,
        state: StateId,
        pixels: &[f32],
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let room = |t: &Tensor| vec![0.0; self.plan.tensors.shape(*t).elements()];
        let mut values: Vec<Vec<f32>> = self.outputs.iter().map(room).collect();
        let mut outputs: Vec<_> = self.outputs.iter().zip(&mut values).map(|(t, v)| (*t, Output::F32(v))).collect();
        let inputs = [(self.input, pixels)];
        executor.run(Run {
            plan: self.id,
            states: &[state],
            inputs: &inputs,
            params: &[],
            outputs: &mut outputs,
            profile: None,
        })?;
        Ok(values)
    }
}

fn forward(net: &mut Net, c: &JudgeConfig, part: Part, pixels: View) -> Result<Vec<View>, ComputeError> {
    let eps = c.norm_eps;
    let stages = net.at("trunk", |net| trunk(net, c, pixels))?;
    let place = place_stage(c, part);
    let mut h = stages[place]; // [P, C]
    let position = net.weight("position")?;
    let b = net.view(position); // [P, C]
    net.push("position", Add { a: h, b, y: h })?;
    if part == Part::Pose {
        let before = stages[POSE_STAGE - 1]; // [4P, C1]
        h = net.at("up", |net| vae::upsampled(net, h, c.size_at(POSE_STAGE), before.cols))?; // [4P, C1]
        net.push("up.add", Add { a: h, b: before, y: h })?;
        net.at("up.block.0", |net| vae::block(net, eps, h, c.size_at(POSE_STAGE - 1)))?;
    } else {
        net.at("mix.block.0", |net| vae::block(net, eps, h, c.size_at(place)))?;
    }
    let y = net.weighted_norm("norm_out", h, Act::Silu, eps)?; // [P, D]
    if part != Part::Pose {
        return Ok(vec![y]);
    }
    let heat = net.linear("heat", y, Fuse::default())?; // [P, J]
    Ok(vec![y, heat])
}

/// The features of each stage: [48 / 2^s * 80 / 2^s, C].
fn trunk(net: &mut Net, c: &JudgeConfig, pixels: View) -> Result<Vec<View>, ComputeError> {
    let mut size = (c.height / 2, c.width / 2);
    let x = vae::unshuffle(net, pixels, (c.height, c.width), 2)?; // [48 * 80, 4 * in_channels]
    let mut x = net.conv3x3("conv_in", x, size, Act::None)?; // [P, C0]
    let mut stages = Vec::new();
    for s in 0..c.channels.len() {
        let stage = format!("down.{s}");
        if s > 0 {
            x = net.at(&stage, |net| vae::downsample(net, x, size, c.channels[s]))?; // [P / 4, C]
            size = c.size_at(s);
        }
        for j in 0..c.blocks[s] {
            net.at(&format!("{stage}.block.{j}"), |net| vae::block(net, c.norm_eps, x, size))?;
        }
        stages.push(x);
    }
    Ok(stages)
}
