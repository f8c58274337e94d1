//! All sessions of a worker: who is open, what the api asks, whose turn it is.
//!
//! Nothing here knows of threads or sockets: messages come in as values, answers go out through [`Outbox`], and time is
//! a parameter. An error of one session ends that session; an error of the device ends the process.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::engine::{Engine, Facts, Fault, chain};
use super::schedule::{Next, Pace, Schedule, Watch};
use super::session::{Instruction, Live, Scratch, check_instruction};
use super::stats::Meter;
use crate::proto::limits;
use crate::proto::link::{FromWorker, OpenSession, SessionNumber, ToWorker};

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
    scratch: Scratch,
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
            facts,
            live: BTreeMap::new(),
            schedule: Schedule::new(),
            scratch: Scratch::default(),
            meter: Meter::new(now),
        }
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
        let (live, ring) = Live::open(&mut self.engine, request, fds, &self.facts)?;
        let bytes = self.scratch.picture.len().max(live.frame_bytes());
        self.scratch.picture.resize(bytes, 0);
        self.live.insert(session, live);
        out.send(FromWorker::Opened { session }, Some(ring.as_fd()));
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
        let mut live = self.live.remove(&session)?;
        live.snapshot(&mut self.scratch.snapshot);
        let frames = live.frames();
        self.engine.close(live.into_inner());
        Some(frames)
    }

    /// Closes every session without a word, since the api that owned them is gone, and hands back the rings of those
    /// that are played, each with a snapshot of its newest frame: the next api opens them again from there. Stored
    /// generations begin anew with it, so theirs are not kept.
    pub fn keep_all(&mut self) -> Vec<(SessionNumber, OwnedFd)> {
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
        kept
    }

    /// From now on no tick begins; every session leaves a snapshot.
    pub fn drain(&mut self) {
        self.schedule.drain();
        for live in self.live.values_mut() {
            live.snapshot(&mut self.scratch.snapshot);
        }
    }

    /// Whose turn it is.
    pub fn next(&mut self, now: Duration) -> Next {
        self.schedule.next(now, &Memory(&self.live))
    }

    /// Makes one frame of `session`. Errors: a fault of the device.
    pub fn tick(
        &mut self,
        session: SessionNumber,
        clock: &impl Fn() -> Duration,
        out: &mut impl Outbox,
    ) -> Result<(), Fault> {
        let Some(live) = self.live.get_mut(&session) else {
            self.schedule.close(session);
            return Ok(());
        };
        let start = clock();
        let turn = live.tick(&mut self.engine, &mut self.scratch);
        let end = clock();
        self.schedule.ticked(session, start, end);
        let turn = match turn {
            Ok(turn) => turn,
            Err(fault) => return self.fail(session, fault, out),
        };
        self.meter.tick(end.saturating_sub(start));
        if let Some((seq, fault)) = turn.refused {
            refuse(session, seq, fault, out);
        }
        if let Some(tick) = turn.published {
            out.send(FromWorker::Frame { session, tick }, None);
        }
        self.finish_if_done(session, out);
        Ok(())
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
        let Some(mut stats) = self.meter.report(now) else { return };
        stats.sessions = self.live.len() as u32;
        stats.state_bytes = self.live.values().map(|live| self.engine.state_bytes(live.request())).sum();
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
