"""Times PyTorch at the shapes of benches/kernels.rs and writes JSON for its --peer.

    python3 benches/peers/kernels.py --out peer.json

Products are torch.matmul (cuBLAS), attention is scaled_dot_product_attention, convolutions are conv2d in
channels_last (cuDNN), all on the first CUDA device; seconds are the shortest of some runs. The tables of shapes
follow those of benches/kernels.rs, with the same names.
"""

import argparse
import json

import torch
import torch.nn.functional as F

PRODUCTS = [
    (8192, 8192, 8192), (4096, 4096, 4096), (93600, 4608, 1152), (93600, 1152, 4608), (93600, 3456, 1152),
    (93600, 1152, 1152), (187200, 4608, 1152), (82680, 3456, 1152), (16640, 1152, 4608), (8192, 1152, 1152),
    (3600, 1152, 1152), (3840, 1152, 384), (3840, 384, 384), (3840, 1536, 384), (3840, 384, 1536),
    (240, 1152, 384), (240, 384, 384), (240, 1536, 384), (240, 384, 1536),
]
CONVOLUTIONS = [
    (16, 12, 20, 384, 384), (16, 24, 40, 256, 256), (16, 48, 80, 128, 128), (16, 96, 160, 64, 64),
    (16, 96, 160, 64, 192), (1, 12, 20, 384, 384), (1, 96, 160, 64, 64),
]
ATTENTIONS = [
    (26, 3600, 3600, 16, 72), (4, 3600, 3600, 16, 64), (7200, 26, 26, 16, 72), (26, 3600, 300, 16, 72),
    (26, 1590, 1590, 16, 72), (26, 320, 320, 16, 72), (16, 240, 240, 6, 64), (1, 240, 240, 6, 64), (16, 240, 40, 6, 64),
]
RUNS = 10


def shortest(call):
    """Seconds of the fastest of RUNS calls, each timed on the device after one that warms up."""
    call()
    torch.cuda.synchronize()
    best = float("inf")
    for _ in range(RUNS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return best


def noise(*shape, dtype):
    return torch.rand(*shape, device="cuda", dtype=dtype) * 2 - 1


def products(dtype, seconds, suffix):
    for m, n, k in PRODUCTS:
        x, w = noise(m, k, dtype=dtype), noise(n, k, dtype=dtype)
        y = torch.empty(m, n, device="cuda", dtype=dtype)
        seconds[f"linear {m}x{n}x{k}{suffix}"] = shortest(lambda: torch.matmul(x, w.T, out=y))


def fused(dtype, seconds):
    """What eager PyTorch runs for y = y + gate * gelu(x w^T + bias)."""
    for m, n, k in PRODUCTS:
        x, w, bias, gate = noise(m, k, dtype=dtype), noise(n, k, dtype=dtype), noise(n, dtype=dtype), noise(n, dtype=dtype)
        y = noise(m, n, dtype=dtype)
        call = lambda: y + gate * F.gelu(F.linear(x, w, bias), approximate="tanh")  # noqa: E731, B023
        seconds[f"fused {m}x{n}x{k}"] = shortest(call)


def convolutions(dtype, seconds):
    torch.backends.cudnn.benchmark = True
    for p, height, width, cin, cout in CONVOLUTIONS:
        x = noise(p, cin, height, width, dtype=dtype).to(memory_format=torch.channels_last)
        w = noise(cout, cin, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        bias = noise(cout, dtype=dtype)
        call = lambda: F.silu(F.conv2d(x, w, bias, padding=1))  # noqa: E731, B023
        seconds[f"conv3x3 {p}x{height}x{width} {cin}->{cout}"] = shortest(call)


def attentions(dtype, seconds):
    for groups, lq, lk, heads, hd in ATTENTIONS:
        q = noise(groups, heads, lq, hd, dtype=dtype)
        k, v = noise(groups, heads, lk, hd, dtype=dtype), noise(groups, heads, lk, hd, dtype=dtype)
        call = lambda: F.scaled_dot_product_attention(q, k, v)  # noqa: E731, B023
        seconds[f"attention {groups}x{lq}x{lk} {heads}x{hd}"] = shortest(call)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="file for the result")
    parser.add_argument("--only", default="", help="products, fused, convolutions or attentions; all by default")
    arguments = parser.parse_args()
    out = arguments.out
    wanted = lambda part: arguments.only in ("", part)  # noqa: E731
    seconds = {}
    with torch.inference_mode():
        if wanted("products"):
            products(torch.float16, seconds, "")
            products(torch.bfloat16, seconds, " bf16")
        if wanted("fused"):
            fused(torch.float16, seconds)
        if wanted("convolutions"):
            convolutions(torch.float16, seconds)
        if wanted("attentions"):
            attentions(torch.float16, seconds)
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "seconds": seconds}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    for shape, s in seconds.items():
        print(f"{shape:<40} {s * 1e6:>9.1f} us")


if __name__ == "__main__":
    main()
