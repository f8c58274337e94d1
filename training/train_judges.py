#!/usr/bin/env python3
"""Trains the judges of attributes, keys and pose on rendered frames of training worlds; measures their ceilings.

Writes OUT/judges/{attributes,keys,pose,ceilings.json}. The ceilings are those of the stored 8-bit weights on
rendered frames of the test worlds.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from gamegen import captions, ceilings, judges
from gamegen.judge_data import Disturbance, JudgePool, joint_count
from gamegen.optim import Average, rate
from gamegen.pixels import to_network
from gamegen.trainer import SMALL, Log, device_setup
from gamegen.world import World

LABEL_SMOOTHING = 0.02
BYTES_MAX = 1_677_721  # 1.6 MiB for all judges
RENDER_BATCH = {True: 768, False: 12}  # clips rendered at once
RARE, RARE_KEYS = 2.0, ("S", "SHIFT")  # weight of windows that show a key that is seldom held
WINDOW_CLIP = judges.WINDOW + 2  # frames of a clip of the keys' pool


class Learner:
    """One judge with its optimizer and averaged weights."""

    def __init__(self, judge, lr: float, every: int):
        self.judge, self.lr, self.every, self.value = judge, lr, every, None
        params = list(judge.parameters())
        decayed = [p for p in params if p.dim() > 1]
        plain = [p for p in params if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=params[0].is_cuda)
        self.average = Average(params, 0.9 if SMALL else 0.998)

    def update(self, loss: torch.Tensor, fraction: float):
        """One step; fraction of the time that is over."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rate(fraction, 0.02, 0.4, 0.01)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.judge.parameters(), 1.0)
        self.optimizer.step()
        self.average.update()
        value = loss.detach()
        self.value = value if self.value is None else self.value.lerp(value, 0.03)


class JudgeTrainer:
    """Pools of rendered clips and the judges that learn from them side by side."""

    def __init__(self, args):
        self.args, self.begin = args, time.time()
        self.log, self.dev = Log(args.out / "train_judges.log"), device_setup()
        self.cuda = self.dev.type == "cuda"
        torch.manual_seed(args.seed)
        gen = torch.Generator(self.dev).manual_seed(args.seed)
        self.world, self.disturb = World(self.dev), Disturbance(self.dev, gen)
        self.rare = torch.tensor([float(k in RARE_KEYS) for k in judges.KEYS], device=self.dev)  # [6]
        self.stills = JudgePool(self.world, args.stills, 1, gen)
        self.clips = JudgePool(self.world, args.clips, WINDOW_CLIP, gen)
        self.learners = {}
        for part in args.parts:
            judge = judges.load_judge(args.start, part) if args.start else \
                judges.CLASSES[part](judges.default_configs(joint_count(self.world))[part])
            judge = judge.to(self.dev).to(memory_format=torch.channels_last)
            self.learners[part] = Learner(judge, args.lr, 2 if part == "pose" else 1)
        self.spent, self.fills = {"render": 0.0, "train": 0.0}, 0

    def fill(self):
        """Renders fresh stills and clips; half of them with fewer samples a pixel, which is quicker."""
        begin, batch = time.time(), RENDER_BATCH[self.cuda]
        self.fills += 1
        samples = 1 + self.fills % 2
        self.stills.fill(min(2 * batch, self.args.stills), samples)
        self.clips.fill(min(batch // 2, self.args.clips), samples)
        if self.cuda:
            torch.cuda.synchronize()
        self.spent["render"] += time.time() - begin

    def frames(self, pictures: torch.Tensor) -> torch.Tensor:
        """u8 [B,T,96,160,3] -> disturbed f32 [B,T,3,96,160] in -1..1."""
        return self.disturb(to_network(pictures))

    def mixed(self, count: int):
        """Stills, two thirds of them from the pool of stills: pictures, attributes, joints."""
        one, two = self.stills.stills(count - count // 3), self.clips.stills(max(1, count // 3))
        return [torch.cat(pair) for pair in zip(one, two)]

    def attributes_loss(self) -> torch.Tensor:
        """Cross-entropy of every attribute."""
        pictures, truth, _ = self.mixed(self.args.batch)
        judge = self.learners["attributes"].judge
        with self.autocast():
            logits = judge.split(judge(self.frames(pictures)[:, 0]))
        return sum(F.cross_entropy(logits[name], truth[:, i], label_smoothing=LABEL_SMOOTHING)
                   for i, (name, _) in enumerate(captions.ATTRIBUTES))

    def keys_loss(self) -> torch.Tensor:
        """Binary cross-entropy of the keys whose label is known."""
        pictures, truth = self.clips.windows(max(2, self.args.batch // 2))
        with self.autocast():
            logits = self.learners["keys"].judge(self.frames(pictures))
        known = (truth >= 0).float() * (1 + (RARE - 1) * (truth > 0.5) * self.rare)
        loss = F.binary_cross_entropy_with_logits(logits, truth.clamp(min=0), reduction="none")
        return (loss * known).sum() / known.sum().clamp(min=1)

    def pose_loss(self) -> torch.Tensor:
        """Distance of the joints that are seen (in tenths of the picture), and whether they are seen."""
        pictures, _, joints = self.mixed(max(2, self.args.batch // 2))
        with self.autocast():
            guess = self.learners["pose"].judge(self.frames(pictures)[:, 0])
        seen = joints[..., 2]
        distance = F.smooth_l1_loss(guess[..., :2] * 10, joints[..., :2] * 10, reduction="none", beta=0.1).sum(-1)
        return (distance * seen).sum() / seen.sum().clamp(min=1) * 5 + \
            F.binary_cross_entropy_with_logits(guess[..., 2], seen)

    def autocast(self):
        return torch.autocast(self.dev.type, torch.bfloat16, enabled=self.cuda)

    def step(self, number: int, fraction: float):
        """One update of every judge whose turn it is."""
        begin = time.time()
        losses = {"attributes": self.attributes_loss, "keys": self.keys_loss, "pose": self.pose_loss}
        for part, learner in self.learners.items():
            if number % learner.every == 0:
                learner.update(losses[part](), fraction)
        if self.cuda and number % 8 == 0:
            torch.cuda.synchronize()
        self.spent["train"] += time.time() - begin

    def train(self, end: float) -> int:
        """Updates until `end`; rendering gets its share of the time."""
        args, begin, number, printed = self.args, time.time(), 0, 0.0
        while time.time() < end and not (args.max_steps and number >= args.max_steps):
            if self.spent["render"] < args.render_share * sum(self.spent.values()):
                self.fill()
            fraction = number / args.max_steps if args.max_steps else (time.time() - begin) / max(1.0, end - begin)
            self.step(number, fraction)
            number += 1
            if time.time() - printed > 10:
                printed = time.time()
                values = " ".join(f"{part} {learner.value.item():.4f}" for part, learner in self.learners.items())
                self.log(f"step {number} fraction {fraction:.3f} | {values} | "
                         f"{number / (printed - begin + 1e-9):.2f} steps/s | {self.stills.rendered} stills, "
                         f"{self.clips.rendered // WINDOW_CLIP} clips rendered in {self.spent['render']:.0f}s")
        return number

    @torch.no_grad()
    def balance(self, judge):
        """Moves the bias of each key to where misses and false alarms on rendered validation clips are fewest.

        The windows of training are not as often empty as those of play, so that the zero of the logits lies elsewhere.
        """
        gen, clips = torch.Generator(self.dev).manual_seed(11), 8 if SMALL else 192
        logits = {}
        for key in (*judges.KEYS, None):
            parts = [ceilings.scripted(self.world, clips, key, start, gen, "val") for start in ceilings.STARTS]
            frames = torch.cat([frames[done] for frames, done in parts])
            if not len(frames):
                return
            logits[key] = judges.key_logits(judge, frames).mean(1)  # [B,6]
        for i, key in enumerate(judges.KEYS):
            if key == "SHIFT":  # its own question, asked of who walks
                others, rival = logits["W"], torch.zeros(len(logits["W"]), device=self.dev)
            else:
                others = torch.cat([v for k, v in logits.items() if k not in (key, "SHIFT")])
                rival = others[:, [j for j in range(judges.DECIDED) if j != i]].max(1).values.clamp(min=0)
            self.shift_bias(judge, i, logits[key][:, i], others[:, i] - rival)

    def shift_bias(self, judge, index: int, hits: torch.Tensor, alarms: torch.Tensor):
        """The bias of one key: `hits` are to lie above 0 and `alarms` below."""
        shifts = torch.linspace(-3, 3, 49, device=self.dev)
        wrong = torch.stack([(hits + s <= 0).float().mean() + (alarms + s > 0).float().mean() * 2 for s in shifts])
        best = shifts[(wrong <= wrong.min() + 1e-6).nonzero()[:, 0]].mean()
        judge.head.bias[index] += best
        self.log(f"bias of {judges.KEYS[index]}: {best.item():+.2f}, misses and false alarms {wrong.min().item():.4f} "
                 f"instead of {wrong[len(shifts) // 2].item():.4f}")

    def save(self) -> int:
        """Averaged weights of all judges; returns their bytes on disk."""
        folder = self.args.out / "judges"
        for part, learner in self.learners.items():
            learner.average.swap()
            if part == "keys":
                self.balance(learner.judge)
            judges.save_judge(folder, part, learner.judge)
            learner.average.swap()
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

    def run(self):
        """Fills the pools, trains, saves, measures."""
        args = self.args
        end = self.begin + 60 * args.minutes
        while self.stills.filled < min(args.pool_start, args.stills) and time.time() < end - args.reserve:
            self.fill()
        self.log(f"pools: {self.stills.filled} stills, {self.clips.filled} clips in {self.spent['render']:.1f}s")
        self.spent = {"render": 0.0, "train": 0.0}  # the start does not count against the shares
        steps = self.train(end - args.reserve)
        size = self.save()
        self.log(f"saved after {steps} steps: {size} bytes in {args.out / 'judges'}")
        if size > BYTES_MAX:
            raise RuntimeError(f"judges: {size} bytes; allowed are {BYTES_MAX}")
        stored = judges.Judges(args.out / "judges", self.dev, args.parts)
        table = ceilings.measure(stored, self.world, args.test_clips)
        path = args.out / "judges" / "ceilings.json"
        known = json.loads(path.read_text()) if path.exists() else {}  # of judges that were trained before
        path.write_text(json.dumps(known | table, indent=1) + "\n")
        for part in args.parts:
            rows = " ".join(f"{name} {row['value']} ({row['count']})" for name, row in table[part].items())
            self.log(f"{part}: {rows}")
        self.log(f"lowest rows: {ceilings.lowest(table)}")


def measure(folder: Path, clips: int):
    """Writes the ceilings of stored judges beside them."""
    dev = device_setup()
    table = ceilings.measure(judges.Judges(folder, dev), World(dev), clips)
    (folder / "ceilings.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{folder}: lowest rows {ceilings.lowest(table)}", flush=True)


def part_list(text: str) -> list[str]:
    """Comma separated names of judges."""
    parts = text.split(",")
    for part in parts:
        if part not in judges.PARTS:
            raise argparse.ArgumentTypeError(f"{part!r}: allowed are {', '.join(judges.PARTS)}")
    return parts


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--start", type=Path, help="folder of judges to go on from (default: fresh ones)")
    p.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    p.add_argument("--minutes", type=float, default=6.0, help="time of this call from its start, everything included")
    p.add_argument("--reserve", type=float, default=2.0 if SMALL else 35.0, help="seconds kept for saving and ceilings")
    p.add_argument("--parts", type=part_list, default=list(judges.PARTS), help="comma separated (default: all)")
    p.add_argument("--batch", type=int, default=24 if SMALL else 512, help="frames a step; half as many windows")
    p.add_argument("--stills", type=int, default=48 if SMALL else 98304, help="stills kept")
    p.add_argument("--clips", type=int, default=24 if SMALL else 24576, help="clips kept for the keys")
    p.add_argument("--pool-start", type=int, default=24 if SMALL else 24576, help="stills made before the first step")
    p.add_argument("--render-share", type=float, default=0.3, help="part of the time that goes to new frames")
    p.add_argument("--test-clips", type=int, default=32 if SMALL else 2048)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--max-steps", type=int, default=0, help="0: no limit")
    p.add_argument("--seed", type=int, default=5)
    p.add_argument("--measure", type=Path, help="measure the ceilings of the judges in this folder and do no more")
    args = p.parse_args()
    if args.measure:
        measure(args.measure, args.test_clips)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    JudgeTrainer(args).run()


if __name__ == "__main__":
    sys.exit(main())
