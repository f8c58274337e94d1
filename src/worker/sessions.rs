//! All sessions of a worker: who is open, what the api asks, whose turn it is.
//!
//! Nothing here knows of threads or sockets: messages come in as values, answers go out through [`Outbox`], and time is
//! a parameter. An error of one session ends that session; an error of the device ends the process.

mod quality;
mod runs;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::engine::{Engine, Facts, Fault, chain};
use super::load::{Demand, Load, Seen};
use super::schedule::{Next, Pace, Schedule, Watch};
use super::session::{Instruction, Live, Scratch, check_instruction};
use super::sizes::Sizes;
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
    /// Who has lost size, and who is to have another one now, in this order.
    sizes: Sizes,
    orders: VecDeque<(SessionNumber, (u32, u32))>,
    /// It was said that there is no size left to lose.
    at_the_end: bool,
    scratch: Scratch,
    /// Runs on their way, at most one for each lane of the engine, and room for the next ones.
    flights: Vec<runs::Flight<E::Flight>>,
    rooms: Vec<runs::Room>,
    /// When the last run landed.
    landed_at: Duration,
    /// No session is opened anew for other steps or another size before this moment.
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
            sizes: Sizes::default(),
            orders: VecDeque::new(),
            at_the_end: false,
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
        self.tell_qualities(out);
        Ok(self.pace_of(session))
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
        self.sizes.forget(session);
        self.orders.retain(|(ordered, _)| *ordered != session);
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
        let Some(Window { mut stats, runs, played }) = self.meter.report(now) else { return };
        if let Some(load) = &mut self.load
            && stats.busy >= BUSY
            && runs.frames >= runs.count * self.engine.batch_max() as u64 / 2
        {
            load.measured(runs.work, runs.time);
        }
        self.review(now, Seen { missed: stats.deadlines_missed, due: stats.deadlines, busy: played });
        let demand = if self.load.is_some() { self.demand() } else { Demand::default() };
        if let Some(load) = &self.load {
            stats.load = load.share(demand.at(load.level()));
            stats.degraded = load.level().name().to_string();
        }
        stats.smaller = self.sizes.sessions() as u32;
        stats.sessions = self.live.len() as u32;
        stats.state_bytes = self.live.values().map(|live| self.engine.state_bytes(live.request())).sum();
        stats.device_bytes = self.engine.taken_bytes();
        self.tell_qualities(out);
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
