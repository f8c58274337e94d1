//! All sessions of a worker: who is open, what the api asks, whose turn it is.
//!
//! Nothing here knows of threads or sockets: messages come in as values, answers go out through [`Outbox`], and time is
//! a parameter. An error of one session ends that session; an error of the device ends the process.

mod runs;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::engine::{Engine, Facts, Fault, chain};
use super::load::{Demand, Level, Load};
use super::schedule::{Next, Pace, Schedule, Watch};
use super::session::{Instruction, Live, Scratch, check_instruction};
use super::stats::{Meter, Window};
use crate::proto::limits;
use crate::proto::link::{FromWorker, OpenSession, SessionNumber, ToWorker};

/// A window in which the device was at work for this share of the time, with runs at least half as large as they come,
/// tells what it can do.
const BUSY: f64 = 0.9;

/// Where answers to the api go.
pub trait Outbox {
    /// Sends a message, with a descriptor if its doc comment names one. An api that is gone is not an error here: its
    /// sessions are closed when its link is seen to be closed.
    fn send(&mut self, message: FromWorker, fd: Option<BorrowedFd<'_>>);
}

/// The sessions of one engine.
pub struct Sessions<E: Engine> {
    engine: E,
    facts: Facts,
    live: BTreeMap<SessionNumber, Live<E::Session>>,
    schedule: Schedule,
    /// `None`: sessions share the device as well as they can.
    load: Option<Load>,
    scratch: Scratch,
    /// Runs on their way, at most one for each lane of the engine, and room for the next ones.
    flights: Vec<runs::Flight<E::Flight>>,
    rooms: Vec<runs::Room>,
    /// When the last run landed.
    landed_at: Duration,
    /// No session is opened anew for another number of steps before this moment.
    reopen_from: Duration,
    meter: Meter,
}

/// What the scheduler may ask: a look into the sessions' shared memory.
struct Memory<'a, S>(&'a BTreeMap<SessionNumber, Live<S>>);

impl<S> Watch for Memory<'_, S> {
    fn has_news(&self, session: SessionNumber) -> bool {
        self.0.get(&session).is_some_and(Live::has_news)
    }

    fn has_room(&self, session: SessionNumber) -> bool {
        self.0.get(&session).is_some_and(Live::has_room)
    }
}

impl<E: Engine> Sessions<E> {
    pub fn new(engine: E, facts: Facts, now: Duration) -> Sessions<E> {
        Sessions {
            engine,
            live: BTreeMap::new(),
            schedule: Schedule::new(),
            load: facts.rate.map(Load::new),
            facts,
            scratch: Scratch::default(),
            flights: Vec::new(),
            rooms: Vec::new(),
            landed_at: now,
            reopen_from: now,
            meter: Meter::new(now),
        }
    }

    /// The engine, after every session was closed. Errors: a fault of the device.
    pub fn into_engine(mut self, clock: &impl Fn() -> Duration, out: &mut impl Outbox) -> Result<E, Fault> {
        self.keep_all(clock, out)?;
        Ok(self.engine)
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Acts on a message of the api. `clock` tells the time; opening takes some.
    ///
    /// Errors: a fault of the device, which is the end of the process.
    pub fn handle(
        &mut self,
        message: ToWorker,
        fds: Vec<OwnedFd>,
        clock: &impl Fn() -> Duration,
        out: &mut impl Outbox,
    ) -> Result<(), Fault> {
        match message {
            // The caller compares builds; a second greeting changes nothing.
            ToWorker::Hello { .. } => Ok(()),
            ToWorker::Open(request) => {
                // What it needs of the device waits for nobody else's frame.
                self.land_all(clock, out)?;
                let began = clock();
                let session = request.session;
                let opened = self.open(*request, fds, out);
                let took = clock().saturating_sub(began);
                self.meter.work(took);
                log::debug!("session {session}: opening took {} ms", took.as_millis());
                match opened {
                    Ok(pace) => {
                        self.schedule.open(session, pace, clock());
                        self.finish_if_done(session, out);
                        Ok(())
                    }
                    Err(fault) => self.fail(session, fault, out),
                }
            }
            ToWorker::Instruct { session, seq, environment, instruction } => {
                let Some(live) = self.live.get_mut(&session) else { return Ok(()) };
                match check_instruction(&environment, instruction.as_deref(), &self.facts) {
                    Ok(()) => live.instruct(Instruction { seq, environment, text: instruction }),
                    Err(fault) => refuse(session, seq, fault, out),
                }
                Ok(())
            }
            ToWorker::Close { session } => {
                self.land_all(clock, out)?;
                if let Some(frames) = self.close(session) {
                    out.send(FromWorker::Finished { session, frames }, None);
                }
                Ok(())
            }
        }
    }

    fn open(&mut self, request: OpenSession, fds: Vec<OwnedFd>, out: &mut impl Outbox) -> Result<Pace, Fault> {
        let session = request.session;
        if self.live.contains_key(&session) {
            // Answered as its own failure below would close the session that is there.
            log::warn!("session {session} was opened twice; the first one goes on");
            return Ok(self.pace_of(session));
        }
        if self.live.len() >= limits::SESSIONS_MAX {
            let message = format!("{} sessions are open, allowed: {}", self.live.len(), limits::SESSIONS_MAX);
            return Err(Fault::session("worker_full", message));
        }
        let (real_time, max) = (self.schedule.real_time(), self.facts.real_time_max);
        if request.frames.is_none() && real_time >= max {
            let message = format!("{real_time} interactive sessions are open, allowed: {max}");
            return Err(Fault::session("worker_full", message));
        }
        if request.frames.is_none() {
            self.admit(&request)?;
        }
        let (mut live, ring) = Live::open(&mut self.engine, request, fds, &self.facts)?;
        self.degrade(&mut live);
        let bytes = live.frame_bytes() * self.engine.batch_max();
        self.rooms.resize_with(self.engine.lanes(), runs::Room::default);
        self.rooms.iter_mut().for_each(|room| room.grow(bytes));
        self.live.insert(session, live);
        out.send(FromWorker::Opened { session }, Some(ring.as_fd()));
        Ok(self.pace_of(session))
    }

    /// Lets a session in if the device can do what all of them ask for.
    fn admit(&mut self, request: &OpenSession) -> Result<(), Fault> {
        if self.load.is_none() {
            return Ok(());
        }
        let size = (request.width, request.height);
        let (open, new) = (self.demand(), self.demand_of(size, request.fps, request.steps));
        let Some(Err(message)) = self.load.as_ref().map(|load| load.admit(open, new)) else { return Ok(()) };
        // Its size is what a newcomer can give up: those who play keep theirs.
        for part in [2, 4] {
            let smaller = ((size.0 / part) & !1, (size.1 / part) & !1);
            if !limits::WIDTH_PX.contains(&smaller.0) || !limits::HEIGHT_PX.contains(&smaller.1) {
                break;
            }
            let new = self.demand_of(smaller, request.fps, request.steps);
            if self.load.as_ref().is_some_and(|load| load.admit(open, new).is_ok()) {
                let message = format!("{message}; {} x {} pixels would fit", smaller.0, smaller.1);
                return Err(Fault::session("worker_full", message));
            }
        }
        Err(Fault::session("worker_full", message))
    }

    /// The fewest steps of the model.
    fn steps_min(&self) -> u32 {
        self.facts.vocabulary.steps.iter().copied().min().unwrap_or(1)
    }

    fn demand_of(&mut self, size_px: (u32, u32), fps: u32, steps: u32) -> Demand {
        let fewest = steps.min(self.steps_min());
        let mut at = |steps| self.engine.flops(size_px, steps) * f64::from(fps);
        Demand { full: at(steps), fewest_steps: at(fewest) }
    }

    /// What all interactive sessions ask for.
    fn demand(&mut self) -> Demand {
        let played = self.live.values().filter(|live| live.request().frames.is_none());
        let asked = |live: &Live<E::Session>| {
            let OpenSession { width, height, fps, .. } = live.request();
            ((*width, *height), *fps, live.asked_steps())
        };
        let all: Vec<_> = played.map(asked).collect();
        all.into_iter().fold(Demand::default(), |sum, (size, fps, steps)| sum.plus(self.demand_of(size, fps, steps)))
    }

    /// Tells an interactive session what is given up at the moment.
    fn degrade(&self, live: &mut Live<E::Session>) {
        let level = self.load.as_ref().map_or(Level::Full, Load::level);
        if live.request().frames.is_none() {
            let steps = if level == Level::Full { u32::MAX } else { self.steps_min() };
            live.degrade(level > Level::Full, steps);
        }
    }

    /// Looks whether the device keeps up, and gives something up or takes it back.
    fn review(&mut self, now: Duration, deadlines: (u64, u64)) {
        if self.load.is_none() {
            return;
        }
        let demand = self.demand();
        let Some(level) = self.load.as_mut().and_then(|load| load.review(now, deadlines, demand)) else { return };
        log::info!("degraded: {}; {} of {} deadlines were missed", level.name(), deadlines.0, deadlines.1);
        self.schedule.slow_down(level.periods());
        let mut live = std::mem::take(&mut self.live);
        live.values_mut().for_each(|live| self.degrade(live));
        self.live = live;
    }

    fn pace_of(&self, session: SessionNumber) -> Pace {
        match self.live.get(&session).map(Live::request) {
            Some(OpenSession { frames: None, fps, .. }) => {
                Pace::RealTime { period: Duration::from_secs(1) / (*fps).max(1) }
            }
            _ => Pace::Stored,
        }
    }

    /// Ends a session that went wrong, or passes a fault of the device on.
    fn fail(&mut self, session: SessionNumber, fault: Fault, out: &mut impl Outbox) -> Result<(), Fault> {
        if fault.device {
            return Err(fault);
        }
        log::info!("session {session} failed: {}: {}", fault.code, fault.message);
        self.close(session);
        out.send(FromWorker::Failed { session, code: fault.code.to_string(), message: fault.message }, None);
        Ok(())
    }

    /// Closes a session with a last snapshot in its ring, which its reader keeps. Returns its number of frames.
    fn close(&mut self, session: SessionNumber) -> Option<u64> {
        self.schedule.close(session);
        let mut live = self.live.remove(&session)?;
        live.snapshot(&mut self.scratch.snapshot);
        let frames = live.frames();
        live.close(&mut self.engine);
        Some(frames)
    }

    /// Closes every session without a word, since the api that owned them is gone, and hands back the rings of those
    /// that are played, each with a snapshot of its newest frame: the next api opens them again from there. Stored
    /// generations begin anew with it, so theirs are not kept.
    /// Errors: a fault of the device.
    pub fn keep_all(
        &mut self,
        clock: &impl Fn() -> Duration,
        out: &mut impl Outbox,
    ) -> Result<Vec<(SessionNumber, OwnedFd)>, Fault> {
        self.land_all(clock, out)?;
        let all: Vec<SessionNumber> = self.live.keys().copied().collect();
        let mut kept = Vec::new();
        for session in all {
            let played = self.live.get(&session).filter(|live| live.request().frames.is_none());
            let ring = played.map(Live::ring_fd).transpose();
            self.close(session);
            match ring {
                Ok(ring) => kept.extend(ring.map(|ring| (session, ring))),
                Err(e) => log::warn!("session {session} is not kept: {}", chain(&e)),
            }
        }
        Ok(kept)
    }

    /// From now on no tick begins; every session leaves a snapshot.
    /// Errors: a fault of the device.
    pub fn drain(&mut self, clock: &impl Fn() -> Duration, out: &mut impl Outbox) -> Result<(), Fault> {
        self.schedule.drain();
        self.land_all(clock, out)?;
        for live in self.live.values_mut() {
            live.snapshot(&mut self.scratch.snapshot);
        }
        Ok(())
    }

    /// Whose turn it is. While runs are on their way, whoever waits does so in [`Sessions::land`].
    pub fn next(&mut self, now: Duration) -> Next {
        if self.flights.len() == self.engine.lanes() {
            return Next::Wait(Duration::MAX);
        }
        self.schedule.next(now, &Memory(&self.live))
    }

    fn finish_if_done(&mut self, session: SessionNumber, out: &mut impl Outbox) {
        if self.live.get(&session).is_some_and(Live::is_finished)
            && let Some(frames) = self.close(session)
        {
            out.send(FromWorker::Finished { session, frames }, None);
        }
    }

    /// Time until the next report of statistics.
    pub fn report_in(&self, now: Duration) -> Duration {
        self.meter.rest(now)
    }

    /// Sends statistics if a window is over.
    pub fn report(&mut self, now: Duration, out: &mut impl Outbox) {
        let Some(Window { mut stats, runs }) = self.meter.report(now) else { return };
        if let Some(load) = &mut self.load
            && stats.busy >= BUSY
            && runs.frames >= runs.count * self.engine.batch_max() as u64 / 2
        {
            load.measured(runs.work, runs.time);
        }
        self.review(now, (stats.deadlines_missed, stats.deadlines));
        let demand = if self.load.is_some() { self.demand() } else { Demand::default() };
        if let Some(load) = &self.load {
            stats.load = load.share(demand.at(load.level()));
            stats.degraded = load.level().name().to_string();
        }
        stats.sessions = self.live.len() as u32;
        stats.state_bytes = self.live.values().map(|live| self.engine.state_bytes(live.request())).sum();
        stats.device_bytes = self.engine.taken_bytes();
        out.send(FromWorker::Stats(stats), None);
    }
}

fn refuse(session: SessionNumber, seq: u32, fault: Fault, out: &mut impl Outbox) {
    log::info!("session {session}: instruction {seq} refused: {}", fault.message);
    out.send(FromWorker::Refused { session, seq, code: fault.code.to_string(), message: fault.message }, None);
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
