//! Runs on their way: each has a lane, from when it is submitted until its outputs are taken.

use std::time::Duration;

use super::super::{ComputeError, Flight, Output, Run, StateId, Tensor, run};
use super::{GpuExecutor, Key};
use crate::vk::Point;

/// A wait for a run that is made again and again: the device itself gives up on a run that does not end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A run that was submitted.
pub(super) struct Begun {
    pub key: Key,
    pub end: Point,
    states: Vec<StateId>,
}

impl GpuExecutor {
    /// Submits a run to a free lane.
    pub(super) fn submit(&mut self, run: &Run<'_>) -> Result<Flight, ComputeError> {
        let unknown = || ComputeError::Device { what: format!("there is no plan {}", run.plan.0) };
        let prepared = self.plans.get(run.plan.0).ok_or_else(unknown)?;
        run::check(&prepared.plan, run, |id| self.states.get(&id.0).map(|s| &*s.layout))?;
        let fail = |what: String| ComputeError::Run { plan: prepared.plan.name.clone(), what };
        let flying = |id: &&StateId| self.flights.iter().flatten().any(|begun| begun.states.contains(id));
        if let Some(id) = run.states.iter().find(flying) {
            return Err(fail(format!("state {} is in a run that has not ended", id.0)));
        }
        let lane = self.free_lane(run.states[0]).ok_or_else(|| fail("every lane has a run".to_string()))?;
        let delivered = self.delivered(&prepared.plan, run.outputs)?;
        let wanted = |t: &Tensor| delivered != Some(*t) && run.outputs.iter().any(|(given, _)| given == t);
        let outputs = prepared.plan.outputs.iter().copied().filter(wanted).collect();
        let state = (prepared.plan.seats() == 1).then(|| run.states[0]);
        let key = Key { lane, plan: run.plan, state, outputs, delivered, profiled: run.profile.is_some() };
        self.record(&key)?;

        let prepared = &self.plans[run.plan.0];
        let table = run.states.iter().map(|id| self.states[&id.0].buffer.address());
        let targets = run.outputs.iter().filter(|(t, _)| delivered == Some(*t)).map(|(_, output)| match output {
            Output::Shared { memory, offset } => self.shared[&memory.0].address() + *offset as u64,
            _ => 0,
        });
        prepared.write_inputs(lane, (table, targets), run.inputs, run.params)?;
        let recording = self.recordings.get_mut(&key).expect("it was recorded just now");
        let end = recording.commands.submit(lane)?;
        self.flights[lane] = Some(Begun { key, end, states: run.states.to_vec() });
        Ok(Flight(lane))
    }

    /// A lane without a run. A session that runs alone has recordings of its own: it keeps to one lane if it can.
    fn free_lane(&self, state: StateId) -> Option<usize> {
        let lanes = self.flights.len();
        (0..lanes).map(|i| (state.0 + i) % lanes).find(|&lane| self.flights[lane].is_none())
    }

    pub(super) fn begun(&self, flight: Flight) -> Result<&Begun, ComputeError> {
        let none = || ComputeError::Device { what: format!("lane {} has no run", flight.0) };
        self.flights.get(flight.0).and_then(Option::as_ref).ok_or_else(none)
    }

    /// Waits for a run and takes its outputs: those that it was begun with.
    pub(super) fn finish(
        &mut self,
        flight: Flight,
        outputs: &mut [(Tensor, Output<'_>)],
    ) -> Result<Begun, ComputeError> {
        let key = &self.begun(flight)?.key;
        let prepared = &self.plans[key.plan.0];
        let same = outputs.iter().all(|(t, _)| key.delivered == Some(*t) || key.outputs.contains(t));
        if !same {
            let what = "a run does not end with the outputs that it was begun with".to_string();
            return Err(ComputeError::Run { plan: prepared.plan.name.clone(), what });
        }
        // Mapped memory waits for the run by itself; a run without any is waited for here.
        while self.device.reached(&[self.begun(flight)?.end], PATIENCE)?.is_none() {}
        let (key, prepared) = (&self.begun(flight)?.key, &self.plans[self.begun(flight)?.key.plan.0]);
        prepared.read_outputs(flight.0, outputs, key.delivered, &self.shared)?;
        Ok(self.flights[flight.0].take().expect("it was there just now"))
    }

    /// Waits for every run, before memory goes that they may use. A device that is lost uses none any more.
    pub(super) fn settle(&self) {
        if let Err(e) = self.device.idle() {
            log::warn!("{}: {e}", self.info.name);
        }
    }
}
