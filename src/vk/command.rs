//! Recordings: copies, dispatches and barriers, recorded once and run any number of times.

use std::sync::Arc;
use std::time::Duration;

use ash::vk;

use super::VkError;
use super::device::Device;
use super::lanes::Point;
use super::memory::Buffer;
use super::pipeline::Pipeline;

/// A kind of work that a barrier puts in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Transfer,
    Compute,
    /// Reads by the host after the run.
    Host,
    /// Everything.
    All,
}

impl Stage {
    fn scope(self) -> (vk::PipelineStageFlags2, vk::AccessFlags2, vk::AccessFlags2) {
        use vk::{AccessFlags2 as A, PipelineStageFlags2 as S};
        match self {
            Stage::Transfer => (S::ALL_TRANSFER, A::TRANSFER_WRITE, A::TRANSFER_READ | A::TRANSFER_WRITE),
            Stage::Compute => {
                (S::COMPUTE_SHADER, A::SHADER_STORAGE_WRITE, A::SHADER_STORAGE_READ | A::SHADER_STORAGE_WRITE)
            }
            Stage::Host => (S::HOST, A::HOST_WRITE, A::HOST_READ | A::HOST_WRITE),
            Stage::All => (S::ALL_COMMANDS, A::MEMORY_WRITE, A::MEMORY_READ | A::MEMORY_WRITE),
        }
    }
}

/// Objects of a recording and what they use. Its own type so that a recording that fails half-way is cleaned up alike.
struct Recorded {
    pool: vk::CommandPool,
    commands: vk::CommandBuffer,
    queries: vk::QueryPool,
    query_count: u32,
    buffers: Vec<Arc<Buffer>>,
    pipelines: Vec<Arc<Pipeline>>,
    name: String,
    /// The end of its last submission.
    submitted: Option<Point>,
    device: Device,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let shared = &self.device.0;
        if let Some(point) = self.submitted
            && let Err(e) = shared.wait(point, &self.name)
        {
            log::warn!("vulkan: {e}");
        }
        if shared.lost() {
            // The device may still read them; the buffers and pipelines stay by the same rule.
            return;
        }
        // SAFETY: needs that no command buffer uses the pool of queries: runs are waited for, and a null pool is
        // allowed.
        unsafe { shared.raw.destroy_query_pool(self.queries, None) };
        // SAFETY: needs that no command buffer of the pool is pending: runs are waited for.
        unsafe { shared.raw.destroy_command_pool(self.pool, None) };
    }
}

/// Records commands. Consumed by [`Recorder::finish`].
pub struct Recorder {
    recorded: Recorded,
    bound: vk::Pipeline,
    next_query: u32,
}

/// A finished recording.
pub struct CommandBuffer(Recorded);

impl Recorder {
    /// Begins a recording with room for `timestamps` timestamps. It starts after everything submitted before it.
    pub fn new(device: &Device, name: &str, timestamps: u32) -> Result<Recorder, VkError> {
        let shared = &device.0;
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(shared.family);
        // SAFETY: needs a family of the device, which `family` is.
        let pool = unsafe { shared.raw.create_command_pool(&info, None) }
            .map_err(|e| shared.failed("vkCreateCommandPool", e))?;
        shared.name(pool, name);
        let mut recorded = Recorded {
            pool,
            commands: vk::CommandBuffer::null(),
            queries: vk::QueryPool::null(),
            query_count: timestamps,
            buffers: Vec::new(),
            pipelines: Vec::new(),
            name: name.to_string(),
            submitted: None,
            device: device.clone(),
        };
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(pool)
            .level(vk::CommandBufferLevel::PRIMARY)
            .command_buffer_count(1);
        // SAFETY: needs a live pool used by no other thread; it was created above.
        let all = unsafe { shared.raw.allocate_command_buffers(&info) }
            .map_err(|e| shared.failed("vkAllocateCommandBuffers", e))?;
        recorded.commands = all[0];
        shared.name(recorded.commands, name);
        // SAFETY: needs a command buffer in its initial state, which a new one is.
        unsafe { shared.raw.begin_command_buffer(recorded.commands, &vk::CommandBufferBeginInfo::default()) }
            .map_err(|e| shared.failed("vkBeginCommandBuffer", e))?;
        if timestamps > 0 {
            let info = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(timestamps);
            // SAFETY: needs a count above zero, which holds here.
            recorded.queries = unsafe { shared.raw.create_query_pool(&info, None) }
                .map_err(|e| shared.failed("vkCreateQueryPool", e))?;
            shared.name(recorded.queries, name);
            // SAFETY: needs a recording command buffer outside a render pass and a range inside the pool.
            unsafe { shared.raw.cmd_reset_query_pool(recorded.commands, recorded.queries, 0, timestamps) };
        }
        let mut recorder = Recorder { recorded, bound: vk::Pipeline::null(), next_query: 0 };
        recorder.barrier(Stage::All, Stage::All);
        Ok(recorder)
    }

    fn api(&self) -> &ash::Device {
        &self.recorded.device.0.raw
    }

    /// Keeps a buffer alive that kernels reach by its address.
    pub fn keep(&mut self, buffer: &Arc<Buffer>) {
        if !self.recorded.buffers.iter().any(|b| Arc::ptr_eq(b, buffer)) {
            self.recorded.buffers.push(Arc::clone(buffer));
        }
    }

    /// Copies bytes between buffers.
    ///
    /// # Panics
    /// If a range is empty or reaches outside its buffer.
    pub fn copy(&mut self, from: &Arc<Buffer>, from_offset: u64, to: &Arc<Buffer>, to_offset: u64, bytes: u64) {
        let name = &self.recorded.name;
        assert!(bytes > 0 && from_offset + bytes <= from.bytes(), "{name}: copy from {}", from.name());
        assert!(to_offset + bytes <= to.bytes(), "{name}: copy to {}", to.name());
        assert!(Arc::ptr_eq(&from.device().0, &to.device().0), "{name}: copy between devices");
        self.keep(from);
        self.keep(to);
        let region = [vk::BufferCopy::default().src_offset(from_offset).dst_offset(to_offset).size(bytes)];
        // SAFETY: needs a recording command buffer, live buffers and ranges inside them: asserted and kept above.
        unsafe { self.api().cmd_copy_buffer(self.recorded.commands, from.raw(), to.raw(), &region) };
    }

    /// Fills a whole buffer with zeros.
    pub fn zero(&mut self, buffer: &Arc<Buffer>) {
        self.keep(buffer);
        // SAFETY: needs a recording command buffer and a live buffer with transfer usage, which every buffer has.
        unsafe { self.api().cmd_fill_buffer(self.recorded.commands, buffer.raw(), 0, vk::WHOLE_SIZE, 0) };
    }

    /// Runs a kernel over `grid` workgroups with `push` as its push constants.
    ///
    /// # Panics
    /// If `push` has another length than the pipeline's, or the grid is empty or above the device's limit.
    pub fn dispatch(&mut self, pipeline: &Arc<Pipeline>, push: &[u8], grid: [u32; 3]) {
        let limits = self.recorded.device.limits();
        let fits = grid.iter().zip(limits.grid_max).all(|(&n, max)| n > 0 && n <= max);
        assert!(fits, "{}: grid {grid:?} of {}", self.recorded.name, pipeline.name());
        assert_eq!(push.len(), pipeline.push_bytes() as usize, "push constants of {}", pipeline.name());
        let commands = self.recorded.commands;
        if self.bound != pipeline.raw {
            // SAFETY: needs a recording command buffer and a live compute pipeline, which is kept below.
            unsafe { self.api().cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.raw) };
            self.bound = pipeline.raw;
            if !self.recorded.pipelines.iter().any(|p| Arc::ptr_eq(p, pipeline)) {
                self.recorded.pipelines.push(Arc::clone(pipeline));
            }
        }
        if !push.is_empty() {
            let stage = vk::ShaderStageFlags::COMPUTE;
            // SAFETY: needs bytes inside a range of the layout: the lengths agree, asserted above.
            unsafe { self.api().cmd_push_constants(commands, pipeline.layout, stage, 0, push) };
        }
        // SAFETY: needs a bound pipeline, its push constants, and a grid within the limits: all done above. That the
        // addresses in `push` are right is the caller's part (see the parent module).
        unsafe { self.api().cmd_dispatch(commands, grid[0], grid[1], grid[2]) };
    }

    /// Work of `before` recorded so far ends, and its writes are seen, before work of `after` recorded later begins.
    pub fn barrier(&mut self, before: Stage, after: Stage) {
        let ((from, writes, _), (to, _, accesses)) = (before.scope(), after.scope());
        let memory = [vk::MemoryBarrier2::default()
            .src_stage_mask(from)
            .src_access_mask(writes)
            .dst_stage_mask(to)
            .dst_access_mask(accesses)];
        let info = vk::DependencyInfo::default().memory_barriers(&memory);
        // SAFETY: needs a recording command buffer and accesses that their stages can do; `Stage::scope` pairs them.
        unsafe { self.api().cmd_pipeline_barrier2(self.recorded.commands, &info) };
    }

    /// Notes the time when everything recorded so far is done.
    ///
    /// # Panics
    /// If there are more timestamps than [`Recorder::new`] was told.
    pub fn timestamp(&mut self) {
        assert!(self.next_query < self.recorded.query_count, "{}: too many timestamps", self.recorded.name);
        let (commands, queries) = (self.recorded.commands, self.recorded.queries);
        let stage = vk::PipelineStageFlags2::ALL_COMMANDS;
        // SAFETY: needs a recording command buffer and a query that was reset and is written once: `new` resets all.
        unsafe { self.api().cmd_write_timestamp2(commands, stage, queries, self.next_query) };
        self.next_query += 1;
    }

    /// Ends the recording.
    pub fn finish(self) -> Result<CommandBuffer, VkError> {
        // SAFETY: needs a recording command buffer outside a render pass.
        unsafe { self.api().end_command_buffer(self.recorded.commands) }
            .map_err(|e| self.recorded.device.0.failed("vkEndCommandBuffer", e))?;
        let mut recorded = self.recorded;
        recorded.query_count = self.next_query;
        Ok(CommandBuffer(recorded))
    }
}

impl CommandBuffer {
    /// Runs the recording once and waits for its end. What the host wrote before is seen by it.
    ///
    /// Errors: [`VkError::DeviceLost`] if it does not end; then every later use of the device fails alike.
    pub fn run(&mut self) -> Result<(), VkError> {
        let point = self.submit(0)?;
        self.0.device.0.wait(point, &self.0.name)
    }

    /// Submits the recording to a lane and returns where it ends. What the host wrote before is seen by it. If it is
    /// on its way already, that is waited for.
    ///
    /// Errors: as for [`CommandBuffer::run`].
    pub fn submit(&mut self, lane: usize) -> Result<Point, VkError> {
        let shared = &self.0.device.0;
        if let Some(point) = self.0.submitted {
            shared.wait(point, &self.0.name)?;
        }
        let mut turn = shared.turn(&self.0.name)?;
        // SAFETY: needs an executable command buffer that is not on its way, whose objects live until the end of the
        // run, or for ever if it fails: `finish` ended it, it was waited for, `self` holds the objects, and `drop`
        // waits, or leaks them if the device is lost.
        let point = unsafe { shared.submit(&mut turn, self.0.commands, lane) }?;
        self.0.buffers.iter().for_each(|buffer| buffer.uses.add(point));
        self.0.submitted = Some(point);
        Ok(point)
    }

    /// Times between successive timestamps of the last run. Empty if the device has no timestamps.
    ///
    /// Errors: [`VkError::Failed`] before the end of the first run.
    pub fn intervals(&self) -> Result<Vec<Duration>, VkError> {
        let Some(period) = self.0.device.limits().timestamp_ns.filter(|_| self.0.query_count > 0) else {
            return Ok(Vec::new());
        };
        let mut ticks = vec![0u64; self.0.query_count as usize];
        let (shared, flags) = (&self.0.device.0, vk::QueryResultFlags::TYPE_64);
        // SAFETY: needs as many elements as queries, each written by the last run; otherwise it answers "not ready".
        unsafe { shared.raw.get_query_pool_results(self.0.queries, 0, &mut ticks, flags) }
            .map_err(|e| shared.failed("vkGetQueryPoolResults", e))?;
        let mask = self.0.device.limits().timestamp_mask;
        let nanos = |pair: &[u64]| (pair[1].wrapping_sub(pair[0]) & mask) as f64 * period;
        Ok(ticks.windows(2).map(|pair| Duration::from_nanos(nanos(pair) as u64)).collect())
    }
}
