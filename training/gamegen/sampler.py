"""Streaming generation: one latent frame a tick, with temporal keys and values kept in a ring.

This is what the Rust engine does, frame for frame; fixtures.py records it for the parity tests.
"""
import math

import torch

from .instructnet import InstructNet
from .msdit import MSDiT

CONTEXT_NOISE = 0.05
FIRST_FRAME_STEPS = 16  # steps of the first frame of a text-only start, told their size like all others
SEED_LEVEL = 0.999  # noise level at which given latents are passed through to fill the ring


class Stream:
    """The state of a batch of clips that are generated side by side."""

    def __init__(self, dit: MSDiT, instructnet: InstructNet | None, batch: int, height: int, width: int, device="cpu",
                 dtype=torch.float32, generator=None, context_noise=CONTEXT_NOISE):
        """height and width are those of the latent; dtype is that of the autocast region and of the ring."""
        self.dit, self.instructnet, self.device, self.dtype = dit, instructnet, torch.device(device), dtype
        self.generator, self.context_noise = generator, context_noise
        cfg = dit.cfg
        self.batch, self.window = batch, cfg["window"]
        self.shape = (batch, 1, cfg["latent_channels"], height, width)
        heads = cfg["hidden_size"] // cfg["head_dim"]
        rows = (batch * height * width, heads, self.window, cfg["head_dim"])
        make = lambda: torch.zeros(rows, device=self.device, dtype=dtype)
        self.rings = [(make(), make()) for _ in range(cfg["num_layers"])]
        self.previous = torch.zeros(self.shape, device=self.device)
        self.previous_noisy = self.previous
        self.has_previous = torch.zeros(batch, 1, device=self.device)
        self.previous_action = torch.zeros(batch, 1, 6, device=self.device)
        self.position = 0
        self.text = self.text_mask = self.instruction = self.instruction_mask = None
        self.select = None  # [B,1]: which instruction holds, where several are set
        self.video = None  # [B,n,N,D]: features of a video prompt, a frame a tick; nothing after its end

    def autocast(self):
        """bf16 on a GPU, plain f32 where dtype is f32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def set_text(self, features: torch.Tensor, mask: torch.Tensor):
        """Prompt features [B,L,Dt] and mask [B,L] from the text encoder."""
        self.text, self.text_mask = features, mask

    def set_instruction(self, features: torch.Tensor, mask: torch.Tensor):
        """Instruction features [B,L,Dt] and mask [B,L]; they hold from the next frame on."""
        self.instruction, self.instruction_mask = features[:, None], mask[:, None]

    def noise(self) -> torch.Tensor:
        """A standard normal latent frame."""
        return torch.randn(self.shape, device=self.device, generator=self.generator)

    def begin(self, noise: torch.Tensor | None = None):
        """Noises the frame before the coming one, once for all passes of the tick."""
        n = self.noise() if noise is None else noise
        self.previous_noisy = (self.previous + self.context_noise * n) / math.sqrt(1 + self.context_noise**2)

    @torch.no_grad()
    def velocity(self, x, t: float, d: float, action=None, trace=None) -> torch.Tensor:
        """One pass: x [B,1,Z,h,w] at noise level t with step size d. The ring slot of this frame is overwritten."""
        level = lambda value: torch.full((self.batch, 1), value, device=self.device)
        slot = torch.tensor([self.position % self.window], device=self.device)
        seen = torch.arange(self.window, device=self.device) < min(self.position + 1, self.window)  # [W]
        mask = seen[None, None].expand(self.batch, 1, -1)  # [B,1,W]
        with self.autocast():
            hook = None
            if action is not None and self.instructnet is not None:
                video = None
                if self.video is not None and self.position < self.video.shape[1]:
                    video = self.video[:, self.position:self.position + 1]
                hook = self.instructnet.bind(action, self.previous_action, self.instruction, self.instruction_mask,
                                             self.select, video=video, trace=trace)
            v = self.dit(x, level(t), level(d), self.previous_noisy, level(self.context_noise), self.has_previous,
                         self.text, self.text_mask, torch.tensor([self.position], device=self.device), mask,
                         [(k, v, slot) for k, v in self.rings], hook, trace)
        return v.float()

    def push(self, z: torch.Tensor, action=None):
        """Ends the tick: z [B,1,Z,h,w] is the frame before the next one."""
        self.previous = z
        self.has_previous = torch.ones(self.batch, 1, device=self.device)
        if action is not None:
            self.previous_action = action
        self.position += 1

    def seed(self, latents: torch.Tensor, actions=None):
        """Continues given latents [B,T,Z,h,w] with their keys [B,T,6]: one pass a frame fills the ring."""
        for i in range(latents.shape[1]):
            z, action = latents[:, i:i + 1], None if actions is None else actions[:, i:i + 1]
            self.begin()
            self.velocity(z, SEED_LEVEL, 0.0, action)
            self.push(z, action)

    def step(self, action=None, steps: int = 2, noise=None, context_noise=None, first_steps=FIRST_FRAME_STEPS,
             trace=None) -> torch.Tensor:
        """The next latent frame [B,1,Z,h,w] under the keys action [B,1,6] (None: foundation alone).

        `noise` and `context_noise` [B,1,Z,h,w] replace the random draws. The first frame of a text-only start takes
        `first_steps` steps.
        """
        x = self.noise() if noise is None else noise
        self.begin(context_noise)
        count = first_steps if self.position == 0 else steps
        for i in range(count):
            v = self.velocity(x, i / count, 1.0 / count, action, trace)
            x = x + v / count
        self.push(x, action)
        return x
