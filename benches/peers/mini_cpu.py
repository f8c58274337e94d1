"""The shipped model in PyTorch on the processor: frames a second beside those of our CPU executor.

    python3 benches/peers/mini_cpu.py --model models/gamegen-x-mini --size 320x192 --steps 2 --threads 2 --ticks 24

The modules are those of training/, which also record the fixtures that the executor is tested against. Prints one JSON
object.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

from fixtures import new_stream  # noqa: E402
from gamegen import captions, checkpoint, tokenizer  # noqa: E402

PROMPT = "A knight in a meadow by day."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/gamegen-x-mini"))
    parser.add_argument("--size", default="320x192")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ticks", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    width, height = map(int, args.size.split("x"))
    model = checkpoint.load_model(args.model, upgrade=True).eval()
    tok = tokenizer.Tokenizer.from_file(str(args.model / "tokenizer" / "tokenizer.json"))
    times, cache = [], {}
    with torch.inference_mode():
        size = (-(-height // 32), -(-width // 32))
        stream, _ = new_stream(model, tok, size, PROMPT, captions.instruction({}))
        action = torch.tensor([[[1.0, 0, 0, 0, 0, 0]]])
        for _ in range(args.ticks + 4):
            begin = time.perf_counter()
            latent = stream.step(action, args.steps)
            pixels = model.vae.decode(model.vae.denormalize(latent), cache)
            # The executor also makes bytes of the picture.
            ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            times.append(time.perf_counter() - begin)
    times = sorted(times[4:])
    print(json.dumps({"torch": torch.__version__, "threads": args.threads, "size": args.size, "steps": args.steps,
                      "frames_per_second": len(times) / sum(times), "median_ms": statistics.median(times) * 1e3}))


if __name__ == "__main__":
    main()
