"""Do the keys do what they say: the inverse-dynamics judge for each key, and the sign of motion under opposite keys.

Starts: "text" holds the key from the first frame of a text-only start, "live" after a second of walking in the same
session, "rendered" after rendered frames of a test world (only where there is a renderer).
"""
import torch

from .. import captions
from ..ceilings import key_right, share
from ..judges import Judges
from ..video_prompts import motion_field
from .maker import Maker, keys_tensor

COUNTED = ["W", "S", "A", "D", "SPACE"]
RENDERED_FRAMES = 4
GRID_CENTER = 0.5


def script(key: str, walk: int, held: int) -> list:
    """Frames of walking, then the key of a script; SHIFT goes with W, "none" is no key."""
    names = {"SHIFT": "W SHIFT", "none": ""}.get(key, key)
    return [["W", walk], [names, held]]


def directions(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """u8 [B,T,H,W,3] -> mean shift to the right of the upper half and mean motion away from the centre, each [B].

    Units: half-size pixels a frame, from the motion of blocks.
    """
    field = motion_field(frames)[:, 1:].float()  # [B,T-1,h,w,2]
    h, w = field.shape[2:4]
    shift = field[:, :, :(h + 1) // 2, :, 0].mean((1, 2, 3))
    y = torch.arange(h, device=field.device)[:, None].expand(h, w) - (h - 1) * GRID_CENTER
    x = torch.arange(w, device=field.device)[None].expand(h, w) - (w - 1) * GRID_CENTER
    away = torch.stack([x, y], -1) / torch.sqrt(x * x + y * y).clamp(min=1.0)[..., None]  # [h,w,2]
    return shift, (field * away)[:, :, h // 3:].sum(-1).mean((1, 2, 3))


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
    rows, motion = {}, {}
    for key, frames in clips.items():
        rows[key] = share(key_right(judges.keys(frames), None if key == "none" else key))
        motion[key] = directions(frames)
    signs = {"W_S": motion["W"][1] > motion["S"][1], "A_D": motion["A"][0] > motion["D"][0]}
    return {"keys": rows, "sign": {name: share(right) for name, right in signs.items()},
            "motion": {key: {"right": float(m[0].mean()), "away": float(m[1].mean())} for key, m in motion.items()}}


def summary(starts: dict) -> dict:
    """The success of all starts together: the smaller of both tests counts."""
    dynamics = [s["keys"][key] for s in starts.values() for key in COUNTED]
    signs = [row for s in starts.values() for row in s["sign"].values()]
    mean = lambda rows: sum(r["value"] * r["count"] for r in rows) / sum(r["count"] for r in rows)
    return {"value": min(mean(dynamics), mean(signs)), "count": sum(r["count"] for r in dynamics),
            "inverse_dynamics": mean(dynamics), "sign": mean(signs), "starts": starts}


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
