//! Lanes: compute queues that each work through what was submitted to them, beside one another.
//!
//! What is submitted to a lane begins after everything of the same lane, and sees what other lanes had done when the
//! host last looked. More order than that between lanes is up to whoever submits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use ash::vk;

use super::VkError;
use super::device::{Device, DeviceShared};

/// Most lanes of a device.
pub const LANES_MAX: usize = 2;

/// How long one submission may take. Software drivers compile their kernels at the first dispatch, which takes seconds
/// for each of them; a hung GPU is reset by its driver long before.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);

/// The end of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    lane: usize,
    /// Value of the lane's timeline from then on.
    value: u64,
}

/// A queue and its timeline.
pub(super) struct Lane {
    pub(super) queue: vk::Queue,
    pub(super) timeline: vk::Semaphore,
    /// The timeline's value when everything submitted is done, and the highest that the host has seen.
    pub(super) submitted: u64,
    pub(super) seen: u64,
}

/// Taken by whoever submits, and by whoever uses memory that host and device share. See the parent module.
pub(super) struct Turn {
    pub(super) lanes: Vec<Lane>,
}

/// The last submission of each lane that uses a buffer.
#[derive(Debug, Default)]
pub(super) struct Uses([AtomicU64; LANES_MAX]);

impl Uses {
    pub(super) fn add(&self, point: Point) {
        self.0[point.lane].fetch_max(point.value, Ordering::AcqRel);
    }

    fn points(&self) -> impl Iterator<Item = Point> {
        let point = |(lane, value): (usize, &AtomicU64)| Point { lane, value: value.load(Ordering::Acquire) };
        self.0.iter().enumerate().map(point).filter(|point| point.value > 0)
    }
}

impl Device {
    /// Number of lanes: 1 or more.
    pub fn lanes(&self) -> usize {
        self.0.lanes
    }

    /// Waits until one of the points is reached, or for `time`. Returns the first of them that is.
    ///
    /// Errors: [`VkError::DeviceLost`].
    pub fn reached(&self, points: &[Point], time: Duration) -> Result<Option<usize>, VkError> {
        let mut turn = self.0.turn("a wait")?;
        let timelines: Vec<vk::Semaphore> = points.iter().map(|p| turn.lanes[p.lane].timeline).collect();
        // Others may submit meanwhile.
        drop(turn);
        if !timelines.is_empty() && !self.0.wait_any(&timelines, points, time)? {
            return Ok(None);
        }
        turn = self.0.turn("a wait")?;
        for (i, point) in points.iter().enumerate() {
            if self.0.see(&mut turn.lanes[point.lane])? >= point.value {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    /// Waits for everything that was submitted.
    ///
    /// Errors: [`VkError::DeviceLost`].
    pub fn idle(&self) -> Result<(), VkError> {
        let turn = self.0.turn("a wait")?;
        let last = |(lane, l): (usize, &Lane)| Point { lane, value: l.submitted };
        let points: Vec<Point> = turn.lanes.iter().enumerate().map(last).collect();
        self.0.wait_all(turn, points.into_iter(), "a wait").map(drop)
    }
}

impl DeviceShared {
    /// Takes the turn. Errors: [`VkError::DeviceLost`] for ever after a submission did not end.
    pub(super) fn turn(&self, what: &str) -> Result<MutexGuard<'_, Turn>, VkError> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lost() { Err(VkError::DeviceLost { what: what.to_string() }) } else { Ok(turn) }
    }

    /// Takes the turn when no submission that uses a buffer is on its way.
    pub(super) fn turn_after(&self, uses: &Uses, what: &str) -> Result<MutexGuard<'_, Turn>, VkError> {
        let turn = self.turn(what)?;
        self.wait_all(turn, uses.points(), what)
    }

    /// Submits a recording to a lane. It sees everything that the host has seen the end of.
    ///
    /// # Safety
    /// `commands` is an executable command buffer of this device that is not on its way, and all that it uses lives
    /// until the point that this returns is reached; after an error of a wait for it, for ever.
    pub(super) unsafe fn submit(
        &self,
        turn: &mut Turn,
        commands: vk::CommandBuffer,
        lane: usize,
    ) -> Result<Point, VkError> {
        let mut waits = Vec::with_capacity(turn.lanes.len());
        for other in turn.lanes.iter().enumerate().filter(|(i, other)| *i != lane && other.seen > 0).map(|(_, o)| o) {
            // Reached already: what was done there becomes visible here.
            let wait = vk::SemaphoreSubmitInfo::default().semaphore(other.timeline).value(other.seen);
            waits.push(wait.stage_mask(vk::PipelineStageFlags2::ALL_COMMANDS));
        }
        let own = &mut turn.lanes[lane];
        let value = own.submitted + 1;
        let commands = [vk::CommandBufferSubmitInfo::default().command_buffer(commands)];
        let signals = [vk::SemaphoreSubmitInfo::default()
            .semaphore(own.timeline)
            .value(value)
            .stage_mask(vk::PipelineStageFlags2::ALL_COMMANDS)];
        let submit = [vk::SubmitInfo2::default()
            .wait_semaphore_infos(&waits)
            .command_buffer_infos(&commands)
            .signal_semaphore_infos(&signals)];
        // SAFETY: needs exclusive use of the queue, which the turn gives, an executable command buffer that is not
        // pending (the caller's promise), live semaphores of this device, and a value above the timeline's (it only
        // counts up).
        unsafe { self.raw.queue_submit2(own.queue, &submit, vk::Fence::null()) }
            .map_err(|e| self.failed("vkQueueSubmit2", e))?;
        own.submitted = value;
        Ok(Point { lane, value })
    }

    /// Waits until the point is reached.
    ///
    /// Errors: [`VkError::DeviceLost`]; then every later use of the device fails alike.
    pub(super) fn wait(&self, point: Point, name: &str) -> Result<(), VkError> {
        let turn = self.turn(name)?;
        self.wait_all(turn, std::iter::once(point), name).map(drop)
    }

    /// Waits for the points, holding the turn.
    fn wait_all<'a>(
        &self,
        mut turn: MutexGuard<'a, Turn>,
        points: impl Iterator<Item = Point>,
        name: &str,
    ) -> Result<MutexGuard<'a, Turn>, VkError> {
        for point in points {
            let lane = &mut turn.lanes[point.lane];
            if lane.seen >= point.value {
                continue;
            }
            if !self.wait_any(&[lane.timeline], &[point], RUN_TIMEOUT)? {
                self.lose();
                return Err(VkError::DeviceLost { what: format!("{name} (it does not end)") });
            }
            lane.seen = lane.seen.max(point.value);
        }
        Ok(turn)
    }

    /// True if one of the points was reached within the time.
    fn wait_any(&self, timelines: &[vk::Semaphore], points: &[Point], time: Duration) -> Result<bool, VkError> {
        let values: Vec<u64> = points.iter().map(|p| p.value).collect();
        let wait =
            vk::SemaphoreWaitInfo::default().flags(vk::SemaphoreWaitFlags::ANY).semaphores(timelines).values(&values);
        // SAFETY: needs live timeline semaphores of this device, which those of the lanes are as long as `self`.
        match unsafe { self.raw.wait_semaphores(&wait, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)) } {
            Ok(()) => Ok(true),
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(e) => {
                self.lose();
                Err(VkError::DeviceLost { what: format!("a wait ({e})") })
            }
        }
    }

    /// Looks how far a lane has come.
    fn see(&self, lane: &mut Lane) -> Result<u64, VkError> {
        // SAFETY: needs a live timeline semaphore of this device.
        let value = unsafe { self.raw.get_semaphore_counter_value(lane.timeline) }
            .map_err(|e| self.failed("vkGetSemaphoreCounterValue", e))?;
        lane.seen = lane.seen.max(value);
        Ok(lane.seen)
    }
}
