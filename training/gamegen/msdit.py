"""MSDiT: the masked spatial-temporal diffusion transformer (GameGen-X, arXiv 2411.00769, section 3.2).

Spatial attention within a frame, causal temporal attention over frames at one place, cross-attention to the text every
second block, adaLN modulation. Two things differ from the paper, for streaming: every frame has its own noise level
(diffusion forcing, arXiv 2407.01392) beside the noised frame before it, and the step size is an input, so that one
training run serves 1, 2 and 4 steps (shortcut models, arXiv 2410.12557).
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

MODULATIONS = 9  # shift, scale and gate for spatial attention, temporal attention and the feed-forward
GATES = (2, 5, 8)
POSITION_CHANNELS = 64
REFERENCE_TOKENS = 60.0  # tokens of a 320x192 frame: the resolution input is 0 there


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / RMS over the last axis, in f32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rms_as(x: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms` in the type of its input."""
    return rms(x, eps).to(x.dtype)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """rms(x) * (1 + scale) + shift, in the type of x."""
    return (rms(x, eps) * (1 + scale.float()) + shift.float()).to(x.dtype)


def gated(x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x + gate * y, in the type of x."""
    return (x.float() + gate.float() * y.float()).to(x.dtype)


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding in the rotate-half layout: x [...,L,hd], cos and sin [L,hd]."""
    a, b = x.chunk(2, -1)
    return x * rope[0] + torch.cat([-b, a], -1) * rope[1]


def rope_table(axes: list[tuple[torch.Tensor, int, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [L,hd] of axes given as (positions [L], number of frequencies, base)."""
    angles = []
    for positions, count, base in axes:
        frequency = 1.0 / base ** (torch.arange(count, device=positions.device).float() / count)  # [count]
        angles.append(positions.float()[:, None] * frequency[None])  # [L,count]
    angle = torch.cat(angles, -1)  # [L,hd/2]
    angle = torch.cat([angle, angle], -1)  # [L,hd]
    return angle.cos(), angle.sin()


def fourier(x: torch.Tensor, count: int) -> torch.Tensor:
    """cos then sin of x at `count` frequencies from 0.5 to 500: [...] -> [...,2*count]."""
    frequency = torch.exp(torch.linspace(0, math.log(1000.0), count, device=x.device)) * 0.5
    angle = x.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class HeadNorm(nn.Module):
    """RMS norm of one attention head (QK-norm); returns f32."""

    def __init__(self, head_dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms(x, self.eps) * self.weight.float()


class SelfAttention(nn.Module):
    """Projections of spatial or temporal attention; the attention itself is in `Block`."""

    def __init__(self, width: int, head_dim: int, eps: float):
        super().__init__()
        self.heads, self.head_dim = width // head_dim, head_dim
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.norm_q, self.norm_k = HeadNorm(head_dim, eps), HeadNorm(head_dim, eps)

    def project(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]):
        """x [M,L,D] -> rotated q and k, and v: each [M,H,L,hd]."""
        m, length, _ = x.shape
        q, k, v = self.to_qkv(x).reshape(m, length, 3, self.heads, self.head_dim).unbind(2)  # [M,L,H,hd]
        q = rotate(self.norm_q(q.transpose(1, 2)), rope).to(v.dtype)
        k = rotate(self.norm_k(k.transpose(1, 2)), rope).to(v.dtype)
        return q, k, v.transpose(1, 2)

    def merge(self, o: torch.Tensor) -> torch.Tensor:
        """Heads [M,H,L,hd] -> [M,L,D] through the output projection."""
        return self.to_out(o.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of image tokens to text features."""

    def __init__(self, width: int, text_dim: int, head_dim: int, eps: float):
        super().__init__()
        self.heads, self.head_dim = width // head_dim, head_dim
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(text_dim, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.norm_q, self.norm_k = HeadNorm(head_dim, eps), HeadNorm(head_dim, eps)

    def keys(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """text [M,L,Dt] -> k and v [M,H,L,hd]; the same for all frames, so an engine keeps them for a prompt."""
        m, length, _ = text.shape
        k, v = self.to_kv(text).reshape(m, length, 2, self.heads, self.head_dim).unbind(2)  # [M,L,H,hd]
        return self.norm_k(k.transpose(1, 2)).to(v.dtype), v.transpose(1, 2)

    def forward(self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x [M,Q,D], k and v [M,H,L,hd], mask [M,L] (True: attend) -> [M,Q,D]."""
        m, length, _ = x.shape
        q = self.to_q(x).reshape(m, length, self.heads, self.head_dim).transpose(1, 2)  # [M,H,Q,hd]
        q = self.norm_q(q).to(v.dtype)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])  # [M,H,Q,hd]
        return self.to_out(o.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """linear, tanh-gelu, linear."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


class TimeEmbedding(nn.Module):
    """linear, silu, linear; also used for keys."""

    def __init__(self, c_in: int, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(c_in, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Block(nn.Module):
    """Spatial attention, temporal attention, cross-attention in some blocks, feed-forward."""

    def __init__(self, cfg: dict, cross: bool):
        super().__init__()
        width, head_dim, self.eps = cfg["hidden_size"], cfg["head_dim"], cfg["norm_eps"]
        self.spatial_attn = SelfAttention(width, head_dim, self.eps)
        self.temporal_attn = SelfAttention(width, head_dim, self.eps)
        self.cross_attn = CrossAttention(width, cfg["text_dim"], head_dim, self.eps) if cross else None
        self.ff = FeedForward(width, cfg["mlp_ratio"])
        self.scale_shift_table = nn.Parameter(torch.randn(MODULATIONS, width) * 0.02)

    def forward(self, h, modulation, rope_space, rope_time, text, text_mask, time_mask, ring=None):
        """h [B,T,N,D]; modulation [B,T,9,D]; text [B,L,Dt], text_mask [B,L].

        Without a ring, time_mask [B,T,T] says which frames a frame sees. With a ring (k and v [B*N,H,W,hd], slot [1]),
        T is 1: the frame's key and value go into the slot and time_mask [B,1,W] says which slots it sees.
        """
        b, t, n, d = h.shape
        m = (modulation + self.scale_shift_table.to(modulation.dtype))[:, :, :, None].unbind(2)  # 9 x [B,T,1,D]
        x = modulate(h, m[0], m[1], self.eps).flatten(0, 1)  # [B*T,N,D]
        q, k, v = self.spatial_attn.project(x, rope_space)  # [B*T,H,N,hd]
        o = self.spatial_attn.merge(F.scaled_dot_product_attention(q, k, v))  # [B*T,N,D]
        h = gated(h, m[2], o.reshape(b, t, n, d))

        x = modulate(h, m[3], m[4], self.eps).transpose(1, 2).flatten(0, 1)  # [B*N,T,D]
        q, k, v = self.temporal_attn.project(x, rope_time)  # [B*N,H,T,hd]
        if ring is not None:
            k = ring[0].index_copy_(2, ring[2], k.to(ring[0].dtype)).to(q.dtype)  # [B*N,H,W,hd]
            v = ring[1].index_copy_(2, ring[2], v.to(ring[1].dtype)).to(q.dtype)  # [B*N,H,W,hd]
        mask = time_mask[:, None].expand(-1, n, -1, -1).flatten(0, 1)[:, None]  # [B*N,1,T,T or W]
        o = self.temporal_attn.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))  # [B*N,T,D]
        h = gated(h, m[5], o.reshape(b, n, t, d).transpose(1, 2))

        if self.cross_attn is not None:
            key, value = self.cross_attn.keys(text)  # [B,H,L,hd]
            o = self.cross_attn(rms_as(h, self.eps).flatten(1, 2), key, value, text_mask)  # [B,T*N,D]
            h = h + o.reshape(b, t, n, d)
        return gated(h, m[8], self.ff(modulate(h, m[6], m[7], self.eps)))


def default_config() -> dict:
    """transformer/config.json of gamegen-x-mini."""
    return {
        "_class_name": "MSDiT", "latent_channels": 64, "hidden_size": 384, "num_layers": 7, "head_dim": 64,
        "mlp_ratio": 4, "cross_attention_every": 2, "text_dim": 256, "time_frequencies": 32, "position_frequencies": 16,
        "rope_spatial_base": 100.0, "rope_temporal_base": 1000.0, "window": 16, "norm_eps": 1e-6,
    }


class MSDiT(nn.Module):
    """Velocity of every frame's latent from its noisy latent, the frame before it, the text and an InstructNet hook."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = dict(cfg)
        width, channels = cfg["hidden_size"], cfg["latent_channels"]
        self.proj_in = nn.Linear(2 * channels, width)
        self.pos_proj = nn.Linear(POSITION_CHANNELS, width, bias=False)
        self.time_embed = TimeEmbedding(6 * cfg["time_frequencies"] + 2, width)
        self.text_pool = nn.Linear(cfg["text_dim"], width)
        self.adaln = nn.Linear(width, MODULATIONS * width)
        every = cfg["cross_attention_every"]
        self.transformer_blocks = nn.ModuleList([Block(cfg, i % every == 0) for i in range(cfg["num_layers"])])
        self.norm_out = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Small output layers: at the start every block is near the identity and the velocity is 0."""
        width = self.cfg["hidden_size"]
        for layer in (self.proj_out, self.norm_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.adaln.weight, std=0.01)
        nn.init.zeros_(self.adaln.bias)
        for j in GATES:
            self.adaln.bias[j * width:(j + 1) * width] = 0.3
        std = 0.02 / math.sqrt(2 * len(self.transformer_blocks))
        for block in self.transformer_blocks:
            for layer in (block.spatial_attn.to_out, block.temporal_attn.to_out, block.ff.linear_2):
                nn.init.normal_(layer.weight, std=std)
            if block.cross_attn is not None:
                nn.init.normal_(block.cross_attn.to_out.weight, std=0.01)

    def geometry(self, h: int, w: int, device):
        """Rotary tables of the places of a frame ([N,hd] each) and their position features [N,64]."""
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        y, x = y.flatten(), x.flatten()  # [N]
        quarter, base = self.cfg["head_dim"] // 4, self.cfg["rope_spatial_base"]
        rope = rope_table([(y, quarter, base), (x, quarter, base)])
        frequency = 2.0 ** torch.arange(0, 4, 4 / self.cfg["position_frequencies"], device=device)  # [16]
        angle_y = ((y.float() + 0.5) / h * 2 - 1)[:, None] * frequency  # [N,16]
        angle_x = ((x.float() + 0.5) / w * 2 - 1)[:, None] * frequency  # [N,16]
        return rope, torch.cat([angle_y.sin(), angle_y.cos(), angle_x.sin(), angle_x.cos()], -1)

    def condition(self, t, d, ps, hp, tokens: int, text, text_mask, dtype) -> torch.Tensor:
        """Conditioning vector [B,T,D] of noise level, step size, noise and presence of the frame before, text."""
        count = self.cfg["time_frequencies"]
        resolution = torch.full_like(t, math.log2(tokens / REFERENCE_TOKENS) / 4)
        scalars = [fourier(t, count), fourier(d, count), fourier(ps, count), hp[..., None], resolution[..., None]]
        pooled = (text * text_mask[..., None]).sum(1) / text_mask.sum(1, keepdim=True).clamp(min=1)  # [B,Dt]
        return F.silu(self.time_embed(torch.cat(scalars, -1).to(dtype)) + self.text_pool(pooled)[:, None])

    def forward(self, x, t, d, prev, ps, hp, text, text_mask, positions, time_mask, ring=None, hook=None, trace=None):
        """Velocity [B,T,Z,h,w] of the noisy latents x [B,T,Z,h,w].

        t noise level (1: clean), d step size (0: infinitesimal), prev the frame before each one with noise ps on it and
        hp 1 where there is one: t, d, ps, hp are [B,T]. positions [T] number the frames. ring: one (k, v, slot) for
        each block, see `Block`. hook(i, h) runs after block i (InstructNet). trace collects intermediate values.
        """
        b, frames, _, height, width = x.shape
        rope_space, place = self.geometry(height, width, x.device)
        rope_time = rope_table([(positions, self.cfg["head_dim"] // 2, self.cfg["rope_temporal_base"])])
        tokens = torch.cat([x, prev * hp[:, :, None, None, None]], 2).flatten(3).transpose(2, 3)  # [B,T,N,2Z]
        h = self.proj_in(tokens) + self.pos_proj(place)[None, None]  # [B,T,N,D]
        if hook is not None:
            h = hook.embed(h)
        c = self.condition(t, d, ps, hp, height * width, text, text_mask, h.dtype)  # [B,T,D]
        modulation = self.adaln(c).reshape(b, frames, MODULATIONS, -1)  # [B,T,9,D]
        if trace is not None:
            trace.update(tokens=h, condition=c, modulation=modulation)
        for i, block in enumerate(self.transformer_blocks):
            h = block(h, modulation, rope_space, rope_time, text, text_mask, time_mask, ring[i] if ring else None)
            if trace is not None:
                trace[f"block.{i}"] = h
            if hook is not None:
                h = hook(i, h)
                if trace is not None and hook.applies(i):
                    trace[f"instruct.{i}"] = h
        shift, scale = self.norm_out(c)[:, :, None].chunk(2, -1)  # [B,T,1,D]
        v = self.proj_out(modulate(h, shift, scale, self.cfg["norm_eps"]))  # [B,T,N,Z]
        return v.transpose(2, 3).reshape(x.shape)


def causal_mask(batch: int, frames: int, device) -> torch.Tensor:
    """[B,T,T]: a frame sees itself and the frames before it."""
    return torch.ones(frames, frames, dtype=torch.bool, device=device).tril()[None].expand(batch, -1, -1)
