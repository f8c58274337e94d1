//! Who is let in, and what interactive sessions give up while the device has too much to do: the policies of
//! [`load`](crate::worker::load) and [`sizes`](crate::worker::sizes), carried out.

use std::time::Duration;

use super::{Live, Outbox, Sessions};
use crate::proto::link::{FromWorker, OpenSession, SessionNumber};
use crate::worker::engine::{Engine, Fault};
use crate::worker::load::{Demand, Level, Load, Seen, Verdict};
use crate::worker::session::Shape;
use crate::worker::sizes::{Candidate, Sizes, ladder};

/// A session whose size may change.
struct Player {
    session: SessionNumber,
    /// Its sizes with the operations a second that each needs with the fewest steps, the one that was asked for first.
    rungs: Vec<((u32, u32), f64)>,
}

impl Player {
    /// The size and the work of a rung, the smallest one's if there are not so many.
    fn at(&self, rung: usize) -> ((u32, u32), f64) {
        self.rungs[rung.min(self.rungs.len() - 1)]
    }
}

impl<E: Engine> Sessions<E> {
    /// Lets a session in if the device can do what all of them ask for.
    pub(super) fn admit(&mut self, request: &OpenSession) -> Result<(), Fault> {
        if self.load.is_none() {
            return Ok(());
        }
        let size = (request.width, request.height);
        let (open, new) = (self.demand(), self.demand_of(size, request.fps, request.steps));
        let Some(Err(message)) = self.load.as_ref().map(|load| load.admit(open, new)) else { return Ok(()) };
        // Its size is what a newcomer can give up: those who play keep theirs.
        let work = |size| self.engine.flops(size, request.steps);
        for smaller in ladder(size, self.facts.trained_px_min, work).into_iter().skip(1) {
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

    /// What a session asks for that keeps its size.
    fn demand_of(&mut self, size_px: (u32, u32), fps: u32, steps: u32) -> Demand {
        let fewest = steps.min(self.steps_min());
        let mut at = |steps| self.engine.flops(size_px, steps) * f64::from(fps);
        let fewest_steps = at(fewest);
        Demand { full: at(steps), fewest_steps, smaller: fewest_steps }
    }

    /// What all interactive sessions ask for, and need at the sizes that they are to have.
    pub(super) fn demand(&mut self) -> Demand {
        let played = self.live.values().filter(|live| live.request().frames.is_none());
        let all: Vec<_> = played.map(|l| (l.request().fps, l.asked(), l.next_shape())).collect();
        all.into_iter().fold(Demand::default(), |sum, (fps, asked, next)| {
            let own = self.demand_of(asked.size_px(), fps, asked.steps);
            let smaller = self.demand_of(next.size_px(), fps, asked.steps).fewest_steps;
            sum.plus(Demand { smaller, ..own })
        })
    }

    fn level(&self) -> Level {
        self.load.as_ref().map_or(Level::Full, Load::level)
    }

    /// Tells an interactive session what is given up at the moment.
    pub(super) fn degrade(&self, live: &mut Live<E::Session>) {
        let level = self.level();
        if live.request().frames.is_none() {
            let steps = if level == Level::Full { u32::MAX } else { self.steps_min() };
            live.degrade(level > Level::Full, steps);
        }
    }

    /// Looks whether the device keeps up, and gives something up or takes it back.
    pub(super) fn review(&mut self, now: Duration, seen: Seen) {
        let demand = if self.load.is_some() { self.demand() } else { return };
        let unsettled = !self.orders.is_empty() || self.live.values().any(Live::changes_size);
        let any_smaller = !self.sizes.is_empty();
        let Some(load) = self.load.as_mut() else { return };
        load.smaller(any_smaller);
        if unsettled {
            // One after the other, each with a rest behind it: they are judged when the last one is done.
            load.unsettled(now);
            return;
        }
        match load.review(now, seen, demand) {
            None => {}
            Some(Verdict::Level(level)) => {
                log::info!("degraded: {}; {} of {} deadlines were missed", level.name(), seen.missed, seen.due);
                self.at_the_end = false;
                self.schedule.slow_down(level.periods());
                let mut live = std::mem::take(&mut self.live);
                live.values_mut().for_each(|live| self.degrade(live));
                self.live = live;
            }
            Some(Verdict::Shrink(keep)) => self.shrink(now, keep, seen),
            Some(Verdict::Grow { most, more }) => self.grow(now, most, more),
        }
    }

    /// Interactive sessions whose size may change.
    fn players(&mut self) -> Vec<Player> {
        let played = self.live.iter().filter(|(_, live)| live.request().frames.is_none() && !live.size_is_fixed());
        let all: Vec<_> = played.map(|(session, live)| (*session, live.asked(), live.request().fps)).collect();
        let fewest = self.steps_min();
        let player = |(session, asked, fps): (SessionNumber, Shape, u32)| {
            let steps = asked.steps.min(fewest);
            let sizes = ladder(asked.size_px(), self.facts.trained_px_min, |size| self.engine.flops(size, steps));
            let work = |size| (size, self.engine.flops(size, steps) * f64::from(fps));
            Player { session, rungs: sizes.into_iter().map(work).collect() }
        };
        all.into_iter().map(player).collect()
    }

    /// Sessions lose size in the stated order until `keep` of the work is left; at least one does.
    fn shrink(&mut self, now: Duration, keep: f64, seen: Seen) {
        let players = self.players();
        let mut work = self.demand().smaller;
        let (target, mut count) = (keep * work, 0);
        while count == 0 || work > target {
            let (sizes, smaller) = (&self.sizes, |p: &&Player| self.sizes.rung(p.session) + 1 < p.rungs.len());
            let candidate = |p: &Player| Candidate { session: p.session, work: p.at(sizes.rung(p.session)).1 };
            let candidates: Vec<Candidate> = players.iter().filter(smaller).map(candidate).collect();
            let Some(session) = Sizes::next(&candidates) else { break };
            let Some(player) = players.iter().find(|p| p.session == session) else { break };
            let before = player.at(self.sizes.rung(session)).1;
            self.sizes.lose(session);
            let (size, after) = player.at(self.sizes.rung(session));
            work -= before - after;
            self.order(session, size);
            count += 1;
        }
        let missed = format!("{} of {} deadlines were missed", seen.missed, seen.due);
        if count == 0 && !std::mem::replace(&mut self.at_the_end, true) {
            log::warn!("degraded: no session has a smaller size to go to; {missed}");
        }
        if let (Some(load), true) = (&mut self.load, count > 0) {
            log::info!("degraded: {}; {count} sizes are lost; {missed}", Level::Size.name());
            self.at_the_end = false;
            load.shrunk(now);
            load.smaller(true);
        }
    }

    /// Sessions get size back in reverse order while the work is at most `most` times that of now, beyond the first one
    /// at most `more` times.
    fn grow(&mut self, now: Duration, most: f64, more: f64) {
        let players = self.players();
        let mut work = self.demand().smaller;
        let (before, mut count) = (work, 0);
        while let Some(session) = self.sizes.last() {
            let Some(player) = players.iter().find(|p| p.session == session) else {
                // It was found since that it stays as it is.
                self.sizes.forget(session);
                continue;
            };
            let rung = self.sizes.rung(session);
            let ((_, small), (size, large)) = (player.at(rung), player.at(rung.saturating_sub(1)));
            let bound = if count == 0 { most } else { more };
            if work + large - small > bound * before {
                break;
            }
            work += large - small;
            self.sizes.give_back();
            self.order(session, size);
            count += 1;
        }
        if let (Some(load), true) = (&mut self.load, count > 0) {
            log::info!("{count} sizes come back, {} sessions are smaller than they asked to be", self.sizes.sessions());
            self.at_the_end = false;
            load.grown(now);
        }
    }

    /// A session is to have another size when it is its turn; one that waits for its turn goes there at once.
    fn order(&mut self, session: SessionNumber, size_px: (u32, u32)) {
        match self.orders.iter_mut().find(|(ordered, _)| *ordered == session) {
            Some((_, size)) => *size = size_px,
            None => self.orders.push_back((session, size_px)),
        }
    }

    /// Tells the next session to change its size: one at a time, and none before the one before has changed and the
    /// device had its rest.
    pub(super) fn next_order(&mut self, now: Duration) {
        if self.orders.is_empty() || now < self.reopen_from || self.live.values().any(Live::changes_size) {
            return;
        }
        let Some((session, size_px)) = self.orders.pop_front() else { return };
        if let Some(live) = self.live.get_mut(&session) {
            log::debug!("session {session}: to {} x {} pixels", size_px.0, size_px.1);
            live.resize(size_px);
        }
    }

    /// Tells the api of every interactive session whose frames are other than it knows.
    pub(super) fn tell_qualities(&mut self, out: &mut impl Outbox) {
        let level = self.level();
        for (session, live) in self.live.iter_mut().filter(|(_, live)| live.request().frames.is_none()) {
            if let Some(quality) = live.news(level) {
                out.send(FromWorker::Quality { session: *session, quality }, None);
            }
        }
    }
}
