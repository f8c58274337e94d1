"""Do the words do what they say: prompts, structured instructions, free instructions, judged by the attribute judge."""
import torch

from .. import captions
from ..judges import Judges
from .maker import Maker, keys_tensor

FIGURE_OF = {"lighting": "lighting_success", "weather": "weather_success", "effects": "effect_success"}
FRAME_STEP = 2  # every second of the judged frames goes to the judge


def judged(judges: Judges, frames: torch.Tensor) -> list[dict[str, str]]:
    """u8 [B,T,H,W,3] -> for each clip the name of every attribute's likeliest value."""
    guess = judges.attributes(judges.features(frames[:, ::FRAME_STEP]))
    index = {name: guess[name].argmax(-1).tolist() for name, _ in captions.ATTRIBUTES}
    return [{name: values[index[name][i]] for name, values in captions.ATTRIBUTES} for i in range(len(frames))]


def agreement(entries: list[dict], found: list[dict]) -> dict:
    """Rows of the attributes that prompts say: share of clips that show them, and of each value on its own.

    `value` is the plain mean over the attributes that anything was said about.
    """
    rows = {}
    for name, values in captions.ATTRIBUTES:
        pairs = [(e["says"][name], f[name]) for e, f in zip(entries, found) if name in e["says"]]
        if not pairs:
            continue
        row = lambda some: {"value": sum(a == b for a, b in some) / len(some), "count": len(some)}
        own = {v: [p for p in pairs if p[0] == v] for v in values}
        rows[name] = row(pairs) | {"values": {v: row(some) for v, some in own.items() if some}}
    return {"value": sum(r["value"] for r in rows.values()) / len(rows), "count": len(entries), "attributes": rows,
            "lowest": min(rows, key=lambda n: rows[n]["value"])}


def show(maker: Maker, judges: Judges, plan: dict, entries: list[dict], seed: int) -> list[dict]:
    """What text-only starts of these prompts show."""
    keys, found = keys_tensor([[plan["key"], plan["frames"]]], maker.device), []
    for number, part in enumerate(maker.batches(entries)):
        latents = maker.roll(maker.stream(part, seed + number), keys)
        found += judged(judges, maker.decode(latents, plan["judged_from"], plan["frames"]))
    return found


def alignment(maker: Maker, judges: Judges, plan: dict) -> dict:
    """Seen and unseen combinations and paraphrases, and the view that all of them asked for."""
    result, view = {}, []
    for seed, name in enumerate(("seen", "unseen", "paraphrases")):
        entries = plan[name]
        found = show(maker, judges, plan, entries, 1000 * seed + 7)
        result[name] = agreement(entries, found)
        view += [(e["says"]["perspective"], f["perspective"]) for e, f in zip(entries, found)
                 if "perspective" in e["says"]]
    result["view"] = {"value": sum(a == b for a, b in view) / len(view), "count": len(view)} if view else None
    return result


def changed(maker: Maker, judges: Judges, plan: dict, rows: list[dict], seed: int) -> dict:
    """Instructions: the share whose change is seen in the last frames of `after` frames, by attribute and change."""
    before, after = plan["before"], plan["after"]
    keys, hits = keys_tensor([[plan["key"], before + after]], maker.device), []
    for number, part in enumerate(maker.batches(rows)):
        stream = maker.stream(part, seed + number)
        latents = [maker.roll(stream, keys[:, :before])]
        stream.set_instruction(*maker.features([r["then"] for r in part]))
        latents = torch.cat([*latents, maker.roll(stream, keys[:, before:])], 1)
        found = judged(judges, maker.decode(latents, before + after - plan["judged"], before + after))
        hits += [f[r["attribute"]] == r["to"] for r, f in zip(part, found)]
    return tabulated(rows, hits)


def tabulated(rows: list[dict], hits: list[bool]) -> dict:
    """The share of hits over all rows, by attribute, and by value that was asked for."""
    row = lambda some: {"value": sum(h for _, h in some) / len(some), "count": len(some)} if some else None
    pairs, result = list(zip(rows, hits)), {}
    for name in FIGURE_OF:
        own = [p for p in pairs if p[0]["attribute"] == name]
        if own:
            result[name] = row(own) | {"to": {v: row([p for p in own if p[0]["to"] == v])
                                              for v in dict(captions.ATTRIBUTES)[name]}}
    return row(pairs) | {"attributes": result}


def mean_ceiling(table: dict, names: list[str]) -> float:
    """The mean of the attribute judge's ceilings."""
    return sum(table["attributes"][name]["value"] for name in names) / len(names)
