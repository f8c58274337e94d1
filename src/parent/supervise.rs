//! When a role is started, told to stop, killed and started again: a pure table.
//!
//! ```text
//!            start             ready
//!   Down ------------> Starting ------> Up
//!    ^                  |   ^           |
//!    |                  |   | due       | crash
//!    | exited           |   |           |
//!    |           crash  +-> Backoff <---+        more than RESTARTS_MAX crashes within
//!    |                  |                        RESTART_WINDOW, or an exit that another
//!   Draining <----------+ stop           Failed  try cannot mend (see `crate::exit`)
//! ```
//!
//! A crash is a signal or any exit code that is not permanent. The first restart is at once, so that a killed worker is
//! back before its viewers notice; each further one within the window waits twice as long. A crash of a role that had
//! been ready for [`STABLE_AFTER`] begins a new count.
//!
//! | what happened | how it shows | what follows |
//! | --- | --- | --- |
//! | killed, a bug, out of memory (the kernel's) | signal | starts again, sessions go on |
//! | the device was lost, its memory is full | `EX_TEMPFAIL` | starts again, sessions go on |
//! | it hangs | the watchdog: [`Event::Hung`] | killed, starts again, sessions go on |
//! | damaged weights | `EX_DATAERR` | stays down |
//! | no model, wrong configuration, no rights | `EX_NOINPUT`, `EX_CONFIG`, `EX_NOPERM` | stays down |
//! | too many crashes | the count | stays down until SIGHUP |

use std::time::Duration;

use crate::exit::Exit;

/// More crashes than this within [`RESTART_WINDOW`] leave a role down: something is wrong that restarting does not
/// mend.
pub const RESTARTS_MAX: usize = 5;
/// The time over which crashes are counted.
pub const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// A role that was ready for this long before it died is no role that cannot work: its death does not count, and it is
/// started again at once.
pub const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Wait before the second restart within the window; the third waits twice as long, and so on.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// A role that is asked to end and does not is killed after this: below the 90 s that rc.shutdown(8) grants.
pub const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Time since the daemon's start.
pub type Now = Duration;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It called exit with this code.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
}

impl End {
    fn is_permanent(self) -> bool {
        matches!(self, End::Code(code) if Exit::from_code(code).is_some_and(Exit::is_permanent))
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Code(code) => match Exit::from_code(*code) {
                Some(exit) => write!(f, "exit code {code} ({exit:?})"),
                None => write!(f, "exit code {code}"),
            },
            End::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "signal {number} ({signal})"),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

/// Where a role is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not running, and not meant to.
    Down,
    /// Running, not ready; killed if it is not by then.
    Starting { until: Now },
    /// Ready.
    Up,
    /// Not running; started again at that time.
    Backoff { until: Now },
    /// Asked to end; killed if it has not by then. `again`: to be started afterwards with another configuration.
    Draining { until: Now, again: bool },
    /// Not running, and nothing but a new configuration changes that. `end` is how it last ended.
    Failed { end: End },
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Phase::Down => f.write_str("down"),
            Phase::Starting { .. } => f.write_str("starting"),
            Phase::Up => f.write_str("up"),
            Phase::Backoff { .. } => f.write_str("waiting to be started again"),
            Phase::Draining { .. } => f.write_str("ending"),
            Phase::Failed { end } => write!(f, "failed ({end})"),
        }
    }
}

/// What happens to a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is wanted.
    Start,
    /// It said `Ready`.
    Ready,
    /// Its process is gone.
    Exited(End),
    /// It is not wanted any more.
    Stop,
    /// Its configuration changed.
    Restart,
    /// It lives and does nothing.
    Hung,
    /// Time passed.
    Tick,
}

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the process.
    Spawn,
    /// Ask it to end.
    Drain,
    /// Kill it; its exit is awaited as ever.
    Kill,
    /// It went down; `retry` tells whether it comes back.
    Lost { end: End, retry: bool },
}

/// One role's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supervised {
    pub phase: Phase,
    /// True once it was ready in this run of the daemon.
    pub was_up: bool,
    /// How long a start may take.
    start_limit: Duration,
    /// When the process that runs was ready.
    ready_at: Option<Now>,
    /// Times of the crashes within the window.
    crashes: Vec<Now>,
}

impl Supervised {
    /// A role that is down. `start_limit`: how long it may take to be ready.
    pub fn new(start_limit: Duration) -> Supervised {
        Supervised { phase: Phase::Down, was_up: false, start_limit, ready_at: None, crashes: Vec::new() }
    }

    /// The time at which [`Event::Tick`] would do something.
    pub fn deadline(&self) -> Option<Now> {
        match self.phase {
            Phase::Starting { until } | Phase::Backoff { until } | Phase::Draining { until, .. } => Some(until),
            Phase::Down | Phase::Up | Phase::Failed { .. } => None,
        }
    }

    /// True if its process exists.
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Up | Phase::Draining { .. })
    }

    fn starting(&self, now: Now) -> (Phase, Vec<Action>) {
        (Phase::Starting { until: now + self.start_limit }, vec![Action::Spawn])
    }
}

/// The table: the next state and what to do. Pure.
pub fn step(role: &Supervised, event: Event, now: Now) -> (Supervised, Vec<Action>) {
    let mut next = role.clone();
    let stopping = |again| (Phase::Draining { until: now + STOP_LIMIT, again }, vec![Action::Drain]);
    let (phase, actions) = match (role.phase, event) {
        (Phase::Down | Phase::Failed { .. }, Event::Start | Event::Restart) => {
            next.crashes.clear();
            role.starting(now)
        }
        (Phase::Down | Phase::Failed { .. }, Event::Stop) => (Phase::Down, vec![]),
        (Phase::Down | Phase::Failed { .. }, _) => (role.phase, vec![]),

        (Phase::Starting { .. }, Event::Ready) => {
            next.was_up = true;
            next.ready_at = Some(now);
            (Phase::Up, vec![])
        }
        (Phase::Starting { until }, Event::Tick) if now >= until => (role.phase, vec![Action::Kill]),
        (Phase::Starting { .. } | Phase::Up, Event::Exited(end)) => lost(&mut next, end, now),
        (Phase::Starting { .. } | Phase::Up, Event::Stop) => stopping(false),
        (Phase::Starting { .. } | Phase::Up, Event::Restart) => stopping(true),
        (Phase::Up, Event::Hung) => (Phase::Up, vec![Action::Kill]),
        (Phase::Starting { .. } | Phase::Up, _) => (role.phase, vec![]),

        (Phase::Backoff { until }, Event::Tick) if now >= until => role.starting(now),
        (Phase::Backoff { .. }, Event::Restart) => role.starting(now),
        (Phase::Backoff { .. }, Event::Stop) => (Phase::Down, vec![]),
        (Phase::Backoff { .. }, _) => (role.phase, vec![]),

        (Phase::Draining { again: true, .. }, Event::Exited(_)) => role.starting(now),
        (Phase::Draining { again: false, .. }, Event::Exited(_)) => (Phase::Down, vec![]),
        (Phase::Draining { until, again }, Event::Tick) if now >= until => {
            // Kill again at the next deadline in the unlikely case that it takes that long to die.
            (Phase::Draining { until: now + STOP_LIMIT, again }, vec![Action::Kill])
        }
        (Phase::Draining { until, .. }, Event::Stop) => (Phase::Draining { until, again: false }, vec![]),
        (Phase::Draining { until, .. }, Event::Restart | Event::Start) => {
            (Phase::Draining { until, again: true }, vec![])
        }
        (Phase::Draining { .. }, _) => (role.phase, vec![]),
    };
    if matches!(phase, Phase::Starting { .. }) && phase != role.phase {
        next.ready_at = None;
    }
    next.phase = phase;
    (next, actions)
}

/// The process of a role that is wanted is gone.
fn lost(next: &mut Supervised, end: End, now: Now) -> (Phase, Vec<Action>) {
    if next.ready_at.take().is_some_and(|ready| now.saturating_sub(ready) >= STABLE_AFTER) {
        next.crashes.clear();
    }
    next.crashes.retain(|&at| now.saturating_sub(at) < RESTART_WINDOW);
    next.crashes.push(now);
    let crashes = next.crashes.len();
    if end.is_permanent() || crashes > RESTARTS_MAX {
        return (Phase::Failed { end }, vec![Action::Lost { end, retry: false }]);
    }
    let told = Action::Lost { end, retry: true };
    match crashes {
        1 => {
            let (phase, actions) = next.starting(now);
            (phase, [vec![told], actions].concat())
        }
        _ => (Phase::Backoff { until: now + BACKOFF_FIRST * (1 << (crashes - 2)) }, vec![told]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const NOW: Now = Duration::from_secs(1000);
    const LATER: Now = Duration::from_secs(1001);
    const EARLIER: Now = Duration::from_secs(999);
    const KILLED: End = End::Signal(9);
    const BAD_CONFIG: End = End::Code(78);

    fn at(phase: Phase) -> Supervised {
        Supervised { phase, ..Supervised::new(LIMIT) }
    }

    /// Every phase against every event, with the phase and the actions that must follow at NOW.
    #[test]
    fn the_whole_table() {
        use Event::*;
        let starting = Phase::Starting { until: NOW + LIMIT };
        let stopping = |again| Phase::Draining { until: NOW + STOP_LIMIT, again };
        let failed = Phase::Failed { end: BAD_CONFIG };
        let (spawn, drain, kill) = (vec![Action::Spawn], vec![Action::Drain], vec![Action::Kill]);
        let crash = vec![Action::Lost { end: KILLED, retry: true }, Action::Spawn];
        let gone = vec![Action::Lost { end: BAD_CONFIG, retry: false }];
        let none = Vec::new;
        let events = [Start, Ready, Exited(KILLED), Exited(BAD_CONFIG), Stop, Restart, Tick, Hung];
        let keep = |p: Phase| (p, none());
        let alive = |p: Phase, ready: Phase, tick: Vec<Action>| {
            let crashed = (starting, crash.clone());
            let stop = (stopping(false), drain.clone());
            let restart = (stopping(true), drain.clone());
            let hung = (p, if p == Phase::Up { kill.clone() } else { none() });
            [keep(p), keep(ready), crashed, (failed, gone.clone()), stop, restart, (p, tick), hung]
        };
        let down = |p: Phase| {
            let (start, stop) = ((starting, spawn.clone()), keep(Phase::Down));
            [start.clone(), keep(p), keep(p), keep(p), stop, start, keep(p), keep(p)]
        };
        let backoff = |p: Phase, tick: (Phase, Vec<Action>)| {
            [keep(p), keep(p), keep(p), keep(p), keep(Phase::Down), (starting, spawn.clone()), tick, keep(p)]
        };
        let ending = |until: Now, again: bool, tick: (Phase, Vec<Action>)| {
            let p = |again| Phase::Draining { until, again };
            let exited = if again { (starting, spawn.clone()) } else { keep(Phase::Down) };
            let same = keep(p(again));
            [keep(p(true)), same.clone(), exited.clone(), exited, keep(p(false)), keep(p(true)), tick, same]
        };
        let soon = Phase::Starting { until: LATER };
        let late = Phase::Starting { until: EARLIER };
        let wait = Phase::Backoff { until: LATER };
        let over = Phase::Backoff { until: EARLIER };
        let end = |again| Phase::Draining { until: LATER, again };
        let table = [
            (Phase::Down, down(Phase::Down)),
            (failed, down(failed)),
            (soon, alive(soon, Phase::Up, none())),
            (late, alive(late, Phase::Up, kill.clone())),
            (Phase::Up, alive(Phase::Up, Phase::Up, none())),
            (wait, backoff(wait, keep(wait))),
            (over, backoff(over, (starting, spawn.clone()))),
            (end(false), ending(LATER, false, keep(end(false)))),
            (end(true), ending(LATER, true, keep(end(true)))),
            (Phase::Draining { until: EARLIER, again: false }, ending(EARLIER, false, (stopping(false), kill.clone()))),
        ];
        for (phase, row) in table {
            for (event, (next, actions)) in events.into_iter().zip(row) {
                let (found, done) = step(&at(phase), event, NOW);
                assert_eq!((found.phase, done), (next, actions), "{phase:?} x {event:?}");
            }
        }
    }

    #[test]
    fn crashes_are_limited_and_forgotten() {
        let mut role = step(&Supervised::new(LIMIT), Event::Start, NOW).0;
        let mut now = NOW;
        let mut waits = Vec::new();
        loop {
            role = step(&role, Event::Ready, now).0;
            let (next, actions) = step(&role, Event::Exited(KILLED), now);
            role = next;
            match role.phase {
                Phase::Starting { .. } => assert_eq!(actions.len(), 2),
                Phase::Backoff { until } => {
                    waits.push(until - now);
                    now = until;
                    role = step(&role, Event::Tick, now).0;
                }
                Phase::Failed { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(waits.len(), RESTARTS_MAX - 1);
        assert!(waits.iter().zip(waits.iter().skip(1)).all(|(a, b)| *b == *a * 2));
        // One that works for a while each time is started again at once, however often.
        let mut role = step(&Supervised::new(LIMIT), Event::Start, NOW).0;
        for life in 1..20 {
            role = step(&role, Event::Ready, NOW + STABLE_AFTER * (life - 1)).0;
            let (next, actions) = step(&role, Event::Exited(KILLED), NOW + STABLE_AFTER * life);
            assert!(actions.contains(&Action::Spawn), "{actions:?}");
            role = next;
        }
        // A crash a minute goes on for ever, each restart at once.
        let mut role = step(&Supervised::new(LIMIT), Event::Start, NOW).0;
        for minute in 1..20 {
            let (next, actions) = step(&role, Event::Exited(End::Code(101)), NOW + RESTART_WINDOW * minute);
            assert!(actions.contains(&Action::Spawn), "{actions:?}");
            role = next;
        }
    }

    #[test]
    fn exits_read_well() {
        assert_eq!(End::Code(66).to_string(), "exit code 66 (NoInput)");
        assert_eq!(End::Code(101).to_string(), "exit code 101");
        assert_eq!(End::Signal(9).to_string(), "signal 9 (SIGKILL)");
    }
}
