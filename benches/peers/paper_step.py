"""The same denoising step as the plan of src/model/paper.rs, in PyTorch: its time stands beside ours.

    python3 benches/peers/paper_step.py --config models/gamegen-x/config.json [--sizes 320x256,848x480] \\
        [--compile-seconds 60] [--out FILE]

bf16, fused attention (scaled_dot_product_attention) and guidance as a batch of two; the weights are random. Prints one
JSON object: device, versions, and for each size the milliseconds of a step, eager and compiled (median of a few). What
cannot run has its reason instead. With --out the object goes into a file, first without compiled times: those may never
come. torch.compile gets each kind of block once, in a process of its own for each size, all at once, with so many seconds
to be done; 0 leaves it out.
"""
import argparse
import json
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SIZES = "320x256,848x480,1280x720"
RUNS = {"320x256": 10, "848x480": 5, "1280x720": 3}


class Attention(nn.Module):
    """Self-attention with QK-norm and rotary positions: x [G, L, D] -> [G, L, D]."""

    def __init__(self, c: dict):
        super().__init__()
        d, self.heads, self.eps = c["hidden_size"], c["num_heads"], c["norm_eps"]
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.norm_q, self.norm_k = (nn.Parameter(torch.ones(d // self.heads)) for _ in range(2))

    def forward(self, x, cos, sin):
        g, length, d = x.shape
        q, k, v = self.qkv(x).view(g, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 x [G, H, L, hd]
        q = rotate(F.rms_norm(q, q.shape[-1:], self.norm_q, self.eps), cos, sin)
        k = rotate(F.rms_norm(k, k.shape[-1:], self.norm_k, self.eps), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(g, length, d))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Cross(nn.Module):
    """Attention of h [B, L, D] to the text [B, Lt, D]."""

    def __init__(self, c: dict):
        super().__init__()
        d, self.heads, self.eps = c["hidden_size"], c["num_heads"], c["norm_eps"]
        self.q, self.kv, self.out = (nn.Linear(d, n * d, bias=False) for n in (1, 2, 1))
        self.norm_q, self.norm_k = (nn.Parameter(torch.ones(d // self.heads)) for _ in range(2))

    def forward(self, h, text):
        b, length, d = h.shape
        x = F.rms_norm(h, (d,), None, self.eps)
        q = self.q(x).view(b, length, self.heads, -1).transpose(1, 2)
        k, v = self.kv(text).view(b, text.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = F.rms_norm(q, q.shape[-1:], self.norm_q, self.eps)
        k = F.rms_norm(k, k.shape[-1:], self.norm_k, self.eps)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, length, d))


class Block(nn.Module):
    """Self-attention over space or time, cross-attention, feed-forward; adaLN from the step's six vectors."""

    def __init__(self, c: dict, temporal: bool):
        super().__init__()
        d, self.temporal, self.eps = c["hidden_size"], temporal, c["norm_eps"]
        self.table = nn.Parameter(torch.randn(6, d) / d**0.5)
        self.attention, self.cross = Attention(c), Cross(c)
        self.up, self.down = nn.Linear(d, c["mlp_ratio"] * d), nn.Linear(c["mlp_ratio"] * d, d)

    def forward(self, h, text, step, cos, sin):
        """h [B, T, N, D]."""
        b, t, n, d = h.shape
        shift, scale, gate, shift2, scale2, gate2 = (self.table + step).unbind(0)
        x = F.rms_norm(h, (d,), None, self.eps) * (1 + scale) + shift
        if self.temporal:
            y = self.attention(x.transpose(1, 2).reshape(b * n, t, d), cos, sin)
            y = y.view(b, n, t, d).transpose(1, 2)
        else:
            y = self.attention(x.reshape(b * t, n, d), cos, sin).view(b, t, n, d)
        h = h + gate * y
        h = h + self.cross(h.reshape(b, t * n, d), text).view(b, t, n, d)
        x = F.rms_norm(h, (d,), None, self.eps) * (1 + scale2) + shift2
        return h + gate2 * self.down(F.gelu(self.up(x), approximate="tanh"))


class Paper(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        d, z = c["hidden_size"], c["latent_channels"] * c["patch_size"] ** 2
        self.c, self.embed, self.head = c, nn.Linear(z, d), nn.Linear(d, z)
        self.time = nn.Sequential(nn.Linear(2 * c["time_frequencies"], d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.modulation, self.head_modulation = nn.Linear(d, 6 * d), nn.Linear(d, 2 * d)
        self.blocks = nn.ModuleList(Block(c, temporal) for _ in range(c["num_layers"]) for temporal in (False, True))

    def forward(self, x, level, text, tables):
        """One Euler step of x [T, N, Z] with guidance: both halves of the batch, the text [2, Lt, D] and none."""
        e = self.time(level)  # [1, D]
        step = self.modulation(e).view(6, -1)
        h = self.embed(x).expand(2, *x.shape[:2], -1)
        for block in self.blocks:
            h = block(h, text, step, *tables[block.temporal])
        shift, scale = self.head_modulation(e).view(2, -1)
        v = self.head(F.rms_norm(h, h.shape[-1:], None, self.c["norm_eps"]) * (1 + scale) + shift)
        guided = v[1] + self.c["guidance"] * (v[0] - v[1])
        return x + guided / 30


def rope(count: int, c: dict, device, base: float):
    hd = c["hidden_size"] // c["num_heads"]
    rates = base ** (-torch.arange(hd // 2, device=device) / (hd // 2))
    angles = torch.outer(torch.arange(count, device=device).float(), rates)
    angles = torch.cat((angles, angles), -1)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def timed(step, runs: int, device) -> float:
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    step()
    times = []
    for _ in range(runs):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def products(c: dict, sizes: str, device) -> dict:
    """TFLOP/s of the products of the step, by MxNxK."""
    d, out = c["hidden_size"], {}
    for rows in rows_of(c, sizes):
        x = {k: torch.randn(rows, k, dtype=torch.bfloat16) for k in (d, c["mlp_ratio"] * d)}
        for n, k in ((3 * d, d), (d, d), (c["mlp_ratio"] * d, d), (d, c["mlp_ratio"] * d)):
            w = torch.randn(n, k, dtype=torch.bfloat16)
            ms = timed(lambda: x[k] @ w.T, 10, device)
            out[f"{rows}x{n}x{k}"] = 2 * rows * n * k / ms / 1e9
    return out


def attentions(c: dict, sizes: str, device) -> dict:
    """TFLOP/s of fused attention at the step's shapes, by sequences x queries x keys."""
    heads, hd, out = c["num_heads"], c["hidden_size"] // c["num_heads"], {}
    t = frames_of(c)
    for rows in rows_of(c, sizes):
        n = rows // (2 * t)
        for groups, queries, keys, launches in ((2 * t, n, n, 1), (n, t, t, 2), (2, t * n, c["text_tokens"], 1)):
            # The plan does the places of each half in an operation of its own; here both go at once.
            make = lambda length: torch.randn(groups * launches, heads, length, hd, dtype=torch.bfloat16)
            q, k, v = make(queries), make(keys), make(keys)
            ms = timed(lambda: F.scaled_dot_product_attention(q, k, v), 10, device)
            out[f"{groups}x{queries}x{keys}"] = 4 * groups * launches * queries * keys * heads * hd / ms / 1e9
    return out


def frames_of(c: dict) -> int:
    return -(-c["frames"] // c["temporal_factor"])


def rows_of(c: dict, sizes: str) -> list[int]:
    side = c["spatial_factor"] * c["patch_size"]
    areas = ((int(w) // side) * (int(h) // side) for w, h in (size.split("x") for size in sizes.split(",")))
    return [2 * frames_of(c) * n for n in areas]


def stepper(model, c: dict, size: str, device):
    """One step at a size, as a call without arguments."""
    w, h = map(int, size.split("x"))
    side = c["spatial_factor"] * c["patch_size"]
    n, t = (w // side) * (h // side), frames_of(c)
    x = torch.randn(t, n, c["latent_channels"] * c["patch_size"] ** 2, dtype=torch.bfloat16)
    text = torch.randn(2, c["text_tokens"], c["hidden_size"], dtype=torch.bfloat16)
    level = torch.randn(1, 2 * c["time_frequencies"], dtype=torch.bfloat16)
    kinds = ((n, "spatial"), (t, "temporal"))
    space, time_ = (rope(count, c, device, c[f"rope_{kind}_base"]) for count, kind in kinds)
    return lambda: model(x, level, text, {False: space, True: time_})


def attempt(step, size: str, device, ready=lambda: None):
    """Milliseconds; a size that does not fit or compile costs its entry, not the table."""
    try:
        step()
        ready()
        return timed(step, RUNS.get(size, 3), device)
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0][:160]}"


def ready():
    """Tells the parent that everything is compiled, and waits for its word to measure."""
    print("ready", flush=True)
    sys.stdin.readline()


def all_compiled(args, sizes: list[str]) -> dict:
    """Milliseconds of the compiled steps. Each size compiles in a process of its own, all at once, and is timed alone."""
    own = [sys.executable, __file__, "--config", str(args.config), "--device", args.device, "--compiled"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    children = {size: subprocess.Popen([*own, size], **pipes) for size in sizes}
    until, out = time.monotonic() + args.compile_seconds, {}
    for size, child in children.items():
        said, _, _ = select.select([child.stdout], [], [], max(0.0, until - time.monotonic()))
        line = child.stdout.readline().strip() if said else None
        if line is None:
            child.kill()
            out[size] = f"not compiled within {args.compile_seconds} s"
        elif line != "ready":
            out[size] = json.loads(line) if line else f"the process ended with {child.wait()}"
    for size, child in children.items():
        if size not in out:
            try:
                line, _ = child.communicate("go\n", timeout=60)
                out[size] = json.loads(line)
            except (subprocess.TimeoutExpired, ValueError) as e:
                child.kill()
                out[size] = f"compiled, but not timed: {type(e).__name__}"
    return {size: out[size] for size in sizes}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("models/gamegen-x/config.json"))
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile-seconds", type=int, default=60)
    parser.add_argument("--out", type=Path, help="file for the result instead of the standard output")
    parser.add_argument("--compiled", metavar="SIZE", help="print only the time of the compiled step")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("skipped: PyTorch finds no GPU here")
    c = json.loads(args.config.read_text())
    device = torch.device(args.device)
    torch.manual_seed(0)
    with torch.no_grad(), device:
        model = Paper(c).to(torch.bfloat16).eval()
        if args.compiled:
            for block in model.blocks:
                block.compile(dynamic=False)
            step = stepper(model, c, args.compiled, device)
            print(json.dumps(attempt(step, args.compiled, device, ready)))
            return
        sizes = args.sizes.split(",")
        name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
        out = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda,
               "parameters": sum(p.numel() for p in model.parameters()),
               "gemm_tflops": products(c, args.sizes, device), "attention_tflops": attentions(c, args.sizes, device),
               "eager_ms": {size: attempt(stepper(model, c, size, device), size, device) for size in sizes}}
    del model
    if args.device == "cuda":
        torch.cuda.empty_cache()
    if args.out:
        args.out.write_text(json.dumps(out | {"compiled_ms": {}}) + "\n")
    out["compiled_ms"] = all_compiled(args, sizes) if args.compile_seconds > 0 else {}
    if args.out:
        args.out.write_text(json.dumps(out) + "\n")
    else:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
