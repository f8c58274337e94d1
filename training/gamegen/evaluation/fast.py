"""A stream whose tick is one CUDA graph: in the long sessions launching kernels would cost more than they do."""
import copy
import math
import time

import torch
from torch import nn

from ..sampler import Stream

WARM_TICKS = 3  # ticks on a side stream before the capture, so that every kernel has been chosen
TIMED_TICKS = 24
COMPILE_FROM = 40.0  # seconds that the plain graphs would take: more is worth the compiler's half a minute
AGREE = 0.05  # relative difference of a replayed frame from the plain one that is still rounding


def in_bf16(module: nn.Module) -> nn.Module:
    """A copy with the linear layers in bf16, which is what autocast makes of them at every call."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)
    return module


class FastStream(Stream):
    """A `Stream` with fixed buffers. After `capture` a tick replays one graph; on a CPU every tick is plain."""

    def __init__(self, dit, instructnet, batch, height, width, device="cpu", dtype=torch.float32, generator=None,
                 context_noise=0.05):
        cuda = torch.device(device).type == "cuda"
        if cuda:
            dit, instructnet = in_bf16(dit), in_bf16(instructnet)
        super().__init__(dit, instructnet, batch, height, width, device, dtype, generator, context_noise)
        self.graph, self.steps = None, None

    def capture(self, steps: int, ticks: int, log=print):
        """Makes the graph of a tick with `steps` passes, for a run of `ticks`. The first frame must have been made.

        Where the run would take long, the blocks are compiled and the graph is made anew; if that fails, or the frame
        differs from the plain one by more than rounding, the graph holds the plain kernels.
        """
        if self.position == 0:
            raise RuntimeError("capture comes after the first frame")
        self.steps = steps
        self.count = torch.tensor([self.position], device=self.device)
        self.action = torch.zeros(self.batch, 1, 6, device=self.device)
        self.fresh, self.context = self.noise(), self.noise()
        self.previous, self.previous_action = self.previous.clone(), self.previous_action.clone()
        self.out = torch.zeros(self.shape, device=self.device)
        if self.device.type != "cuda":
            return
        begin = time.time()
        plain, taken = self._record()
        if taken * ticks > COMPILE_FROM:
            log(f"a plain tick takes {1000 * taken:.2f} ms: compiling the blocks")
            taken = self._compiled(plain, taken, log)
        log(f"graph of a tick for {self.batch} clips: {1000 * taken:.2f} ms, made in {time.time() - begin:.1f}s")

    def _blocks(self) -> list[nn.Module]:
        return [*self.dit.transformer_blocks, *self.instructnet.blocks.values()]

    def _compiled(self, plain: torch.Tensor, plain_taken: float, log) -> float:
        """Compiles the blocks and records anew; falls back to the plain graph. Returns the seconds of a tick."""
        kept = self.graph
        try:
            torch._dynamo.config.recompile_limit = 64
            for block in self._blocks():
                block.compile(dynamic=False)
            fast, taken = self._record()
            difference = float((fast - plain).norm() / plain.norm())
            if not difference < AGREE:
                raise RuntimeError(f"a compiled frame differs by {difference:.3f}")
            if taken < plain_taken:
                return taken
            self.graph = kept
        except Exception as error:  # any failure of the compiler only costs speed
            self.graph = kept
            log(f"blocks not compiled: {str(error)[:200]}")
        finally:
            for block in self._blocks():
                block._compiled_call_impl = None
        return plain_taken

    def _record(self) -> tuple[torch.Tensor, float]:
        """Records the graph; the state of the stream stays. Returns the frame of one replay and its seconds."""
        state = [self.previous, self.previous_action, self.has_previous, self.count, *sum(self.rings, ())]
        saved = [value.clone() for value in state]

        def restore():
            for value, old in zip(state, saved):
                value.copy_(old)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_TICKS):
                self._tick()
                restore()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._tick()
        self.graph = graph
        graph.replay()
        made = self.out.clone()
        restore()
        torch.cuda.synchronize()
        begin = time.time()
        for _ in range(TIMED_TICKS):
            graph.replay()
        torch.cuda.synchronize()
        taken = (time.time() - begin) / TIMED_TICKS
        restore()
        return made, taken

    @torch.no_grad()
    def _tick(self):
        """One frame from the buffers into `out`, with the counters on the device."""
        level = lambda value: torch.full((self.batch, 1), value, device=self.device)
        noisy = (self.previous + self.context_noise * self.context) / math.sqrt(1 + self.context_noise**2)
        slot = self.count % self.window
        seen = torch.arange(self.window, device=self.device) <= self.count  # [W]
        mask = seen[None, None].expand(self.batch, 1, -1)
        rings, x = [(k, v, slot) for k, v in self.rings], self.fresh
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            hook = self.instructnet.bind(self.action, self.previous_action, self.instruction, self.instruction_mask)
            for i in range(self.steps):
                v = self.dit(x, level(i / self.steps), level(1 / self.steps), noisy, level(self.context_noise),
                             self.has_previous, self.text, self.text_mask, self.count, mask, rings, hook)
                x = x + v.float() / self.steps
        self.out.copy_(x)
        self.previous.copy_(x)
        self.previous_action.copy_(self.action)
        self.count.add_(1)

    def tick(self, action: torch.Tensor) -> torch.Tensor:
        """The next latent frame [B,1,Z,h,w] under action [B,1,6]; the buffer is overwritten by the next tick."""
        self.action.copy_(action)
        self.fresh.normal_(generator=self.generator)
        self.context.normal_(generator=self.generator)
        if self.graph is None:
            self._tick()
        else:
            self.graph.replay()
        self.position += 1
        return self.out
