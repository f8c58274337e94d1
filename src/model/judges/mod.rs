//! Judges of pictures: small networks that were trained on rendered frames only and tell what a frame shows. They
//! measure the model (see [`eval`](super::eval)), and the pose judge finds the joints that a pose prompt is drawn from.
//!
//! Attributes are read from single frames, keys from several consecutive ones, joints from single frames, all from
//! pictures of 160x96. Judges run on an executor of their own: no session waits for them.

mod config;
mod network;
mod small;

use std::path::Path;
use std::sync::Arc;

use super::ModelError;
use super::video_prompt::{Joint, Picture, pose_picture};
use super::weights::Loader;
use crate::compute::cpu::CpuExecutor;
use crate::compute::{DType, Executor, StateId, StateLayout};
use config::JudgeConfig;
pub use config::{HEIGHT, WIDTH};
use network::{Head, Network};
pub use small::Small;

/// Folder of all judges in a model folder.
pub const FOLDER: &str = "judges";
const STEM: &str = "diffusion_pytorch_model";

/// One of the judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Attributes,
    Keys,
    Pose,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Attributes, Part::Keys, Part::Pose];

    /// Folder of the judge, and the first part of the names of its weights.
    pub fn name(self) -> &'static str {
        match self {
            Part::Attributes => "attributes",
            Part::Keys => "keys",
            Part::Pose => "pose",
        }
    }

    /// Its two files below the folder of all judges.
    pub fn config_file(self) -> String {
        format!("{}/config.json", self.name())
    }

    pub fn weights_file(self) -> String {
        format!("{}/{STEM}.safetensors", self.name())
    }

    /// True if the folder of all judges has this one.
    pub fn is_in(self, dir: &Path) -> bool {
        [self.config_file(), self.weights_file()].iter().all(|name| dir.join(name).is_file())
    }
}

/// A judge that is ready.
struct Judge {
    part: Part,
    config: JudgeConfig,
    network: Network,
    head: Head,
}

/// Some judges on one executor.
pub struct Judges {
    executor: Box<dyn Executor>,
    state: StateId,
    judges: Vec<Judge>,
}

impl Judges {
    /// Reads judges from the folder that holds one folder for each. Errors: the file, field or tensor that is missing
    /// or wrong; errors of the device.
    pub fn load(dir: &Path, parts: &[Part], executor: Box<dyn Executor>) -> Result<Judges, ModelError> {
        let mut loader = Loader::new();
        let mut read = Vec::new();
        for &part in parts {
            let config = JudgeConfig::load(dir, part)?;
            let host = loader.component(dir, part.name(), STEM, &network::expected(&config, part))?;
            let head = Head::new(&config, part, host, loader.set());
            read.push((part, config, head));
        }
        Judges::prepare(loader, read, executor)
    }

    /// One judge from the bytes of its two files, for a process that opens none, on one thread of the processor. `dir`
    /// is where they came from, for messages. Errors: as [`Judges::load`].
    pub fn from_bytes(dir: &Path, part: Part, config: &[u8], weights: Vec<u8>) -> Result<Judges, ModelError> {
        let mut loader = Loader::new();
        let config = JudgeConfig::parse(dir, part, config)?;
        let path = dir.join(part.weights_file());
        let host = loader.file(part.name(), &path, weights, &network::expected(&config, part))?;
        let head = Head::new(&config, part, host, loader.set());
        Judges::prepare(loader, vec![(part, config, head)], Box::new(CpuExecutor::new(1)?))
    }

    fn prepare(
        loader: Loader,
        read: Vec<(Part, JudgeConfig, Head)>,
        mut executor: Box<dyn Executor>,
    ) -> Result<Judges, ModelError> {
        let weights = Arc::new(loader.finish().0);
        executor.load_weights(&weights)?;
        let mut layout = StateLayout::default();
        layout.add("unused", &[1], DType::F32);
        let layout = Arc::new(layout);
        let state = executor.create_state(&layout)?;
        let mut judges = Vec::new();
        for (part, config, head) in read {
            let network = Network::new(&config, part, &mut *executor, (&weights, &layout))?;
            judges.push(Judge { part, config, network, head });
        }
        Ok(Judges { executor, state, judges })
    }

    fn judge(&self, part: Part) -> Result<usize, ModelError> {
        self.judges.iter().position(|j| j.part == part).ok_or_else(|| {
            let names: Vec<&str> = self.judges.iter().map(|j| j.part.name()).collect();
            let allowed = format!("one of those that were read: {names:?}");
            ModelError::Request { field: "judge", found: part.name().to_string(), allowed }
        })
    }

    fn run(&mut self, judge: usize, pixels: &[f32]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.judges[judge].network.run(&mut *self.executor, self.state, pixels)
    }

    /// Names of the attributes with those of their values, in the order of [`Judges::logits`].
    pub fn attributes(&self) -> Result<&[(String, Vec<String>)], ModelError> {
        Ok(&self.judges[self.judge(Part::Attributes)?].config.attributes)
    }

    /// Features of a frame before the attribute judge's last layer [D].
    pub fn features(&mut self, frame: &Small) -> Result<Vec<f32>, ModelError> {
        let judge = self.judge(Part::Attributes)?;
        let outputs = self.run(judge, &frame.pixels)?;
        let channels = self.judges[judge].config.channels[self.judges[judge].config.channels.len() - 1];
        Ok(network::mean(&outputs[0], channels))
    }

    /// Logits of all values of all attributes of a frame from its features.
    pub fn logits(&self, features: &[f32]) -> Result<Vec<f32>, ModelError> {
        Ok(self.judges[self.judge(Part::Attributes)?].head.apply(features))
    }

    /// Frames that the keys judge sees at once.
    pub fn window(&self) -> Result<usize, ModelError> {
        Ok(self.judges[self.judge(Part::Keys)?].config.window)
    }

    /// Names of the keys in the order of [`Judges::keys`].
    pub fn key_names(&self) -> Result<&[String], ModelError> {
        Ok(&self.judges[self.judge(Part::Keys)?].config.keys)
    }

    /// Logits of the keys that were held over each window of consecutive frames.
    pub fn keys(&mut self, frames: &[Small]) -> Result<Vec<Vec<f32>>, ModelError> {
        let judge = self.judge(Part::Keys)?;
        let config = &self.judges[judge].config;
        let (window, channels) = (config.window, config.channels[config.channels.len() - 1]);
        let planes: Vec<Vec<f32>> = match config.luma {
            Some(weights) => frames.iter().map(|f| f.luma(weights).collect()).collect(),
            None => frames.iter().map(|f| f.pixels.clone()).collect(),
        };
        let mut all = Vec::new();
        for planes in planes.windows(window) {
            let per = planes[0].len() / (WIDTH * HEIGHT);
            let places = 0..WIDTH * HEIGHT;
            let pixels: Vec<f32> =
                places.flat_map(|p| planes.iter().flat_map(move |plane| &plane[p * per..][..per])).copied().collect();
            let features = network::mean(&self.run(judge, &pixels)?[0], channels);
            all.push(self.judges[judge].head.apply(&features));
        }
        Ok(all)
    }

    /// Joints of the figure in a picture: places as shares of the judged picture's sides, and the logit of being seen.
    pub fn joints(&mut self, frame: &Small) -> Result<Vec<[f32; 3]>, ModelError> {
        let judge = self.judge(Part::Pose)?;
        let outputs = self.run(judge, &frame.pixels)?;
        let judge = &self.judges[judge];
        let (height, width) = judge.config.size_at(1);
        let (joints, channels) = (judge.config.joints, outputs[0].len() / (height * width));
        let seen = judge.head.apply(&network::mean(&outputs[0], channels));
        Ok((0..joints).map(|j| place(&outputs[1], (joints, j), (height, width), seen[j])).collect())
    }

    /// The pose of the figure in a picture as a control picture.
    pub fn pose(&mut self, picture: &Picture) -> Result<Picture, ModelError> {
        Ok(pose_picture(&self.figure(picture)?, picture.width(), picture.height()))
    }

    /// Joints of the figure in a picture of a size that [`Small`] takes, in its pixels.
    pub fn figure(&mut self, picture: &Picture) -> Result<Vec<Joint>, ModelError> {
        let small = Small::new(picture)?;
        let (factor, border) = (small.factor as f32, small.border as f32);
        let joint = |[x, y, seen]: [f32; 3]| Joint {
            x: x * WIDTH as f32 * factor,
            y: (y * HEIGHT as f32 - border) * factor,
            seen: seen > 0.0,
        };
        Ok(self.joints(&small)?.into_iter().map(joint).collect())
    }
}

/// The mean place under heat map `j` of `heat` [h * w, joints] after a softmax over its places.
fn place(heat: &[f32], (joints, j): (usize, usize), (height, width): (usize, usize), seen: f32) -> [f32; 3] {
    let column = || heat.iter().skip(j).step_by(joints);
    let largest = column().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let (mut total, mut x, mut y) = (0.0, 0.0, 0.0);
    for (i, value) in column().enumerate() {
        let weight = (value - largest).exp();
        total += weight;
        x += weight * ((i % width) as f32 + 0.5) / width as f32;
        y += weight * ((i / width) as f32 + 0.5) / height as f32;
    }
    [x / total, y / total, seen]
}
