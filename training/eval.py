#!/usr/bin/env python3
"""Short evaluation of a model folder: opposite keys, drift, the autoencoder; contact sheets; writes eval.json.

The judge of motion is dense optical flow, with the rendered truth beside it as its ceiling. Attribute classifiers are
not part of it.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from gamegen import captions, checkpoint, pixels, tokenizer
from gamegen.preview import SEED_FRAMES, Preview, keys_of
from gamegen.trainer import SMALL, device_setup
from gamegen.world import World

FLOW_WIDTH = 160
SCRIPT = [("W", 24), ("D", 16), ("W", 8), ("A", 16), ("S", 16), ("W SPACE", 4), ("W", 12)]
FREE_INSTRUCTIONS = ["make it snow", "turn to night", "the ground catches fire", "let it rain"]


def flow_of(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """frames u8 [T,H,W,3] -> mean shift to the right of the upper half and mean expansion, per frame pair.

    The expansion is the mean of flow along the direction away from the centre, in pixels of a 160-wide picture.
    """
    height = frames.shape[1] * FLOW_WIDTH // frames.shape[2]
    gray = [cv2.cvtColor(cv2.resize(f, (FLOW_WIDTH, height), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
            for f in frames]
    judge = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    y, x = np.mgrid[:height, :FLOW_WIDTH].astype(np.float32)
    dx, dy = x - FLOW_WIDTH / 2, y - height / 2
    length = np.sqrt(dx * dx + dy * dy) + 1
    shift, expansion = [], []
    for a, b in zip(gray, gray[1:]):
        flow = judge.calc(a, b, None)
        shift.append(flow[:height // 2, :, 0].mean())
        expansion.append(((flow[..., 0] * dx + flow[..., 1] * dy) / length)[height // 3:].mean())
    return np.array(shift), np.array(expansion)


def opposite_keys(preview: Preview, count: int, frames: int, steps: int) -> dict:
    """From the same frames: A against D by shift, W against S by expansion; share of clips with the right sign."""
    measured = {}
    for view, name in enumerate(captions.PERSPECTIVE):
        for key in ("A", "D", "W", "S"):
            keys = keys_of([(key, frames)], preview.dev)
            made, truth, _, _ = preview.continuation(count, keys, 77, steps, perspective=view, weather=0, effects=0)
            for kind, clip in (("made", made), ("truth", truth)):
                # The first generated frames still carry the motion of the seed.
                flows = [[v[SEED_FRAMES + 2:].mean() for v in flow_of(c.numpy())] for c in clip]
                measured[name, key, kind] = np.array(flows)  # [B,2]
    result = {}
    for name in captions.PERSPECTIVE:
        for kind in ("made", "truth"):
            get = lambda key, i: measured[name, key, kind][:, i]
            result[f"{name}_{kind}"] = {
                "turn_sign": round(float((get("A", 0) > get("D", 0)).mean()), 3),
                "turn_shift_a": round(float(get("A", 0).mean()), 3),
                "turn_shift_d": round(float(get("D", 0).mean()), 3),
                "walk_sign": round(float((get("W", 1) > get("S", 1)).mean()), 3),
                "expansion_w": round(float(get("W", 1).mean()), 3), "expansion_s": round(float(get("S", 1).mean()), 3),
            }
    return result


def drift(preview: Preview, count: int, frames: int, steps: int) -> dict:
    """Statistics of a long rollout under random keys against rendered frames of the same worlds, by quarter."""
    gen = torch.Generator(preview.dev).manual_seed(3)
    keys = preview.world.random_keys(1, frames, gen)
    biomes = torch.arange(count) % len(captions.BIOMES)
    made, truth, latents, _ = preview.continuation(count, keys, 79, steps, biome=biomes)
    result, size = {}, frames // 4
    for q in range(4):
        part = slice(SEED_FRAMES + q * size, SEED_FRAMES + (q + 1) * size)
        a, b = made[:, part].float() / 255, truth[:, part].float() / 255
        edge = lambda v: float((v[:, :, :, 1:] - v[:, :, :, :-1]).abs().mean())
        result[f"frames_{q * size}_{(q + 1) * size}"] = {
            "mean_color_error": round(float((a.mean((1, 2, 3)) - b.mean((1, 2, 3))).abs().mean()), 4),
            "saturation_ratio": round(float((a.amax(-1) - a.amin(-1)).mean() / (b.amax(-1) - b.amin(-1)).mean()), 3),
            "edge_ratio": round(edge(a) / edge(b), 3), "latent_deviation": round(float(latents[:, part].std()), 3),
        }
    return result


def autoencoder(preview: Preview, count: int) -> dict:
    """PSNR of encoded and decoded clips."""
    truth, _, _ = preview.scene(count, keys_of([("W", 4)], preview.dev), 42)
    with torch.no_grad(), preview.autocast():
        vae = preview.model.vae
        again = vae.decode(vae.encode(pixels.to_network(truth))[0])
    x = pixels.to_network(truth)
    return {"psnr": round(float(pixels.psnr(again.flatten(0, 1), x.flatten(0, 1)).mean()), 2)}


def sheets(preview: Preview, out: Path, steps: int, tag: str):
    """One picture: continuations above their truth, text-only starts, instructions."""
    dev, every = preview.dev, 1 if SMALL else 10
    script = [("W", 2), ("D", 2)] if SMALL else SCRIPT
    made, truth, _, _ = preview.continuation(6, keys_of(script, dev), 7, steps, biome=torch.arange(6))
    rows = [list(clip[3::every].numpy()) for a, b in zip(made[:4], truth[:4]) for clip in (a, b)]
    columns = len(rows[0])
    rows += [list(clip[3::every].numpy()) for clip in made[4:]]
    frames = 2 if SMALL else 4
    _, _, attrs = preview.scene(2 * columns, keys_of([("W", 1)], dev), 8, biome=torch.arange(2 * columns) % 6)
    made, _ = preview.run(preview.stream(2 * columns, attrs, 8), keys_of([("W", frames)], dev), steps)
    rows += [[clip[-1].numpy() for clip in made[i * columns:(i + 1) * columns]] for i in range(2)]
    count, length = len(FREE_INSTRUCTIONS), 3 if SMALL else 96
    truth, _, attrs = preview.scene(count, keys_of([("W", 1)], dev), 9, lighting=0, weather=0, effects=0,
                                    biome=torch.arange(count))
    made, _ = preview.run(preview.stream(count, attrs, 9), keys_of([("W", length)], dev), steps,
                          truth[:, :SEED_FRAMES], FREE_INSTRUCTIONS, at=4 if not SMALL else 1)
    rows += [list(clip[3::every].numpy())[:columns] for clip in made]
    pixels.save_png(out / f"sheet_{tag}.png", pixels.sheet(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--parts", default="sheet,vae,keys,drift")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--clips", type=int, default=2 if SMALL else 24)
    parser.add_argument("--long", type=int, default=8 if SMALL else 240, help="frames of the drift rollout")
    parser.add_argument("--context-noises", default="0.05", help="the drift test is done for each, comma separated")
    parser.add_argument("--size", default="96x64" if SMALL else "320x192")
    parser.add_argument("--tag", default="eval")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    dev = device_setup()
    model = checkpoint.load_model(args.model).to(dev).eval()
    tok = tokenizer.Tokenizer.from_file(str(args.model / "tokenizer" / "tokenizer.json"))
    width, height = map(int, args.size.split("x"))
    preview = Preview(model, World(dev), tok, (height, width))
    result = {"model_sha256": checkpoint.model_hash(args.model), "steps": args.steps, "size": args.size}
    work = {"vae": lambda: autoencoder(preview, args.clips),
            "keys": lambda: opposite_keys(preview, args.clips, 4 if SMALL else 12, args.steps)}
    for noise in map(float, args.context_noises.split(",")):
        def measure(noise=noise):
            preview.context_noise = noise
            return drift(preview, args.clips, args.long, args.steps)
        work[f"drift_{noise}"] = measure
    for name, measure in {"sheet": lambda: sheets(preview, args.out, args.steps, args.tag), **work}.items():
        if name.split("_")[0] in args.parts.split(","):
            begin = time.time()
            value = measure()
            if value is not None:
                result[name] = value
            (args.out / f"{args.tag}.json").write_text(json.dumps(result, indent=1) + "\n")
            print(f"{name} {time.time() - begin:.1f}s {json.dumps(value)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
