#!/usr/bin/env python3
"""Trains the causal autoencoder: Laplacian L1, squares, a small KL term, and a patch discriminator in the second half.

GameGen-X, arXiv 2411.00769, section 3.1. Frames come from the renderer: whole small frames, crops of 640x384 frames,
and crops of 1280x768 frames for the two-fold scale, half of which are encoded from their small picture, so that the
large pictures can be decoded from latents of either kind. The result is a model folder with the new autoencoder;
everything else in it stays as in --start.
"""
import argparse
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from export import export
from gamegen import checkpoint, pixels, vae
from gamegen.optim import Average, rate
from gamegen.trainer import SMALL, Log, device_setup
from gamegen.world import F_CROP_X, F_CROP_Y, F_FULL_H, F_FULL_W, World

# Kinds of clips: size of the rendered frame that a crop is taken from ((0, 0): the small frame itself), scale.
KINDS = (((0, 0), 1), ((640, 384), 1), ((1280, 768), 2))
CYCLE = (0, 2, 0, 1, 2)  # the kind of each step, over and over
WARM_FRAMES = 40
GAN_RISE = 0.05  # part of the plan over which the adversarial weight rises
KL_WEIGHT, GAN_WEIGHT, FEATURE_WEIGHT, SQUARE_WEIGHT = 1e-4, 0.01, 0.06, 4.0


class Discriminator(nn.Module):
    """Judges pairs (frame before, frame) patch by patch."""

    def __init__(self, width: int):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        sizes = ((6, width, 4, 2), (width, 2 * width, 4, 2), (2 * width, 4 * width, 4, 2), (4 * width, 4 * width, 3, 1))
        self.layers = nn.ModuleList([norm(nn.Conv2d(i, o, k, s, 1)) for i, o, k, s in sizes])
        self.out = nn.Conv2d(4 * width, 1, 1)

    def forward(self, x: torch.Tensor):
        """x [B,T,3,H,W] -> verdicts [B*T,1,h,w] and the features of each layer."""
        before = torch.cat([x[:, :1], x[:, :-1]], 1)
        h = torch.cat([before, x], 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)  # [B*T,6,H,W]
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            features.append(h)
        return self.out(h), features


def pyramid_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Smooth L1 of pixels plus L1 of three Laplacian bands; inputs [B,T,3,H,W]."""
    d = (x - y).flatten(0, 1)
    loss = torch.sqrt(d * d + 1e-4).mean() + SQUARE_WEIGHT * (d * d).mean()
    for _ in range(3):
        small = F.avg_pool2d(d, 2)
        band = d - F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        loss = loss + 0.5 * band.abs().mean()
        d = small
    return loss


class VaeTrainer:
    """State of a run."""

    def __init__(self, args):
        self.args, self.begin = args, time.time()
        self.log, self.dev = Log(args.out / "train_vae.log"), device_setup()
        self.cuda = self.dev.type == "cuda"
        args.state.mkdir(parents=True, exist_ok=True)
        self.model = checkpoint.load_model(args.start, upgrade=True)
        if args.fresh:
            self.model.vae = vae.AutoencoderKLCausal3D(vae.default_config())
        self.vae = self.model.vae.to(self.dev).to(memory_format=torch.channels_last)
        self.judge = Discriminator(16 if SMALL else 48).to(self.dev).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.judge_optimizer = torch.optim.AdamW(self.judge.parameters(), lr=2e-4, betas=(0.5, 0.95), weight_decay=0.0)
        self.average = Average(list(self.vae.parameters()), 0.999)
        self.fraction, self.steps = args.from_fraction, 0
        self.restore()
        self.gen = torch.Generator(self.dev).manual_seed(args.seed + int(self.begin) % 100000)
        self.world = World(self.dev)
        self.pools = [torch.zeros(args.pool, args.frames, scale * args.height, scale * args.width, 3,
                                  dtype=torch.uint8, device=self.dev) for _, scale in KINDS]
        self.filled, self.next = [0] * len(KINDS), [0] * len(KINDS)

    def path(self) -> Path:
        return self.args.state / "vae.pt"

    def restore(self):
        """Goes on from the saved state, if there is one."""
        if not self.path().exists():
            return
        state = torch.load(self.path(), map_location=self.dev, weights_only=True)
        self.vae.load_state_dict(state["vae"])
        self.judge.load_state_dict(state["judge"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.judge_optimizer.load_state_dict(state["judge_optimizer"])
        self.average.values = state["average"]
        self.fraction, self.steps = max(self.fraction, state["fraction"]), state["steps"]
        self.average.count = self.steps
        self.log(f"state {self.path()}: fraction {self.fraction:.3f}, {self.steps} steps")

    def render(self, count: int, kind: int):
        """Adds `count` clips of one of KINDS to its pool."""
        args, (full, scale) = self.args, KINDS[kind]
        height, width = scale * args.height, scale * args.width
        state, _ = self.world.reset(count, self.gen)
        keys = self.world.random_keys(count, WARM_FRAMES + args.frames, self.gen)
        params = self.world.simulate(state, keys)[:, WARM_FRAMES:].contiguous()
        if full[0]:
            place = torch.rand(2, count, 1, generator=self.gen, device=self.dev)
            params[:, :, F_CROP_X] = (place[0] * (full[0] - width)).floor()
            params[:, :, F_CROP_Y] = (place[1] * (full[1] - height)).floor()
            params[:, :, F_FULL_W], params[:, :, F_FULL_H] = full
        rows = (torch.arange(count, device=self.dev) + self.next[kind]) % args.pool
        self.pools[kind][rows] = self.world.render(params, height, width)
        self.next[kind] = (self.next[kind] + count) % args.pool
        self.filled[kind] = min(args.pool, self.filled[kind] + count)

    def encode(self, x: torch.Tensor, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Moments of x; at scale 2 the second half of the batch is encoded from the small picture."""
        if scale == 1 or x.shape[0] < 2:
            return self.vae.encode(x, scale)
        half = x.shape[0] // 2
        small = F.avg_pool2d(x[half:].flatten(0, 1), 2).reshape(x.shape[0] - half, x.shape[1], 3, x.shape[3] // 2, -1)
        parts = self.vae.encode(x[:half], 2), self.vae.encode(small, 1)
        return torch.cat([parts[0][0], parts[1][0]]), torch.cat([parts[0][1], parts[1][1]])

    def autocast(self):
        return torch.autocast(self.dev.type, torch.bfloat16, enabled=self.cuda)

    def generator_loss(self, x: torch.Tensor, scale: int):
        """Loss of the autoencoder on x, and the reconstruction."""
        with self.autocast():
            mean, log_variance = self.encode(x, scale)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            y = self.vae.decode(z, scale=scale)
        y = y.float()
        kl = 0.5 * (mean * mean + log_variance.exp() - 1 - log_variance).mean()
        loss = pyramid_loss(y, x) + KL_WEIGHT * kl
        late = self.fraction - self.args.gan_from
        if late > 0:
            self.judge.requires_grad_(False)
            with self.autocast():
                verdict, made = self.judge(y)
                with torch.no_grad():
                    _, real = self.judge(x)
            features = sum((a.float() - b.float()).abs().mean() for a, b in zip(made, real)) / len(real)
            loss = loss + min(1.0, late / GAN_RISE) * (FEATURE_WEIGHT * features - GAN_WEIGHT * verdict.float().mean())
            self.judge.requires_grad_(True)
        return loss, y

    def judge_step(self, x: torch.Tensor, y: torch.Tensor):
        """Hinge loss of the discriminator."""
        with self.autocast():
            real, made = self.judge(x)[0], self.judge(y.detach())[0]
        loss = F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean()
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.judge_optimizer.step()

    def step(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One update; returns the reconstruction, its original and the loss."""
        args = self.args
        kind = CYCLE[self.steps % len(CYCLE)]
        self.render(args.render if KINDS[kind][1] == 1 else args.render // 2, kind)
        batch = args.batch if KINDS[kind][1] == 1 else args.batch // 2
        x = pixels.to_network(self.pools[kind][torch.randint(0, self.filled[kind], (batch,), device=self.dev)])
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * rate(self.fraction, 0.01, 0.6, 0.03)
        loss, y = self.generator_loss(x, KINDS[kind][1])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.average.update()
        if self.fraction > args.gan_from - 0.03:
            self.judge_step(x, y)
        self.steps += 1
        return y.detach(), x, loss.detach()

    @torch.no_grad()
    def finish(self):
        """Averaged weights, latent statistics, a test on fresh clips, the state, the exported folder, a picture."""
        args = self.args
        state = {"vae": self.vae.state_dict(), "judge": self.judge.state_dict(), "average": self.average.values,
                 "optimizer": self.optimizer.state_dict(), "judge_optimizer": self.judge_optimizer.state_dict(),
                 "fraction": self.fraction, "steps": self.steps}
        torch.save(state, self.path())
        self.average.swap()
        gen = torch.Generator(self.dev).manual_seed(1234)
        clips = self.world.clips(4 if SMALL else 128, args.frames, args.height, args.width, gen)["frames"]
        with self.autocast():
            means = torch.cat([self.vae.encode(pixels.to_network(part))[0] for part in clips.split(16)])
        self.vae.latents_mean.copy_(means.mean((0, 1, 3, 4)))
        self.vae.latents_std.copy_(means.std((0, 1, 3, 4)).clamp(min=1e-3))
        for (full, scale), name in zip(KINDS, ("small", "middle", "large")):
            height, width = (full[1], full[0]) if full[0] and not SMALL else (scale * args.height, scale * args.width)
            self.check(height, width, scale, name)
        self.model.to("cpu")
        export(self.model, args.state / "model-vae", args.start)

    def check(self, height: int, width: int, scale: int, name: str):
        """Logs PSNR and writes pictures of fresh whole frames of worlds that training never sees."""
        gen, count = torch.Generator(self.dev).manual_seed(4321), 2 if SMALL else 48
        quality, rows = [], []
        for _ in range(count // (2 if SMALL else 8)):
            frames = self.world.clips(2 if SMALL else 8, 2, height, width, gen, split="test", unseen="any")["frames"]
            x = pixels.to_network(frames)
            with self.autocast():
                y = self.vae.decode(self.vae.encode(x, scale)[0], scale=scale)
            quality.append(pixels.psnr(y.flatten(0, 1), x.flatten(0, 1)))
            rows.append([frames[0, -1].cpu().numpy(), pixels.to_bytes(y)[0, -1].cpu().numpy()])
        self.log(f"test worlds {width}x{height} scale {scale}: {torch.cat(quality).mean().item():.2f} dB")
        pixels.save_png(self.args.out / f"sheet_vae_{name}.png", pixels.sheet(rows[:6 if scale == 1 else 3]))

    def run(self):
        """Trains until the time is over."""
        args = self.args
        for kind in range(len(KINDS)):
            while self.filled[kind] < min(args.pool, 20 * args.render):
                self.render(args.render, kind)
        begin, first, printed = time.time(), self.fraction, 0.0
        end = self.begin + 60 * args.minutes - args.reserve
        while time.time() < end and not (args.max_steps and self.steps >= args.max_steps):
            part = (time.time() - begin) / max(1.0, end - begin)
            self.fraction = first + (args.to_fraction - first) * min(1.0, part)
            y, x, loss = self.step()
            if time.time() - printed > 10:
                printed = time.time()
                quality = pixels.psnr(y.flatten(0, 1), x.flatten(0, 1)).mean().item()
                self.log(f"step {self.steps} fraction {self.fraction:.3f} loss {loss.item():.4f} psnr {quality:.2f}")
        self.finish()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--start", type=Path, required=True, help="model folder whose other parts are kept")
    p.add_argument("--fresh", action="store_true", help="start the autoencoder anew")
    p.add_argument("--state", type=Path, default=Path(os.environ.get("STATE", "/tmp/gamegen-state")))
    p.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    p.add_argument("--minutes", type=float, default=8.0)
    p.add_argument("--reserve", type=float, default=20.0, help="seconds kept for the end")
    p.add_argument("--from-fraction", type=float, default=0.0)
    p.add_argument("--to-fraction", type=float, default=1.0)
    p.add_argument("--batch", type=int, default=2 if SMALL else 24)
    p.add_argument("--frames", type=int, default=4)
    p.add_argument("--height", type=int, default=64 if SMALL else 192)
    p.add_argument("--width", type=int, default=96 if SMALL else 320)
    p.add_argument("--render", type=int, default=1 if SMALL else 12, help="new clips a step")
    p.add_argument("--pool", type=int, default=8 if SMALL else 1200)
    p.add_argument("--lr", type=float, default=6e-4)
    p.add_argument("--gan-from", type=float, default=0.5)
    p.add_argument("--max-steps", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    VaeTrainer(args).run()


if __name__ == "__main__":
    sys.exit(main())
