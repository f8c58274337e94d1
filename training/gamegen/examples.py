"""Training examples: two streams of frames in one pass.

The first half of an example is a context stream: what the ring of the sampler would hold, from real latents or from
the model's own rollouts. The second half are target frames: each sees the context frames before it and itself, which
is exactly the view of the streaming sampler. Real context frames are targets as well (diffusion forcing).
"""
from dataclasses import dataclass

import torch

SHORTCUT_SIZES = ((1.0, 0.3), (0.5, 0.45), (0.25, 0.25))  # step size and share
LEVEL_SHIFT = 1.5  # more weight on noisy levels
SEED_LEVEL = 0.999


@dataclass
class Mix:
    """Shares of clips with a special role, and the strength of damage to contexts."""
    image: float = 0.10  # single frames from text alone
    text_start: float = 0.10  # the first frame has no frame before it
    seeded: float = 0.10  # the context went through the network as given latents
    damaged: float = 0.15  # colours and contrast of the context are off
    text_dropped: float = 0.08
    instruct_off: float = 0.12
    color: float = 0.25  # deviation of the damage to channels
    noise_max: float = 0.45


def stream_mask(frames: int, device) -> torch.Tensor:
    """[2T,2T]: context frames are causal, a target frame sees the context before it and itself."""
    causal = torch.ones(frames, frames, dtype=torch.bool, device=device).tril()
    eye = torch.eye(frames, dtype=torch.bool, device=device)
    none = torch.zeros_like(eye)
    return torch.cat([torch.cat([causal, none], 1), torch.cat([causal & ~eye, eye], 1)])


def wide(x: torch.Tensor) -> torch.Tensor:
    """[B,T] -> [B,T,1,1,1]."""
    return x[:, :, None, None, None]


def random_levels(shape, device) -> torch.Tensor:
    """Noise levels of flow matching, shifted to the noisy side; a tenth starts from pure noise."""
    u = torch.rand(shape, device=device)
    t = u / (u + LEVEL_SHIFT * (1 - u))
    return torch.where(torch.rand(shape, device=device) < 0.1, torch.zeros_like(t), t)


def context_noise_levels(b: int, t: int, mix: Mix, device) -> torch.Tensor:
    """Noise on the frame before: per frame up to noise_max, or one of the sampler's levels for a whole clip."""
    s = torch.rand(b, t, device=device) * mix.noise_max
    draw = torch.rand(b, 1, device=device)
    s = torch.where(draw < 0.5, torch.full_like(s, 0.05), s)
    return torch.where(draw < 0.25, torch.full_like(s, 0.15), s)


def damaged(z: torch.Tensor, strength: float) -> torch.Tensor:
    """z [B,T,Z,h,w] with each channel scaled and moved, growing over the clip as drift does."""
    b, t, c = z.shape[:3]
    scale = torch.randn(b, 1, c, 1, 1, device=z.device) * strength
    offset = torch.randn(b, 1, c, 1, 1, device=z.device) * strength
    grow = torch.linspace(0.3, 1, t, device=z.device).view(1, t, 1, 1, 1)
    return z * (1 + scale * grow) + offset * grow


def noised(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """(z + s n) / sqrt(1 + s^2)."""
    return (z + wide(s) * torch.randn_like(z)) / wide(torch.sqrt(1 + s * s))


def context_levels(flags: dict, steps: torch.Tensor, frames: int, seeded: float):
    """Level and step size [B,T] of the context stream: random for real clips, the sampler's last pass for others."""
    dev = steps.device
    b = steps.shape[0]
    t, d = random_levels((b, frames), dev), torch.zeros(b, frames, device=dev)
    seed = torch.rand(b, 1, device=dev) < seeded
    t = torch.where(seed, torch.full_like(t, SEED_LEVEL), t)
    imitated = (flags["own"] | flags["damaged"])[:, None]
    last = (1 - 1 / steps)[:, None].expand(b, frames)
    return torch.where(imitated, last, t), torch.where(imitated, (1 / steps)[:, None].expand(b, frames), d)


def make(clips: dict, frames: int, offset: int, mix: Mix, frozen: bool) -> dict:
    """clips: latents, own [B,n,Z,h,w] (equal for real clips), steps [B], is_own [B], keys, select, texts.

    Returns the inputs of one pass over 2T frames and what the loss needs. `frozen`: the InstructNet phase, in which
    InstructNet is always on and there are no single images.
    """
    dev = clips["latents"].device
    window = slice(offset, offset + frames + 1)
    z, base = clips["latents"][:, window], clips["own"][:, window]  # [B,T+1,Z,h,w]
    b = z.shape[0]
    chance = lambda p: torch.rand(b, device=dev) < p
    own = clips["is_own"].bool()
    image = chance(0.0 if frozen else mix.image) & ~own
    hurt = chance(mix.damaged) & ~own & ~image
    flags = {"own": own, "image": image, "damaged": hurt}
    base = torch.where(hurt.view(b, 1, 1, 1, 1), damaged(base, mix.color), base)
    before, context, target = base[:, :-1], base[:, 1:], z[:, 1:]  # [B,T,Z,h,w]

    steps = clips["steps"].float()
    t_context, d_context = context_levels(flags, steps, frames, mix.seeded)
    t_target = random_levels((b, frames), dev)
    t = torch.cat([t_context, t_target], 1)  # [B,2T]
    d = torch.cat([d_context, torch.zeros_like(t_target)], 1)
    clean = torch.cat([context, target], 1)  # [B,2T,Z,h,w]
    noise = torch.randn_like(clean)

    has = torch.ones(b, 2 * frames, device=dev)
    start = chance(mix.text_start) & ~own
    has[:, 0] = has[:, frames] = (~start).float()
    has = has * (~image).float()[:, None]
    ps = context_noise_levels(b, frames, mix, dev).repeat(1, 2)
    mask = stream_mask(frames, dev)[None].expand(b, -1, -1)
    alone = torch.eye(2 * frames, dtype=torch.bool, device=dev)[None]
    keys, select = clips["keys"][:, window], clips["select"][:, window]
    previous_keys = keys[:, :-1].repeat(1, 2, 1) * has[:, :, None]
    weight = torch.ones(b, 2 * frames, device=dev)
    weight[:, :frames] *= (~(own | hurt)).float()[:, None]
    empty = torch.zeros_like(clips["caption"])
    empty[:, 0] = 1
    caption = torch.where(chance(mix.text_dropped)[:, None], empty, clips["caption"])
    return {
        "x": (1 - wide(t)) * noise + wide(t) * clean, "t": t, "d": d,
        "previous": noised(before.repeat(1, 2, 1, 1, 1), ps), "ps": ps, "has": has,
        "mask": torch.where(image.view(b, 1, 1), alone, mask), "clean": clean, "noise": noise,
        "keys": keys[:, 1:].repeat(1, 2, 1), "previous_keys": previous_keys, "select": select[:, 1:].repeat(1, 2),
        "enabled": torch.ones(b, device=dev) if frozen else (~chance(mix.instruct_off)).float(),
        "caption": caption, "instruction": clips["instruction"], "weight": weight, "own": own, "image": image,
        "goal": clean - noise,
    }


def set_shortcut(e: dict, rows: torch.Tensor, frames: int) -> torch.Tensor:
    """Turns the target frames of `rows` into shortcut examples; returns their step sizes [R]."""
    dev = rows.device
    sizes = torch.tensor([s for s, _ in SHORTCUT_SIZES], device=dev)
    share = torch.tensor([p for _, p in SHORTCUT_SIZES], device=dev)
    size = sizes[torch.multinomial(share, len(rows), True)]  # [R]
    t = (torch.rand(len(rows), frames, device=dev) / size[:, None]).floor() * size[:, None]
    e["t"][rows, frames:] = t
    e["d"][rows, frames:] = size[:, None]
    clean, noise = e["clean"][rows, frames:], e["noise"][rows, frames:]
    e["x"][rows, frames:] = (1 - wide(t)) * noise + wide(t) * clean
    return size
