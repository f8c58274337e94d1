use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::*;
use crate::frame::FrameRing;
use crate::sys::shm::SharedMemory;

fn about(tick: u64) -> About {
    About {
        model_hash: "ab".repeat(32),
        device: "cpu f32".to_string(),
        width: 64,
        height: 64,
        fps: 24,
        steps: 2,
        seed: 7,
        prompt: "a snowy forest".to_string(),
        perspective: Some("third".to_string()),
        tick,
        seq: 3,
        keys: Keys::W,
        taps: [0, 0, 0, 0, 2, 0],
        environment: Environment { weather: Some("snow".to_string()), ..Environment::default() },
        instruction: Some("a storm begins".to_string()),
        trace_dropped: 0,
    }
}

fn history(count: usize) -> History {
    let mut history = History::new(16, (96, 64));
    for i in 0..count {
        history.push(&[i as f32 + 0.5; 16], Keys(i as u8 & 63));
    }
    history
}

fn file_of(bytes: &[u8], name: &str) -> File {
    let path = std::env::temp_dir().join(format!("gamegend-snapshot-{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).expect("a temporary file");
    let file = File::open(&path).expect("it was just written");
    std::fs::remove_file(&path).expect("it was ours");
    file
}

#[test]
fn a_history_keeps_the_newest_in_order() {
    let h = history(20);
    assert_eq!(h.len(), 16);
    let firsts: Vec<f32> = h.iter().map(|(latent, _)| latent[0]).collect();
    assert_eq!(firsts, (4..20).map(|i| i as f32 + 0.5).collect::<Vec<_>>());
    assert_eq!(h.iter().last().map(|(_, keys)| keys), Some(Keys(19)));
    assert!(history(0).is_empty() && history(0).iter().next().is_none());
}

#[test]
fn a_snapshot_survives_ring_and_file() {
    let (mut ring, fd) = FrameRing::create(64, 64, 2, 16).expect("memory for a small ring");
    assert!(matches!(Snapshot::read_fd(&fd), Err(RingError::NoSnapshot)));
    let mut scratch = Vec::new();
    for n in 1..5 {
        ring.snapshot(&about(n), b"trace", &history(n as usize * 5), &mut scratch).expect("it fits");
        let snapshot = Snapshot::read_fd(&fd).expect("just written");
        assert_eq!(snapshot.about, about(n));
        assert_eq!(snapshot.trace, b"trace");
        assert_eq!(snapshot.size_px, (96, 64), "smaller than what was asked for");
        let expected: Vec<(Vec<f32>, Keys)> = history(n as usize * 5).iter().map(|(l, k)| (l.to_vec(), k)).collect();
        assert_eq!(snapshot.history, expected);
        let file = file_of(&snapshot.encode().expect("it fits"), "whole");
        assert_eq!(Snapshot::read_fd(&file).expect("the same bytes"), snapshot);
    }
    // A copy of the ring's bytes is a snapshot as well.
    let mut copy = vec![0; ring.geometry().slots_at()];
    File::from(fd).read_exact_at(&mut copy, 0).expect("a memory object can be read");
    assert_eq!(Snapshot::read_fd(file_of(&copy, "copy")).expect("a copied ring").about, about(4));
}

#[test]
fn a_writer_killed_within_a_snapshot_leaves_the_one_before() {
    let (mut ring, fd) = FrameRing::create(64, 64, 2, 16).expect("memory for a small ring");
    let mut scratch = Vec::new();
    ring.snapshot(&about(1), &[], &history(1), &mut scratch).expect("it fits");
    ring.snapshot(&about(2), &[], &history(2), &mut scratch).expect("it fits");
    ring.begin_snapshot();
    assert_eq!(Snapshot::read_fd(&fd).expect("the newest whole one").about.tick, 2);
}

#[test]
fn a_trace_that_does_not_fit_is_an_error() {
    let (mut ring, _fd) = FrameRing::create(64, 64, 2, 16).expect("memory for a small ring");
    let trace = vec![0; 2 * TRACE_BYTES_MAX];
    let error = ring.snapshot(&about(1), &trace, &history(16), &mut Vec::new()).expect_err("it is too long");
    assert!(matches!(error, RingError::Snapshot { .. }), "{error}");
    let long = About { prompt: "x".repeat(ABOUT_BYTES_MAX + 1), ..about(1) };
    assert!(ring.snapshot(&long, &[], &history(1), &mut Vec::new()).is_err());
}

#[test]
fn damage_is_noticed() {
    let good = Snapshot {
        about: about(9),
        trace: vec![1, 2, 3],
        size_px: (96, 64),
        history: vec![(vec![1.0; 16], Keys::W); 3],
    };
    let bytes = good.encode().expect("it fits");
    for cut in [0, 7, 8, HEAD_BYTES - 1, HEAD_BYTES, bytes.len() - 1] {
        let error = Snapshot::read_fd(file_of(&bytes[..cut], "cut")).expect_err("it is cut");
        assert!(matches!(error, RingError::Truncated { .. }), "{cut}: {error}");
    }
    let mut odd = bytes.clone();
    odd[28] += 1;
    assert!(Snapshot::read_fd(file_of(&odd, "odd")).is_err(), "97 pixels are no width");
    let unsaid = Snapshot { size_px: (0, 0), ..good.clone() }.encode().expect("it fits");
    let old = Snapshot::read_fd(file_of(&unsaid, "old")).expect("as earlier versions wrote it");
    assert_eq!(old.size_px, (old.about.width, old.about.height));
    let mut nan = good.clone();
    nan.history[1].0[5] = f32::NAN;
    assert!(Snapshot::read_fd(file_of(&nan.encode().expect("it fits"), "nan")).is_err());
}

#[test]
fn an_empty_descriptor_is_an_error() {
    let memory = SharedMemory::create("gamegend-test", 4096).expect("memory for a page");
    let fd: OwnedFd = memory.read_only_fd().expect("a descriptor");
    assert!(matches!(Snapshot::read_fd(&fd), Err(RingError::Magic { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// One changed byte anywhere is noticed, whatever it is.
    #[test]
    fn a_changed_byte_is_an_error(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let history = vec![(vec![1.0; 16], Keys::W); 3];
        let good = Snapshot { about: about(9), trace: vec![1, 2, 3], size_px: (96, 64), history };
        let mut bytes = good.encode().expect("it fits");
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Snapshot::read_fd(file_of(&bytes, "flip")).is_err());
    }
}
