//! The model against recorded inputs and outputs of its PyTorch modules, layer by layer, on every executor.

mod parity;

use std::sync::Arc;

use gamegend::compute::{DeviceKind, Executor, Output, Run, StateLayout};
use gamegend::model::Picture;
use gamegend::model::net::Net;
use gamegend::model::sampler::{Stream, StreamPlans};
use gamegend::model::state::{FrameSize, SessionLayout};
use gamegend::model::{Keys, msdit, vae};
use parity::{Fixture, Judge, Tensor, assert_hash, executors, folder, model};

/// The values of a fixture as the model wants them.
trait Values {
    /// A picture [C, h, w] as rows of channels [h * w, C].
    fn rows(&self, name: &str) -> Vec<f32>;
    fn ids(&self, name: &str) -> Vec<u32>;
    fn keys(&self, name: &str) -> Keys;
    fn number(&self, name: &str) -> usize;
}

impl Values for Fixture {
    fn rows(&self, name: &str) -> Vec<f32> {
        let t = self.get(name);
        let pixels = t.dims[1] * t.dims[2];
        (0..pixels).flat_map(|p| (0..t.dims[0]).map(move |c| c * pixels + p)).map(|i| t.data[i]).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.data(name).iter().map(|v| *v as u32).collect()
    }

    fn keys(&self, name: &str) -> Keys {
        Keys(self.data(name).iter().enumerate().map(|(i, v)| u8::from(*v > 0.5) << i).sum())
    }

    fn number(&self, name: &str) -> usize {
        self.metadata[name].parse().unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

/// Runs a check on every executor that is here, with the weights loaded.
fn on_every_executor(check: impl Fn(&mut dyn Executor, &mut Judge)) {
    for (mut executor, mut judge) in executors() {
        executor.load_weights(model().weights()).expect("weights fit into memory");
        check(&mut *executor, &mut judge);
    }
}

#[test]
fn tokenizer_gives_the_recorded_ids() {
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
    }
    #[derive(serde::Deserialize)]
    struct File {
        model_sha256: String,
        max_length: usize,
        cases: Vec<Case>,
    }
    let path = folder("GAMEGEN_TEST_FIXTURES", "tests/fixtures").join("tokenizer.json");
    let file: File = serde_json::from_slice(&std::fs::read(path).expect("the file is there")).expect("it is JSON");
    assert_hash(&file.model_sha256);
    let model = model();
    assert!(!file.cases.is_empty());
    for case in file.cases {
        let count = model.count_tokens(&case.text);
        if count <= file.max_length {
            let ids = model.tokenizer().encode("prompt", &case.text, file.max_length).expect("it fits");
            assert_eq!(ids, case.ids, "{:?}", case.text);
            assert_eq!(count, ids.len());
        } else {
            assert_eq!(case.ids.len(), file.max_length, "a longer text was cut");
            let refused = model.tokenizer().encode("prompt", &case.text, file.max_length);
            let error = refused.expect_err("texts are never cut in silence");
            assert!(error.to_string().contains("prompt"), "{error}");
        }
    }
}

#[test]
fn text_encoder() {
    let fixture = Fixture::open("text_encoder");
    on_every_executor(|executor, judge| {
        let size = FrameSize { width: 64, height: 64 };
        let plans = StreamPlans::with_probes(&model(), executor, size, 1, 1, true).expect("plans");
        let plans = Arc::new(plans);
        let count = (0..).take_while(|i| fixture.tensors.contains_key(&format!("prompt.{i}.ids"))).count();
        assert!(count > 2);
        for i in 0..count {
            let ids = fixture.ids(&format!("prompt.{i}.ids"));
            let mut stream = Stream::open(&plans, executor, &ids).expect("a stream");
            let layers = model().config().text.num_layers;
            let names = (0..layers).map(|j| format!("block.{j}"));
            for name in names.chain(["embedding".to_string(), "output".to_string()]) {
                let recorded = fixture.data(&format!("prompt.{i}.{name}"));
                judge.same(&format!("prompt {i} {name}"), &stream.probes[&name][..recorded.len()], recorded);
            }
            // A long prompt shows that the plan for long texts is right; instructions are short.
            if ids.len() <= model().config().text.instruction_length() {
                stream.set_instruction(executor, &ids).expect("an instruction");
                let recorded = fixture.data(&format!("prompt.{i}.output"));
                judge.same(&format!("instruction {i}"), &stream.probes["output"][..recorded.len()], recorded);
            }
            stream.close(executor);
        }
    });
}

/// Fixtures of the autoencoder's scales that the model has.
fn scales() -> Vec<(usize, Fixture)> {
    let mut all = vec![(1, Fixture::open("vae"))];
    match model().config().vae.two_fold_from {
        Some(_) => all.push((2, Fixture::open("vae_2x"))),
        None => println!("the model has no two-fold scale"),
    }
    all
}

#[test]
fn vae_encoder() {
    scales().into_iter().for_each(|(scale, fixture)| encodes(scale, &fixture));
}

fn encodes(scale: usize, fixture: &Fixture) {
    let size = (fixture.number("height"), fixture.number("width"));
    let model = model();
    on_every_executor(|executor, judge| {
        let mut layout = StateLayout::default();
        layout.add("unused", &[1], gamegend::compute::DType::F32);
        let layout = Arc::new(layout);
        let precision = executor.device().precision;
        let mut net = Net::new("encode", precision, model.weights(), &layout, true);
        let input = net.builder().input("pixels", &[size.0 * size.1, 3], precision.dtype());
        let view = net.view(input);
        let latent = vae::encode(&mut net, &model.config().vae, view, size, scale).expect("shapes agree");
        net.builder().output(latent.tensor);
        let recorded = net.finish().expect("a plan");
        let id = executor.prepare(recorded.plan.clone()).expect("it prepares");
        let state = executor.create_state(&layout).expect("a state");
        let pixels = fixture.rows("encoder.input");
        let mut names = vec![("latent".to_string(), latent.tensor)];
        names.extend(recorded.probes.clone());
        let room = |t| vec![0.0; recorded.plan.tensors.shape(t).elements()];
        let mut values: Vec<Vec<f32>> = names.iter().map(|(_, t)| room(*t)).collect();
        let mut outputs: Vec<_> = names.iter().zip(&mut values).map(|((_, t), v)| (*t, Output::F32(v))).collect();
        let inputs = [(input, &pixels[..])];
        let run =
            Run { plan: id, states: &[state], inputs: &inputs, params: &[], outputs: &mut outputs, profile: None };
        executor.run(run).expect("it runs");
        assert!(names.len() > 5);
        for ((name, _), value) in names.iter().zip(&values) {
            let name = name.strip_prefix("encoder.").unwrap_or(name);
            judge.same(name, value, &fixture.rows(&format!("encoder.{name}")));
        }
    });
}

#[test]
fn vae_decoder_streams() {
    scales().into_iter().for_each(|(scale, fixture)| decodes(scale, &fixture));
}

fn decodes(scale: usize, fixture: &Fixture) {
    let model = model();
    let c = &model.config().vae;
    let factor = scale * c.spatial_factor;
    let (h, w) = (fixture.number("height") / factor, fixture.number("width") / factor);
    on_every_executor(|executor, judge| {
        let precision = executor.device().precision;
        // The memory depends on the latent's size alone: a small picture of scale 1 has it too.
        let size = FrameSize { width: w * c.spatial_factor, height: h * c.spatial_factor };
        let layout = SessionLayout::new(model.config(), size, 1, precision);
        let state = executor.create_state(&layout.layout).expect("a state");
        for frame in 0..3 {
            let mut net = Net::new("decode", precision, model.weights(), &layout.layout, true);
            let latent = net.builder().input("latent", &[h * w, c.latent_channels], precision.dtype());
            let view = net.view(latent);
            let f = vae::decode_memory(&mut net, c, view, (h, w), layout.decoder, frame == 0).expect("shapes agree");
            vae::decode_frame(&mut net, c, f, scale).expect("shapes agree");
            let recorded = net.finish().expect("a plan");
            let plan = executor.prepare(recorded.plan.clone()).expect("it prepares");
            let room = |t| vec![0.0; recorded.plan.tensors.shape(t).elements()];
            let mut values: Vec<Vec<f32>> = recorded.probes.iter().map(|(_, t)| room(*t)).collect();
            let outputs = recorded.probes.iter().zip(&mut values).map(|((_, t), v)| (*t, Output::F32(v)));
            let mut outputs: Vec<_> = outputs.collect();
            let latents = fixture.rows(&format!("decoder.{frame}.latent"));
            let inputs = [(latent, &latents[..])];
            let run =
                Run { plan, states: &[state], inputs: &inputs, params: &[], outputs: &mut outputs, profile: None };
            executor.run(run).expect("it runs");
            assert!(values.len() > 6);
            for ((name, _), value) in recorded.probes.iter().zip(&values) {
                let name = name.strip_prefix("decoder.").expect("all probes are the decoder's");
                let recorded = match name {
                    "conv_out" => unshuffled(fixture.get(&format!("decoder.{frame}.pixels")), scale * c.patch_size),
                    _ => fixture.rows(&format!("decoder.{frame}.{name}")),
                };
                judge.same(&format!("frame {frame} {name}"), value, &recorded);
            }
        }
    });
}

/// Pixels [3, H, W] as features of patches of r x r [H/r * W/r, 3 r^2].
fn unshuffled(pixels: &Tensor, r: usize) -> Vec<f32> {
    let (height, width) = (pixels.dims[1], pixels.dims[2]);
    let mut out = Vec::with_capacity(pixels.data.len());
    for (y, x) in (0..height / r).flat_map(|y| (0..width / r).map(move |x| (y, x))) {
        for (c, i) in (0..3).flat_map(|c| (0..r * r).map(move |i| (c, i))) {
            out.push(pixels.data[(c * height + y * r + i / r) * width + x * r + i % r]);
        }
    }
    out
}

/// Tokens [N, 2Z] from two pictures [N, Z].
fn side_by_side(a: &[f32], b: &[f32], z: usize) -> Vec<f32> {
    a.chunks(z).zip(b.chunks(z)).flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
}

/// Three passes of a stream; every recorded value of the transformer and InstructNet.
fn passes(name: &str) {
    let fixture = Fixture::open(name);
    streamed(&fixture, "", None);
}

/// The passes whose names begin with `prefix`, under the video prompt of a kind.
fn streamed(fixture: &Fixture, prefix: &str, kind: Option<usize>) {
    let model = model();
    let c = &model.config().msdit;
    let factor = model.config().vae.spatial_factor;
    let size =
        FrameSize { width: fixture.number("latent_width") * factor, height: fixture.number("latent_height") * factor };
    on_every_executor(|executor, judge| {
        let plans = Arc::new(StreamPlans::with_probes(&model, executor, size, 1, 1, true).expect("plans"));
        let mut stream = Stream::open(&plans, executor, &fixture.ids("text_ids")).expect("a stream");
        let recorded = fixture.data("text");
        judge.same("text", &stream.probes["output"][..recorded.len()], recorded);
        stream.set_instruction(executor, &fixture.ids("instruction_ids")).expect("an instruction");
        if let Some(kind) = kind {
            let latents = (0..2).map(|i| fixture.rows(&format!("{prefix}frame.{i}.latent"))).collect();
            stream.set_video_prompt(executor, kind, latents).expect("a video prompt");
        }
        for i in 0..3 {
            let at = |name: &str| format!("{prefix}frame.{i}.{name}");
            let tokens = side_by_side(&fixture.rows(&at("x")), &fixture.rows(&at("previous")), c.latent_channels);
            stream.noise().copy_from_slice(&tokens);
            let condition = msdit::Condition {
                level: fixture.data(&at("level"))[0],
                step: fixture.data(&at("step_size"))[0],
                context_noise: model.config().scheduler.context_noise,
                has_previous: i > 0,
            };
            let mut v = vec![0.0; tokens.len() / 2];
            let condition = condition.vector(c, plans.tokens());
            stream.pass(executor, &condition, fixture.keys(&at("keys")), &mut v).expect("a pass");
            assert!(stream.probes.len() > c.num_layers);
            let shown = kind.is_some() && i < 2;
            assert_eq!(stream.probes.contains_key("video_features"), shown, "{prefix} frame {i}");
            for (name, value) in &stream.probes {
                if let Some(recorded) = fixture.tensors.get(&at(name)) {
                    judge.same(&at(name), value, &recorded.data);
                }
            }
            judge.same(&at("v"), &v, &fixture.rows(&at("v")));
        }
        stream.close(executor);
    });
}

#[test]
fn transformer_and_instructnet() {
    let fixture = Fixture::open("msdit");
    let blocks =
        (0..model().config().msdit.num_layers).all(|i| fixture.tensors.contains_key(&format!("frame.2.block.{i}")));
    assert!(blocks, "every block is recorded");
    passes("msdit");
}

#[test]
fn transformer_at_320x192() {
    passes("msdit_320x192");
}

#[test]
fn video_prompts_of_every_kind() {
    let kinds = model().config().instruct.video_prompts.clone();
    if kinds.is_empty() {
        println!("the model has no video prompts");
        return;
    }
    let fixture = Fixture::open("video_prompt");
    for (index, kind) in kinds.iter().enumerate() {
        streamed(&fixture, &format!("{kind}."), Some(index));
    }
}

#[test]
fn sampler_streams_from_text_alone() {
    let fixture = Fixture::open("sampler");
    let model = model();
    let factor = model.config().vae.spatial_factor;
    let size =
        FrameSize { width: fixture.number("latent_width") * factor, height: fixture.number("latent_height") * factor };
    let (steps, first_steps) = (fixture.number("steps") as u32, fixture.number("first_steps") as u32);
    let z = model.config().msdit.latent_channels;
    on_every_executor(|executor, judge| {
        let plans = StreamPlans::with_probes(&model, executor, size, steps, first_steps, true).expect("plans");
        let plans = Arc::new(plans);
        let mut stream = Stream::open(&plans, executor, &fixture.ids("text_ids")).expect("a stream");
        stream.set_instruction(executor, &fixture.ids("instruction_ids")).expect("an instruction");
        let mut picture = vec![0; size.width * size.height * 3 / 2];
        for i in 0..3 {
            let at = |name: &str| format!("frame.{i}.{name}");
            let noise = side_by_side(&fixture.rows(&at("noise")), &fixture.rows(&at("context_noise")), z);
            stream.noise().copy_from_slice(&noise);
            stream.tick(executor, fixture.keys(&at("keys")), Picture::Bytes(&mut picture), None).expect("a tick");
            judge.same(&at("latent"), stream.latent(), &fixture.rows(&at("latent")));
        }
        judge.same(
            "pixels",
            &stream.probes["decoder.conv_out"],
            &unshuffled(fixture.get("frame.2.pixels"), model.config().vae.patch_size),
        );
        stream.close(executor);
        if executor.device().kind == DeviceKind::Reference {
            assert!(picture.iter().any(|b| *b != picture[0]), "the picture is not flat");
        }
    });
}
