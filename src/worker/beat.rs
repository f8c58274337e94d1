//! The heartbeat: tells the parent several times a second that this process runs, and how long the engine's thread has
//! been at one piece of work. The parent's watchdog acts on both (`parent::watchdog`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::proto::link::FromWorkerToParent;
use crate::sys::link::Link;

/// Time between two beats: several fit into the parent's limit.
const PERIOD: Duration = Duration::from_millis(250);

/// Where the engine's thread says what it is about.
#[derive(Debug)]
pub(super) struct Beat {
    clock: Instant,
    /// Milliseconds of `clock` + 1 at which the current work began, 0 while there is none.
    since: Arc<AtomicU64>,
}

/// Work that goes on until this is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<AtomicU64>);

impl Beat {
    /// Starts the thread that beats until the parent is gone.
    pub(super) fn start(parent: Link) -> io::Result<Beat> {
        let beat = Beat { clock: Instant::now(), since: Arc::default() };
        let (clock, since) = (beat.clock, beat.since.clone());
        let run = move || {
            loop {
                let busy_ms = busy_ms(since.load(Ordering::Acquire), clock.elapsed());
                if parent.send(&FromWorkerToParent::Alive { busy_ms }, &[]).is_err() {
                    return;
                }
                std::thread::sleep(PERIOD);
            }
        };
        std::thread::Builder::new().name("heartbeat".to_string()).spawn(run)?;
        Ok(beat)
    }

    /// The engine's thread begins a piece of work.
    pub(super) fn busy(&self) -> Busy {
        self.since.store(self.clock.elapsed().as_millis() as u64 + 1, Ordering::Release);
        Busy(self.since.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

fn busy_ms(since: u64, now: Duration) -> u32 {
    let began = match since.checked_sub(1) {
        Some(began) => began,
        None => return 0,
    };
    u32::try_from((now.as_millis() as u64).saturating_sub(began)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_timed_while_it_lasts() {
        assert_eq!(busy_ms(0, Duration::from_secs(9)), 0);
        assert_eq!(busy_ms(1, Duration::from_secs(9)), 9000);
        assert_eq!(busy_ms(2001, Duration::from_secs(1)), 0, "a clock that is read early");
        let (ours, theirs) = Link::pair().expect("a socket pair");
        let beat = Beat::start(theirs).expect("a thread");
        let busy = beat.busy();
        let told = || match ours.recv::<FromWorkerToParent>().expect("sound").expect("open").0 {
            FromWorkerToParent::Alive { busy_ms } => busy_ms,
            other => panic!("{other:?}"),
        };
        let work = std::iter::repeat_with(told).take(4).max();
        assert!(work > Some(0), "{work:?}");
        drop(busy);
        assert_eq!(beat.since.load(Ordering::Acquire), 0);
        ours.close();
    }
}
