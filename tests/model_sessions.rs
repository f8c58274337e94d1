//! Sessions are values: the same one gives the same frames, whatever else the engine does.
//!
//! `GAMEGEN_TEST_MODEL` names another model folder than the shipped one.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use gamegend::compute::gpu::{self, GpuExecutor};
use gamegend::compute::{Executor, Precision, cpu};
use gamegend::model::{Engine, Environment, Keys, Model, ModelError, Picture, Session, SessionSpec, Turn, VideoPrompt};
use gamegend::sys::shm::SharedMemory;

const FRAMES: usize = 5;
const KEYS: [Keys; FRAMES] = [Keys::NONE, Keys::W, Keys::W, Keys::D, Keys::SPACE];

fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x-mini");
    let folder = std::env::var_os("GAMEGEN_TEST_MODEL").map_or(shipped, PathBuf::from);
    MODEL.get_or_init(|| Model::load(&folder).expect("the shipped model loads")).clone()
}

fn engine() -> Engine {
    let executor = cpu::CpuExecutor::new(2).expect("two threads");
    Engine::new(model(), Box::new(executor)).expect("weights fit into memory")
}

fn spec(seed: u64) -> SessionSpec {
    let prompt = "a golden robot walks in the desert at night, with rain.".to_string();
    SessionSpec { prompt, width: 126, height: 70, steps: 2, seed, perspective: Some("third".to_string()) }
}

/// The smallest session, for devices that are slow.
fn small(seed: u64) -> SessionSpec {
    SessionSpec { width: 64, height: 64, ..spec(seed) }
}

fn frame(engine: &mut Engine, session: &mut Session, keys: Keys) -> Vec<u8> {
    let size = session.size();
    let mut picture = vec![0; size.width * size.height * 3 / 2];
    engine.tick(session, keys, &mut picture, None).expect("a tick");
    picture
}

/// Frames of a session that is alone.
fn alone(engine: &mut Engine, spec: &SessionSpec, frames: usize) -> Vec<Vec<u8>> {
    let mut session = engine.open(spec).expect("a session");
    let frames = KEYS[..frames].iter().map(|k| frame(engine, &mut session, *k)).collect();
    engine.close(session);
    frames
}

fn same_alone_and_beside_another(mut engine: Engine, spec: &SessionSpec, frames: usize) {
    let first = alone(&mut engine, spec, frames);
    assert!(first == alone(&mut engine, spec, frames), "the second time gave other frames");
    let other = SessionSpec { prompt: "snow at dawn".to_string(), steps: 1, seed: spec.seed + 1, ..spec.clone() };
    let mut a = engine.open(spec).expect("a session");
    let mut b = engine.open(&other).expect("a session");
    for i in 0..frames {
        assert!(frame(&mut engine, &mut b, Keys::A) != first[i], "another world gave the same frame");
        assert!(frame(&mut engine, &mut a, KEYS[i]) == first[i], "frame {i} depends on the other session");
    }
    engine.close(a);
    engine.close(b);
}

#[test]
fn the_same_session_gives_the_same_frames_on_the_cpu() {
    same_alone_and_beside_another(engine(), &spec(7), FRAMES);
    let other_seed = alone(&mut engine(), &spec(8), 1);
    assert!(other_seed != alone(&mut engine(), &spec(7), 1), "the seed does nothing");
}

#[test]
fn the_same_session_gives_the_same_frames_on_vulkan() {
    let entries = gpu::devices().unwrap_or_default();
    if entries.is_empty() {
        let required = std::env::var("GAMEGEND_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|r| r == "gpu"), "a Vulkan driver is required");
        println!("skipped: no Vulkan driver");
    }
    for entry in entries {
        let executor = GpuExecutor::open(entry.index, None).expect("the device opens");
        let engine = Engine::new(model(), Box::new(executor)).expect("weights fit into memory");
        same_alone_and_beside_another(engine, &small(7), 2);
    }
}

#[test]
fn keys_and_instructions_act_on_the_next_frame() {
    let mut engine = engine();
    let play = |engine: &mut Engine, keys: Keys, free_text: Option<&str>| {
        let mut session = engine.open(&spec(3)).expect("a session");
        frame(engine, &mut session, Keys::NONE);
        let environment = Environment::default();
        if let Some(text) = free_text {
            engine.set_instruction(&mut session, &environment, Some(text)).expect("an instruction");
        }
        let picture = frame(engine, &mut session, keys);
        engine.close(session);
        picture
    };
    let idle = play(&mut engine, Keys::NONE, None);
    let (left, right) = (play(&mut engine, Keys::A, None), play(&mut engine, Keys::D, None));
    assert!(idle != left && idle != right && left != right, "keys do nothing");
    assert!(idle != play(&mut engine, Keys::NONE, Some("a storm of fire at noon")), "instructions do nothing");
}

#[test]
fn a_continuation_goes_on_from_given_frames() {
    let mut engine = engine();
    let mut session = engine.open(&spec(7)).expect("a session");
    let mut history = Vec::new();
    let mut last = Vec::new();
    for keys in KEYS {
        last = frame(&mut engine, &mut session, keys);
        history.push((engine.last_latent(&session).to_vec(), keys));
    }
    let next = frame(&mut engine, &mut session, Keys::W);
    engine.close(session);
    let mut continued = engine.open(&spec(7)).expect("a session");
    engine.seed(&mut continued, &history).expect("the history fits");
    let picture = frame(&mut engine, &mut continued, Keys::W);
    let difference =
        |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64;
    let (to_next, to_last) = (difference(&picture, &next), difference(&picture, &last));
    println!("difference to the uninterrupted frame {to_next:.2}, to the last given frame {to_last:.2}");
    assert!(to_next < 12.0, "the continuation is another world: {to_next}");
    let wrong = engine.seed(&mut continued, &[(vec![0.0; 3], Keys::NONE)]).expect_err("a latent has its length");
    assert_eq!(wrong.to_string(), format!("latent is 3 numbers, allowed is {} numbers", 4 * 3 * 64));
}

#[test]
fn latents_come_back_as_the_pictures_that_a_session_showed() {
    let mut engine = engine();
    let mut session = engine.open(&spec(7)).expect("a session");
    let (mut latents, mut shown) = (Vec::new(), Vec::new());
    for keys in KEYS {
        shown.push(frame(&mut engine, &mut session, keys));
        latents.push(engine.last_latent(&session).to_vec());
    }
    engine.close(session);
    let all: Vec<&[f32]> = latents.iter().map(Vec::as_slice).collect();
    assert!(engine.decode(&all, 126, 70).expect("pictures") == shown, "the decoder remembers as the session's does");
    let late = engine.decode(&all[2..], 126, 70).expect("pictures");
    let difference =
        |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64;
    assert!(difference(&late[2], &shown[4]) < 3.0, "it forgets what was before");
    let wrong = engine.decode(&all, 64, 64).expect_err("a latent has its length");
    assert_eq!(wrong.to_string(), format!("latent is {} numbers, allowed is {} numbers", 4 * 3 * 64, 2 * 2 * 64));
}

#[test]
fn pictures_come_back_from_their_latents() {
    let mut engine = engine();
    let (width, height) = (96, 70);
    let pixel = |i: usize| {
        let (x, y) = (i % width, i / width);
        [(x * 2) as u8, (y * 3) as u8, 128]
    };
    let rgb: Vec<u8> = (0..width * height).flat_map(pixel).collect();
    let latents = engine.encode(&[&rgb, &rgb], width as u32, height as u32).expect("two latents");
    assert_eq!(latents.len(), 2);
    assert_eq!(latents[0].len(), 3 * 3 * 64);
    assert!(latents[0] == latents[1], "the encoder looks at frames one by one");
    assert!(latents[0].iter().all(|v| v.is_finite() && v.abs() < 30.0));
    let short = engine.encode(&[&rgb[1..]], width as u32, height as u32).expect_err("a byte is missing");
    assert_eq!(short.to_string(), "frame is 20159 bytes, allowed is 20160 bytes");
}

#[test]
fn requests_out_of_range_name_their_field() {
    let mut engine = engine();
    let many = "snow ".repeat(model().info().prompt_tokens_max + 10);
    let info = model().info().clone();
    let cases = [
        (SessionSpec { width: 63, ..spec(0) }, "width is 63, allowed is an even number of pixels, 64..=1920"),
        (SessionSpec { width: 65, ..spec(0) }, "width is 65,"),
        (SessionSpec { height: 4096, ..spec(0) }, "height is 4096, allowed is an even number of pixels, 64..=1088"),
        (SessionSpec { steps: 3, ..spec(0) }, "steps is 3, allowed is one of [1, 2, 4]"),
        (SessionSpec { prompt: " ".to_string(), ..spec(0) }, "prompt is empty, allowed is 1..="),
        (SessionSpec { prompt: many, ..spec(0) }, "tokens long, allowed is 1..="),
        (
            SessionSpec { perspective: Some("fourth".to_string()), ..spec(0) },
            "perspective is \"fourth\", allowed is one of",
        ),
    ];
    for (spec, message) in cases {
        let error = engine.open(&spec).map(drop).expect_err("the request is out of range");
        assert!(error.to_string().contains(message), "{error} does not say {message}");
        assert!(matches!(error, ModelError::Request { .. }));
    }
    let mut session = engine.open(&spec(0)).expect("a session");
    let bad = Environment { weather: Some("hail".to_string()), ..Environment::default() };
    let error = engine.set_instruction(&mut session, &bad, None).expect_err("hail is no weather");
    assert!(error.to_string().starts_with("weather is \"hail\", allowed is one of"), "{error}");
    let mut small = vec![0; 10];
    assert!(engine.tick(&mut session, Keys::W, &mut small, None).is_err(), "the picture does not fit");
    let long = "snow ".repeat(80);
    let error = engine.set_instruction(&mut session, &Environment::default(), Some(&long)).expect_err("too long");
    assert!(error.to_string().starts_with("instruction is 81 tokens long, allowed is 1..="), "{error}");
    engine.close(session);
    let longest = vec!["robot"; info.prompt_tokens_max - 1].join(" ");
    let session = engine.open(&SessionSpec { prompt: longest, ..spec(0) }).expect("the longest prompt fits");
    engine.close(session);
    assert!(engine.state_bytes(&spec(0)) > 1 << 20);
    let executor: &dyn Executor = engine.executor();
    assert!(!executor.device().name.is_empty());
}

#[test]
fn a_video_prompt_acts_until_its_end_and_costs_nothing_without() {
    let mut engine = engine();
    let kinds = model().info().video_prompts.clone();
    let Some(kind) = kinds.first().cloned() else {
        println!("the model has no video prompts");
        let mut session = engine.open(&spec(5)).expect("a session");
        let prompt = VideoPrompt { kind: "canny".to_string(), latents: Vec::new() };
        let error = engine.set_video_prompt(&mut session, Some(prompt)).expect_err("there is no such kind");
        assert_eq!(error.to_string(), "video_prompt is \"canny\", allowed is one of []");
        return engine.close(session);
    };
    let size = (spec(5).width, spec(5).height);
    let white = |i: u32| vec![if i.is_multiple_of(2) { 255 } else { 0 }; (size.0 * size.1 * 3) as usize];
    let pictures: Vec<Vec<u8>> = (0..2).map(white).collect();
    let slices: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let latents = engine.encode(&slices, size.0, size.1).expect("two latents");
    let play = |engine: &mut Engine, prompt: Option<VideoPrompt>, clear: bool| {
        let mut session = engine.open(&spec(5)).expect("a session");
        if let Some(prompt) = prompt {
            engine.set_video_prompt(&mut session, Some(prompt)).expect("the latents fit");
        }
        if clear {
            engine.set_video_prompt(&mut session, None).expect("it goes on without");
        }
        let frames: Vec<_> = KEYS[..3].iter().map(|k| frame(engine, &mut session, *k)).collect();
        engine.close(session);
        frames
    };
    let prompt = VideoPrompt { kind: kind.clone(), latents: latents.clone() };
    let plain = play(&mut engine, None, false);
    assert!(play(&mut engine, Some(prompt.clone()), false)[0] != plain[0], "it does nothing");
    assert!(play(&mut engine, Some(prompt.clone()), true) == plain, "it is not gone");
    let empty = VideoPrompt { latents: Vec::new(), ..prompt.clone() };
    assert!(play(&mut engine, Some(empty), false) == plain, "one without pictures changes a frame");

    let mut session = engine.open(&spec(5)).expect("a session");
    let short = VideoPrompt { latents: vec![vec![0.0; 5]], ..prompt.clone() };
    let error = engine.set_video_prompt(&mut session, Some(short)).expect_err("a latent has its length");
    assert!(error.to_string().starts_with("latent is 5 numbers"), "{error}");
    let depth = VideoPrompt { kind: "depth".to_string(), ..prompt };
    let error = engine.set_video_prompt(&mut session, Some(depth)).expect_err("there is no such kind");
    assert!(error.to_string().starts_with("video_prompt is \"depth\", allowed is one of"), "{error}");
    engine.close(session);
}

#[test]
fn large_pictures_have_a_smaller_latent() {
    let model = model();
    let vae = &model.config().vae;
    let large = gamegend::model::state::FrameSize { width: 1280, height: 720 };
    let small = gamegend::model::state::FrameSize { width: 640, height: 360 };
    assert_eq!(small.latent(vae), (12, 20));
    match vae.two_fold_from {
        Some(_) => assert_eq!((large.latent(vae), large.padded(vae)), ((12, 20), (768, 1280))),
        None => return assert_eq!((large.latent(vae), large.padded(vae)), ((23, 40), (736, 1280))),
    }
    let mut engine = engine();
    let steps = model.info().default_steps;
    let spec = SessionSpec { width: 1280, height: 720, steps, ..spec(1) };
    assert!(engine.state_bytes(&spec) <= 256 << 20, "a session keeps {} bytes", engine.state_bytes(&spec));
    let session = engine.open(&spec).expect("a session");
    let flops = session.tick_flops();
    println!("1280x720, {steps} steps: {:.2} GFLOP a frame", flops as f64 / 1e9);
    assert!(flops <= 60_000_000_000, "a frame takes {flops} operations");
    engine.close(session);
}

/// A session of the test below: when it comes, when it goes, and the frames that it makes alone.
struct Guest {
    spec: SessionSpec,
    /// A free instruction, and a kind of video prompt that leads its frames.
    text: Option<&'static str>,
    from: usize,
    until: usize,
    alone: Vec<Vec<u8>>,
}

fn keys_at(tick: usize, seed: u64) -> Keys {
    KEYS[(tick + seed as usize) % KEYS.len()]
}

fn open(engine: &mut Engine, guest: &Guest) -> Session {
    let mut session = engine.open(&guest.spec).expect("a session");
    if let Some(text) = guest.text {
        engine.set_instruction(&mut session, &Environment::default(), Some(text)).expect("an instruction");
    }
    session
}

/// Sessions of two sizes come and go at different ticks; every frame must be what the session makes alone.
fn same_in_every_batch(mut engine: Engine, sizes: [(u32, u32); 2], batches: &[usize], ticks: usize) {
    let prompts = ["a castle by a lake", "snow at dawn, a pale rider on the ridge above the frozen town", "dunes"];
    let guest = |i: usize| {
        let (width, height) = if i == 3 { sizes[1] } else { sizes[0] };
        let prompt = prompts[i % prompts.len()].to_string();
        Guest {
            spec: SessionSpec { prompt, width, height, ..spec(40 + i as u64) },
            text: (i % 2 == 1).then_some("a storm of fire at noon"),
            from: i % 3,
            until: ticks - i % 2,
            alone: Vec::new(),
        }
    };
    let mut guests: Vec<Guest> = (0..6).map(guest).collect();
    engine.set_batch_max(1);
    for g in &mut guests {
        let mut session = open(&mut engine, g);
        for t in g.from..g.until {
            g.alone.push(frame(&mut engine, &mut session, keys_at(t, g.spec.seed)));
        }
        engine.close(session);
    }
    for &most in batches {
        engine.set_batch_max(most);
        let mut sessions: Vec<Option<Session>> = guests.iter().map(|_| None).collect();
        for t in 0..ticks {
            for (session, g) in sessions.iter_mut().zip(&guests) {
                if t == g.from {
                    *session = Some(open(&mut engine, g));
                }
                if t >= g.until
                    && let Some(session) = session.take()
                {
                    engine.close(session);
                }
            }
            let bytes = |g: &Guest| (g.spec.width * g.spec.height * 3 / 2) as usize;
            let mut pictures: Vec<Vec<u8>> = guests.iter().map(|g| vec![0; bytes(g)]).collect();
            let mut turns = Vec::new();
            for ((session, picture), g) in sessions.iter_mut().zip(&mut pictures).zip(&guests) {
                if let Some(session) = session {
                    turns.push(Turn { session, keys: keys_at(t, g.spec.seed), picture: Picture::Bytes(picture) });
                }
            }
            engine.tick_batch(turns, None).expect("a tick");
            for (i, g) in guests.iter().enumerate().filter(|(_, g)| (g.from..g.until).contains(&t)) {
                assert!(pictures[i] == g.alone[t - g.from], "session {i}, tick {t}: not as alone, batches of {most}");
            }
        }
        sessions.into_iter().flatten().for_each(|session| engine.close(session));
    }
}

#[test]
fn frames_are_the_same_alone_and_in_every_batch_on_the_cpu() {
    same_in_every_batch(engine(), [(126, 70), (64, 64)], &[2, 3, 8], 6);
}

#[test]
fn frames_are_the_same_alone_and_in_every_batch_on_vulkan() {
    for entry in gpu::devices().unwrap_or_default() {
        // In f16 a device with cooperative matrices runs other kernels.
        for precision in [Precision::F32, Precision::F16] {
            let executor = match GpuExecutor::open(entry.index, Some(precision)) {
                Ok(executor) => executor,
                Err(e) => {
                    println!("skipped: {e}");
                    continue;
                }
            };
            println!("{precision:?}: {}", executor.device().detail);
            let engine = Engine::new(model(), Box::new(executor)).expect("weights fit into memory");
            same_in_every_batch(engine, [(64, 64), (128, 64)], &[3, 8], 4);
        }
    }
}

#[test]
fn led_sessions_share_a_batch() {
    let mut engine = engine();
    let Some(kind) = engine.model().info().video_prompts.first().cloned() else {
        println!("skipped: the model has no video prompts");
        return;
    };
    let small = small(5);
    let picture: Vec<u8> = (0..small.width * small.height * 3).map(|i| (i % 251) as u8).collect();
    let mut play = |batch: usize| {
        engine.set_batch_max(batch);
        let mut sessions: Vec<Session> =
            (0..3).map(|i| engine.open(&SessionSpec { seed: i, ..small.clone() }).expect("a session")).collect();
        let mut all = Vec::new();
        for keys in &KEYS[..3] {
            for session in &mut sessions {
                engine.lead(session, &kind, &picture).expect("a kind of the model");
            }
            let mut pictures = vec![vec![0; (small.width * small.height * 3 / 2) as usize]; sessions.len()];
            let turns = sessions.iter_mut().zip(&mut pictures);
            let turns = turns
                .map(|(session, picture)| Turn { session, keys: *keys, picture: Picture::Bytes(picture) })
                .collect();
            engine.tick_batch(turns, None).expect("a tick");
            all.push(pictures);
        }
        sessions.into_iter().for_each(|session| engine.close(session));
        all
    };
    let alone = play(1);
    assert!(alone == play(4), "the batch changed a frame");
}

#[test]
fn frames_go_straight_into_shared_memory_on_vulkan() {
    for entry in gpu::devices().unwrap_or_default() {
        let executor = GpuExecutor::open(entry.index, None).expect("the device opens");
        let mut engine = Engine::new(model(), Box::new(executor)).expect("weights fit into memory");
        engine.set_batch_max(4);
        let small = small(9);
        let bytes = (small.width * small.height * 3 / 2) as usize;
        let memory = Arc::new(SharedMemory::create("test", 1 << 20).expect("memory"));
        let Some(shared) = engine.share(&memory).expect("the device is well") else {
            println!("skipped: {} imports no memory of the host", entry.name);
            continue;
        };
        let mut sessions: Vec<Session> = (0..3).map(|_| engine.open(&small).expect("a session")).collect();
        for (tick, keys) in KEYS[..3].iter().enumerate() {
            let mut plain = vec![0; bytes];
            let mut turns = Vec::new();
            // Two places that kernels can write to, and after the second frame one that they cannot.
            let odd = if tick > 1 { 8 } else { 0 };
            let places =
                [Picture::Shared(shared, 64), Picture::Shared(shared, 32768 + odd), Picture::Bytes(&mut plain)];
            for (session, picture) in sessions.iter_mut().zip(places) {
                turns.push(Turn { session, keys: *keys, picture });
            }
            if tick == 0 {
                let last = turns.pop().expect("three turns");
                engine.tick_batch(turns, None).expect("all seats of a run into shared memory");
                engine.tick_batch(vec![last], None).expect("a tick");
            } else {
                engine.tick_batch(turns, None).expect("a tick");
            }
            let mut read = vec![0; bytes];
            for offset in [64, 32768 + odd] {
                memory.read(offset, &mut read);
                assert!(read == plain, "frame {tick} at {offset} on {}", entry.name);
            }
        }
        let mut turns = Vec::new();
        for (i, session) in sessions.iter_mut().enumerate() {
            turns.push(Turn { session, keys: Keys::D, picture: Picture::Shared(shared, 65536 * (i + 1)) });
        }
        engine.tick_batch(turns, None).expect("all seats of a batch into shared memory");
        let [mut a, mut b] = [vec![0; bytes], vec![1; bytes]];
        memory.read(65536, &mut a);
        memory.read(65536 * 3, &mut b);
        assert!(a == b, "seats of equal sessions");
        let beyond = Picture::Shared(shared, (1 << 20) - 16);
        let session = &mut sessions[0];
        assert!(engine.tick_batch(vec![Turn { session, keys: Keys::D, picture: beyond }], None).is_err());
        engine.unshare(shared);
        sessions.into_iter().for_each(|session| engine.close(session));
    }
}
