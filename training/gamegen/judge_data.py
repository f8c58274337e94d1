"""What the judges learn from: pools of rendered frames, labels from the simulator's state, and disturbances.

Nothing here comes from a generator. A key counts only where it did something: held against a rock it moves nobody, and
after its release the figure still glides.
"""
import math

import torch
import torch.nn.functional as F

from .captions import CHARACTERS
from .judges import HEIGHT, KEYS, WIDTH, WINDOW, small
from .world import F_AIR, F_YAW

# Places in the parameters of a frame (world/layout.h), and the simulator's speeds (world/sim.h).
F_CHARACTER, F_X, F_Z, F_SPEED = 31, 34, 36, 39
FRAME_SECONDS = 1 / 24
WALK, BACK, TURN, RUN = 4.2, 3.8, 1.45, 2.2  # units a second, radians a second, times
RIDER_FASTER = 1.5
UNKNOWN = -1.0
SOFT_SIZES = ((80, 132), (68, 112), (56, 94), (44, 74))  # rows and columns that a softened picture had
RENDER_SIZES = {True: (192, 320), False: (96, 160)}  # the second where a CPU has to do it


def motion(params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame parameters [B,T,56] -> what really happened between frames: units a second ahead, radians a second."""
    step = params[:, 1:] - params[:, :-1]
    yaw = params[:, 1:, F_YAW]
    ahead = step[..., F_X] * yaw.sin() + step[..., F_Z] * yaw.cos()
    turn = torch.remainder(step[..., F_YAW] + math.pi, 2 * math.pi) - math.pi
    return ahead / FRAME_SECONDS, turn / FRAME_SECONDS


def key_labels(params: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Labels [B,T-4,6] of the windows of clips with params [B,T,56] and keys [B,T,6]: 1, 0 or UNKNOWN.

    1: held for the whole window with the motion it is for. 0: not held at all and no such motion. SPACE: in the air
    for the whole window, or never. SHIFT: running, or not.
    """
    speed, turn = motion(params)
    windows = lambda x: x.unfold(1, WINDOW - 1, 1)  # [B,T-4,4] over the four changes of a window
    speed, turn, pressed = windows(speed), windows(turn), windows(keys[:, 1:].transpose(1, 2).flatten(0, 1))
    pressed = pressed.reshape(keys.shape[0], keys.shape[2], -1, WINDOW - 1).transpose(1, 2)  # [B,T-4,6,4]
    held, free = pressed.amin(-1) > 0.5, pressed.amax(-1) < 0.5  # [B,T-4,6]
    rider = params[:, :1, F_CHARACTER] == CHARACTERS.index("rider")  # [B,1]
    own = torch.where(rider, RIDER_FASTER, 1.0)
    mean, air = speed.mean(-1), params[..., F_AIR].unfold(1, WINDOW, 1)  # [B,T-4], [B,T-4,5]
    yes = [(mean > 0.5 * WALK) & (speed.amin(-1) > 0.25 * WALK), (mean < -0.5 * BACK) & (speed.amax(-1) < -0.25 * BACK),
           (turn.mean(-1) < -0.6 * TURN), (turn.mean(-1) > 0.6 * TURN)]
    no = [speed.amax(-1) < 0.2 * WALK, speed.amin(-1) > -0.2 * BACK, turn.amin(-1) > -0.2 * TURN,
          turn.amax(-1) < 0.2 * TURN]
    runs, walks = held[..., 5] & held[..., 0] & (mean > 0.8 * RUN * WALK * own), mean < 1.2 * WALK * own
    yes = [held[..., i] & value for i, value in enumerate(yes)] + [air.amin(-1) > 0.5, runs]
    no = [free[..., i] & value for i, value in enumerate(no)] + [air.amax(-1) < 0.5, free[..., 5] & walks]
    yes, no = torch.stack(yes, -1), torch.stack(no, -1)
    return torch.where(yes, 1.0, torch.where(no, 0.0, UNKNOWN))


class Disturbance:
    """Makes rendered pictures as imperfect as generated ones; hue stays, because colours are judged.

    Every method takes and gives x [B,T,3,96,160] in -1..1; the frames of a clip are disturbed alike.
    """

    def __init__(self, device, generator: torch.Generator):
        self.device, self.generator = device, generator
        n = torch.arange(8, device=device).float()
        basis = torch.cos((2 * n[None] + 1) * n[:, None] * math.pi / 16) * 0.5  # [frequency,place]
        basis[0] *= math.sqrt(0.5)
        self.basis = torch.kron(basis, basis)  # [64,64]: frequencies of a square, by its pixels
        self.coarseness = ((1 + n[:, None] + n[None]) / 8).flatten()  # [64]

    def draw(self, x: torch.Tensor, low: float, high: float, share: float = 1.0, channels: int = 1) -> torch.Tensor:
        """A strength for each clip [B,1,channels,1,1]: 0 outside the share."""
        shape = (x.shape[0], 1, channels, 1, 1)
        value = torch.rand(shape, device=self.device, generator=self.generator) * (high - low) + low
        return value * (torch.rand(x.shape[0], 1, 1, 1, 1, device=self.device, generator=self.generator) < share)

    def tone(self, x: torch.Tensor) -> torch.Tensor:
        """Brightness, contrast, saturation, and small gains of the channels."""
        mean, gray = x.mean((1, 2, 3, 4), keepdim=True), x.mean(2, keepdim=True)
        x = (x - mean) * (1 + self.draw(x, -0.18, 0.18, 0.7)) + mean + self.draw(x, -0.12, 0.12, 0.7)
        x = gray + (x - gray) * (1 + self.draw(x, -0.25, 0.25, 0.6))
        return x * (1 + self.draw(x, -0.04, 0.04, 0.6, 3))

    def soften(self, x: torch.Tensor) -> torch.Tensor:
        """A blur of random strength, and for some clips the way down to a smaller size and up again."""
        flat = x.flatten(0, 1)
        blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, 1).reshape(x.shape)
        x = x + self.draw(x, 0.2, 1.0, 0.5) * (blurred - x)
        index = int(torch.randint(0, len(SOFT_SIZES), (1,), generator=self.generator, device=self.device))
        size = SOFT_SIZES[index]
        again = F.interpolate(F.interpolate(x.flatten(0, 1), size, mode="area"), (HEIGHT, WIDTH), mode="bilinear",
                              align_corners=False).reshape(x.shape)
        return x + self.draw(x, 0.4, 1.0, 0.35) * (again - x)

    def compress(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds the cosine coefficients of 8x8 squares, the fine ones more: what a small code of a picture loses."""
        blocks = x.reshape(*x.shape[:3], HEIGHT // 8, 8, WIDTH // 8, 8).transpose(4, 5)  # [B,T,3,12,20,8,8]
        code = blocks.flatten(-2) @ self.basis.T  # [B,T,3,12,20,64]
        step = self.draw(x, 0.02, 0.35, 0.35)[..., None] * self.coarseness + 1e-4
        again = ((code / step).round() * step) @ self.basis
        return again.reshape(blocks.shape).transpose(4, 5).reshape(x.shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """All of them, and noise; a fifth of the clips stays as rendered."""
        y = self.compress(self.soften(self.tone(x)))
        y = y + self.draw(x, 0.0, 0.06, 0.6) * torch.randn(x.shape, device=self.device, generator=self.generator)
        return torch.where(self.draw(x, 1.0, 1.0, 0.8) > 0, y.clamp(-1, 1), x)


class JudgePool:
    """A ring of rendered clips of T frames at 160x96 with attributes, labels of the keys and joints."""

    def __init__(self, world, clips: int, frames: int, generator: torch.Generator, split: str = "train"):
        self.world, self.frames, self.generator, self.split = world, frames, generator, split
        dev, joints = world.device, joint_count(world)
        self.pictures = torch.zeros(clips, frames, HEIGHT, WIDTH, 3, dtype=torch.uint8, device=dev)
        self.attributes = torch.zeros(clips, 7, dtype=torch.long, device=dev)
        self.keys = torch.full((clips, max(0, frames - WINDOW + 1), len(KEYS)), UNKNOWN, device=dev)
        self.joints = torch.zeros(clips, frames, joints, 3, device=dev)
        self.next = self.filled = self.rendered = 0

    def fill(self, count: int, samples: int):
        """Renders `count` new clips in place of the oldest."""
        dev, size = self.world.device, RENDER_SIZES[self.world.cuda]
        clip = self.world.clips(count, self.frames, *size, self.generator, samples, split=self.split, unseen="any")
        rows = (torch.arange(count, device=dev) + self.next) % len(self.pictures)
        shrunk = torch.cat([to_bytes(small(part)) for part in clip["frames"].split(256)])
        self.pictures[rows], self.attributes[rows] = shrunk, clip["after"]
        if self.frames >= WINDOW:
            self.keys[rows] = key_labels(clip["params"], clip["keys"])
        self.joints[rows] = joints_of(self.world, clip["params"])
        self.next = (self.next + count) % len(self.pictures)
        self.filled = min(len(self.pictures), self.filled + count)
        self.rendered += count * self.frames

    def choose(self, count: int) -> torch.Tensor:
        """Random rows."""
        return torch.randint(0, self.filled, (count,), device=self.world.device, generator=self.generator)

    def stills(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Single frames u8 [B,1,96,160,3] with attributes [B,7] and joints [B,J,3]."""
        rows = self.choose(count)
        at = torch.randint(0, self.frames, (count,), device=rows.device, generator=self.generator)
        return self.pictures[rows, at][:, None], self.attributes[rows], self.joints[rows, at]

    def windows(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows u8 [B,5,96,160,3] with labels [B,6]."""
        rows = self.choose(count)
        at = torch.randint(0, self.frames - WINDOW + 1, (count,), device=rows.device, generator=self.generator)
        places = at[:, None] + torch.arange(WINDOW, device=rows.device)
        return self.pictures[rows[:, None], places], self.keys[rows, at]


def to_bytes(x: torch.Tensor) -> torch.Tensor:
    """[...,3,96,160] in -1..1 -> u8 [...,96,160,3]."""
    return ((x + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def joint_count(world) -> int:
    """Number of joints of the renderer's figures."""
    state, _ = world.reset(1, torch.Generator(world.device).manual_seed(1))
    keys = torch.zeros(1, 1, len(KEYS), device=world.device)
    return world.pose(world.simulate(state, keys), HEIGHT, WIDTH).shape[-2]


def joints_of(world, params: torch.Tensor) -> torch.Tensor:
    """Joints [B,T,J,3] of frames: x and y as shares of the width and height, 1 where the joint is seen."""
    joints = world.pose(params, HEIGHT, WIDTH)
    x, y = joints[..., 0] / WIDTH, joints[..., 1] / HEIGHT
    inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1) & (joints[..., 2] > 0)
    return torch.stack([x, y, inside.float()], -1)
