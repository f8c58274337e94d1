"""Pools of training clips: rendered and encoded footage, and what the model itself predicted."""
import random
from dataclasses import dataclass

import torch

from . import captions, text_data, tokenizer, video_prompts
from .examples import ALONG
from .instructnet import VIDEO_PROMPTS
from .pixels import to_network
from .world import F_AIR

CAPTION_TOKENS, INSTRUCTION_TOKENS = 160, 32  # lengths that texts are padded to in training
NO_CHANGE = -10**7  # `at` of a clip in which nothing changes
ENCODE_FRAMES = 544  # frames of 320x192 that are encoded at once on a GPU
FREE_INSTRUCTION = 0.45  # share of changes that are told in free words
DAMAGE_SHARE = 0.5  # share of captions with unknown and dropped words
LEXICON_SHARE = 0.35  # share of captions in words of the lexicon
KIND_SHARES = (0.3, 0.5, 0.2)  # of the clips with a video prompt, in the order of VIDEO_PROMPTS: motion is the hardest


@dataclass
class PoolConfig:
    """Sizes of a pool: frames a clip, pixels, clips, share of clips with a change, with a video prompt, with a sibling
    where nothing changes, samples of a pixel."""
    frames: int
    height: int
    width: int
    clips: int
    p_event: float
    p_video: float = 0.0
    p_sibling: float = 0.0
    samples: int = 2


class ClipPool:
    """A ring of encoded clips with keys, captions and instructions; new clips replace the oldest."""

    def __init__(self, cfg: PoolConfig, world, vae, tok, gen, seed: int):
        self.cfg, self.world, self.vae, self.tok, self.gen = cfg, world, vae, tok, gen
        self.rng = random.Random(seed)
        dev = world.device
        self.cuda = dev.type == "cuda"
        p, n, z = cfg.clips, cfg.frames, vae.cfg["latent_channels"]
        h, w = cfg.height // vae.cfg["spatial_factor"], cfg.width // vae.cfg["spatial_factor"]
        dtype = torch.bfloat16 if self.cuda else torch.float32
        self.latents = torch.zeros(p, n, z, h, w, dtype=dtype, device=dev)
        self.keys = torch.zeros(p, n, 6, dtype=torch.uint8, device=dev)
        self.ground = torch.zeros(p, n, dtype=torch.bool, device=dev)  # stands the figure on the ground
        self.at = torch.zeros(p, dtype=torch.long, device=dev)
        self.caption = torch.zeros(p, CAPTION_TOKENS, dtype=torch.long, device=dev)
        self.instruction = torch.zeros(p, 2, INSTRUCTION_TOKENS, dtype=torch.long, device=dev)
        self.video_kind = torch.full((p,), -1, dtype=torch.long, device=dev)
        self.video = torch.zeros_like(self.latents) if cfg.p_video else None
        self.sibling = torch.zeros_like(self.latents) if cfg.p_sibling else None
        self.has_sibling = torch.zeros(p, dtype=torch.bool, device=dev)
        self.captioned = torch.zeros(p, dtype=torch.bool, device=dev)
        self.writer = text_data.Writer(seed, {})
        self.next = self.filled = self.rendered = 0

    def texts(self, clip: dict, count: int) -> tuple[list[str], list[str], list[bool], list[bool]]:
        """Captions [B] and instructions [B*2] (before and after the change); do they tell a clip from its sibling [B],
        and does the caption alone [B]?"""
        rng = self.rng
        before, after = clip["before"].tolist(), clip["after"].tolist()
        at, moves = clip["at"].tolist(), captions.move_names(clip["keys"].float().cpu().numpy())
        siblings = dict(zip(clip["sibling_rows"].tolist(), clip["sibling"].tolist())) if self.cfg.p_sibling else {}
        caps, instructions, told, captioned = [], [], [], []
        for i in range(count):
            # The prompt mostly stays what it was before a change, as it does in a session.
            shown = before[i] if at[i] > 0 or rng.random() < 0.6 else after[i]
            text, said = self.written(shown, moves[i])
            caps.append(captions.damage(text, rng) if rng.random() < DAMAGE_SHARE else text)
            old = siblings.get(i, before[i])  # what an instruction that holds now would be given in
            free = captions.change(old, after[i], rng) if rng.random() < FREE_INSTRUCTION else None
            instructions += [self.structured(before[i], None), free or self.structured(after[i], old)]
            differs = {name for j, (name, _) in enumerate(captions.ATTRIBUTES) if old[j] != after[i][j]}
            told.append(i in siblings and differs <= said | set(captions.INSTRUCTION_PARTS))
            captioned.append(i in siblings and before[i] == after[i] and differs <= said)
        return caps, instructions, told, captioned

    def written(self, values: list[int], move: str) -> tuple[str, set[str]]:
        """A caption and the attributes that it says."""
        if self.rng.random() < LEXICON_SHARE:
            text, labels = self.writer.mix(values)
            return text, {name for name, label, no in zip(text_data.NAMES, labels, text_data.UNSAID) if label != no}
        return captions.caption_said(values, self.rng, move)

    def structured(self, values: list[int], before: list[int] | None) -> str:
        """A structured instruction of a random subset of what holds; what changed since `before` is always in it."""
        known = {}
        for i, (name, names) in enumerate(captions.ATTRIBUTES):
            if name in ("lighting", "weather", "effects"):
                if (before is not None and before[i] != values[i]) or self.rng.random() < 0.4:
                    known[name] = names[values[i]]
        return captions.instruction(known)

    def control(self, clip: dict, kinds: torch.Tensor) -> torch.Tensor:
        """Latents [B,T,Z,h,w] of the control pictures of clips by kind [B] (-1: zeros)."""
        out = torch.zeros(*clip["frames"].shape[:2], *self.latents.shape[2:], device=kinds.device)
        height, width = self.cfg.height, self.cfg.width
        for index, name in enumerate(VIDEO_PROMPTS):
            rows = (kinds == index).nonzero()[:, 0]
            if not len(rows):
                continue
            frames = clip["frames"][rows]
            if name == "canny":
                pictures = video_prompts.canny(frames.flatten(0, 1)).reshape(frames.shape)
            elif name == "motion_vectors":
                pictures = video_prompts.motion_vectors(frames)
            else:
                joints = self.world.pose(clip["params"][rows], height, width)
                pictures = video_prompts.pose_picture(joints.flatten(0, 1), height, width).reshape(frames.shape)
            out[rows] = self.encode(pictures)
        return out

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """u8 [B,T,H,W,3] -> normalised latents [B,T,Z,h,w]."""
        per = max(1, ENCODE_FRAMES * 61440 // (self.cfg.height * self.cfg.width * self.cfg.frames)) if self.cuda else 2
        parts = []
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.cuda):
            for i in range(0, frames.shape[0], per):
                parts.append(self.vae.normalize(self.vae.encode(to_network(frames[i:i + per]))[0]))
        return torch.cat(parts)

    def fill(self, count: int):
        """Renders and encodes `count` new clips."""
        cfg, dev = self.cfg, self.world.device
        count = min(count, cfg.clips)
        clip = self.world.clips(count, cfg.frames, cfg.height, cfg.width, self.gen, cfg.samples, cfg.p_event,
                                p_sibling=cfg.p_sibling)
        latents = self.encode(clip["frames"])
        changed = (clip["before"] != clip["after"]).any(1)
        clip["at"] = torch.where(changed, clip["at"], torch.full_like(clip["at"], NO_CHANGE))
        caps, instructions, told, captioned = self.texts(clip, count)
        rows = (torch.arange(count, device=dev) + self.next) % cfg.clips
        self.latents[rows] = latents.to(self.latents.dtype)
        self.keys[rows] = clip["keys"].to(torch.uint8)
        self.ground[rows] = clip["params"][..., F_AIR] < 0.5
        self.at[rows] = clip["at"]
        self.caption[rows] = tokenizer.encode(self.tok, caps, dev, CAPTION_TOKENS)
        self.instruction[rows] = tokenizer.encode(self.tok, instructions, dev, INSTRUCTION_TOKENS).reshape(count, 2, -1)
        if self.video is not None:
            shares = torch.tensor(KIND_SHARES, device=dev)
            kinds = torch.multinomial(shares, count, replacement=True, generator=self.gen)
            kinds[torch.rand(count, generator=self.gen, device=dev) >= cfg.p_video] = -1
            self.video_kind[rows] = kinds
            self.video[rows] = self.control(clip, kinds).to(self.video.dtype)
        if self.sibling is not None:
            self.sibling[rows] = self.latents[rows]
            if len(clip["sibling_rows"]):
                self.sibling[rows[clip["sibling_rows"]]] = self.encode(clip["sibling_frames"]).to(self.sibling.dtype)
            self.has_sibling[rows] = torch.tensor(told, device=dev)
            self.captioned[rows] = torch.tensor(captioned, device=dev)
        self.next = (self.next + count) % cfg.clips
        self.filled = min(cfg.clips, self.filled + count)
        self.rendered += count * cfg.frames

    def take(self, rows: torch.Tensor) -> dict:
        """Whole clips by row: latents [B,n,Z,h,w], keys [B,n,6], ground and select [B,n], caption, instruction."""
        n = self.cfg.frames
        select = (torch.arange(n, device=rows.device)[None] >= self.at[rows][:, None]).long()
        taken = {"latents": self.latents[rows].float(), "keys": self.keys[rows].float(), "select": select,
                 "ground": self.ground[rows],
                 "at": self.at[rows], "caption": self.caption[rows], "instruction": self.instruction[rows],
                 "video_kind": self.video_kind[rows], "has_sibling": self.has_sibling[rows],
                 "captioned": self.captioned[rows]}
        if self.sibling is not None:
            taken["sibling"] = self.sibling[rows].float()
        return taken | ({} if self.video is None else {"video": self.video[rows].float()})

    def sample(self, count: int) -> dict:
        """Random clips."""
        return self.take(torch.randint(0, self.filled, (count,), device=self.latents.device))


    def stills(self, count: int) -> dict:
        """Random frames of as many clips, on the ground where the clip has one that is: as clips of that frame twice."""
        dev = self.latents.device
        rows = torch.randint(0, self.filled, (count,), device=dev)
        frame = torch.multinomial(self.ground[rows] + 1e-3, 1).expand(-1, 2)  # [B,2]
        clips = self.take(rows)
        index = torch.arange(count, device=dev)[:, None]
        return {k: v[index, frame] if k in ALONG else v for k, v in clips.items()}


class Replay:
    """Clips beside what the model itself made of them: `own` are its predictions, `steps` their steps a frame."""

    def __init__(self, clips: int):
        self.capacity, self.next, self.data = clips, 0, {}

    def __len__(self) -> int:
        return len(self.data["own"]) if self.data else 0

    def add(self, batch: dict):
        """Adds a batch; the oldest entries go. Latents are kept in half precision on a GPU."""
        batch = {k: v.bfloat16() if v.is_cuda and v.is_floating_point() else v for k, v in batch.items()}
        count = len(batch["own"])
        if len(self) + count <= self.capacity:
            self.data = {k: torch.cat([self.data[k], v]) if self.data else v for k, v in batch.items()}
            return
        rows = (torch.arange(count, device=batch["own"].device) + self.next) % len(self)
        for k, v in batch.items():
            self.data[k][rows] = v
        self.next = (self.next + count) % len(self)

    def sample(self, count: int) -> dict:
        """Random entries in f32."""
        rows = torch.randint(0, len(self), (count,), device=self.data["own"].device)
        return {k: v[rows].float() if v.is_floating_point() else v[rows] for k, v in self.data.items()}
