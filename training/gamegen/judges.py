"""Judges of generated video: small networks that were trained on rendered frames of the training worlds only.

Attributes are read from single frames, keys from five consecutive ones, the figure's joints from single frames. All
work on pictures of 160x96, which larger sizes are averaged down to, and use only operations that the autoencoder has:
space to channel, 3x3 and 1x1 convolutions, RMS over channels, SiLU, means over places.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from . import captions, checkpoint
from .vae import ChannelNorm, Downsample, Stage, Upsample

WIDTH, HEIGHT = 160, 96
WINDOW = 5  # frames that the keys judge sees at once
KEYS = ["W", "S", "A", "D", "SPACE", "SHIFT"]
DECIDED = 5  # the first five keys take part in the decision of a clip; SHIFT alone does nothing
LUMA = (0.299, 0.587, 0.114)
CHUNK = 2048  # frames that go through a judge at once
PARTS = ("attributes", "keys", "pose")


def small(frames: torch.Tensor) -> torch.Tensor:
    """u8 [...,H,W,3] -> f32 [...,3,96,160] in -1..1: the mean of every square of W/160 pixels.

    A height of 90 after that (16:9) is extended by its first and last rows, so that the figure keeps its shape.
    """
    *lead, height, width, _ = frames.shape
    factor, rest = divmod(width, WIDTH)
    rows = height // factor if factor else 0
    if not factor or rest or height % factor or rows > HEIGHT or (HEIGHT - rows) % 2:
        raise ValueError(f"frames: {width}x{height} cannot be judged; allowed are multiples of 160x96 and of 160x90")
    x = frames.reshape(-1, height, width, 3).permute(0, 3, 1, 2).float()  # [N,3,H,W]
    x = F.avg_pool2d(x, factor) if factor > 1 else x
    if rows < HEIGHT:
        x = F.pad(x, (0, 0, (HEIGHT - rows) // 2, (HEIGHT - rows) // 2), mode="replicate")
    return (x / 127.5 - 1).reshape(*lead, 3, HEIGHT, WIDTH)


class Trunk(nn.Module):
    """Space to channel by 2, then stages of residual blocks, each at half the size of the one before."""

    def __init__(self, cfg: dict):
        super().__init__()
        channels, eps = cfg["channels"], cfg["norm_eps"]
        self.conv_in = nn.Conv2d(4 * cfg["in_channels"], channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        for s, c in enumerate(channels):
            resample = {"downsample": Downsample(channels[s - 1], c)} if s else {}
            self.down.append(Stage(c, cfg["blocks"][s], eps, **resample))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x [N,C,96,160] -> the features of each stage: [N,C_s,48/2^s,80/2^s]."""
        h = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)  # [N,4C,48,80]
        h, stages = self.conv_in(h), []
        for s, stage in enumerate(self.down):
            if s:
                h = stage.downsample(h)
            for block in stage.block:
                h = block(h)
            stages.append(h)
        return stages


class Pooled(nn.Module):
    """A trunk, a learned map of places at its end, and the mean over places as the feature of the picture."""

    def __init__(self, cfg: dict, outputs: int):
        super().__init__()
        self.cfg, channels = dict(cfg), cfg["channels"]
        self.trunk = Trunk(cfg)
        shrink = 2 ** len(channels)
        # Where something is matters: the figure stands in the middle, what it holds is at the right.
        self.position = nn.Parameter(torch.zeros(1, channels[-1], HEIGHT // shrink, WIDTH // shrink))
        self.mix = Stage(channels[-1], 1, cfg["norm_eps"])
        self.norm_out = ChannelNorm(channels[-1], cfg["norm_eps"])
        self.head = nn.Linear(channels[-1], outputs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x [N,C,96,160] -> [N,D] in f32."""
        h = self.trunk(x)[-1]
        h = self.mix.block[0](h + self.position.to(h.dtype))  # [N,D,6,10]
        return F.silu(self.norm_out(h)).float().mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N,C,96,160] -> logits [N,outputs] in f32."""
        return self.head(self.features(x)).float()


class AttributeJudge(Pooled):
    """Logits of every value of every attribute of a frame; the features are the space of the Frechet distances."""

    def __init__(self, cfg: dict):
        super().__init__(cfg, sum(len(values) for _, values in cfg["attributes"]))

    def split(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """[...,outputs] -> logits of each attribute."""
        names, sizes = zip(*[(name, len(values)) for name, values in self.cfg["attributes"]])
        return dict(zip(names, logits.split(sizes, -1)))


class KeysJudge(Pooled):
    """Logits of the keys that were held over a window of frames, from their brightness alone."""

    def __init__(self, cfg: dict):
        super().__init__(cfg, len(cfg["keys"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N,5,3,96,160] in -1..1 -> logits [N,6]."""
        luma = torch.tensor(self.cfg["luma"], device=x.device, dtype=x.dtype).view(1, 1, 3, 1, 1)
        return super().forward((x * luma).sum(2))


class PoseJudge(nn.Module):
    """The joints of the figure: the mean place under a heat map of each joint, and whether it is seen at all."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg, channels, eps = dict(cfg), cfg["channels"], cfg["norm_eps"]
        self.trunk = Trunk(cfg)
        self.up = Stage(channels[1], 1, eps, upsample=Upsample(channels[2], channels[1]))
        self.position = nn.Parameter(torch.zeros(1, channels[2], HEIGHT // 8, WIDTH // 8))
        self.norm_out = ChannelNorm(channels[1], eps)
        self.heat = nn.Conv2d(channels[1], cfg["joints"], 1)
        self.seen = nn.Linear(channels[1], cfg["joints"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N,3,96,160] in -1..1 -> [N,J,3]: x and y as shares of the width and height, logit of being seen."""
        stages = self.trunk(x)
        h = self.up.upsample(stages[2] + self.position.to(stages[2].dtype)) + stages[1]  # [N,C1,24,40]
        h = F.silu(self.norm_out(self.up.block[0](h)))
        heat = self.heat(h).float().flatten(2).softmax(-1)  # [N,J,24*40]
        rows, columns = HEIGHT // 4, WIDTH // 4
        index = torch.arange(rows * columns, device=h.device)
        place = torch.stack([(index % columns + 0.5) / columns, (index // columns + 0.5) / rows], -1)  # [24*40,2]
        seen = self.seen(h.float().mean((2, 3)))  # [N,J]
        return torch.cat([heat @ place.float(), seen[..., None].float()], -1)


def default_configs(joints: int) -> dict[str, dict]:
    """config.json of each judge; `joints` is the number of joints that the renderer gives."""
    base = {"width": WIDTH, "height": HEIGHT, "norm_eps": 1e-6}
    return {
        "attributes": {"_class_name": "AttributeJudge", **base, "in_channels": 3, "channels": [32, 64, 112, 136],
                       "blocks": [1, 1, 2, 1], "attributes": [[name, values] for name, values in captions.ATTRIBUTES]},
        "keys": {"_class_name": "KeysJudge", **base, "in_channels": WINDOW, "channels": [32, 48, 80, 96],
                 "blocks": [1, 1, 2, 1], "window": WINDOW, "luma": list(LUMA), "keys": KEYS},
        "pose": {"_class_name": "PoseJudge", **base, "in_channels": 3, "channels": [24, 40, 72], "blocks": [1, 1, 2],
                 "joints": joints},
    }


CLASSES = {"attributes": AttributeJudge, "keys": KeysJudge, "pose": PoseJudge}


def save_judge(folder: Path, part: str, judge: nn.Module):
    """Writes one judge below the folder of the judges, matrices in 8 bits by row."""
    checkpoint.save_part(Path(folder) / part, judge.cfg, judge.state_dict())


def load_judge(folder: Path, part: str) -> nn.Module:
    """Reads one judge."""
    cfg, state = checkpoint.load_part(Path(folder) / part)
    judge = CLASSES[part](cfg)
    judge.load_state_dict(state)
    return judge


class Judges:
    """The judges of a folder, for clips of bytes."""

    def __init__(self, folder: Path, device, parts=PARTS):
        self.device = torch.device(device)
        self.parts = {part: load_judge(folder, part).to(self.device, memory_format=torch.channels_last).eval()
                      .requires_grad_(False) for part in parts}

    @torch.no_grad()
    def _map(self, run, frames: torch.Tensor) -> torch.Tensor:
        """Runs on chunks of the first axis in bf16 on a GPU; the result is f32."""
        cuda = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):
            return torch.cat([run(part.to(self.device)).float() for part in frames.split(CHUNK)])

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """u8 [B,T,H,W,3] -> features [B,T,D] of the attribute judge."""
        judge = self.parts["attributes"]
        return self._map(lambda x: judge.features(small(x)), frames.flatten(0, 1)).reshape(*frames.shape[:2], -1)

    def attributes(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features [B,T,D] -> log probabilities [B,values] of a clip: the mean of the logits of its frames."""
        judge = self.parts["attributes"]
        logits = judge.split(judge.head(features).mean(1))
        return {name: value.log_softmax(-1) for name, value in logits.items()}

    def keys(self, frames: torch.Tensor) -> torch.Tensor:
        """u8 [B,T,H,W,3], T >= 5 -> logits [B,T-4,6] of the windows; window i ends with frame i + 4."""
        return key_logits(self.parts["keys"], frames.to(self.device))

    def pose(self, frames: torch.Tensor) -> torch.Tensor:
        """u8 [B,T,H,W,3] -> joints [B,T,J,3], see `PoseJudge`."""
        judge = self.parts["pose"]
        return self._map(lambda x: judge(small(x)), frames.flatten(0, 1)).reshape(*frames.shape[:2], -1, 3)


def key_logits(judge: KeysJudge, frames: torch.Tensor) -> torch.Tensor:
    """u8 [B,T,H,W,3] -> logits [B,T-4,6] of the windows, a few clips at a time."""
    windows, parts = frames.shape[1] - WINDOW + 1, []
    for clips in frames.split(max(1, CHUNK // (2 * windows))):
        x = torch.stack([small(clip) for clip in clips])  # [b,T,3,96,160]
        x = torch.stack([x[:, i:i + WINDOW] for i in range(windows)], 1).flatten(0, 1)  # [b*N,5,3,96,160]
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            parts.append(judge(x).reshape(len(clips), windows, -1))
    return torch.cat(parts)


def decide(logits: torch.Tensor) -> torch.Tensor:
    """Logits of windows [B,N,6] -> the key of each clip: its number, or -1 where none is more likely than not."""
    value, index = logits[..., :DECIDED].mean(1).max(-1)
    return torch.where(value > 0, index, torch.full_like(index, -1))
