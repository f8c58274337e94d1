"""The training objective: velocities of rectified flow, guided small steps, and longer steps learnt from shorter ones.

Rectified flow (arXiv 2209.03003) with a step size as input (shortcut models, arXiv 2410.12557). The target of the
smallest step is two Euler steps with classifier-free guidance on texts, so guidance is part of the few-step model and
costs nothing when it plays.
"""
import torch

from . import examples, tokenizer

INPUTS = ("x", "t", "d", "previous", "ps", "has", "mask", "keys", "previous_keys", "select", "enabled", "video_kind")


class Objective:
    """Forward passes and targets for batches of `examples.make`."""

    def __init__(self, model, tok, args, device: torch.device):
        self.model, self.args, self.dev, self.guidance = model, args, device, args.guidance
        from .data import CAPTION_TOKENS, INSTRUCTION_TOKENS
        self.empty = [tokenizer.encode(tok, [""], device, n) for n in (CAPTION_TOKENS, INSTRUCTION_TOKENS)]  # [1,L]
        with torch.no_grad(), self.autocast():
            self.nothing = [model.text(ids) for ids in self.empty]  # features and mask of an empty text

    def autocast(self):
        return torch.autocast(self.dev.type, torch.bfloat16, enabled=self.dev.type == "cuda")

    @torch.no_grad()
    def texts(self, e: dict) -> tuple:
        """Features and masks of captions [B,L] and of the two instructions [B,2,L]; dropped ones are empty."""
        caption, instruction = e["caption"], e["instruction"]
        if "no_text" in e:
            caption = torch.where(e["no_text"][:, None], self.empty[0], caption)
            instruction = torch.where(e["no_instruction"][:, None, None], self.empty[1][:, None], instruction)
        text, mask = self.model.text(caption)
        b, k, length = instruction.shape
        features, seen = self.model.text(instruction.flatten(0, 1))
        return text, mask, features.reshape(b, k, length, -1), seen.reshape(b, k, length)

    def without_text(self, count: int, instructions: int) -> tuple:
        """The same for `count` clips that say nothing."""
        (text, mask), (features, seen) = self.nothing
        return (text.expand(count, -1, -1), mask.expand(count, -1),
                features[:, None].expand(count, instructions, -1, -1), seen[:, None].expand(count, instructions, -1))

    def velocity(self, e: dict, texts: tuple) -> torch.Tensor:
        """[B,2T,Z,h,w] in f32."""
        text, mask, instruction, seen = texts
        positions = torch.arange(e["x"].shape[1] // 2, device=self.dev).repeat(2)
        video = None
        if e["video"] is not None:
            video = self.model.instructnet.video_features(e["video"], e["video_kind"])
        hook = self.model.instructnet.bind(e["keys"], e["previous_keys"], instruction, seen, e["select"], e["enabled"],
                                           video)
        return self.model.dit(e["x"], e["t"], e["d"], e["previous"], e["ps"], e["has"], text, mask, positions,
                              e["mask"], None, hook).float()

    @staticmethod
    def rows(e: dict, rows: slice) -> dict:
        """A part of a batch, with its own x, t and d."""
        part = {k: e[k][rows] for k in INPUTS}
        part |= {k: part[k].clone() for k in ("x", "t", "d")}
        part["video"] = None if e["video"] is None else e["video"][rows]
        return part

    @torch.no_grad()
    def two_steps(self, part: dict, size: torch.Tensor, step: torch.Tensor, velocity) -> torch.Tensor:
        """Mean velocity [R,T,...] of the target frames over two steps of size/2 that are told the step size `step`."""
        frames = part["x"].shape[1] // 2
        part["d"][:, frames:] = step[:, None]
        first = velocity(part)[:, frames:]
        part["x"][:, frames:] += (size / 2).view(-1, 1, 1, 1, 1) * first
        part["t"][:, frames:] += (size / 2)[:, None]
        second = velocity(part)[:, frames:]
        return (first + second) / 2

    @torch.no_grad()
    def set_goals(self, e: dict, texts: tuple, layout: examples.Layout):
        """Replaces the goals of the rows that learn steps."""
        frames = e["x"].shape[1] // 2
        base, count = slice(layout.base_from, layout.base_to), layout.base_to - layout.base_from
        size = torch.full((count,), examples.BASE_SIZE, device=self.dev)
        size = torch.where(e["image"][base], torch.full_like(size, examples.FIRST_SIZE), size)
        examples.set_shortcut(e, base, size, frames)
        event = e["event"][base] & ~e["image"][base]
        weight = torch.where(e["image"][base], self.args.first_guidance, self.guidance)
        weight = torch.where(event, self.args.change_guidance, weight).view(-1, 1, 1, 1, 1)
        with_text = tuple(v[base] for v in texts)
        text, mask, *nothing = self.without_text(count, texts[2].shape[1])
        # Where an instruction contradicts the prompt, guidance is what the instruction adds to the prompt: away from a
        # silence without both it would pull towards both.
        text = torch.where(event[:, None, None], with_text[0], text)
        mask = torch.where(event[:, None], with_text[1], mask)
        both = tuple(torch.cat(pair) for pair in zip(with_text, (text, mask, *nothing)))

        def guided(part: dict) -> torch.Tensor:
            double = {k: v if v is None else torch.cat([v, v]) for k, v in part.items()}
            said, silent = self.velocity(double, both).chunk(2)
            return silent + weight * (said - silent)

        e["goal"][base, frames:] = self.two_steps(self.rows(e, base), size, torch.zeros_like(size), guided)
        for begin in range(layout.base_to, layout.student_to, 2 * count):
            student = slice(begin, begin + 2 * count)
            size = examples.student_sizes(2 * count, self.dev)
            examples.set_shortcut(e, student, size, frames)
            own = tuple(v[student] for v in texts)
            e["goal"][student, frames:] = self.two_steps(self.rows(e, student), size, size / 2,
                                                         lambda part: self.velocity(part, own))

    def predict(self, e: dict, steps: int) -> torch.Tensor:
        """The target frames [B,T,Z,h,w] as the sampler would make them from the contexts of `e`, in `steps` steps.

        Not under no_grad: the pass is then the one that training compiled, and nothing of it is kept.
        """
        frames = e["x"].shape[1] // 2
        x = torch.randn_like(e["x"][:, frames:])
        with self.autocast():
            texts = self.texts(e)
            for i in range(steps):
                e["x"] = torch.cat([e["x"][:, :frames], x], 1)
                e["t"] = torch.cat([e["t"][:, :frames], torch.full_like(e["t"][:, frames:], i / steps)], 1)
                e["d"] = torch.cat([e["d"][:, :frames], torch.full_like(e["d"][:, frames:], 1 / steps)], 1)
                x = x + self.velocity(e, texts)[:, frames:].detach() / steps
        return x

    def error(self, e: dict, layout: examples.Layout) -> torch.Tensor:
        """Mean squared error [B,2T] of every frame's velocity."""
        with self.autocast():
            texts = self.texts(e)
            self.set_goals(e, texts, layout)
            v = self.velocity(e, texts)
        return (v - e["goal"]).pow(2).mean((2, 3, 4))
