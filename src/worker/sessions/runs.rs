//! Runs of sessions: who shares one, and what happens when it begins and when it lands.

use std::time::Duration;

use super::{Live, Memory, Outbox, Sessions, refuse};
use crate::proto::link::{FromWorker, OpenSession, SessionNumber};
use crate::worker::engine::{Engine, Fault};

/// After a session was opened anew for other steps or another size so many times as long go by until the next one.
const REOPEN_REST: u32 = 4;

/// Memory of a run, kept for the next one so that a tick allocates nothing that grows.
#[derive(Debug, Default)]
pub(super) struct Room {
    run: Vec<SessionNumber>,
    /// Pictures that do not go straight into the rings.
    pictures: Vec<u8>,
}

impl Room {
    pub(super) fn grow(&mut self, bytes: usize) {
        self.pictures.resize(bytes.max(self.pictures.len()), 0);
    }
}

/// A run on its way.
pub(super) struct Flight<F> {
    /// The engine's word for it.
    flight: F,
    room: Room,
    began: Duration,
    /// One of its sessions was opened anew for it.
    changes: bool,
}

impl<E: Engine> Sessions<E> {
    /// True if runs are on their way.
    pub fn in_flight(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Begins the next frame of `lead` and of all sessions that share its run; where the engine does one thing at a
    /// time, it is there when this returns. A lane must be free. Errors: a fault of the device.
    pub fn tick(
        &mut self,
        lead: SessionNumber,
        clock: &impl Fn() -> Duration,
        out: &mut impl Outbox,
    ) -> Result<(), Fault> {
        // A frame that is there goes out before the next one is begun.
        if self.in_flight() {
            self.land(Duration::ZERO, clock, out)?;
        }
        let start = clock();
        if !self.live.contains_key(&lead) {
            self.schedule.close(lead);
            return Ok(());
        }
        self.next_order(start);
        let mut room = self.rooms.pop().unwrap_or_default();
        self.gather(lead, start, &mut room.run);
        self.begin(room, start, out)?;
        if self.engine.lanes() == 1 { self.land(Duration::MAX, clock, out) } else { Ok(()) }
    }

    /// Who shares the run of `lead`. A session that is opened anew for it is alone: others do not wait for that.
    fn gather(&mut self, lead: SessionNumber, now: Duration, run: &mut Vec<SessionNumber>) {
        let (live, engine, changes) = (&self.live, &self.engine, now >= self.reopen_from);
        let alone = |session: SessionNumber| changes && live.get(&session).is_none_or(Live::changes);
        let together = |session: SessionNumber| match (live.get(&lead), live.get(&session)) {
            (Some(a), Some(b)) => !alone(lead) && !alone(session) && engine.go_together(a.inner(), b.inner()),
            _ => false,
        };
        self.schedule.run(lead, (now, engine.batch_max()), &Memory(live), together, run);
        run.truncate(engine.run_max(run.len()));
    }

    fn begin(&mut self, mut room: Room, start: Duration, out: &mut impl Outbox) -> Result<(), Fault> {
        let (run, mut failed) = (&mut room.run, Vec::new());
        let changes = start >= self.reopen_from && self.live.get(&run[0]).is_some_and(Live::changes);
        for &session in run.iter() {
            let skipped = self.schedule.begun(session, start);
            if self.live.get(&session).is_some_and(|live| live.request().frames.is_none()) {
                self.meter.deadline(skipped);
            }
        }
        run.retain(|&session| {
            let Some(live) = self.live.get_mut(&session) else { return false };
            match live.begin(&mut self.engine, &mut self.scratch, changes) {
                Ok(refused) => {
                    if live.size_is_fixed() {
                        self.sizes.forget(session);
                    }
                    if let Some((seq, fault)) = refused {
                        refuse(session, seq, fault, out);
                    }
                    true
                }
                Err(fault) => {
                    failed.push((session, fault));
                    false
                }
            }
        });
        for (session, fault) in failed {
            self.fail(session, fault, out)?;
        }
        if room.run.is_empty() {
            self.rooms.push(room);
            return Ok(());
        }
        let (run, mut rest, mut parts) = (&room.run, &mut room.pictures[..], Vec::with_capacity(room.run.len()));
        for (_, live) in self.live.iter_mut().filter(|(session, _)| run.contains(session)) {
            let (picture, after) = std::mem::take(&mut rest).split_at_mut(live.frame_bytes());
            rest = after;
            parts.push(live.part(picture));
        }
        match self.engine.begin(parts) {
            Ok(flight) => self.flights.push(Flight { flight, room, began: start, changes }),
            Err(fault) => return self.fail_all(room, fault, out),
        }
        Ok(())
    }

    /// Waits until a run has landed, or for `time`, and publishes its frames. Errors: a fault of the device.
    pub fn land(&mut self, time: Duration, clock: &impl Fn() -> Duration, out: &mut impl Outbox) -> Result<(), Fault> {
        let flights: Vec<E::Flight> = self.flights.iter().map(|f| f.flight).collect();
        let Some(index) = self.engine.landed(&flights, time)? else { return Ok(()) };
        let Flight { flight, mut room, began, changes } = self.flights.remove(index);
        let (run, mut rest, mut parts) = (&room.run, &mut room.pictures[..], Vec::with_capacity(room.run.len()));
        for (_, live) in self.live.iter_mut().filter(|(session, _)| run.contains(session)) {
            let (picture, after) = std::mem::take(&mut rest).split_at_mut(live.frame_bytes());
            rest = after;
            parts.push(live.part_again(picture));
        }
        let ended = self.engine.end(flight, parts);
        self.account(&room.run, (began, clock()), changes);
        match ended {
            Ok(()) => {
                self.publish(&room, out);
                self.rooms.push(room);
                if changes {
                    self.tell_qualities(out);
                }
                Ok(())
            }
            Err(fault) => self.fail_all(room, fault, out),
        }
    }

    /// Waits for every run.
    pub(super) fn land_all(&mut self, clock: &impl Fn() -> Duration, out: &mut impl Outbox) -> Result<(), Fault> {
        while self.in_flight() {
            self.land(Duration::MAX, clock, out)?;
        }
        Ok(())
    }

    /// Notes what a run took.
    fn account(&mut self, run: &[SessionNumber], (began, end): (Duration, Duration), changes: bool) {
        let took = end.saturating_sub(began);
        if changes {
            // One after the other, and no more often than leaves most of the device to the rest.
            self.reopen_from = end + REOPEN_REST * took;
        }
        let mut work = 0.0;
        for &session in run {
            self.schedule.landed(session, took);
            if let (true, Some(live)) = (self.load.is_some(), self.live.get(&session)) {
                let OpenSession { width, height, steps, .. } = live.request();
                work += self.engine.flops((*width, *height), *steps);
            }
        }
        // Of runs that overlap each counts from where the last one ended: together as long as the device was at work.
        let own = end.saturating_sub(began.max(self.landed_at));
        self.landed_at = end;
        let played = run.iter().any(|session| self.live.get(session).is_some_and(|l| l.request().frames.is_none()));
        self.meter.run((run.len(), played), (took, own), if changes { 0.0 } else { work });
    }

    /// Puts the run's frames into their rings and says so.
    fn publish(&mut self, room: &Room, out: &mut impl Outbox) {
        let mut made = &room.pictures[..];
        for (session, live) in self.live.iter_mut().filter(|(session, _)| room.run.contains(session)) {
            let (picture, rest) = made.split_at(live.frame_bytes());
            made = rest;
            if let Some(tick) = live.end(&self.engine, picture, &mut self.scratch.snapshot) {
                out.send(FromWorker::Frame { session: *session, tick }, None);
            }
        }
        room.run.iter().for_each(|session| self.finish_if_done(*session, out));
    }

    /// A run went wrong: so did its sessions, or the device.
    fn fail_all(&mut self, room: Room, fault: Fault, out: &mut impl Outbox) -> Result<(), Fault> {
        if fault.device {
            return Err(fault);
        }
        let failed = room.run.iter().try_for_each(|&session| self.fail(session, fault.clone(), out));
        self.rooms.push(room);
        failed
    }
}
