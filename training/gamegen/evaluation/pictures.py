"""Contact sheets and short films of the fixed prompts, so that a person can see what the figures mean."""
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import torch

from .. import pixels
from ..judges import Judges
from . import words
from .maker import Maker, keys_tensor

FRAME_RATE = 24
COLUMNS = 8
SHOWN = 4  # best and worst clips of the alignment


def write_film(path: Path, frames: np.ndarray):
    """u8 [T,H,W,3] -> an MP4: H.264 by ffmpeg where it is installed, else MPEG-4 by OpenCV."""
    height, width = frames.shape[1:3]
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg:
        command = [ffmpeg, "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
                   "-r", str(FRAME_RATE), "-i", "-", "-pix_fmt", "yuv420p", "-crf", "20", str(path)]
        subprocess.run(command, input=np.ascontiguousarray(frames).tobytes(), check=True)
        return
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FRAME_RATE, (width, height))
    if not film.isOpened():
        raise RuntimeError(f"{path}: neither ffmpeg nor OpenCV can write an MP4 here")
    for frame in frames:
        film.write(np.ascontiguousarray(frame[..., ::-1]))
    film.release()


def row_of(clip: torch.Tensor, columns: int = COLUMNS) -> list[np.ndarray]:
    """Frames of a clip u8 [T,H,W,3] at even distances."""
    places = [i * (len(clip) - 1) // max(1, columns - 1) for i in range(columns)]
    return [clip[i].numpy() for i in places]


def captioned(text: str, width: int, height: int = 14) -> np.ndarray:
    """A bar with small text: u8 [14,width,3]."""
    bar = np.full((height, width, 3), 20, np.uint8)
    place, white = (2, height - 4), (230, 230, 230)
    cv2.putText(bar, text[:width // 6], place, cv2.FONT_HERSHEY_SIMPLEX, 0.36, white, 1, cv2.LINE_AA)
    return bar


def save_sheet(path: Path, clips: torch.Tensor, texts: list[str]):
    """A contact sheet: for each clip u8 [T,H,W,3] its text and a row of frames."""
    parts = []
    for clip, text in zip(clips, texts):
        row = pixels.sheet([row_of(clip)])
        parts += [captioned(text, row.shape[1]), row]
    pixels.save_png(path, np.concatenate(parts))


def played(maker: Maker, plan: dict, out: Path) -> int:
    """The fixed prompts under one script of keys: a sheet and a film of each."""
    keys, entries = keys_tensor(plan["script"], maker.device)[:, :plan["frames"]], plan["prompts"]
    latents = maker.roll(maker.stream(entries, 701), keys)
    clips = maker.decode(latents, 0, keys.shape[1]).cpu()
    save_sheet(out / "played.png", clips, [e["text"] for e in entries])
    for i, clip in enumerate(clips):
        write_film(out / f"played_{i}.mp4", clip.numpy())
    return len(clips)


def changing(maker: Maker, plan: dict, out: Path) -> int:
    """Free instructions, one of each kind of change."""
    rows = list({(r["attribute"], r["to"]): r for r in plan["text"]}.values())
    keys = keys_tensor([[plan["key"], plan["before"] + plan["after"]]], maker.device)
    stream = maker.stream(rows, 702)
    first = maker.roll(stream, keys[:, :plan["before"]])
    stream.set_instruction(*maker.features([r["then"] for r in rows]))
    latents = torch.cat([first, maker.roll(stream, keys[:, plan["before"]:])], 1)
    clips = maker.decode(latents, 0, latents.shape[1]).cpu()
    save_sheet(out / "instructions.png", clips, [f"{r['text']} >> {r['then']}" for r in rows])
    return len(clips)


def best_and_worst(maker: Maker, judges: Judges, plan: dict, out: Path) -> dict:
    """Prompts of unseen combinations and paraphrases whose clips show the most and the least of what was said."""
    entries = (plan["paraphrases"] + plan["unseen"])[:256 if maker.cuda else 4]
    keys = keys_tensor([[plan["key"], plan["frames"]]], maker.device)
    clips = torch.cat([maker.decode(maker.roll(maker.stream(part, 703), keys), plan["judged_from"], plan["frames"])
                       for part in maker.batches(entries)])
    found = words.judged(judges, clips)
    score = [sum(f[k] == v for k, v in e["says"].items()) / max(1, len(e["says"])) for e, f in zip(entries, found)]
    order = sorted(range(len(entries)), key=lambda i: score[i])
    shown = {"worst": order[:SHOWN], "best": order[::-1][:SHOWN]}
    for name, rows in shown.items():
        save_sheet(out / f"{name}.png", clips[rows].cpu(), [f"{score[i]:.2f} {entries[i]['text']}" for i in rows])
    return {name: [{"text": entries[i]["text"], "share": score[i]} for i in rows] for name, rows in shown.items()}
