"""Clips from a model for pictures and measurements: continuations of rendered frames and text-only starts."""
import random

import torch

from . import captions, tokenizer
from .pixels import to_bytes, to_network
from .sampler import CONTEXT_NOISE, Stream

SEED_FRAMES = 4


def keys_of(script: list[tuple[str, int]], device) -> torch.Tensor:
    """A script like [("W", 24), ("D", 16), ("W SPACE", 4)] -> keys [1,T,6]."""
    order = ["W", "S", "A", "D", "SPACE", "SHIFT"]
    rows = [[float(key in names.split()) for key in order] for names, count in script for _ in range(count)]
    return torch.tensor(rows, device=device)[None]


class Preview:
    """Generates batches with one model in the renderer's worlds."""

    def __init__(self, model, world, tok, size: tuple[int, int], context_noise: float = CONTEXT_NOISE):
        self.model, self.world, self.tok, self.size, self.context_noise = model, world, tok, size, context_noise
        self.dev = world.device
        self.dtype = torch.bfloat16 if self.dev.type == "cuda" else torch.float32

    def autocast(self):
        return torch.autocast(self.dev.type, self.dtype, enabled=self.dtype != torch.float32)

    def features(self, texts: list[str]):
        """Text features and mask of a batch of texts."""
        with self.autocast():
            return self.model.text(tokenizer.encode(self.tok, texts, self.dev))

    def scene(self, count: int, keys: torch.Tensor, seed: int, samples: int = 2, **fixed):
        """Rendered truth [B,4+T,H,W,3] under `keys` after SEED_FRAMES of W, all keys [B,4+T,6], attributes [B,7]."""
        gen = torch.Generator(self.dev).manual_seed(seed)
        state, attrs = self.world.reset(count, gen, **fixed)
        walk = keys_of([("W", 30)], self.dev).expand(count, -1, -1)
        self.world.simulate(state, walk)
        every = torch.cat([walk[:, :SEED_FRAMES], keys.expand(count, -1, -1)], 1)
        return self.world.render(self.world.simulate(state, every), *self.size, samples), every, attrs

    def stream(self, count: int, attrs, seed: int) -> Stream:
        """A stream with prompts and structured instructions for these attributes."""
        gen = torch.Generator(self.dev).manual_seed(seed)
        rng = random.Random(seed)
        stream = Stream(self.model.dit, self.model.instructnet, count, self.size[0] // 32, self.size[1] // 32, self.dev,
                        self.dtype, gen, self.context_noise)
        values = attrs.tolist()
        stream.set_text(*self.features([captions.caption(v, rng, "forward", 0.0) for v in values]))
        stream.set_instruction(*self.features([captions.instruction(captions.known(v)) for v in values]))
        return stream

    @torch.no_grad()
    def run(self, stream: Stream, keys: torch.Tensor, steps: int, seeds=None, instructions=None, at: int = 0):
        """Frames u8 [B,(S+)T,H,W,3] on the CPU, and latents. seeds: rendered frames [B,S,H,W,3] with W held.

        instructions: texts that are given before generated frame `at`.
        """
        vae, cache, frames, latents = self.model.vae, {}, [], []
        show = lambda z: to_bytes(vae.decode(vae.denormalize(z), cache)).cpu()
        count = stream.batch
        with self.autocast():
            if seeds is not None:
                z = vae.normalize(vae.encode(to_network(seeds))[0]).float()
                frames.append(show(z))
                latents.append(z)
        if seeds is not None:
            stream.seed(z, keys_of([("W", seeds.shape[1])], self.dev).expand(count, -1, -1))
        for i in range(keys.shape[1]):
            if instructions is not None and i == at:
                stream.set_instruction(*self.features(instructions))
            z = stream.step(keys[:, i:i + 1].expand(count, -1, -1), steps, first_steps=self.model.first_steps)
            latents.append(z)
            with self.autocast():
                frames.append(show(z))
        return torch.cat(frames, 1), torch.cat(latents, 1)

    @torch.no_grad()
    def continuation(self, count: int, keys, seed: int, steps: int, **fixed):
        """Generated frames, rendered truth (both u8 [B,4+T,H,W,3], CPU), latents, attributes."""
        truth, _, attrs = self.scene(count, keys, seed, **fixed)
        made, latents = self.run(self.stream(count, attrs, seed), keys, steps, truth[:, :SEED_FRAMES])
        return made, truth.cpu(), latents, attrs
