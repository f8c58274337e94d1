"""Pixels between the renderer, the networks and pictures."""
from pathlib import Path

import numpy as np
import torch

SHEET_PIXELS = 5_000_000


def to_network(frames: torch.Tensor) -> torch.Tensor:
    """u8 [B,T,H,W,3] -> f32 [B,T,3,H,W] in -1..1."""
    return frames.permute(0, 1, 4, 2, 3).float().div_(127.5).sub_(1)


def to_bytes(x: torch.Tensor) -> torch.Tensor:
    """[B,T,3,H,W] in -1..1 -> u8 [B,T,H,W,3]."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio in dB of each first-axis entry; inputs in -1..1."""
    error = ((a.float().clamp(-1, 1) - b.float()) / 2).pow(2).flatten(1).mean(1)
    return -10 * torch.log10(error + 1e-10)


def sheet(rows: list[list], pad: int = 2) -> np.ndarray:
    """Rows of frames [H,W,3] u8 -> one picture."""
    rows = [[np.asarray(f) for f in row] for row in rows]
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    out = np.full((len(rows) * (height + pad), columns * (width + pad), 3), 20, np.uint8)
    for r, row in enumerate(rows):
        for c, frame in enumerate(row):
            out[r * (height + pad):r * (height + pad) + height, c * (width + pad):c * (width + pad) + width] = frame
    return out


def save_png(path: Path, image: np.ndarray):
    """Writes a picture, halved until it has at most SHEET_PIXELS pixels."""
    import cv2
    while image.shape[0] * image.shape[1] > SHEET_PIXELS:
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))
