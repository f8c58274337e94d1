"""Do the keys do what they say: the inverse-dynamics judge for each key, and the sign of motion under opposite keys.

Starts: "text" holds the key from the first frame of a text-only start, "live" after a second of walking in the same
session, "rendered" after rendered frames of a test world (only where there is a renderer).
"""
import torch

from .. import captions
from ..ceilings import key_right, share, signs
from ..judges import Judges
from .maker import Maker, keys_tensor

COUNTED = ["W", "S", "A", "D", "SPACE"]
RENDERED_FRAMES = 4


def script(key: str, walk: int, held: int) -> list:
    """Frames of walking, then the key of a script; SHIFT goes with W, "none" is no key."""
    names = {"SHIFT": "W SHIFT", "none": ""}.get(key, key)
    return [["W", walk], [names, held]]


def keys_of_scripts(plan: dict, walk: int, device) -> torch.Tensor:
    """Keys [K,walk + held,6] of all scripts."""
    return torch.cat([keys_tensor(script(key, walk, plan["held"]), device) for key in plan["scripts"]])


def prompts_by_script(maker: Maker, plan: dict, keys: torch.Tensor) -> list:
    """Batches of (prompts, keys [B,T,6]): every prompt under every script, prompts in the inner order."""
    prompts, scripts = plan["prompts"], len(plan["scripts"])
    pairs = [(p, k) for k in range(scripts) for p in prompts]
    return [([p for p, _ in part], keys[[k for _, k in part]]) for part in maker.batches(pairs)]


def generated(maker: Maker, plan: dict, start: str, seed: int) -> dict[str, torch.Tensor]:
    """Judged frames u8 [B,16,H,W,3] of each key script of the protocol."""
    walk, parts = (plan["walk"] if start == "live" else 0), []
    keys = keys_of_scripts(plan, walk, maker.device)
    for number, (entries, pressed) in enumerate(prompts_by_script(maker, plan, keys)):
        latents = maker.roll(maker.stream(entries, seed + number), pressed)
        parts.append(maker.decode(latents, walk + plan["settled"], walk + plan["held"]))
    return dict(zip(plan["scripts"], torch.cat(parts).split(len(plan["prompts"]))))


def continued(maker: Maker, world, plan: dict, seed: int) -> dict[str, torch.Tensor]:
    """The same after RENDERED_FRAMES rendered frames of the prompts' values in test worlds, under W."""
    keys, parts = keys_of_scripts(plan, 0, maker.device), []
    for number, (entries, pressed) in enumerate(prompts_by_script(maker, plan, keys)):
        columns = {name: world_column(entries, name) for name in entries[0]["values"]}
        gen = torch.Generator(maker.device).manual_seed(seed + number)
        state, _ = world.reset(len(entries), gen, split="test", unseen="any", **columns)
        walk = keys_tensor([["W", 30]], maker.device).expand(len(entries), -1, -1)
        params = world.simulate(state, walk)[:, -RENDERED_FRAMES:].contiguous()
        latents = maker.encode(world.render(params, maker.height, maker.width, 2))
        stream = maker.stream(entries, seed + number)
        stream.seed(latents, walk[:, :RENDERED_FRAMES])
        parts.append(maker.decode(maker.roll(stream, pressed), plan["settled"], plan["held"]))
    return dict(zip(plan["scripts"], torch.cat(parts).split(len(plan["prompts"]))))


def world_column(prompts: list[dict], name: str) -> torch.Tensor:
    """Numbers of the values of one attribute."""
    return torch.tensor([dict(captions.ATTRIBUTES)[name].index(p["values"][name]) for p in prompts])


def measure_start(clips: dict[str, torch.Tensor], judges: Judges) -> dict:
    """Rows of one kind of start from the judged frames of each script."""
    logits = {key: judges.keys(frames) for key, frames in clips.items()}
    rows = {key: share(key_right(found, None if key == "none" else key)) for key, found in logits.items()}
    return {"keys": rows} | signs(logits, clips)


def summary(starts: dict) -> dict:
    """The success of all starts together: the smaller of both tests counts. Block motion stands beside them."""
    mean = lambda rows: sum(r["value"] * r["count"] for r in rows) / sum(r["count"] for r in rows)
    dynamics = [s["keys"][key] for s in starts.values() for key in COUNTED]
    sign, blocks = ([row for s in starts.values() for row in s[name].values()] for name in ("sign", "block_sign"))
    return {"value": min(mean(dynamics), mean(sign)), "count": sum(r["count"] for r in dynamics),
            "inverse_dynamics": mean(dynamics), "sign": mean(sign), "block_sign": mean(blocks), "starts": starts}


def measure(maker: Maker, judges: Judges, plan: dict, world=None) -> dict:
    """Key success of the protocol's scripts. `value` is that of text and live starts; rendered ones have their row."""
    run = lambda start: measure_start(generated(maker, plan, start, 101), judges)
    result = summary({start: run(start) for start in ("text", "live")})
    if world is not None:
        result["rendered"] = measure_start(continued(maker, world, plan, 103), judges)
    return result


def ceiling(table: dict) -> float:
    """What the inverse-dynamics judge says of rendered clips under the same scripts, over the keys that count."""
    return sum(table["keys"][key]["value"] for key in COUNTED) / len(COUNTED)
