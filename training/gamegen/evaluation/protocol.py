"""The fixed scripts of the evaluation: prompts with what they say, changes, keys, seeds.

`models/gamegen-x-mini/evaluation.json` holds them as plain data, so that every engine measures the same. All draws
are made once, by `build`; the keys of the long sessions come from the generator `Draws`, which is written down here:
x <- (1664525 x + 1013904223) mod 2^32, and a draw is x div 2^8 as a share of 2^24.
"""
import json
import random
from pathlib import Path

from .. import captions
from ..judges import KEYS
from ..world import UNSEEN

VERSION = 1
SEED = 2026
PARAPHRASES = Path(__file__).resolve().parents[2] / "paraphrases.tsv"
INSTRUCTED = ("lighting", "weather", "effects")
COUNTS = {"keys": 32, "seen": 384, "unseen": 192, "instruction": 6, "text": 2, "sessions": 20, "pictures": 8}
KEY_SCRIPTS = ["W", "S", "A", "D", "SPACE", "SHIFT", "none"]
PLAIN_SHARE = 0.3  # prompts without an effect
# Keys of the long sessions: names, weight. A key set is held until a draw is below CHANGE; jumps come on top.
MODES = [["", 8], ["W", 20], ["W A", 10], ["W D", 10], ["A", 13], ["D", 13], ["S", 8], ["W SHIFT", 8],
         ["W A SHIFT", 3], ["W D SHIFT", 3], ["S A", 2], ["S D", 2]]
CHANGE, JUMP, JUMP_FRAMES = 0.07, 0.035, 3


class Draws:
    """The generator of the long sessions' keys."""

    def __init__(self, seed: int):
        self.x = seed % (1 << 32)

    def share(self) -> float:
        """The next draw in 0..1."""
        self.x = (1664525 * self.x + 1013904223) % (1 << 32)
        return (self.x >> 8) / (1 << 24)


def random_keys(plan: dict, session: int, frames: int) -> list[list[int]]:
    """Keys [frames][6] of a session. Each frame draws: new keys? (if so: which), a jump?"""
    draws = Draws(plan["seed"] + session)
    total = sum(weight for _, weight in plan["modes"])
    rows, held, jump = [], [], 0
    for frame in range(frames):
        if draws.share() < plan["change"] or frame == 0:
            place = draws.share() * total
            for names, weight in plan["modes"]:
                place -= weight
                if place < 0:
                    break
            held = names.split()
        jump = plan["jump_frames"] if draws.share() < plan["jump"] else max(0, jump - 1)
        rows.append([int(key in held or (key == "SPACE" and jump > 0)) for key in KEYS])
    return rows


def says_unseen(values: list[int], pairs=None) -> list:
    """The held-out pairs that these attribute values contain."""
    names = named(values)
    return [pair for pair in pairs or UNSEEN if all(names[attribute] == value for attribute, value in pair)]


def named(values: list[int]) -> dict[str, str]:
    """Attribute -> name of its value."""
    return {name: names[values[i]] for i, (name, names) in enumerate(captions.ATTRIBUTES)}


def draw_values(rng: random.Random, unseen: bool, **fixed: str) -> list[int]:
    """Attribute values with or without a held-out pair; fixed: attribute -> name."""
    while True:
        values = [rng.randrange(len(names)) for _, names in captions.ATTRIBUTES]
        if rng.random() < PLAIN_SHARE:
            values[3] = 0
        if unseen:
            for attribute, value in rng.choice(UNSEEN):
                fixed = fixed | {attribute: value}
        for i, (name, names) in enumerate(captions.ATTRIBUTES):
            if name in fixed:
                values[i] = names.index(fixed[name])
        if bool(says_unseen(values)) == unseen:
            return values


def entry(values: list[int], rng: random.Random, short: float | None = 0.0) -> dict:
    """A prompt for these values with what it says. short 0: it says all but an absent effect.

    Nobody has given an instruction yet when a session starts, so the prompt has to do all.
    """
    text, said = captions.caption_said(values, rng, "forward", short)
    names = named(values)
    return {"text": text, "says": {name: names[name] for name, _ in captions.ATTRIBUTES if name in said}}


def full_entry(values: list[int], rng: random.Random, short: float | None = 0.0) -> dict:
    """The same with all values, said or not: for what is compared with renders."""
    return entry(values, rng, short) | {"values": named(values)}


def unseen_entry(rng: random.Random) -> dict:
    """A prompt that says a combination which training never showed."""
    while True:
        values = draw_values(rng, True)
        found = entry(values, rng)
        if any(all(attribute in found["says"] for attribute, _ in pair) for pair in says_unseen(values)):
            return found


def changes(rng: random.Random, count: int, free: bool) -> list[dict]:
    """Changes from each value of light, weather and effect to each other one, `count` of each."""
    rows = []
    for name in INSTRUCTED:
        column = [n for n, _ in captions.ATTRIBUTES].index(name)
        values = captions.ATTRIBUTES[column][1]
        for before in values:
            for after in (v for v in values if v != before):
                for i in range(count):
                    rows.append(change_entry(rng, column, before, after, "free" if free else ("all", "one")[i % 2]))
    return rows


def change_entry(rng: random.Random, column: int, before: str, after: str, form: str) -> dict:
    """One change: the prompt, then the instruction that changes one attribute.

    form: "free" words, a structured instruction of "all" the environment as it will be, or of what changes as the only
    "one".
    """
    name, names = captions.ATTRIBUTES[column]
    while True:
        old = draw_values(rng, False, **{name: before})
        new = list(old)
        new[column] = names.index(after)
        if not says_unseen(new):
            break
    words = {k: v for k, v in named(new).items() if k in INSTRUCTED and (form == "all" or k == name)}
    then = captions.change(old, new, rng) if form == "free" else captions.instruction(words)
    return entry(old, rng) | {"attribute": name, "from": before, "to": after, "form": form, "then": then}


def paraphrases() -> list[dict]:
    """Prompts written by hand: text TAB name=value ..., none from the templates."""
    rows, allowed = [], dict(captions.ATTRIBUTES)
    for number, line in enumerate(PARAPHRASES.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        text, _, rest = line.partition("\t")
        says = dict(pair.split("=") for pair in rest.split())
        for name, value in says.items():
            if value not in allowed.get(name, []):
                raise ValueError(f"{PARAPHRASES.name}:{number}: {name}={value}; allowed are "
                                 f"{allowed.get(name) or list(allowed)}")
        rows.append({"text": text, "says": says})
    return rows


def build() -> dict:
    """The whole protocol."""
    rng = random.Random(SEED)
    views = lambda i: {"perspective": captions.PERSPECTIVE[i % 2], "biome": captions.BIOMES[i % len(captions.BIOMES)]}
    plain = lambda i: full_entry(draw_values(rng, False, **views(i)), rng)
    return {
        "version": VERSION, "size": [320, 192], "frame_rate": 24, "steps": 1, "seed": SEED,
        "keys": {"prompts": [plain(i) for i in range(COUNTS["keys"])], "scripts": KEY_SCRIPTS, "walk": 24, "held": 24,
                 "settled": 8},
        "alignment": {"key": "W", "frames": 24, "judged_from": 8,
                      "seen": [full_entry(draw_values(rng, False), rng, None) for _ in range(COUNTS["seen"])],
                      "unseen": [unseen_entry(rng) for _ in range(COUNTS["unseen"])], "paraphrases": paraphrases()},
        "instructions": {"key": "W", "before": 24, "after": 48, "judged": 8,
                         "structured": changes(rng, COUNTS["instruction"], False),
                         "text": changes(rng, COUNTS["text"], True)},
        "drift": {"prompts": [plain(i) for i in range(COUNTS["sessions"])], "frames": {"60s": 1440, "10min": 14400},
                  "walk": 24, "probe": ["W", "A", "D", "S", "SPACE"], "held": 24, "settled": 8, "seed": SEED,
                  "modes": MODES, "change": CHANGE, "jump": JUMP, "jump_frames": JUMP_FRAMES, "last": 24,
                  "checks": 10},
        "pictures": {"prompts": [plain(i) for i in range(COUNTS["pictures"])], "frames": 72,
                     "script": [["W", 24], ["W D", 12], ["W", 8], ["A", 12], ["W SPACE", 4], ["W", 12]]},
    }


def text_of(plan: dict) -> str:
    """JSON with one prompt a line."""
    def lines(value, depth: int) -> str:
        pad = "\n" + " " * depth
        if isinstance(value, dict) and any(isinstance(v, (dict, list)) for v in value.values()) and "text" not in value:
            inner = ("," + pad).join(f"{json.dumps(k)}: {lines(v, depth + 1)}" for k, v in value.items())
            return "{" + pad + inner + "\n" + " " * (depth - 1) + "}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[" + pad + ("," + pad).join(json.dumps(v) for v in value) + "\n" + " " * (depth - 1) + "]"
        return json.dumps(value)
    return lines(plan, 1) + "\n"


def load(path: Path) -> dict:
    """Reads the protocol; another version is an error."""
    plan = json.loads(Path(path).read_text())
    if plan.get("version") != VERSION:
        raise ValueError(f"{path}: version is {plan.get('version')}; allowed is {VERSION}: write it anew with "
                         "`eval.py protocol`")
    return plan


def small(plan: dict, count: int) -> dict:
    """A small frame, few prompts and short clips: to see on a CPU that everything runs. Its figures mean nothing."""
    plan = shortened(plan, count) | {"size": [160, 96]}
    plan["keys"] |= {"walk": 2, "held": 10, "settled": 4}
    plan["alignment"] |= {"frames": 18, "judged_from": 10}
    plan["instructions"] |= {"before": 2, "after": 8, "judged": 4}
    plan["drift"] |= {"walk": 16, "held": 10, "settled": 4, "probe": ["W", "A"], "checks": 2,
                      "frames": {name: 80 for name in plan["drift"]["frames"]}}
    plan["pictures"] |= {"frames": 8}
    return plan


def shortened(plan: dict, count: int) -> dict:
    """The same protocol with at most `count` prompts a list, evenly taken; for tries on a CPU."""
    def cut(value):
        if isinstance(value, dict):
            return {k: cut(v) for k, v in value.items()}
        if isinstance(value, list) and len(value) > count and isinstance(value[0], dict):
            return [value[i * len(value) // count] for i in range(count)]
        return value
    return cut(plan)
