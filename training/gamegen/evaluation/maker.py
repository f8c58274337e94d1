"""Clips of one model for the measurements: prompts in, latents out, and pixels of the frames that are looked at."""
import torch

from .. import tokenizer
from ..judges import KEYS
from ..pixels import to_bytes, to_network
from ..sampler import CONTEXT_NOISE, Stream
from ..vae import scale_of

BATCH = {True: 256, False: 8}  # clips generated side by side, by whether there is a GPU
DECODE_FRAMES = {True: 512, False: 16}
LOOKS_BACK = 2  # frames before a frame that its decoding depends on


def keys_tensor(script: list, device) -> torch.Tensor:
    """A script like [["W", 24], ["W SPACE", 4]] -> keys [1,T,6]."""
    rows = [[float(key in names.split()) for key in KEYS] for names, count in script for _ in range(count)]
    return torch.tensor(rows, device=device)[None]


class Maker:
    """Generates with one model at one size; `steps` passes a frame."""

    def __init__(self, model, tok, size: list[int], device, steps: int, context_noise: float = CONTEXT_NOISE):
        """size: [width, height] in pixels."""
        self.model, self.tok, self.steps, self.context_noise = model, tok, steps, context_noise
        self.device, self.width, self.height = torch.device(device), *size
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.scale = scale_of(model.vae.cfg, self.width, self.height)
        self.latent = (self.height // (32 * self.scale), self.width // (32 * self.scale))

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda)

    def features(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Text features [B,L,Dt] and mask [B,L], as long as the longest text."""
        ids = tokenizer.encode(self.tok, texts, self.device)
        longest = max(1, int((ids != 0).sum(1).max()))
        with torch.no_grad(), self.autocast():
            features, mask = self.model.text(ids[:, :longest])
        return features, mask

    def stream(self, entries: list[dict], seed: int, kind=Stream) -> Stream:
        """A stream with the prompts of the entries and no instruction yet, as a session begins."""
        gen = torch.Generator(self.device).manual_seed(seed)
        stream = kind(self.model.dit, self.model.instructnet, len(entries), *self.latent, self.device, self.dtype, gen,
                      self.context_noise)
        stream.set_text(*self.features([e["text"] for e in entries]))
        stream.set_instruction(*self.features([""] * len(entries)))
        return stream

    @torch.no_grad()
    def roll(self, stream: Stream, keys: torch.Tensor) -> torch.Tensor:
        """Keys [B or 1,T,6] -> latents [B,T,Z,h,w]."""
        keys = keys.expand(stream.batch, -1, -1)
        step = lambda i: stream.step(keys[:, i:i + 1], self.steps, first_steps=self.model.first_steps)
        return torch.cat([step(i) for i in range(keys.shape[1])], 1)

    def batches(self, entries: list) -> list:
        """Entries in parts of one batch."""
        size = BATCH[self.cuda]
        return [entries[i:i + size] for i in range(0, len(entries), size)]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Frames first..last of latents [B,T,Z,h,w] -> u8 [B,last-first,H,W,3]; earlier ones are the decoder's past."""
        before = min(first, LOOKS_BACK)
        z = latents[:, first - before:last].float()
        per = max(1, DECODE_FRAMES[self.cuda] // z.shape[1])
        parts = []
        with self.autocast():
            for part in z.split(per):
                pixels = self.model.vae.decode(self.model.vae.denormalize(part), scale=self.scale)[:, before:]
                parts.append(to_bytes(pixels))
        return torch.cat(parts)

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """u8 [B,T,H,W,3] -> latents [B,T,Z,h,w] as the transformer wants them."""
        per = max(1, DECODE_FRAMES[self.cuda] // frames.shape[1])
        with self.autocast():
            parts = [self.model.vae.encode(to_network(part.to(self.device)), scale=self.scale)[0]
                     for part in frames.split(per)]
        return self.model.vae.normalize(torch.cat(parts)).float()
