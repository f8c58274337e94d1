use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64};

use proptest::prelude::*;

use super::*;
use crate::frame::layout::HEADER_BYTES;

fn ring(slots: u32) -> (FrameRing, RingReader) {
    let (writer, fd) = FrameRing::create(64, 64, slots, 16).expect("memory for a small ring");
    (writer, RingReader::open(fd).expect("a ring of our own"))
}

fn meta(tick: u64) -> FrameMeta {
    FrameMeta { tick, time_us: tick * 41_667, seq: tick as u32 ^ 5, flags: 2, width: 64, height: 64 }
}

#[test]
fn frames_come_out_as_they_went_in() {
    let (mut writer, reader) = ring(4);
    let mut picture = Vec::new();
    assert_eq!(reader.newest(), None);
    assert!(matches!(reader.read(0, &mut picture), Err(RingError::NotYet)));
    for tick in 0..10 {
        writer.publish(&meta(tick), &vec![tick as u8; reader.frame_bytes()]);
        assert_eq!(reader.newest(), Some(tick));
        assert_eq!(reader.read(tick, &mut picture).expect("just written"), meta(tick));
        assert_eq!(picture, vec![tick as u8; 64 * 64 * 3 / 2]);
    }
    assert!(matches!(reader.read(5, &mut picture), Err(RingError::Overwritten)));
    assert_eq!(reader.read(6, &mut picture).expect("the oldest of four").tick, 6);
    assert!(matches!(reader.read(10, &mut picture), Err(RingError::NotYet)));
    assert!(matches!(reader.read(u64::MAX, &mut picture), Err(RingError::NotYet)));
}

#[test]
fn frames_have_sizes_of_their_own_up_to_the_rings() {
    let (mut writer, reader) = ring(4);
    let mut picture = Vec::new();
    writer.publish(&FrameMeta { width: 0, height: 0, ..meta(0) }, &vec![1; reader.frame_bytes()]);
    assert_eq!(reader.read(0, &mut picture).expect("just written"), meta(0), "0 x 0 is the ring's size");
    let small = FrameMeta { width: 32, height: 18, ..meta(1) };
    writer.publish(&small, &[2; 32 * 18 * 3 / 2]);
    assert_eq!(reader.read(1, &mut picture).expect("just written"), small);
    assert_eq!(picture, [2; 32 * 18 * 3 / 2]);
    // A writer that lies about the size is caught: nobody reads beyond the slot.
    writer.reserve(2);
    writer.commit(&FrameMeta { width: 66, height: 64, ..meta(2) });
    assert!(matches!(reader.read(2, &mut picture), Err(RingError::Field { .. })));
    writer.publish(&meta(3), &vec![3; reader.frame_bytes()]);
    assert_eq!(reader.read(3, &mut picture).expect("just written"), meta(3));
}

#[test]
fn a_frame_that_is_being_written_is_neither_old_nor_new() {
    let (mut writer, reader) = ring(2);
    let mut picture = Vec::new();
    for tick in 0..2 {
        writer.publish(&meta(tick), &vec![1; reader.frame_bytes()]);
    }
    writer.begin(2);
    assert!(matches!(reader.read(2, &mut picture), Err(RingError::NotYet)));
    assert!(matches!(reader.read(0, &mut picture), Err(RingError::Overwritten)));
    assert_eq!(reader.newest(), Some(1), "a killed writer leaves the last whole frame");
    assert!(reader.read(1, &mut picture).is_ok());
}

/// Every byte of frame `tick` is `tick`'s low byte, so a torn picture shows two values.
#[test]
fn readers_never_see_a_torn_frame() {
    let (mut writer, fd) = FrameRing::create(64, 64, 2, 16).expect("memory for a small ring");
    let (done, good) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let reader = RingReader::open(fd.try_clone().expect("dup")).expect("a ring of our own");
            let (done, good) = (&done, &good);
            scope.spawn(move || {
                let mut picture = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let Some(tick) = reader.newest() else { continue };
                    match reader.read(tick, &mut picture) {
                        Ok(meta) => {
                            assert!(picture.iter().all(|b| *b == tick as u8), "frame {tick} is torn");
                            assert_eq!(meta.time_us, tick * 41_667);
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(RingError::Overwritten) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
        let mut picture = vec![0; 64 * 64 * 3 / 2];
        let end = std::time::Instant::now() + std::time::Duration::from_millis(400);
        let mut tick = 0;
        while std::time::Instant::now() < end {
            picture.fill(tick as u8);
            writer.publish(&meta(tick), &picture);
            tick += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(good.into_inner() > 0, "readers got frames");
}

/// The same check without the lock must be able to fail, or the test above would prove nothing.
#[test]
fn a_half_written_slot_is_detected() {
    let (mut writer, reader) = ring(2);
    let mut picture = Vec::new();
    writer.publish(&meta(0), &vec![7; reader.frame_bytes()]);
    writer.begin(2);
    let at = writer.geometry().slot_at(2) + LOCK_BYTES;
    writer.memory.write(at, &vec![9; reader.frame_bytes() / 2]);
    assert!(matches!(reader.read(0, &mut picture), Err(RingError::Overwritten)));
    let mut raw = vec![0; reader.frame_bytes()];
    reader.memory.read(at, &mut raw);
    assert!(raw.contains(&7) && raw.contains(&9), "the slot really is torn");
}

#[test]
fn a_ring_smaller_than_its_header_says_is_refused() {
    let g = Geometry::new(320, 192, 8, 4096).expect("legal numbers");
    let memory = SharedMemory::create("gamegend-test", g.total_bytes() - HEADER_BYTES).expect("memory");
    memory.write(0, &g.encode());
    let error = RingReader::open(memory.read_only_fd().expect("a descriptor")).err().expect("it is too small");
    assert!(matches!(error, RingError::Truncated { .. }), "{error}");
    let tiny = SharedMemory::create("gamegend-test", 16).expect("memory");
    assert!(matches!(RingReader::open(tiny.read_only_fd().expect("fd")), Err(RingError::Truncated { .. })));
}

#[test]
fn a_plain_file_is_not_mapped() {
    let path = std::env::temp_dir().join(format!("gamegend-ring-{}", std::process::id()));
    std::fs::write(&path, vec![0; 1 << 20]).expect("a temporary file");
    let file = std::fs::File::open(&path).expect("it was just written");
    assert!(RingReader::open(file.into()).is_err());
    std::fs::remove_file(&path).expect("it was ours");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A header that lies is an error, or a ring whose every access stays inside the object; never a panic.
    #[test]
    fn a_lying_header_is_an_error_or_harmless(
        at in 0..HEADER_USED - 4,
        value in prop_oneof![any::<u32>(), 0..4096u32],
        newest in any::<u64>(),
        lock in any::<u64>(),
    ) {
        let g = Geometry::new(64, 64, 2, 4096).expect("legal numbers");
        let memory = SharedMemory::create("gamegend-test", g.total_bytes()).expect("memory");
        memory.write(0, &g.encode());
        memory.write(at, &value.to_le_bytes());
        memory.atomic_u64(NEWEST_AT).store(newest, Ordering::Relaxed);
        memory.atomic_u64(g.slot_at(0)).store(lock, Ordering::Relaxed);
        memory.write(g.snapshot_at(0), &lock.to_le_bytes());
        let fd = memory.read_only_fd().expect("a descriptor");
        prop_assert!(Snapshot::read_fd(fd.as_fd()).is_err(), "there is no snapshot in it");
        if let Ok(reader) = RingReader::open(fd) {
            let mut picture = Vec::new();
            let _ = reader.read(reader.newest().unwrap_or(0), &mut picture);
            let _ = reader.read(u64::MAX / 2, &mut picture);
            prop_assert!(picture.len() <= memory.len());
        }
    }
}
