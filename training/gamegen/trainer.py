"""The training loop that the foundation and the InstructNet phase share; one process a GPU (see parallel.py)."""
import argparse
import os
import random
import shutil
import time
from pathlib import Path

import torch

from . import checkpoint, data, examples, objective, tokenizer
from .optim import Average, make_optimizers, rate
from .parallel import Parallel
from .recording import Recorder
from .world import World

SMALL = os.environ.get("GAMEGEN_SMALL") == "1"
OWN_STEPS = (1, 1, 1, 2, 2, 4)  # steps of the model's own predictions
OWN_FRESH = 0.25  # share of predictions from real contexts; the others go on from earlier predictions
OWN_DEPTH = 12  # predictions of predictions of ... at most: beyond, the true frame says too little about them
RESTART_STEPS = 50  # the rate rises over this many steps after a start
SPAN = 4  # updates between two decisions
FROZEN_LONG = 2  # times as many rows learn long steps once the foundation is frozen
STILL = "still."  # prefix of what belongs to the first frames of a step


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
    p.add_argument("--batch", type=int, default=8 if SMALL else 40, help="clips a step (each is two streams)")
    p.add_argument("--stills", type=int, default=8 if SMALL else 192, help="first frames a step, each of another clip; "
                   "0: some clips of the batch are first frames instead (as in the second size)")
    p.add_argument("--frames", type=int, default=4 if SMALL else 16, help="frames of a stream")
    p.add_argument("--clip-frames", type=int, default=7 if SMALL else 25)
    p.add_argument("--pool", type=int, default=16 if SMALL else 6144, help="clips kept")
    p.add_argument("--pool-start", type=int, default=12 if SMALL else 2304, help="clips made before the first step")
    p.add_argument("--size", default="96x64" if SMALL else "320x192")
    p.add_argument("--large", default="128x96" if SMALL else "640x384", help="the second size; its batch is 0.3 of that")
    p.add_argument("--large-from", type=float, default=0.5, help="fraction of the plan from which on it is used")
    p.add_argument("--large-every", type=int, default=2 if SMALL else 3, help="of so many spans one is large")
    p.add_argument("--render-share", type=float, default=0.10, help="part of the time that goes to new clips")
    p.add_argument("--own-share", type=float, default=0.10, help="part of the time that goes to own predictions")
    p.add_argument("--replay", type=int, default=16 if SMALL else 800, help="clips with own predictions that are kept")
    p.add_argument("--own", type=float, default=0.3, help="share of clips whose context the model predicted itself")
    p.add_argument("--own-from", type=float, default=0.15, help="fraction of the plan from which on there are some")
    p.add_argument("--guidance", type=float, default=1.2, help="of the smallest step's target, frames after the first")
    p.add_argument("--change-guidance", type=float, default=2.0, help="the same where an instruction changes the world")
    p.add_argument("--frozen-guidance", type=float, default=1.3, help="the same once the foundation is frozen")
    p.add_argument("--first-guidance", type=float, default=3.0, help="the same for first frames")
    p.add_argument("--freeze-from", type=float, default=2.0, help="part of this call's plan after which the foundation "
                   "is frozen and InstructNet alone goes on (in the same compiled blocks)")
    p.add_argument("--p-video", type=float, default=0.25, help="share of clips with a video prompt")
    p.add_argument("--p-sibling", type=float, default=0.35, help="share of clips without a change that have a sibling")
    p.add_argument("--ema", type=float, default=0.9995)
    p.add_argument("--compile", type=int, default=1, help="0: eager; a failed compilation falls back to it anyway")
    p.add_argument("--graph", type=int, default=1, help="0: passes are launched kernel by kernel, not as CUDA graphs")
    p.add_argument("--profile", type=int, default=0, help="after so many steps: where the time of two steps goes")
    p.add_argument("--save-every", type=float, default=120.0, help="seconds between saved states and exports")
    p.add_argument("--max-steps", type=int, default=0, help="0: no limit")
    p.add_argument("--reserve", type=float, default=10.0, help="seconds kept for the last save")
    p.add_argument("--seed", type=int, default=1)
    return p


class Log:
    """Progress lines to stdout and to a file; only the first process speaks."""

    def __init__(self, path: Path, speaks: bool = True):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.begin, self.speaks = path.open("a"), time.time(), speaks

    def __call__(self, text: str):
        if self.speaks:
            line = f"[{time.time() - self.begin:6.1f}s] {text}"
            print(line, flush=True)
            self.file.write(line + "\n")
            self.file.flush()


class Clock:
    """Seconds spent on training, rendering and rollouts, to hold the asked shares."""

    def __init__(self, device: torch.device):
        self.cuda, self.spent = device.type == "cuda", {"train": 0.0, "render": 0.0, "own": 0.0}

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


class Footage:
    """Clips of one size with the model's predictions beside them."""

    def __init__(self, size: str, batch: int, stills: int, clips: int, start: int, replay: int):
        self.width, self.height = map(int, size.split("x"))
        self.batch, self.stills, self.clips, self.start = batch, stills, clips, start
        self.replay, self.pool = data.Replay(replay), None
        self.layout = None

    def arrange(self, images: bool, long: int):
        """Lays the rows of a batch out, see examples.Layout."""
        self.stills = self.stills if images else 0
        self.layout = examples.Layout.of(self.batch, images and not self.stills, long)

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return (self.width // 32) * (self.height // 32)


class Trainer:
    """State of a run: model, footage, optimizers, average."""

    def __init__(self, args, name: str, frozen: bool, p_event: float, lr: float, mix: examples.Mix):
        self.args, self.name, self.frozen, self.mix, self.p_event = args, name, frozen, mix, p_event
        self.begin = time.time()
        self.until = args.until or self.begin + 60 * args.minutes
        self.parallel = Parallel()
        self.log = Log(args.out / "train.log", self.parallel.first)
        self.dev = device_setup()
        args.state.mkdir(parents=True, exist_ok=True)
        seed = args.seed + int(self.begin) % 100000 + 7919 * self.parallel.rank
        torch.manual_seed(seed)
        self.rng, self.plan = random.Random(seed), random.Random(args.seed)
        self.fraction, self.steps = args.from_fraction, 0
        self.load()
        self.model.to(self.dev)
        for part in (self.model.vae, self.model.text):
            part.requires_grad_(False).eval()
        self.model.vae.to(memory_format=torch.channels_last)
        self.model.dit.requires_grad_(not frozen)
        self.parallel.equalize([p.data for part in self.parts().values() for p in part.parameters()])
        named = [(f"{n}.{k}", p) for n, part in self.parts().items() for k, p in part.named_parameters()]
        self.trained = [p for _, p in named if p.requires_grad]
        # The foundation's optimizers first, so that freezing it drops them.
        split = [[(n, p) for n, p in named if n.startswith(part)] for part in ("transformer", "instructnet")]
        grouped = [make_optimizers(part, lr) for part in split if any(p.requires_grad for _, p in part)]
        self.optimizers, self.instruct_optimizers = sum(grouped, []), grouped[-1]
        self.average = Average(self.trained, args.ema)
        self.restore()
        self.clock = Clock(self.dev)
        self.tok = tokenizer.build(tokenizer.words())
        self.objective = objective.Objective(self.model, self.tok, args, self.dev)
        self.frozen_at = None  # fraction of the plan at which the foundation was frozen
        self.footage = [
            Footage(args.size, args.batch, args.stills, args.pool, args.pool_start, args.replay),
            Footage(args.large, max(5, round(0.3 * args.batch)), 0, max(8, args.pool // 5), max(8, args.pool_start // 5),
                    max(8, args.replay // 4)),
        ]
        self.gen = torch.Generator(self.dev).manual_seed(seed)
        self.chunk = 2 if self.dev.type == "cpu" else 192
        self.losses = {}
        self.recorder = Recorder(bool(args.graph) and self.dev.type == "cuda", self.log)

    def parts(self) -> dict:
        """The parts that this loop trains."""
        return {"transformer": self.model.dit, "instructnet": self.model.instructnet}

    # ---- state
    def path(self) -> Path:
        return self.args.state / f"{self.name}.pt"

    def load(self):
        """The model from this phase's state, else from the start folder."""
        self.saved = None
        self.model = checkpoint.load_model(self.args.start, upgrade=True)
        if self.path().exists():
            self.saved = torch.load(self.path(), map_location="cpu", weights_only=True)
            for n, part in self.parts().items():
                part.load_state_dict(self.saved["weights"][n])
            self.fraction = max(self.fraction, self.saved["fraction"])
            self.steps = self.saved["steps"]
        self.log(f"{self.name}: {'state ' + str(self.path()) if self.saved else 'start ' + str(self.args.start)}, "
                 f"fraction {self.fraction:.3f}, {self.steps} steps done, {self.parallel.size} processes")

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
        if not self.parallel.first:
            return
        from export import export, pack
        begin = time.time()
        state = {"weights": {n: p.state_dict() for n, p in self.parts().items()}, "average": self.average.values,
                 "optimizers": [o.state_dict() for o in self.optimizers], "fraction": self.fraction,
                 "steps": self.steps}
        temporary = self.path().with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path())
        self.average.swap()
        folder = self.args.state / "export"
        shutil.rmtree(folder, ignore_errors=True)
        export(self.model, folder / "gamegen-x-mini", self.args.start)
        self.average.swap()
        pack(folder, self.args.out)
        target = self.args.state / "model"
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(str(folder / "gamegen-x-mini"), str(target))
        self.log(f"saved{' at the end' if final else ''}: step {self.steps}, {time.time() - begin:.1f}s")

    # ---- footage
    def open_pool(self, f: Footage):
        """Makes the pool of a size and its first clips."""
        args = self.args
        f.arrange(self.mix.images, 1)
        cfg = data.PoolConfig(args.clip_frames, f.height, f.width, f.clips, self.p_event, args.p_video, args.p_sibling)
        f.pool = data.ClipPool(cfg, World(self.dev), self.model.vae, self.tok, self.gen, self.rng.randrange(1 << 30))
        begin = time.time()
        while f.pool.filled < min(f.start, f.clips) and time.time() < self.until - args.reserve:
            f.pool.fill(self.chunk_of(f))
        f.rate = f.pool.rendered / max(0.1, time.time() - begin)
        self.log(f"pool {f.width}x{f.height}: {f.pool.filled} clips, {f.rate:.0f} frames/s")

    def chunk_of(self, f: Footage) -> int:
        """Clips that are rendered at once."""
        return max(2, self.chunk * 60 // max(60, f.tokens))

    def real(self, f: Footage, count: int) -> dict:
        """Windows of `frames` + 1 frames of real clips."""
        frames, dev = self.args.frames + 1, self.dev
        clips = examples.window(f.pool.sample(count), self.rng.randrange(self.args.clip_frames - frames + 1), frames)
        return clips | {"own": clips["latents"], "depth": torch.zeros(count, dtype=torch.long, device=dev),
                        "lagged": torch.zeros(count, dtype=torch.bool, device=dev),
                        "steps": 2.0 ** torch.randint(0, 3, (count,), device=dev)}

    def batch(self, f: Footage) -> dict:
        """Real clips first (the roles of `Layout.image` need them), then real clips and own contexts in random order."""
        b, dev = f.batch, self.dev
        own = int(b * self.args.own) if len(f.replay) and self.fraction >= self.args.own_from else 0
        real = self.real(f, b - own)
        if not own:
            return real
        other = f.replay.sample(own)
        image = f.layout.image
        order = torch.cat([torch.arange(image, device=dev), image + torch.randperm(b - image, device=dev)])
        return {k: torch.cat([real[k], other[k].to(real[k].dtype)])[order] for k in real}

    def example(self, f: Footage) -> dict:
        """A fresh batch, and first frames under names that begin with STILL."""
        e = examples.make(self.batch(f), self.mix, f.layout, self.frozen)
        if not f.stills:
            return e
        clips = f.pool.stills(f.stills)
        whole = torch.zeros(f.stills, dtype=torch.long, device=self.dev)
        clips |= {"own": clips["latents"], "depth": whole, "lagged": whole > 0, "steps": whole + 1}
        stills = examples.make(clips, self.mix, examples.Layout.of_stills(f.stills), self.frozen)
        return e | {STILL + name: value for name, value in stills.items()}

    def passes(self, e: dict, f: Footage) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Forward and backward: the loss, the error [B,2T] of every frame, and [S,2] of first frames. Parameters get
        their gradients."""
        stills = {k.removeprefix(STILL): v for k, v in e.items() if k.startswith(STILL)}
        e = {k: v for k, v in e.items() if not k.startswith(STILL)}
        error = first = self.objective.error(e, f.layout)
        total, weight = (error * e["weight"]).sum(), e["weight"].sum()
        if stills:
            first = self.objective.error(stills, examples.Layout.of_stills(f.stills))
            total, weight = total + (first * stills["weight"]).sum(), weight + stills["weight"].sum()
        loss = total / weight
        loss.backward()
        return loss.detach(), error.detach(), first.detach()

    def note(self, error: torch.Tensor, first: torch.Tensor, e: dict, f: Footage):
        """Running means of the loss by kind of example."""
        t, layout = self.args.frames, f.layout
        row = torch.arange(f.batch, device=self.dev)
        base, student = (row >= layout.base_from) & (row < layout.base_to), (row >= layout.base_to)
        student &= row < layout.student_to
        plain = ~(base | student)
        tag = "" if f is self.footage[0] else "L"
        kinds = {"ctx": (error[:, :t], e["weight"][:, :t] > 0), "base": (error[:, t:], base[:, None]),
                 "short": (error[:, t:], student[:, None]),
                 "real": (error[:, t:], (plain & ~e["own"] & ~e["image"])[:, None]),
                 "own": (error[:, t:], (e["own"] & plain)[:, None]),
                 "image": (error[:, t:], (e["image"] & ~base)[:, None])}
        if f.stills:
            kinds["image"] = (first[:f.stills - f.stills // 2, 1:], torch.ones(1, 1, device=self.dev))
        for name, (value, mask) in kinds.items():
            mask = mask.expand_as(value).float()
            total = mask.sum()
            mean = (value * mask).sum() / total.clamp(min=1)
            old = self.losses.get(tag + name, mean)
            self.losses[tag + name] = torch.where(total > 0, old * 0.97 + mean * 0.03, old)

    def predict(self, f: Footage):
        """Keeps what the model makes of a batch, one frame ahead of contexts that are real or were predicted before.

        Every frame is predicted from its own context at once, so that the figure and the camera stay where they truly
        are to within a few frames' errors: the truth then still says how to move on. Streamed rollouts do not have
        that, and what was trained on them painted frames anew instead of moving them.
        """
        if len(f.replay) >= f.batch and self.rng.random() > OWN_FRESH:
            clips = f.replay.sample(f.batch)
            deep = clips["depth"] >= OWN_DEPTH
            clips["own"] = torch.where(deep.view(-1, 1, 1, 1, 1), clips["latents"], clips["own"])
            clips["depth"] = torch.where(deep, torch.zeros_like(clips["depth"]), clips["depth"])
            clips["lagged"] = clips["lagged"] & ~deep
        else:
            clips = self.real(f, f.batch)
        steps = self.rng.choice(OWN_STEPS)
        e = examples.make(clips, examples.PREDICTION_MIX, examples.Layout(0, 0, 0, 0), self.frozen)
        name = ("prediction", steps, f.width, f.height)
        frames = self.recorder.run(name, lambda batch: self.objective.predict(batch, steps), e).clone()
        f.replay.add(clips | {"own": torch.cat([clips["own"][:, :1], frames], 1), "depth": clips["depth"] + 1, "lagged": e["lagged"],
                              "steps": torch.full((f.batch,), float(steps), device=self.dev)})

    # ---- loop
    def update(self, f: Footage):
        """One optimizer step."""
        if self.frozen_at is None:
            done = min(1.0, self.fraction / self.freeze_fraction()) if self.args.freeze_from <= 1 else self.fraction
            scale = rate(done) * min(1.0, (self.done + 1) / RESTART_STEPS)
        else:
            scale = rate((self.fraction - self.frozen_at) / max(1e-6, self.args.to_fraction - self.frozen_at))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * scale
            optimizer.zero_grad(set_to_none=True)
        e = self.example(f)
        learning = [p for part in self.parts().values() for p in part.parameters() if p.requires_grad]
        loss, error, first = self.recorder.run(("step", f.width, f.height), lambda batch: self.passes(batch, f), e, learning)
        self.note(error, first, e, f)
        self.parallel.mean_gradients(self.trained)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update()
        self.steps += 1
        self.done += 1
        return loss.clone(), norm

    def freeze_fraction(self) -> float:
        """Fraction of the whole plan at which the foundation is to be frozen."""
        first = self.loop_fraction
        return first + (self.args.to_fraction - first) * self.args.freeze_from

    def freeze(self):
        """From now on only InstructNet learns, on the averaged foundation.

        The foundation's gradients are still computed: the blocks stay as they were compiled, which saves a minute.
        """
        for p, value in zip(self.average.source, self.average.values):
            p.data.copy_(value)
        self.optimizers = self.instruct_optimizers
        self.trained = list(self.model.instructnet.parameters())
        self.average.decay, self.frozen_at, self.frozen = 0.998, self.fraction, True
        self.mix = examples.INSTRUCTNET_MIX
        self.objective.guidance = self.args.frozen_guidance
        for f in self.footage:
            f.arrange(self.mix.images, FROZEN_LONG)
        self.losses = {}
        self.recorder.forget()
        self.log(f"foundation frozen at fraction {self.fraction:.3f}, step {self.steps}")

    def compile(self, f: Footage):
        """Compiles the blocks where that works and agrees with eager; otherwise everything stays eager."""
        if not self.args.compile or self.dev.type != "cuda":
            return
        blocks = [*self.model.dit.transformer_blocks, *self.model.instructnet.blocks.values()]
        begin = time.time()
        try:
            torch._dynamo.config.recompile_limit = 128
            torch.manual_seed(7)
            state = self.rng.getstate()
            eager = self.passes(self.example(f), f)[0].item()
            for block in blocks:
                block.compile(dynamic=False)
            torch.manual_seed(7)
            self.rng.setstate(state)
            fast = self.passes(self.example(f), f)[0].item()
            if not abs(fast / eager - 1) <= 0.02:  # also where one is not a number
                raise RuntimeError(f"loss {fast} compiled, {eager} eager")
            self.log(f"blocks compiled in {time.time() - begin:.1f}s; loss {fast:.4f}, eager {eager:.4f}")
        except Exception as error:  # any failure of the compiler only costs speed
            for block in blocks:
                block._compiled_call_impl = None
            self.log(f"not compiled: {str(error)[:300]}")
        for p in self.trained:
            p.grad = None

    def progress(self, loss, norm, begin: float):
        """One line with the rate, the losses and where the time goes."""
        seconds = time.time() - begin
        tokens = self.args.batch * 2 * self.args.frames * self.footage[0].tokens * self.parallel.size
        kinds = " ".join(f"{k} {v.item():.3f}" for k, v in sorted(self.losses.items()))
        spent = " ".join(f"{k} {v:.0f}s" for k, v in self.clock.spent.items())
        rendered = sum(f.pool.rendered for f in self.footage if f.pool)
        self.log(f"step {self.steps} fraction {self.fraction:.3f} loss {loss.item():.4f} norm {norm.item():.2f} | "
                 f"{kinds} | {self.done / seconds:.2f} steps/s {self.done * tokens / seconds / 1e3:.0f}k tokens/s | "
                 f"{spent} | {rendered} frames rendered")

    def profile(self, f: Footage):
        """A table of the kernels of two steps, the longest first."""
        from torch.profiler import ProfilerActivity, profile
        kind = ProfilerActivity.CUDA if self.dev.type == "cuda" else ProfilerActivity.CPU
        with profile(activities=[kind]) as seen:
            for _ in range(2):
                self.update(f)
            self.clock.wait()
        by = "self_cuda_time_total" if self.dev.type == "cuda" else "self_cpu_time_total"
        self.log("two steps\n" + seen.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=90))

    def decide(self) -> tuple[int, int, bool, bool]:
        """The same for all processes: is there time left, which size, render, predict, save."""
        now, args = time.time(), self.args
        part = (now - self.loop_begin) / max(1.0, self.loop_end - self.loop_begin)
        fraction = self.loop_fraction + (args.to_fraction - self.loop_fraction) * min(1.0, part)
        on = now < self.loop_end and not (args.max_steps and self.done >= args.max_steps)
        self.span += 1
        large = fraction >= args.large_from and self.span % args.large_every == 0
        own = fraction >= args.own_from and self.clock.behind("own", args.own_share)
        save = now - self.saved_at > args.save_every and self.loop_end - now > args.save_every / 4
        numbers = [on, large, self.clock.behind("render", args.render_share), own, fraction, save]
        numbers = self.parallel.decide([float(v) for v in numbers], self.dev)
        self.fraction = numbers[4]
        return numbers

    def run(self):
        """Trains until `reserve` seconds before the end, then saves."""
        args = self.args
        small = self.footage[0]
        self.open_pool(small)
        self.compile(small)
        self.clock.spent = dict.fromkeys(self.clock.spent, 0.0)  # start-up does not count against the shares
        self.loop_begin, self.loop_end, self.loop_fraction = time.time(), self.until - args.reserve, self.fraction
        self.done, self.span, self.saved_at, printed, profile_at = 0, 0, time.time(), 0.0, args.profile
        while True:
            on, large, render, own, _, save = self.decide()
            if not on:
                break
            f = self.footage[int(large)]
            if f.pool is None:
                self.open_pool(f)
            if self.frozen_at is None and self.fraction >= self.freeze_fraction():
                self.freeze()
            if render:
                self.clock.run("render", lambda: f.pool.fill(self.chunk_of(f)))
            if own:
                self.clock.run("own", lambda: self.predict(f))
            loss, norm = self.clock.run("train", lambda: [self.update(f) for _ in range(1 if SMALL else SPAN)][-1])
            if not torch.isfinite(loss):
                raise RuntimeError("loss is not finite")
            if time.time() - printed > 10:
                printed = time.time()
                self.progress(loss, norm, self.loop_begin)
            if 0 < profile_at <= self.done:
                self.profile(small)
                profile_at = 0
            if save:
                self.save()
                self.saved_at = time.time()
        if self.done:
            self.progress(loss, norm, self.loop_begin)
        self.save(final=True)
        self.parallel.end()
