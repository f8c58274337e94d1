"""Do generated clips follow a video prompt: edges, motion and pose of a rendered test clip, with it and with none.

Both clips have the caption, the noise and the (released) keys in common.
"""
import random

import cv2
import numpy as np
import torch

from .. import video_prompts
from ..judges import HEIGHT, WIDTH, Judges
from .maker import Maker, keys_tensor
from .protocol import entry

CLIPS, FRAMES = {True: 48, False: 2}, {True: 24, False: 8}
FAR = 40.0  # pixels: no edge is farther from another one than this
EDGE_STEP = 4  # every fourth frame is looked at for edges
KINDS = ("canny", "motion_vectors", "pose")


def edge_error(made: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Chamfer distance [B] in pixels between the edges of clips u8 [B,T,H,W,3]: the mean of both directions."""
    def nearest(edges: np.ndarray) -> np.ndarray:
        if not edges.any():
            return np.full(edges.shape, FAR, np.float32)
        return np.minimum(cv2.distanceTransform((edges == 0).astype(np.uint8), cv2.DIST_L2, 3), FAR)

    def chamfer(a: np.ndarray, b: np.ndarray) -> float:
        to_b = nearest(b)[a > 0].mean() if a.any() else FAR
        to_a = nearest(a)[b > 0].mean() if b.any() else FAR
        return float(to_a + to_b) / 2

    edges = lambda clip: video_prompts.edges(clip[:, ::EDGE_STEP].flatten(0, 1)).cpu().numpy()
    values = [chamfer(a, b) for a, b in zip(edges(made), edges(truth))]
    return torch.tensor(values).reshape(len(made), -1).mean(1)


def motion_error(made: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Endpoint error [B] of the motion of blocks, in half-size pixels a frame."""
    a, b = (video_prompts.motion_field(clip)[:, 1:].float() for clip in (made, truth))
    return (a - b).norm(dim=-1).mean((1, 2, 3)).cpu()


def pose_error(judges: Judges, made: torch.Tensor, joints: torch.Tensor) -> torch.Tensor:
    """Mean distance [B] of the judged joints from the given ones [B,T,J,3], in heights of the picture.

    A joint that the judge does not see where one was asked for is one height away.
    """
    found = judges.pose(made).to(joints.device)
    offset = (found - joints)[..., :2] * torch.tensor([WIDTH / HEIGHT, 1.0], device=joints.device)
    distance = torch.where(found[..., 2] > 0, offset.norm(dim=-1), torch.ones_like(offset[..., 0]))
    seen = joints[..., 2]
    return ((distance * seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)).cpu()


class Given:
    """Rendered test clips that the prompts are taken from."""

    def __init__(self, maker: Maker, world, count: int, frames: int, third_person: bool):
        gen = torch.Generator(maker.device).manual_seed(601)
        fixed = {"perspective": 0} if third_person else {}
        clip = world.clips(count, frames, maker.height, maker.width, gen, 2, split="test", unseen="any", **fixed)
        self.frames, self.values = clip["frames"], clip["after"].tolist()
        self.joints = world.pose(clip["params"], maker.height, maker.width)

    def shares(self) -> torch.Tensor:
        """Joints with x and y as shares of the picture."""
        size = torch.tensor([self.frames.shape[3], self.frames.shape[2], 1.0], device=self.joints.device)
        return self.joints / size

    def picture(self, kind: str) -> torch.Tensor:
        """The video prompt of a kind: u8 [B,T,H,W,3]."""
        if kind == "canny":
            return video_prompts.canny(self.frames.flatten(0, 1)).reshape(self.frames.shape)
        if kind == "motion_vectors":
            return video_prompts.motion_vectors(self.frames)
        return video_prompts.pose_picture(self.joints, *self.frames.shape[2:4])


def generate(maker: Maker, entries: list[dict], frames: int, features: torch.Tensor | None) -> torch.Tensor:
    """Clips u8 [B,T,H,W,3] of prompts, with the features of a video prompt or none."""
    stream = maker.stream(entries, 602)
    stream.video = features
    return maker.decode(maker.roll(stream, keys_tensor([["", frames]], maker.device)), 0, frames)


def measure(maker: Maker, judges: Judges, world) -> dict:
    """Errors with and without the prompt, and their ratio (none / given), for every kind that the model takes.

    `truth` is the error of the rendered clip itself once the autoencoder had it, and the ceiling the ratio to that.
    """
    kinds = maker.model.instructnet.cfg.get("video_prompts", [])
    count, frames, rows = CLIPS[maker.cuda], FRAMES[maker.cuda], {}
    for kind in (k for k in KINDS if k in kinds):
        given = Given(maker, world, count, frames, kind == "pose")
        rng = random.Random(603)
        entries = [entry(values, rng) for values in given.values]
        number = torch.full((count,), kinds.index(kind), device=maker.device)
        with torch.no_grad(), maker.autocast():
            features = maker.model.instructnet.video_features(maker.encode(given.picture(kind)), number)
        error = {"canny": lambda made: edge_error(made, given.frames),
                 "motion_vectors": lambda made: motion_error(made, given.frames),
                 "pose": lambda made: pose_error(judges, made, given.shares())}[kind]
        clips = {"given": generate(maker, entries, frames, features), "none": generate(maker, entries, frames, None),
                 "truth": maker.decode(maker.encode(given.frames), 0, frames)}
        errors = {name: float(error(made).mean()) for name, made in clips.items()}
        ratio = lambda name: errors["none"] / max(errors[name], 1e-6)
        rows[kind] = {"value": ratio("given"), "count": count, "ceiling": ratio("truth"), **errors}
    return rows
