"""How close pictures are to rendered truth: the autoencoder's PSNR and SSIM, Frechet distances of generated clips.

The Frechet distances are taken in the feature space of this project's attribute judge, not of Inception or I3D: they
can be compared with the reference row (test renders against other test renders) and between models of this project,
and with nothing else.
"""
import torch
import torch.nn.functional as F

from .. import captions, pixels
from ..judges import LUMA, Judges
from ..vae import scale_of
from .maker import Maker, keys_tensor

SPACE = "attribute judge of gamegen-x-mini, pooled features before its head"
RECONSTRUCTED = {True: {(320, 192): (64, 8), (1280, 720): (16, 4)}, False: {(320, 192): (2, 2), (1280, 720): (1, 2)}}
SIDE = 11  # of the Gaussian window of SSIM, deviation 1.5
VIDEO_FRAMES = 16
IMAGES_PER_CLIP = 4


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity [N] of the brightness of pictures [N,3,H,W] in -1..1."""
    luma = torch.tensor(LUMA, device=a.device).view(1, 3, 1, 1)
    x, y = (((v.float().clamp(-1, 1) + 1) / 2 * luma).sum(1, keepdim=True) for v in (a, b))
    place = torch.arange(SIDE, device=a.device).float() - SIDE // 2
    line = torch.exp(-place * place / (2 * 1.5**2))
    line = line / line.sum()
    blur = lambda v: F.conv2d(F.conv2d(v, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return value.mean((1, 2, 3))


def padded(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """[B,T,3,H,W] with its last rows repeated until the height is a multiple."""
    return torch.cat([x, x[..., -1:, :].expand(*x.shape[:3], -x.shape[3] % multiple, x.shape[4])], 3)


@torch.no_grad()
def reconstruction(maker: Maker, world, width: int, height: int) -> dict:
    """PSNR and SSIM of encoded and decoded test clips; rows beyond the picture do not count."""
    clips, frames = RECONSTRUCTED[maker.cuda][width, height]
    gen = torch.Generator(maker.device).manual_seed(401)
    vae, scale, quality, similar = maker.model.vae, scale_of(maker.model.vae.cfg, width, height), [], []
    for _ in range(0, clips, 4):
        made = world.clips(min(4, clips), frames, height, width, gen, 2, split="test", unseen="any")["frames"]
        x = pixels.to_network(made)
        with maker.autocast():
            y = vae.decode(vae.encode(padded(x, 32 * scale), scale=scale)[0], scale=scale)[..., :height, :]
        a, b = y.flatten(0, 1).float(), x.flatten(0, 1)
        quality.append(pixels.psnr(a, b))
        similar.append(ssim(a, b))
    quality, similar = torch.cat(quality), torch.cat(similar)
    return {"value": float(quality.mean()), "count": len(quality), "ssim": float(similar.mean()),
            "lowest": float(quality.min()), "scale": scale}


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of features [N,D], in f64."""
    x = x.double()
    centered = x - x.mean(0)
    return x.mean(0), centered.T @ centered / (len(x) - 1)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Frechet distance of two sets of features [N,D]: |m - n|^2 + tr(A + B - 2 (A B)^(1/2))."""
    (m, c), (n, d) = moments(a), moments(b)
    value, vectors = torch.linalg.eigh(c)
    root = vectors @ torch.diag(value.clamp(min=0).sqrt()) @ vectors.T
    both = torch.linalg.eigvalsh(root @ d @ root).clamp(min=0).sqrt().sum()
    return float((m - n).pow(2).sum() + c.trace() + d.trace() - 2 * both)


def image_features(features: torch.Tensor) -> torch.Tensor:
    """Features [B,T,D] of clips -> those of some frames [B*IMAGES_PER_CLIP,D]."""
    return features[:, ::max(1, features.shape[1] // IMAGES_PER_CLIP)].flatten(0, 1)


def video_features(features: torch.Tensor) -> torch.Tensor:
    """Features [B,T,D] of clips -> their mean over time and their mean change from frame to frame: [B,2D]."""
    change = (features[:, 1:] - features[:, :-1]).abs().mean(1)
    return torch.cat([features.mean(1), change], 1)


def rendered_features(maker: Maker, judges: Judges, world, entries: list[dict], plan: dict, seed: int) -> torch.Tensor:
    """Features [B,16,D] of rendered test clips with the values of the prompts, under the same key."""
    gen, parts = torch.Generator(maker.device).manual_seed(seed), []
    keys = keys_tensor([[plan["key"], plan["frames"]]], maker.device)
    for some in maker.batches(entries):
        columns = {name: torch.tensor([values.index(e["values"][name]) for e in some])
                   for name, values in captions.ATTRIBUTES}
        state, _ = world.reset(len(some), gen, split="test", unseen="any", **columns)
        params = world.simulate(state, keys.expand(len(some), -1, -1))[:, -VIDEO_FRAMES:].contiguous()
        parts.append(judges.features(world.render(params, maker.height, maker.width, 2)))
    return torch.cat(parts)


def distances(maker: Maker, judges: Judges, world, plan: dict) -> dict:
    """Frechet image and video distances of text-only starts to test renders, with the reference row."""
    entries, keys, made = plan["seen"], keys_tensor([[plan["key"], plan["frames"]]], maker.device), []
    for number, part in enumerate(maker.batches(entries)):
        latents = maker.roll(maker.stream(part, 501 + number), keys)
        made.append(judges.features(maker.decode(latents, plan["frames"] - VIDEO_FRAMES, plan["frames"])))
    made = torch.cat(made)
    truth, other = (rendered_features(maker, judges, world, entries, plan, seed) for seed in (502, 503))
    rows = {"space": SPACE, "clips": len(entries)}
    for name, of in (("image", image_features), ("video", video_features)):
        rows[name] = {"value": frechet(of(made), of(truth)), "count": len(of(made)),
                      "reference": frechet(of(other), of(truth))}
    return rows
