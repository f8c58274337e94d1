#!/usr/bin/env python3
"""Writes a model folder (models/gamegen-x-mini) from trained weights: 8-bit shards, configurations, tokenizer."""
import argparse
import json
import shutil
import sys
import tarfile
from pathlib import Path

from gamegen import captions, checkpoint, tokenizer
from gamegen.instructnet import VIDEO_PROMPTS
from gamegen.sampler import CONTEXT_NOISE, FIRST_FRAME_STEPS

NAME = "gamegen-x-mini"
FRAME_RATE = 24
SIZES = [[320, 192], [640, 360], [1280, 720]]
PART_BYTES = 15 << 20
ACTIONS = ["W", "S", "A", "D", "SPACE", "SHIFT"]


def write_json(path: Path, value: dict):
    """Indented JSON with a newline at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def model_index(sizes: list[list[int]]) -> dict:
    """model_index.json: what a client of the model may ask for."""
    return {
        "_class_name": "GameGenX", "name": NAME, "frame_rate": FRAME_RATE, "actions": ACTIONS, "steps": [1, 2, 4],
        "default_steps": 1, "sizes": sizes, "video_prompts": list(VIDEO_PROMPTS),
        "vocabulary": {"weather": captions.WEATHER, "lighting": captions.LIGHTING, "effects": captions.EFFECTS,
                       "perspective": captions.PERSPECTIVE},
        "instruction_parts": captions.INSTRUCTION_PARTS,
    }


def export(model: checkpoint.Model, folder, source=None, context_noise: float = CONTEXT_NOISE):
    """Writes the whole folder; the judges come from the model folder `source`."""
    folder = Path(folder)
    write_json(folder / "model_index.json", model_index(SIZES))
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.build(tokenizer.words()).save(str(folder / "tokenizer" / "tokenizer.json"))
    if source is not None and (Path(source) / "judges").exists():
        shutil.copytree(Path(source) / "judges", folder / "judges", dirs_exist_ok=True)
    for name, part in model.parts.items():
        stem = "model" if name == "text_encoder" else checkpoint.FILE
        checkpoint.save_part(folder / name, part.cfg, part.state_dict(), stem, sharded=name == "transformer")
    write_json(folder / "scheduler" / "scheduler_config.json",
               {"_class_name": "FlowMatchEulerShortcut", "context_noise": context_noise, "guidance": 1.0,
                "first_frame_steps": FIRST_FRAME_STEPS, "first_frame_shortcut": True})


def pack(parent: Path, out: Path):
    """The model folder in `parent` as a flat tar in parts of PART_BYTES: cat model.tar.* | tar x."""
    out.mkdir(parents=True, exist_ok=True)
    archive = parent / "model.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(parent / NAME, NAME)
    data = archive.read_bytes()
    archive.unlink()
    for old in out.glob("model.tar.*"):
        old.unlink()
    for i in range(0, len(data), PART_BYTES):
        (out / f"model.tar.{i // PART_BYTES}").write_bytes(data[i:i + PART_BYTES])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model folder to write anew (the training saves such folders itself)")
    parser.add_argument("folder", type=Path, help="where the model folder goes")
    parser.add_argument("--context-noise", type=float, default=CONTEXT_NOISE)
    args = parser.parse_args()
    export(checkpoint.load_model(args.model, upgrade=True), args.folder, args.model, args.context_noise)
    print(f"{args.folder}: sha256 {checkpoint.model_hash(args.folder)}")


if __name__ == "__main__":
    sys.exit(main())
