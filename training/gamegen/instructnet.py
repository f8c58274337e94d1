"""InstructNet: keys, instructions and video prompts modulate the features of a foundation that can stay frozen.

GameGen-X (arXiv 2411.00769, section 3.3): operation fusion turns the keys into scale, shift and gate of the features,
instruction fusion attends to the structured text of the environment, video prompts (edges, motion vectors, poses,
encoded by the autoencoder) are added at the embedding. Here the features of a video prompt also enter at every fusion
block. Everything starts at or near zero, so that an untrained InstructNet leaves the foundation as it is.
"""
import torch
import torch.nn.functional as F
from torch import nn

from .msdit import CrossAttention, TimeEmbedding, rms, rms_as

VIDEO_PROMPTS = ("canny", "motion_vectors", "pose")
GATE_BIAS = 1.0  # the gate of operation fusion is sigmoid(g + 1): mostly open at the start


class OperationFusion(nn.Module):
    """Projection of silu(rms(h) * (1 + scale) + shift) * sigmoid(gate + 1), with scale, shift and gate from keys."""

    def __init__(self, width: int, action_dim: int, eps: float):
        super().__init__()
        self.linear_1 = nn.Linear(action_dim, action_dim)
        self.linear_2 = nn.Linear(action_dim, 3 * width)
        self.proj = nn.Linear(width, width, bias=False)
        self.eps = eps
        nn.init.zeros_(self.proj.weight)

    def forward(self, h: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """h [B,T,N,D], action [B,T,Da] -> [B,T,N,D]."""
        film = self.linear_2(F.silu(self.linear_1(action)))[:, :, None]  # [B,T,1,3D]
        scale, shift, gate = film.float().chunk(3, -1)
        y = F.silu(rms(h, self.eps) * (1 + scale) + shift) * torch.sigmoid(gate + GATE_BIAS)
        return self.proj(y.to(h.dtype))


class InstructBlock(nn.Module):
    """Operation fusion, instruction fusion, and where there is a video prompt its features."""

    def __init__(self, width: int, action_dim: int, text_dim: int, head_dim: int = 64, eps: float = 1e-6):
        super().__init__()
        self.operation = OperationFusion(width, action_dim, eps)
        self.instruction = CrossAttention(width, text_dim, head_dim, eps)
        self.eps = eps
        nn.init.zeros_(self.instruction.to_out.weight)
        self.video_prompt = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.video_prompt.weight)

    def forward(self, h, action, text, text_mask, select, enabled, video=None):
        """h [B,T,N,D]; action [B,T,Da]; text [B,K,L,Dt], text_mask [B,K,L]: K instructions of a clip.

        select [B,T] says which instruction holds in a frame; enabled [B,1,1,1] is 0 for clips without InstructNet;
        video [B,T,N,D] are the features of a video prompt, 0 in clips without one.
        """
        b, t, n, d = h.shape
        h = h + enabled * self.operation(h, action)
        if video is not None:
            h = h + self.video_prompt(video)
        k, v = self.instruction.keys(text.flatten(0, 1))  # [B*K,H,L,hd]
        row = (torch.arange(b, device=h.device)[:, None] * text.shape[1] + select).flatten()  # [B*T]
        seen = text_mask.flatten(0, 1)[row]  # [B*T,L]
        o = self.instruction(rms_as(h, self.eps).flatten(0, 1), k[row], v[row], seen)  # [B*T,N,D]
        return h + enabled * o.reshape(b, t, n, d)


def default_config() -> dict:
    """instructnet/config.json of gamegen-x-mini."""
    return {"_class_name": "InstructNet", "action_count": 6, "action_dim": 256, "every": 2, "hidden_size": 384,
            "num_layers": 7, "text_dim": 256, "latent_channels": 64, "video_prompts": list(VIDEO_PROMPTS)}


class Hook:
    """InstructNet bound to the keys, instructions and video prompts of one forward pass."""

    def __init__(self, blocks: nn.ModuleDict, arguments: tuple, video: torch.Tensor | None):
        self.blocks, self.arguments, self.video = blocks, arguments, video

    def embed(self, h: torch.Tensor) -> torch.Tensor:
        """Adds the features of the video prompt to the embedded tokens [B,T,N,D]."""
        return h if self.video is None else h + self.video

    def applies(self, index: int) -> bool:
        """Is there a fusion after transformer block `index`?"""
        return str(index) in self.blocks

    def __call__(self, index: int, h: torch.Tensor) -> torch.Tensor:
        return self.blocks[str(index)](h, *self.arguments, self.video) if self.applies(index) else h


class InstructNet(nn.Module):
    """Fusion blocks after every second transformer block; they are called through a `Hook`."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = dict(cfg)
        width = cfg["hidden_size"]
        self.action_embed = TimeEmbedding(2 * cfg["action_count"], cfg["action_dim"])
        self.blocks = nn.ModuleDict({
            str(i): InstructBlock(width, cfg["action_dim"], cfg["text_dim"])
            for i in range(0, cfg["num_layers"], cfg["every"])
        })
        self.video_prompt_embed = nn.ModuleDict({
            kind: TimeEmbedding(cfg["latent_channels"], width) for kind in cfg["video_prompts"]
        })
        for embed in self.video_prompt_embed.values():
            nn.init.normal_(embed.linear_2.weight, std=0.01)
            nn.init.zeros_(embed.linear_2.bias)

    def video_features(self, latents: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """latents [B,T,Z,h,w] of the control pictures, kinds [B] (index in `video_prompts`, -1: none) -> [B,T,N,D]."""
        z = latents.flatten(3).transpose(2, 3)  # [B,T,N,Z]
        total = 0.0
        for i, embed in enumerate(self.video_prompt_embed.values()):
            total = total + embed(z) * (kinds == i).to(z.dtype).view(-1, 1, 1, 1)
        return total

    def bind(self, actions, previous, text, text_mask, select=None, enabled=None, video=None, trace=None) -> Hook:
        """actions and previous (the keys of the frame before) [B,T,6]; text [B,K,L,Dt]; see `InstructBlock`.

        video: features from `video_features`, or None where no clip has a video prompt.
        """
        b, t = actions.shape[:2]
        action = self.action_embed(torch.cat([actions, previous], -1).to(text.dtype))  # [B,T,Da]
        if trace is not None:
            trace["action_embed"] = action
            if video is not None:
                trace["video_features"] = video
        if select is None:
            select = torch.zeros(b, t, dtype=torch.long, device=actions.device)
        enabled = torch.ones(b, device=actions.device) if enabled is None else enabled
        arguments = (action, text, text_mask, select, enabled.to(action.dtype).view(b, 1, 1, 1))
        return Hook(self.blocks, arguments, video)
