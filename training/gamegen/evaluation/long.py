"""Long sessions under random keys: what of the prompt and of the control is left at the end, and did a run collapse.

A session walks, then holds each probe key for a second, then plays random keys, and at the end holds the probe keys
again. The long part is one CUDA graph a tick and is not decoded but where it is looked at.
"""
import time

import torch

from ..ceilings import key_right, outside, share
from ..judges import Judges
from . import words
from .fast import FastStream
from .maker import Maker, keys_tensor
from .protocol import random_keys


def session_keys(plan: dict, frames: int, device) -> torch.Tensor:
    """Keys [B,frames + probe,6] of all sessions."""
    walk, probe = plan["walk"], [[key, plan["held"]] for key in plan["probe"]]
    sessions = len(plan["prompts"])
    fixed = keys_tensor([["W", walk], *probe], device)  # [1,n,6]
    middle = frames - fixed.shape[1]
    if middle < plan["last"]:
        raise ValueError(f"drift frames: {frames}; allowed are {fixed.shape[1] + plan['last']} or more")
    random = torch.tensor([random_keys(plan, s, middle) for s in range(sessions)], dtype=torch.float32, device=device)
    fixed = fixed.expand(sessions, -1, -1)
    return torch.cat([fixed, random, fixed[:, walk:]], 1)


def rollout(maker: Maker, plan: dict, keys: torch.Tensor, seconds: float, report, seed: int) -> torch.Tensor | None:
    """Latents [B,T,Z,h,w] of all sessions as one batch, in bf16; None where `seconds` are over before the end."""
    begin, count = time.time(), keys.shape[1]
    stream = maker.stream(plan["prompts"], seed, FastStream)
    latents = torch.zeros(keys.shape[0], count, *stream.shape[2:], dtype=maker.dtype, device=maker.device)
    latents[:, :1] = stream.step(keys[:, :1], maker.steps, first_steps=maker.model.first_steps).to(maker.dtype)
    stream.capture(maker.steps, count, report.say)
    printed = time.time()
    for i in range(1, count):
        latents[:, i:i + 1] = stream.tick(keys[:, i:i + 1]).to(maker.dtype)
        if i % 256 == 0:
            if maker.cuda:
                torch.cuda.synchronize()
            now = time.time()
            if now - begin > seconds:
                report.say(f"drift: {i} of {count} frames after {now - begin:.0f}s, no time for the rest")
                return None
            if now - printed > 10:
                printed = now
                report.say(f"drift: {i} of {count} frames, {1000 * (now - begin) / i:.2f} ms a frame")
    return latents


def probes(maker: Maker, judges: Judges, plan: dict, latents: torch.Tensor, at: int) -> dict:
    """The probe keys that begin at tick `at`: share that the inverse-dynamics judge names, in all and for each key."""
    rows, right = {}, []
    for i, key in enumerate(plan["probe"]):
        first = at + i * plan["held"] + plan["settled"]
        frames = maker.decode(latents, first, first + plan["held"] - plan["settled"])
        found = key_right(judges.keys(frames), key).cpu()
        rows[key] = share(found)
        right.append(found)
    return share(torch.cat(right)) | {"keys": rows}


def collapse(maker: Maker, judges: Judges, plan: dict, latents: torch.Tensor, frames: int, ranges: dict) -> dict:
    """Runs that leave the range of rendered truth at one of the checks, with the statistic that left it first.

    Checks lie evenly over the run, the last at its end; each looks at the mean of eight frames.
    """
    reasons: dict[int, str] = {}
    for check in range(1, plan["checks"] + 1):
        last = frames * check // plan["checks"]
        clip = maker.decode(latents, last - 8, last)
        for run, why in outside(judges, clip, ranges).items():
            reasons.setdefault(run, f"frame {last}: {why}")
    return {"runs": len(reasons), "count": len(latents), "reasons": {str(k): v for k, v in sorted(reasons.items())}}


def measure(maker: Maker, judges: Judges, plan: dict, frames: int, ranges: dict, seconds: float, report) -> dict | None:
    """Alignment and control of the last second against the first; None where the time did not suffice."""
    keys = session_keys(plan, frames, maker.device)
    latents = rollout(maker, plan, keys, seconds, report, 301)
    if latents is None:
        return None
    entries, walk, last = plan["prompts"], plan["walk"], plan["last"]
    start = words.agreement(entries, words.judged(judges, maker.decode(latents, walk - 16, walk)))
    end = words.agreement(entries, words.judged(judges, maker.decode(latents, frames - min(16, last), frames)))
    keys_start, keys_end = (probes(maker, judges, plan, latents, at) for at in (walk, frames))
    ratio = lambda a, b: a["value"] / b["value"] if b["value"] else 0.0
    return {"value": min(ratio(end, start), ratio(keys_end, keys_start)), "count": len(entries), "frames": frames,
            "alignment": ratio(end, start), "control": ratio(keys_end, keys_start), "alignment_start": start,
            "alignment_end": end, "keys_start": keys_start, "keys_end": keys_end,
            "collapsed": collapse(maker, judges, plan, latents, frames, ranges)}
