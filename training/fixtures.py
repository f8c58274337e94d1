#!/usr/bin/env python3
"""Records inputs and outputs of an exported model folder, layer by layer, for the engine's parity tests.

Everything is f32 on the CPU with the dequantised weights of the folder. Noise, keys and prompts are in the files, so a
test needs no random numbers. Every file's metadata has the model's hash; README.md lists the tensors.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from gamegen import captions, checkpoint, judges, tokenizer, video_prompts
from gamegen.sampler import CONTEXT_NOISE, Stream

PROMPTS = [
    "the desert, at night",
    "third person view. a crimson knight walks forward in a snowy mountain landscape at sunset, with falling snow.",
    "Zorblax's robot, qwertz; in a DENSE forest! foggy?",
    "a knight in golden armour rides past the ruins of a temple. " * 6,
]
TOKENIZER_CASES = PROMPTS + [
    "", "   ", "rain", "Rain,Snow;fog:clear.", "a  green\tmeadow\nat noon", "third-person perspective",
    "environment light: night. weather: rain. effect: none.", "<unk> robot </s> <pad>", "über ЖУК 雪 snow",
    " ".join(["snow"] * 400), "why?! no...", "##a a", "lava glows under a starless sky", "x" * 250, "frozen\u00a0moor\u3000night",
]
SEED = 20411
VAE_SIZES = {1: (64, 64), 2: (128, 128)}  # scale -> height, width in pixels
EXTRACT_SIZE = (70, 94)  # height, width of the pictures that video prompts are taken from
DIT_SIZE = (2, 3)  # latent height, width: 96x64 pixels
LARGE_SIZE = (6, 10)  # 320x192 pixels
JOINT_COUNT = 13  # more than the joints that limbs are drawn between
FIRST_STEPS = 4  # steps of the first frame in the sampler fixture
KEYS = [[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1]]


class Writer:
    """Writes one safetensors file after another with common metadata."""

    def __init__(self, model_folder: Path, folder: Path):
        self.folder, self.hash = folder, checkpoint.model_hash(model_folder)
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, tensors: dict, **metadata):
        """Saves `name`.safetensors: floats as F32, bytes as U8, other integers as I32."""
        stored = {}
        for key, value in tensors.items():
            value = value.detach()
            kind = torch.float32 if value.is_floating_point() else torch.int32
            stored[key] = (value if value.dtype == torch.uint8 else value.to(kind)).clone().contiguous()
        meta = {"model_sha256": self.hash, **{k: json.dumps(v) for k, v in metadata.items()}}
        save_file(stored, self.folder / f"{name}.safetensors", metadata=meta)


def write_tokenizer(writer: Writer, tok):
    """tokenizer.json: the texts and their ids without padding."""
    cases = [{"text": t, "ids": [i for i, m in zip(e.ids, e.attention_mask) if m]}
             for t, e in zip(TOKENIZER_CASES, tok.encode_batch(TOKENIZER_CASES))]
    value = {"model_sha256": writer.hash, "max_length": tokenizer.MAX_LENGTH, "cases": cases}
    (writer.folder / "tokenizer.json").write_text(json.dumps(value, indent=1) + "\n")


def features(model, tok, text: str, trace: dict | None = None):
    """Features [1,L,D] and mask [1,L] of one text without its padding."""
    ids = tokenizer.encode(tok, [text])
    ids = ids[:, :int((ids != 0).sum())]
    return ids, *model.text(ids, trace)


def write_text(writer: Writer, model, tok):
    """text_encoder.safetensors: prompt.{i}.{ids, embedding, block.{j}, output}."""
    tensors = {}
    for i, prompt in enumerate(PROMPTS):
        trace = {}
        ids, output, _ = features(model, tok, prompt, trace)
        tensors |= {f"prompt.{i}.ids": ids[0], f"prompt.{i}.output": output[0]}
        tensors |= {f"prompt.{i}.{k}": v[0] for k, v in trace.items()}
    writer.save("text_encoder", tensors, prompts=PROMPTS)


def write_vae(writer: Writer, model, gen):
    """vae.safetensors and vae_2x.safetensors: encoder.* for one frame, decoder.{frame}.* for a stream of three."""
    for scale, size in VAE_SIZES.items():
        name = "vae" if scale == 1 else f"vae_{scale}x"
        writer.save(name, vae_tensors(model, gen, scale, size), height=size[0], width=size[1], scale=scale)


def vae_tensors(model, gen, scale: int, size: tuple[int, int]) -> dict:
    """What `write_vae` writes for one scale."""
    h, w = size
    wave = torch.linspace(0, 6.28, w)[None] + torch.linspace(0, 3.14, h)[:, None]  # [H,W]
    image = torch.stack([wave.sin(), wave.cos(), (2 * wave).sin()])[None, None] * 0.7  # [1,1,3,H,W]
    image = (image + 0.1 * torch.randn(image.shape, generator=gen)).clamp(-1, 1)
    trace = {}
    mean, log_variance = model.vae.encode(image, scale, trace)
    tensors = {"encoder.input": image[0, 0], "encoder.mean": mean[0, 0], "encoder.log_variance": log_variance[0, 0],
               "encoder.latent": model.vae.normalize(mean)[0, 0]}
    tensors |= {f"encoder.{k}": v[0] for k, v in trace.items()}
    cache = {}
    for i in range(3):
        latent = model.vae.normalize(mean) * (1 - 0.2 * i) + 0.3 * torch.randn(mean.shape, generator=gen)
        trace = {}
        pixels = model.vae.decode(model.vae.denormalize(latent), cache, scale, trace)
        tensors |= {f"decoder.{i}.latent": latent[0, 0], f"decoder.{i}.pixels": pixels[0, 0]}
        tensors |= {f"decoder.{i}.{k}": v[0] for k, v in trace.items()}
    return tensors


def new_stream(model, tok, size, prompt: str, instruction: str) -> tuple[Stream, dict]:
    """A stream with its texts, and the tensors that describe them."""
    stream = Stream(model.dit, model.instructnet, 1, *size)
    ids, text, mask = features(model, tok, prompt)
    instruction_ids, instruction_text, instruction_mask = features(model, tok, instruction)
    stream.set_text(text, mask)
    stream.set_instruction(instruction_text, instruction_mask)
    return stream, {"text_ids": ids[0], "text": text[0], "instruction_ids": instruction_ids[0],
                    "instruction": instruction_text[0]}


def one_pass(stream: Stream, gen, action, t: float, d: float, traced: bool) -> dict:
    """One transformer pass with a random input and a random frame before it; the tick is then ended."""
    x = torch.randn(stream.shape, generator=gen)
    before = torch.randn(stream.shape, generator=gen) * stream.has_previous.view(1, 1, 1, 1, 1)
    stream.previous_noisy = before
    trace = {} if traced else None
    v = stream.velocity(x, t, d, action, trace)
    tensors = {"x": x[0, 0], "previous": before[0, 0], "level": torch.tensor([t]), "step_size": torch.tensor([d]),
               "keys": action[0, 0], "previous_keys": stream.previous_action[0, 0].clone(), "v": v[0, 0]}
    for key, value in (trace or {}).items():
        tensors[key] = value[0, 0]
    stream.push(x, action)
    return tensors


def write_dit(writer: Writer, model, tok, gen):
    """msdit.safetensors (three streamed passes, every block) and msdit_320x192.safetensors (only v)."""
    instruction = captions.instruction(captions.known([0, 2, 1, 0, 0, 0, 0]))
    levels = [(0.0, 0.0), (0.5, 0.5), (0.25, 0.25)]
    for name, size, traced in (("msdit", DIT_SIZE, True), ("msdit_320x192", LARGE_SIZE, False)):
        stream, tensors = new_stream(model, tok, size, PROMPTS[1], instruction)
        for i, (t, d) in enumerate(levels):
            action = torch.tensor([[KEYS[i]]], dtype=torch.float32)
            tensors |= {f"frame.{i}.{k}": v for k, v in one_pass(stream, gen, action, t, d, traced).items()}
        writer.save(name, tensors, latent_height=size[0], latent_width=size[1], prompt=PROMPTS[1],
                    instruction=instruction, context_noise=CONTEXT_NOISE)


def write_video_prompt(writer: Writer, model, tok, gen):
    """video_prompt.safetensors: for every kind two streamed passes with it and a last one without, every block."""
    tensors, kinds = {}, list(model.instructnet.cfg["video_prompts"])
    for number, kind in enumerate(kinds):
        stream, texts = new_stream(model, tok, DIT_SIZE, PROMPTS[0], "")
        latents = torch.randn(1, 2, *stream.shape[2:], generator=gen)
        stream.video = model.instructnet.video_features(latents, torch.tensor([number]))
        for i in range(3):
            action = torch.tensor([[KEYS[i]]], dtype=torch.float32)
            passed = one_pass(stream, gen, action, 0.5, 0.5, True)
            passed |= {"latent": latents[0, i]} if i < 2 else {}
            tensors |= {f"{kind}.frame.{i}.{k}": v for k, v in passed.items()}
    writer.save("video_prompt", tensors | texts, latent_height=DIT_SIZE[0], latent_width=DIT_SIZE[1], kinds=kinds,
                context_noise=CONTEXT_NOISE)


def extract_frames() -> torch.Tensor:
    """Three frames u8 [3,H,W,3] of shapes that move, with edges in all directions and a little noise."""
    h, w = EXTRACT_SIZE
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    frames = []
    for i in range(3):
        cx, cy = 30 + 6 * i, 40 - 4 * i
        disc = ((x - cx) ** 2 + (y - cy) ** 2 < 300).long()
        base = torch.stack([60 + 2 * x + 0 * y, 200 - y - x // 2, 40 + (x * y) % 61], -1)
        shape = torch.stack([250 * disc, 80 * disc, 30 * disc], -1)
        noise = ((x * 37 + y * 101 + i * 53) % 23)[..., None]
        frames.append(((base * (1 - disc[..., None]) + shape) + noise).clamp(0, 255).to(torch.uint8))
    return torch.stack(frames)


def write_extract(writer: Writer, model_folder: Path):
    """video_prompts.safetensors: frames, their edges, motion and poses; judges.safetensors: what the judges say."""
    frames = extract_frames()
    h, w = EXTRACT_SIZE
    joints = torch.tensor([[(7 * j * j + 11 * i) % (w + 10) - 5 + 0.25 * j, (13 * j + 17 * i) % (h + 10) - 5.5,
                            float((i + j) % 7 != 0)] for i in range(3) for j in range(JOINT_COUNT)]).reshape(3, -1, 3)
    field = video_prompts.motion_field(frames[None])[0]
    writer.save("video_prompts", {
        "frames": frames, "canny": video_prompts.canny(frames), "field": field,
        "motion_vectors": video_prompts.motion_vectors(frames[None])[0], "joints": joints,
        "pose": video_prompts.pose_picture(joints, h, w)}, height=h, width=w)
    if not (model_folder / "judges").exists():
        return
    found = judges.Judges(model_folder / "judges", "cpu")
    clip = judge_frames()
    features = found.features(clip)
    logits = found.parts["attributes"].head(features)
    tensors = {"frames": clip[0], "features": features[0], "logits": logits[0], "keys": found.keys(clip)[0],
               "pose": found.pose(clip[:, :2])[0]}
    writer.save("judges", tensors)


def judge_frames() -> torch.Tensor:
    """A clip u8 [1,5,180,320,3] that is large enough to be averaged down and has the shape that is extended."""
    y, x = torch.meshgrid(torch.arange(180), torch.arange(320), indexing="ij")
    frame = lambda i: torch.stack([(x + 9 * i) % 256, (2 * y + x // 3 + 5 * i) % 256, (x * y // 64 + 30 * i) % 256], -1)
    return torch.stack([frame(i) for i in range(5)]).to(torch.uint8)[None]


def write_sampler(writer: Writer, model, tok, gen):
    """sampler.safetensors: three frames of two steps from a text-only start, latents and the last frame's pixels."""
    instruction = captions.instruction({})
    stream, tensors = new_stream(model, tok, DIT_SIZE, PROMPTS[0], instruction)
    cache = {}
    for i, keys in enumerate(KEYS):
        action = torch.tensor([[keys]], dtype=torch.float32)
        noise, context = (torch.randn(stream.shape, generator=gen) for _ in range(2))
        latent = stream.step(action, 2, noise, context, FIRST_STEPS)
        pixels = model.vae.decode(model.vae.denormalize(latent), cache)
        tensors |= {f"frame.{i}.keys": action[0, 0], f"frame.{i}.noise": noise[0, 0],
                    f"frame.{i}.context_noise": context[0, 0], f"frame.{i}.latent": latent[0, 0]}
    tensors["frame.2.pixels"] = pixels[0, 0]
    writer.save("sampler", tensors, steps=2, first_steps=FIRST_STEPS, context_noise=CONTEXT_NOISE, prompt=PROMPTS[0],
                instruction=instruction, latent_height=DIT_SIZE[0], latent_width=DIT_SIZE[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("folder", type=Path, help="where the fixtures go")
    args = parser.parse_args()
    model = checkpoint.load_model(args.model).eval()
    tok = tokenizer.Tokenizer.from_file(str(args.model / "tokenizer" / "tokenizer.json"))
    gen = torch.Generator().manual_seed(SEED)
    writer = Writer(args.model, args.folder)
    with torch.no_grad():
        write_tokenizer(writer, tok)
        write_text(writer, model, tok)
        write_vae(writer, model, gen)
        write_dit(writer, model, tok, gen)
        write_sampler(writer, model, tok, gen)
        write_video_prompt(writer, model, tok, gen)
        write_extract(writer, args.model)
    for path in sorted(args.folder.iterdir()):
        print(f"{path.stat().st_size:9} {path.name}")


if __name__ == "__main__":
    sys.exit(main())
