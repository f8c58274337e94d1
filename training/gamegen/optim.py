"""Muon for the hidden matrices, AdamW for the rest, an average of the weights, and the learning rate schedule."""
import math

import torch

NOT_HIDDEN = ("shared", "proj_in", "proj_out", "pos_proj", "scale_shift_table", "relative")
MUON_SCALE = 0.2  # the update has this RMS, about that of AdamW


def orthogonalize(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrices of a stack [K,m,n]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if g.is_cuda else g.float()
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        y = x @ x.mT
        x = a * x + (b * y + c * y @ y) @ x
    return (x.mT if wide else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz; matrices of one shape are handled as a stack."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            stacks = {}
            for p in group["params"]:
                if p.grad is not None:
                    stacks.setdefault(p.shape, []).append(p)
            for shape, params in stacks.items():
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                buffers, grads = [self.state[p]["momentum"] for p in params], [p.grad for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, buffers, group["momentum"])
                update = orthogonalize(torch.stack(ahead)) * (MUON_SCALE * math.sqrt(max(shape)))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update.unbind(0)), alpha=-group["lr"])


def make_optimizers(named: list, lr: float) -> list:
    """Optimizers for named parameters that take gradients; each group remembers its base rate."""
    matrices, rest = [], []
    for name, p in named:
        if p.requires_grad:
            hidden = p.dim() == 2 and min(p.shape) >= 64 and not any(k in name for k in NOT_HIDDEN)
            (matrices if hidden else rest).append(p)
    optimizers = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=rest[0].is_cuda)]
    if matrices:
        optimizers.append(Muon(matrices, lr=2 * lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base"] = group["lr"]
    return optimizers


def rate(done: float, warm: float = 0.02, decay_from: float = 0.5, floor: float = 0.02) -> float:
    """Trapezoid over the fraction of the planned time: rises, stays, falls to `floor`."""
    if done < warm:
        return max(done / warm, 0.02)
    if done < decay_from:
        return 1.0
    return floor + (1 - floor) * max(0.0, 1 - (done - decay_from) / (1 - decay_from))


class Average:
    """Exponential moving average of parameters in f32; it starts fast."""

    def __init__(self, params: list, decay: float):
        self.decay, self.count, self.source = decay, 0, params
        self.values = [p.detach().float().clone() for p in params]

    @torch.no_grad()
    def update(self):
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.source], 1 - decay)

    @torch.no_grad()
    def swap(self):
        """Exchanges the averaged values with the parameters."""
        for p, value in zip(self.source, self.values):
            kept = p.detach().clone()
            p.copy_(value)
            value.copy_(kept)
