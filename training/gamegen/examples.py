"""Training examples: two streams of frames in one pass.

The first half of an example is a context stream: what the ring of the sampler would hold, from real latents or from
the model's own predictions. The second half are target frames: each sees the context frames before it and itself, which
is exactly the view of the streaming sampler. Real context frames are targets as well (diffusion forcing), where they
are not at the sampler's last level.
"""
from dataclasses import dataclass

import torch

STUDENT_SIZES = ((1.0, 0.45), (0.5, 0.35), (0.25, 0.20))  # step size and share of rows that learn from the model
BASE_SIZE = 0.125  # the smallest step: two guided Euler steps are its target
FIRST_SIZE = 1 / 16  # the same of first frames, which nothing helps but the text (sampler.FIRST_FRAME_STEPS)
LEVEL_SHIFT = 1.5  # more weight on noisy levels
SEED_LEVEL = 0.999
ALONG = ("latents", "keys", "ground", "select", "video", "sibling")  # what a clip has for every frame


@dataclass
class Layout:
    """Rows of a batch: [0, image) are single frames from text alone, [base_from, base_to) learn the smallest step from
    guided Euler steps, [base_to, student_to) learn longer steps from shorter ones, the others plain velocities."""
    image: int
    base_from: int
    base_to: int
    student_to: int

    @staticmethod
    def of(batch: int, images: bool, long: int = 1) -> "Layout":
        """17.5 % images, 12.5 % of the smallest step (two fifths of them images), twice `long` as many of longer steps.

        Guided rows go through the model with and without words: so both kinds of step are passes of one size, and
        the compiler sees one shape less.
        """
        image = max(1, round(0.175 * batch)) if images else 0
        base = max(1, round(0.125 * batch))
        base_to = image + base - (round(0.4 * base) if images else 0)
        return Layout(image, base_to - base, base_to, base_to + 2 * base * long)

    @staticmethod
    def of_stills(batch: int) -> "Layout":
        """Images alone, half of them of the smallest step: those go with and without words, as one pass of `batch`."""
        return Layout(batch, batch - batch // 2, batch, batch)


@dataclass
class Mix:
    """Shares of clips with a special role, and the strength of damage to contexts."""
    images: bool = True  # are there single frames from text alone
    text_start: float = 0.12  # the first frame has no frame before it
    seeded: float = 0.10  # the context went through the network as given latents
    damaged: float = 0.2  # the context has wrong colours, or parts of another clip
    text_dropped: float = 0.10
    instruction_dropped: float = 0.55  # of the clips without a change: the caption alone has to hold the world
    instruct_off: float = 0.05
    keys_dropped: tuple = (0.3, 0.7, 0.3)  # of the clips with a video prompt of each kind
    color: float = 0.22  # deviation of the damage to channels
    noise_max: float = 0.2
    settled: float = 0.4  # the context has the levels that the ring holds while streaming
    lagged: float = 0.35  # of the clips with a sibling: the context is, or is partly, the sibling's
    caption_alone: float = 0.6  # of those whose caption says what differs: there is no instruction


INSTRUCTNET_MIX = Mix(images=False, text_start=0.15, instruct_off=0.0, keys_dropped=(0.5, 0.8, 0.5))
# What the model predicts from while its own contexts are made: a ring as in streaming, nothing left out.
PREDICTION_MIX = Mix(images=False, text_start=0.0, seeded=0.0, damaged=0.0, text_dropped=0.0, instruct_off=0.0,
                     settled=1.0, lagged=0.2)
OWN_DISCOUNT = 0.92  # weight of the truth for every further prediction that a context is made of


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


def off_color(z: torch.Tensor, strength: float) -> torch.Tensor:
    """z [B,T,Z,h,w] with each channel scaled and moved, growing over the clip as drift does."""
    b, t, c = z.shape[:3]
    scale = torch.randn(b, 1, c, 1, 1, device=z.device) * strength
    offset = torch.randn(b, 1, c, 1, 1, device=z.device) * strength
    grow = torch.linspace(0.3, 1, t, device=z.device).view(1, t, 1, 1, 1)
    return z * (1 + scale * grow) + offset * grow


def strangers(z: torch.Tensor) -> torch.Tensor:
    """z [B,T,Z,h,w] with a rectangle of the next clip mixed into all frames: what a session looks like that has begun
    to forget its figure or its land, and which the text has to bring back."""
    b, _, _, h, w = z.shape
    inside = torch.ones(b, h, w, dtype=torch.bool, device=z.device)
    for axis, size in ((1, h), (2, w)):
        middle = torch.rand(b, 1, device=z.device) * size
        half = (0.15 + 0.25 * torch.rand(b, 1, device=z.device)) * size
        near = (torch.arange(size, device=z.device)[None] + 0.5 - middle).abs() <= half  # [B,size]
        inside &= near.unsqueeze(3 - axis)
    amount = inside.float() * (0.4 + 0.6 * torch.rand(b, 1, 1, device=z.device))
    return z + amount[:, None, None] * (z.roll(1, 0) - z)


def lagging(z: torch.Tensor, sibling: torch.Tensor) -> torch.Tensor:
    """z [B,T,Z,h,w] on its way to the sibling, half of the clips all the way: what a session looks like that has not
    done what its words say. The motion is the same, so what is to be learnt is the change alone."""
    b = z.shape[0]
    amount = torch.rand(b, 1, 1, 1, 1, device=z.device)
    amount = torch.where(torch.rand_like(amount) < 0.5, torch.ones_like(amount), amount)
    return z + amount * (sibling - z)


def damaged(z: torch.Tensor, strength: float) -> torch.Tensor:
    """z [B,T,Z,h,w] with wrong colours in half of the clips, and parts of another clip in the other half."""
    colors = torch.rand(z.shape[0], 1, 1, 1, 1, device=z.device) < 0.5
    return torch.where(colors, off_color(z, strength), strangers(z))


def noised(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """(z + s n) / sqrt(1 + s^2)."""
    return (z + wide(s) * torch.randn_like(z)) / wide(torch.sqrt(1 + s * s))


def context_levels(imitated: torch.Tensor, seed: torch.Tensor, steps: torch.Tensor, frames: int):
    """Level and step size [B,T] of the context stream: the sampler's last pass where `imitated`, else random."""
    dev, b = steps.device, steps.shape[0]
    t, d = random_levels((b, frames), dev), torch.zeros(b, frames, device=dev)
    t = torch.where(seed[:, None], torch.full_like(t, SEED_LEVEL), t)
    last = (1 - 1 / steps)[:, None].expand(b, frames)
    imitated = imitated[:, None]
    return torch.where(imitated, last, t), torch.where(imitated, (1 / steps)[:, None].expand(b, frames), d)


def window(clips: dict, offset: int, frames: int) -> dict:
    """`frames` frames of whole clips from `offset` on."""
    return {k: v[:, offset:offset + frames] if k in ALONG else v for k, v in clips.items()}


def make(clips: dict, mix: Mix, layout: Layout, frozen: bool) -> dict:
    """clips: latents, own [B,T+1,Z,h,w] (equal for real clips), steps, depth [B] (0: real), keys, ground, select, texts;
    sibling [B,T+1,Z,h,w] with has_sibling and captioned [B]; lagged [B]: is the own context made of a lagging one.

    Returns the inputs of one pass over 2T frames and what the loss needs. `frozen`: the InstructNet phase, in which
    InstructNet is always on. Rows before `layout.image` must be real clips.
    """
    dev = clips["latents"].device
    z, base = clips["latents"], clips["own"]  # [B,T+1,Z,h,w]
    b, frames = z.shape[0], z.shape[1] - 1
    chance = lambda p: torch.rand(b, device=dev) < p
    own = clips["depth"] > 0
    image = torch.arange(b, device=dev) < layout.image
    lagged = chance(mix.lagged) & clips["has_sibling"] & ~own & ~image
    hurt = chance(mix.damaged) & ~own & ~image & ~lagged
    imitated = own | hurt | lagged | (chance(mix.settled) & ~image)
    seed = chance(mix.seeded) & ~imitated & ~image
    base = torch.where(hurt.view(b, 1, 1, 1, 1), damaged(base, mix.color), base)
    if "sibling" in clips:
        base = torch.where(lagged.view(b, 1, 1, 1, 1), lagging(z, clips["sibling"]), base)
    lagged = lagged | clips["lagged"]
    before, context, target = base[:, :-1], base[:, 1:], z[:, 1:]  # [B,T,Z,h,w]

    t_context, d_context = context_levels(imitated, seed, clips["steps"].float(), frames)
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
    keys, select = clips["keys"], clips["select"]
    video_kind = clips["video_kind"]
    dropped = torch.tensor(mix.keys_dropped, device=dev)[video_kind.clamp(min=0)]
    silent = (chance(dropped) & (video_kind >= 0)).view(b, 1, 1)
    keys = torch.where(silent, torch.zeros_like(keys), keys)
    event = clips["at"] > -10**6
    previous_keys = keys[:, :-1].repeat(1, 2, 1) * has[:, :, None]
    weight = torch.ones(b, 2 * frames, device=dev)
    weight[:, :frames] *= (~(imitated | seed)).float()[:, None]
    weight[:, frames:] *= (OWN_DISCOUNT ** (clips["depth"] - 1).clamp(min=0).float())[:, None]
    # A world does not begin in the middle of a jump.
    weight *= ((has > 0) | clips["ground"][:, 1:].repeat(1, 2)).float()
    video = clips.get("video")
    # The words have to say what the context does not show: where the caption does, mostly it alone, as in a session
    # that nobody instructs.
    alone_told = lagged & clips["captioned"] & chance(mix.caption_alone)
    told = (event | lagged) & ~alone_told
    return {
        "x": (1 - wide(t)) * noise + wide(t) * clean, "t": t, "d": d,
        "previous": noised(before.repeat(1, 2, 1, 1, 1), ps), "ps": ps, "has": has,
        "mask": torch.where(image.view(b, 1, 1), alone, mask), "clean": clean, "noise": noise,
        "keys": keys[:, 1:].repeat(1, 2, 1), "previous_keys": previous_keys, "select": select[:, 1:].repeat(1, 2),
        "enabled": torch.ones(b, device=dev) if frozen else (lagged | ~chance(mix.instruct_off)).float(),
        "no_text": chance(mix.text_dropped) & ~lagged,
        "no_instruction": (chance(mix.instruction_dropped) | alone_told) & ~told, "lagged": lagged,
        "caption": clips["caption"], "instruction": clips["instruction"], "event": event, "weight": weight, "own": own,
        "image": image,
        "goal": clean - noise, "video_kind": video_kind,
        "video": None if video is None else video[:, 1:].repeat(1, 2, 1, 1, 1),
    }


def set_shortcut(e: dict, rows: slice, size: torch.Tensor, frames: int):
    """Turns the target frames of `rows` into examples of steps of `size` [R]."""
    t = (torch.rand(size.shape[0], frames, device=size.device) / size[:, None]).floor() * size[:, None]
    e["t"][rows, frames:] = t
    e["d"][rows, frames:] = size[:, None]
    clean, noise = e["clean"][rows, frames:], e["noise"][rows, frames:]
    e["x"][rows, frames:] = (1 - wide(t)) * noise + wide(t) * clean


def student_sizes(count: int, device) -> torch.Tensor:
    """Random step sizes [R] for rows that learn from the model's own shorter steps."""
    draw, below = torch.rand(count, device=device), 0.0
    result = torch.full_like(draw, STUDENT_SIZES[-1][0])
    for size, share in STUDENT_SIZES[:-1]:  # without a copy to the device: the passes are recorded as a graph
        result = torch.where((draw >= below) & (draw < below + share), torch.full_like(draw, size), result)
        below += share
    return result
