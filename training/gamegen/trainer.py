"""The training loop that the foundation and the InstructNet phase share."""
import argparse
import os
import random
import shutil
import time
from pathlib import Path

import torch

from . import checkpoint, data, examples, tokenizer
from .optim import Average, make_optimizers, rate
from .sampler import Stream
from .world import World

SMALL = os.environ.get("GAMEGEN_SMALL") == "1"
ROLLOUT_STEPS = (1, 2, 2, 2, 4)
ROLLOUT_NOISE = (0.05, 0.05, 0.15)
SEED_FRAMES = (1, 2, 3, 4)
RESTART_STEPS = 50  # the rate rises over this many steps after a start


def arguments(description: str) -> argparse.ArgumentParser:
    """Options that both phases take."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--start", type=Path, required=True, help="model folder to start from where there is no state")
    p.add_argument("--state", type=Path, default=Path(os.environ.get("STATE", "/tmp/gamegen-state")))
    p.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    p.add_argument("--minutes", type=float, default=5.0, help="time of this call from its start, everything included")
    p.add_argument("--until", type=float, help="instead of --minutes: end as seconds since 1970")
    p.add_argument("--from-fraction", type=float, default=0.0, help="part of the whole plan that was done before")
    p.add_argument("--to-fraction", type=float, default=1.0, help="part of the whole plan that is done afterwards")
    p.add_argument("--batch", type=int, default=4 if SMALL else 40, help="clips a step (each is two streams)")
    p.add_argument("--frames", type=int, default=4 if SMALL else 16, help="frames of a stream")
    p.add_argument("--clip-frames", type=int, default=7 if SMALL else 25)
    p.add_argument("--pool", type=int, default=8 if SMALL else 6144, help="clips kept")
    p.add_argument("--pool-start", type=int, default=6 if SMALL else 3072, help="clips made before the first step")
    p.add_argument("--size", default="96x64" if SMALL else "320x192")
    p.add_argument("--render-share", type=float, default=0.12, help="part of the time that goes to new clips")
    p.add_argument("--rollout-share", type=float, default=0.12, help="part of the time that goes to rollouts")
    p.add_argument("--rollout-clips", type=int, default=2 if SMALL else 256)
    p.add_argument("--replay", type=int, default=4 if SMALL else 2048)
    p.add_argument("--own", type=float, default=0.5, help="share of clips whose context is a rollout")
    p.add_argument("--shortcut", type=float, default=0.34, help="share of clips with a shortcut target")
    p.add_argument("--ema", type=float, default=0.9995)
    p.add_argument("--compile", type=int, default=1, help="0: eager; a failed compilation falls back to it anyway")
    p.add_argument("--save-every", type=float, default=100.0, help="seconds between saved states and exports")
    p.add_argument("--max-steps", type=int, default=0, help="0: no limit")
    p.add_argument("--seed", type=int, default=1)
    return p


class Log:
    """Progress lines to stdout and to a file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.begin = path.open("a"), time.time()

    def __call__(self, text: str):
        line = f"[{time.time() - self.begin:6.1f}s] {text}"
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


class Clock:
    """Seconds spent on training, rendering and rollouts, to hold the asked shares."""

    def __init__(self, device: torch.device):
        self.cuda, self.spent = device.type == "cuda", {"train": 0.0, "render": 0.0, "rollout": 0.0}

    def run(self, kind: str, work):
        """Runs `work` and books its time (the device is waited for)."""
        self.wait()
        begin = time.time()
        result = work()
        self.wait()
        self.spent[kind] += time.time() - begin
        return result

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def behind(self, kind: str, share: float) -> bool:
        """Has `kind` had less than its share so far?"""
        return self.spent[kind] <= share * sum(self.spent.values())


def device_setup() -> torch.device:
    """The device, with the backends that are known to work there."""
    dev = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dev.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # its backward crashed on an H100 with PyTorch 2.11
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return dev


class Trainer:
    """State of a run: model, pools, optimizers, average."""

    def __init__(self, args, name: str, frozen: bool, p_event: float, lr: float, mix: examples.Mix):
        self.args, self.name, self.frozen, self.mix = args, name, frozen, mix
        self.begin = time.time()
        self.until = args.until or self.begin + 60 * args.minutes
        self.log = Log(args.out / "train.log")
        self.dev = device_setup()
        args.state.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed + int(self.begin) % 10000)
        self.rng = random.Random(args.seed + int(self.begin))
        self.fraction, self.steps = args.from_fraction, 0
        self.load()
        self.model.to(self.dev)
        self.model.vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        for part in (self.model.text, self.model.dit):
            part.requires_grad_(not frozen)
        named = [(f"{n}.{k}", p) for n, part in self.parts().items() for k, p in part.named_parameters()]
        self.trained = [p for _, p in named if p.requires_grad]
        self.optimizers = make_optimizers(named, lr)
        self.average = Average(self.trained, args.ema)
        self.restore()
        self.clock = Clock(self.dev)
        self.tok = tokenizer.build(tokenizer.words())
        width, height = map(int, args.size.split("x"))
        self.size = (height, width)
        gen = torch.Generator(self.dev).manual_seed(args.seed + int(self.begin) % 100000)
        cfg = data.PoolConfig(args.clip_frames, height, width, args.pool, p_event)
        self.pool = data.ClipPool(cfg, World(self.dev), self.model.vae, self.tok, gen, args.seed + int(self.begin))
        self.chunk = 2 if self.dev.type == "cpu" else 192
        self.replay = data.Replay(args.replay)
        self.losses = {}

    def parts(self) -> dict:
        """The parts that this package trains together."""
        return {k: v for k, v in self.model.parts.items() if k != "vae"}

    # ---- state
    def path(self) -> Path:
        return self.args.state / f"{self.name}.pt"

    def load(self):
        """The model from this phase's state, else from the start folder with new words appended."""
        self.saved = None
        self.model = checkpoint.load_model(self.args.start)
        checkpoint.grow_vocabulary(self.model.text, len(tokenizer.words()))
        if self.path().exists():
            self.saved = torch.load(self.path(), map_location="cpu", weights_only=True)
            for n, part in self.parts().items():
                part.load_state_dict(self.saved["weights"][n])
            self.fraction = max(self.fraction, self.saved["fraction"])
            self.steps = self.saved["steps"]
        self.log(f"{self.name}: {'state ' + str(self.path()) if self.saved else 'start ' + str(self.args.start)}, "
                 f"fraction {self.fraction:.3f}, {self.steps} steps done")

    def restore(self):
        """Optimizers and average from the state."""
        if self.saved is None:
            return
        for optimizer, state in zip(self.optimizers, self.saved["optimizers"]):
            optimizer.load_state_dict(state)
        for value, old in zip(self.average.values, self.saved["average"]):
            value.copy_(old.to(self.dev))
        self.average.count = self.steps
        self.saved = None

    def save(self, final: bool = False):
        """State of the run, and the averaged model as an exported folder and its parts."""
        from export import export, pack
        begin = time.time()
        state = {"weights": {n: p.state_dict() for n, p in self.parts().items()}, "average": self.average.values,
                 "optimizers": [o.state_dict() for o in self.optimizers], "fraction": self.fraction,
                 "steps": self.steps}
        temporary = self.path().with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path())
        self.average.swap()
        width, height = self.size[1], self.size[0]
        folder = self.args.state / "export"
        shutil.rmtree(folder, ignore_errors=True)
        export(self.model, folder / "gamegen-x-mini", [[width, height]])
        self.average.swap()
        pack(folder, self.args.out)
        target = self.args.state / "model"
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(str(folder / "gamegen-x-mini"), str(target))
        self.log(f"saved{' at the end' if final else ''}: step {self.steps}, {time.time() - begin:.1f}s")

    # ---- forward passes
    def autocast(self):
        return torch.autocast(self.dev.type, torch.bfloat16, enabled=self.dev.type == "cuda")

    def texts(self, e: dict) -> tuple:
        """Features and masks of captions [B,L] and of the two instructions [B,2,L]."""
        text, mask = self.model.text(e["caption"])
        b, k, length = e["instruction"].shape
        instruction, instruction_mask = self.model.text(e["instruction"].flatten(0, 1))
        return text, mask, instruction.reshape(b, k, length, -1), instruction_mask.reshape(b, k, length)

    def velocity(self, e: dict, texts: tuple, rows=None, x=None, t=None, d=None) -> torch.Tensor:
        """[B,2T,Z,h,w] in f32; `rows` takes a part of the batch, x, t and d replace the example's."""
        pick = (lambda v: v) if rows is None else (lambda v: v[rows])
        text, mask, instruction, instruction_mask = (pick(v) for v in texts)
        frames = self.args.frames
        positions = torch.arange(frames, device=self.dev).repeat(2)
        hook = self.model.instructnet.bind(pick(e["keys"]), pick(e["previous_keys"]), instruction, instruction_mask,
                                           pick(e["select"]), pick(e["enabled"]))
        v = self.model.dit(pick(e["x"]) if x is None else x, pick(e["t"]) if t is None else t,
                           pick(e["d"]) if d is None else d, pick(e["previous"]), pick(e["ps"]), pick(e["has"]), text,
                           mask, positions, pick(e["mask"]), None, hook)
        return v.float()

    @torch.no_grad()
    def shortcut_goal(self, e: dict, texts: tuple, rows: torch.Tensor):
        """Target frames of `rows` learn one step of size d as two of d/2; the smallest are two Euler steps."""
        frames = self.args.frames
        size = examples.set_shortcut(e, rows, frames)  # [R]
        half = torch.where(size > 0.3, size / 2, torch.zeros_like(size))
        x, t, d = e["x"][rows].clone(), e["t"][rows].clone(), e["d"][rows].clone()
        d[:, frames:] = half[:, None]
        first = self.velocity(e, texts, rows, x, t, d)[:, frames:]
        x[:, frames:] += (size / 2).view(-1, 1, 1, 1, 1) * first
        t[:, frames:] += (size / 2)[:, None]
        second = self.velocity(e, texts, rows, x, t, d)[:, frames:]
        e["goal"][rows, frames:] = (first + second) / 2

    def batch(self) -> dict:
        """Real clips and rollouts, in random order."""
        b = self.args.batch
        own = int(b * self.args.own) if len(self.replay) else 0
        real = self.pool.sample(b - own)
        real |= {"own": real["latents"], "is_own": torch.zeros(b - own, device=self.dev),
                 "steps": 2.0 ** torch.randint(0, 3, (b - own,), device=self.dev)}
        if not own:
            return real
        other = self.replay.sample(own)
        order = torch.randperm(b, device=self.dev)
        return {k: torch.cat([real[k], other[k].to(real[k].dtype)])[order] for k in real}

    def loss(self) -> torch.Tensor:
        """Loss of one fresh batch; its parts go to `losses`."""
        args = self.args
        offset = self.rng.randrange(args.clip_frames - args.frames)
        e = examples.make(self.batch(), args.frames, offset, self.mix, self.frozen)
        with self.autocast():
            texts = self.texts(e)
            rows = torch.arange(0, args.batch, max(1, round(1 / args.shortcut)), device=self.dev)
            rows = rows[:max(1, int(args.batch * args.shortcut))]
            self.shortcut_goal(e, tuple(v.detach() for v in texts), rows)
            v = self.velocity(e, texts)
        error = (v - e["goal"]).pow(2).mean((2, 3, 4))  # [B,2T]
        short = torch.zeros(args.batch, dtype=torch.bool, device=self.dev)
        short[rows] = True
        self.note(error.detach(), e, short)
        return (error * e["weight"]).sum() / e["weight"].sum()

    def note(self, error: torch.Tensor, e: dict, short: torch.Tensor):
        """Running means of the loss by kind of example."""
        f = self.args.frames
        kinds = {"context": (error[:, :f], e["weight"][:, :f] > 0), "short": (error[:, f:], short[:, None]),
                 "real": (error[:, f:], ~(short | e["own"] | e["image"])[:, None]),
                 "own": (error[:, f:], (e["own"] & ~short)[:, None]), "image": (error[:, f:], e["image"][:, None])}
        for name, (value, mask) in kinds.items():
            mask = mask.expand_as(value).float()
            total = mask.sum()
            mean = (value * mask).sum() / total.clamp(min=1)
            old = self.losses.get(name, mean)
            self.losses[name] = torch.where(total > 0, old * 0.97 + mean * 0.03, old)

    @torch.no_grad()
    def rollout(self):
        """Streams clips as the sampler does, from a few real frames, and keeps them with their true frames."""
        clips = self.pool.sample(self.args.rollout_clips)
        z, keys = clips["latents"], clips["keys"]
        b, n = z.shape[:2]
        steps, seeds = self.rng.choice(ROLLOUT_STEPS), min(self.rng.choice(SEED_FRAMES), n - 1)
        dtype = torch.bfloat16 if self.dev.type == "cuda" else torch.float32
        stream = Stream(self.model.dit, self.model.instructnet, b, *z.shape[-2:], self.dev, dtype,
                        context_noise=self.rng.choice(ROLLOUT_NOISE))
        with stream.autocast():
            text, mask, instruction, instruction_mask = self.texts(clips)
        stream.set_text(text, mask)
        stream.instruction, stream.instruction_mask = instruction, instruction_mask
        own = [z[:, :seeds]]
        for i in range(n):
            stream.select = clips["select"][:, i:i + 1]
            if i < seeds:
                stream.seed(z[:, i:i + 1], keys[:, i:i + 1])
            else:
                own.append(stream.step(keys[:, i:i + 1], steps))
        clips |= {"own": torch.cat(own, 1), "is_own": torch.ones(b, device=self.dev),
                  "steps": torch.full((b,), float(steps), device=self.dev)}
        self.replay.add(clips)

    # ---- loop
    def update(self):
        """One optimizer step."""
        now = time.time()
        part = (now - self.loop_begin) / max(1.0, self.loop_end - self.loop_begin)
        self.fraction = self.loop_fraction + (self.args.to_fraction - self.loop_fraction) * min(1.0, part)
        scale = rate(self.fraction) * min(1.0, (self.done + 1) / RESTART_STEPS)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * scale
            optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update()
        self.steps += 1
        self.done += 1
        return loss.detach(), norm

    def compile(self):
        """Compiles the blocks where that works and agrees with eager; otherwise everything stays eager."""
        if not self.args.compile or self.dev.type != "cuda":
            return
        blocks = [*self.model.dit.transformer_blocks, *self.model.instructnet.blocks.values()]
        begin = time.time()
        try:
            torch._dynamo.config.recompile_limit = 64
            torch.manual_seed(7)
            state = self.rng.getstate()
            eager = self.loss().item()
            for block in blocks:
                block.compile(dynamic=False)
            torch.manual_seed(7)
            self.rng.setstate(state)
            fast = self.loss()
            fast.backward()
            for p in self.trained:
                p.grad = None
            if not torch.isfinite(fast) or abs(fast.item() / eager - 1) > 0.02:
                raise RuntimeError(f"loss {fast.item()} compiled, {eager} eager")
            self.log(f"blocks compiled in {time.time() - begin:.1f}s; loss {fast.item():.4f}, eager {eager:.4f}")
        except Exception as error:  # any failure of the compiler only costs speed
            for block in blocks:
                block._compiled_call_impl = None
            self.log(f"not compiled: {str(error)[:300]}")

    def progress(self, loss, norm, begin: float):
        """One line with the rate, the losses and where the time goes."""
        seconds = time.time() - begin
        tokens = self.args.batch * 2 * self.args.frames * (self.size[0] // 32) * (self.size[1] // 32)
        kinds = " ".join(f"{k} {v.item():.4f}" for k, v in self.losses.items())
        spent = " ".join(f"{k} {v:.0f}s" for k, v in self.clock.spent.items())
        self.log(f"step {self.steps} fraction {self.fraction:.3f} loss {loss.item():.4f} norm {norm.item():.2f} | "
                 f"{kinds} | {self.done / seconds:.2f} steps/s {self.done * tokens / seconds / 1e3:.0f}k tokens/s | "
                 f"{spent} | {self.pool.rendered} frames rendered")

    def run(self, reserve: float):
        """Trains until `reserve` seconds before the end, then saves."""
        args = self.args
        while self.pool.filled < min(args.pool_start, args.pool) and time.time() < self.until - reserve:
            self.clock.run("render", lambda: self.pool.fill(self.chunk))
        speed = self.pool.rendered / max(0.1, self.clock.spent["render"])
        self.log(f"pool: {self.pool.filled} clips, {speed:.0f} frames/s")
        self.compile()
        self.clock.run("rollout", self.rollout)
        self.log(f"first rollout {self.clock.spent['rollout']:.1f}s")
        self.clock.spent = dict.fromkeys(self.clock.spent, 0.0)  # start-up does not count against the shares
        self.loop_begin, self.loop_end, self.loop_fraction = time.time(), self.until - reserve, self.fraction
        self.done, saved, printed = 0, time.time(), 0.0
        while time.time() < self.loop_end and not (args.max_steps and self.done >= args.max_steps):
            if self.clock.behind("render", args.render_share):
                self.clock.run("render", lambda: self.pool.fill(self.chunk))
            if self.clock.behind("rollout", args.rollout_share):
                self.clock.run("rollout", self.rollout)
            loss, norm = self.clock.run("train", lambda: [self.update() for _ in range(1 if SMALL else 4)][-1])
            if not torch.isfinite(loss):
                raise RuntimeError("loss is not finite")
            if time.time() - printed > 10:
                printed = time.time()
                self.progress(loss, norm, self.loop_begin)
            if time.time() - saved > args.save_every and self.loop_end - time.time() > args.save_every / 4:
                self.save()
                saved = time.time()
        if self.done:
            self.progress(loss, norm, self.loop_begin)
        self.save(final=True)
