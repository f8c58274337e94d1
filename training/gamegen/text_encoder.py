"""T5-architecture text encoder (tensor names as in Hugging Face's T5EncoderModel, gated-gelu feed-forward).

GameGen-X (arXiv 2411.00769, section 3.2) conditions its transformer on T5 text features; this encoder has the same
architecture at a size that one GPU trains together with the transformer.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

PAD_ID = 0


class SelfAttention(nn.Module):
    """Projections of one T5 self-attention; block 0 also owns the relative position bias of all blocks."""

    def __init__(self, d_model: int, heads: int, buckets: int, first: bool):
        super().__init__()
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.o = nn.Linear(d_model, d_model, bias=False)
        self.heads = heads
        if first:
            self.relative_attention_bias = nn.Embedding(buckets, heads)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x [B,L,D], bias [B,H,L,L] (position bias and padding mask) -> [B,L,D]."""
        b, length, _ = x.shape
        q = self.q(x).reshape(b, length, self.heads, -1).transpose(1, 2)  # [B,H,L,hd]
        k = self.k(x).reshape(b, length, self.heads, -1).transpose(1, 2)  # [B,H,L,hd]
        v = self.v(x).reshape(b, length, self.heads, -1).transpose(1, 2)  # [B,H,L,hd]
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))  # [B,H,L,hd], scale 1/sqrt(hd)
        return self.o(o.transpose(1, 2).reshape(b, length, -1))  # [B,L,D]


class GatedGelu(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x)."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.wi_0 = nn.Linear(d_model, d_ff, bias=False)
        self.wi_1 = nn.Linear(d_model, d_ff, bias=False)
        self.wo = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))  # [B,L,F] -> [B,L,D]


class AttentionLayer(nn.Module):
    """Pre-norm attention with its residual."""

    def __init__(self, cfg: dict, first: bool):
        super().__init__()
        buckets = cfg["relative_attention_num_buckets"]
        self.SelfAttention = SelfAttention(cfg["d_model"], cfg["num_heads"], buckets, first)
        self.layer_norm = nn.RMSNorm(cfg["d_model"], eps=cfg["layer_norm_epsilon"])

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)  # [B,L,D]


class FeedForwardLayer(nn.Module):
    """Pre-norm feed-forward with its residual."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.DenseReluDense = GatedGelu(cfg["d_model"], cfg["d_ff"])
        self.layer_norm = nn.RMSNorm(cfg["d_model"], eps=cfg["layer_norm_epsilon"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))  # [B,L,D]


class Block(nn.Module):
    """One encoder block: `layer.0` attends, `layer.1` is the feed-forward."""

    def __init__(self, cfg: dict, first: bool):
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(cfg, first), FeedForwardLayer(cfg)])

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.layer[1](self.layer[0](x, bias))  # [B,L,D]


class Encoder(nn.Module):
    """The stack of blocks and the last norm."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.block = nn.ModuleList([Block(cfg, i == 0) for i in range(cfg["num_layers"])])
        self.final_layer_norm = nn.RMSNorm(cfg["d_model"], eps=cfg["layer_norm_epsilon"])


def default_config(vocab_size: int) -> dict:
    """text_encoder/config.json of gamegen-x-mini."""
    return {
        "model_type": "t5", "vocab_size": vocab_size, "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 4,
        "num_heads": 4, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6, "max_length": 300, "scale_attention": True,
    }


def relative_buckets(length: int, buckets: int, max_distance: int, device) -> torch.Tensor:
    """Bidirectional T5 bucket of (key - query) for all pairs: [L,L] int64."""
    index = torch.arange(length, device=device)
    distance = index[None] - index[:, None]  # [L query, L key]
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    log_ratio = torch.log(size.float().clamp(min=1) / exact) / math.log(max_distance / exact)
    far = (exact + (log_ratio * (half - exact)).long()).clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(size < exact, size, far)


class T5Encoder(nn.Module):
    """Token ids [B,L] -> features [B,L,D] and the mask of real tokens [B,L]."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = dict(cfg)
        self.shared = nn.Embedding(cfg["vocab_size"], cfg["d_model"])
        self.encoder = Encoder(cfg)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.04)

    def position_bias(self, ids: torch.Tensor) -> torch.Tensor:
        """Relative bias plus -1e4 on padding: [B,H,L,L]."""
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        buckets = relative_buckets(ids.shape[1], self.cfg["relative_attention_num_buckets"],
                                   self.cfg["relative_attention_max_distance"], ids.device)
        bias = table(buckets).permute(2, 0, 1)[None]  # [1,H,L,L]
        return bias + (ids == PAD_ID)[:, None, None, :] * -1e4

    def forward(self, ids: torch.Tensor, trace: dict | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """ids [B,L] -> [B,L,D], [B,L] bool. `trace` collects the embeddings and every block's output."""
        x = self.shared(ids)  # [B,L,D]
        bias = self.position_bias(ids)  # [B,H,L,L]
        if trace is not None:
            trace["embedding"] = x
        for i, block in enumerate(self.encoder.block):
            x = block(x, bias)  # [B,L,D]
            if trace is not None:
                trace[f"block.{i}"] = x
        return self.encoder.final_layer_norm(x), ids != PAD_ID
