//! Several runs on a device at once: each session's frames must be what they are alone, to the bit, whichever lane they
//! come from and in whatever order runs are begun and taken.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use gamegend::compute::gpu::{self, GpuExecutor, GpuOptions, LANES_MAX, Validation};
use gamegend::model::{Engine, Flight, Keys, Model, ModelError, Picture, Session, SessionSpec, Turn};

const SESSIONS: usize = 4;
const TICKS: usize = 4;
const SIZE: (u32, u32) = (64, 64);
const PATIENCE: Duration = Duration::from_secs(300);

fn spec(i: usize) -> SessionSpec {
    let prompt = ["a castle by a lake", "dunes at dawn"][i % 2].to_string();
    SessionSpec { prompt, width: SIZE.0, height: SIZE.1, steps: 2, seed: i as u64, perspective: None }
}

fn keys(i: usize, tick: usize) -> Keys {
    [Keys::NONE, Keys::W, Keys::D, Keys::SPACE][(i + tick) % 4]
}

fn picture() -> Vec<u8> {
    vec![0; (SIZE.0 * SIZE.1 * 3 / 2) as usize]
}

/// The sessions of an engine with their newest pictures.
struct Players {
    engine: Engine,
    sessions: Vec<Session>,
    pictures: Vec<Vec<u8>>,
}

impl Players {
    fn turns(&mut self, who: Range<usize>, tick: usize) -> (&mut Engine, Vec<Turn<'_>>) {
        let all = self.sessions.iter_mut().zip(&mut self.pictures).enumerate();
        let turns = all.skip(who.start).take(who.len()).map(|(i, (session, picture))| Turn {
            session,
            keys: keys(i, tick),
            picture: Picture::Bytes(picture),
        });
        (&mut self.engine, turns.collect())
    }

    fn begin(&mut self, who: Range<usize>, tick: usize) -> Result<Flight, ModelError> {
        let (engine, turns) = self.turns(who, tick);
        engine.begin(turns)
    }

    fn end(&mut self, flight: Flight, who: Range<usize>, tick: usize) {
        let (engine, turns) = self.turns(who, tick);
        engine.end(flight, turns).expect("it was begun");
    }

    fn frame(&mut self, who: usize, tick: usize) {
        let (engine, turns) = self.turns(who..who + 1, tick);
        engine.tick_batch(turns, None).expect("a tick");
    }
}

/// Every frame of every session, made by itself.
fn alone(engine: &mut Engine) -> Vec<Vec<Vec<u8>>> {
    let play = |i: usize| {
        let mut session = engine.open(&spec(i)).expect("a session");
        let frame = |tick| {
            let mut picture = picture();
            engine.tick(&mut session, keys(i, tick), &mut picture, None).expect("a tick");
            picture
        };
        let frames: Vec<_> = (0..TICKS).map(frame).collect();
        engine.close(session);
        frames
    };
    (0..SESSIONS).map(play).collect()
}

#[test]
fn runs_that_are_on_their_way_at_once_make_the_frames_that_they_make_alone() {
    let model = Model::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/gamegen-x-mini"))).expect("a model");
    let devices = gpu::devices().unwrap_or_default();
    if devices.is_empty() {
        println!("skipped: no Vulkan device");
    }
    for entry in devices {
        let options = GpuOptions { lanes: Some(LANES_MAX), validation: Validation::Core, ..GpuOptions::default() };
        let executor = GpuExecutor::open_with(entry.index, &options).expect("the device opens");
        let canary = executor.canary();
        let mut engine = Engine::new(model.clone(), Box::new(executor)).expect("weights fit into memory");
        engine.set_batch_max(2);
        assert_eq!(engine.lanes(), LANES_MAX);
        let alone = alone(&mut engine);
        let expected = |i: usize, tick: usize| &alone[i][tick];
        let sessions = (0..SESSIONS).map(|i| engine.open(&spec(i)).expect("a session")).collect();
        let mut players = Players { engine, sessions, pictures: vec![picture(); SESSIONS] };
        (0..SESSIONS).for_each(|i| players.frame(i, 0));
        for tick in 1..TICKS {
            // Two share a run while another one has its own; then the last one.
            let (pair, single, last) = if tick == 2 { (2..4, 0..1, 1) } else { (0..2, 3..4, 2) };
            let both = players.begin(pair.clone(), tick).expect("a free lane");
            let one = players.begin(single.clone(), tick).expect("a free lane");
            assert!(players.begin(last..last + 1, tick).is_err(), "a third run on {}", entry.name);
            let landed = players.engine.landed(&[both, one], PATIENCE).expect("the device is well");
            assert!(landed.is_some(), "neither of two runs lands on {}", entry.name);
            players.end(one, single, tick);
            let twice = players.begin(pair.start..pair.start + 1, tick);
            assert!(twice.is_err(), "a session is in two runs on {}", entry.name);
            // What needs an answer at once finds the free lane.
            players.frame(last, tick);
            players.end(both, pair, tick);
            for (i, picture) in players.pictures.iter().enumerate() {
                assert!(picture == expected(i, tick), "session {i}, tick {tick} is not as alone on {}", entry.name);
            }
        }
        // A session that goes while its run is on its way takes nothing with it that the device needs.
        let flight = players.begin(0..1, TICKS).expect("a free lane");
        players.engine.close(players.sessions.remove(0));
        players.pictures.remove(0);
        players.frame(0, TICKS);
        assert!(players.engine.landed(&[flight], PATIENCE).expect("the device is well").is_some());
        drop(players);
        assert_eq!(canary.drain(), Vec::<String>::new(), "validation messages on {}", entry.name);
    }
}
