"""Text of the training clips: captions of what a clip shows and instructions that change it.

The paper captions game video in five parts (arXiv 2411.00769, section 2.2): character, environment, actions,
atmosphere and camera. The renderer knows these exactly, so captions are put together from the phrases of `phrases.py`:
short ones of a few words, medium ones of one sentence or two, long ones of a sentence or more for each part. Many leave
attributes unsaid; `caption_said` tells which ones were said.
"""
import random
from string import Formatter

from .phrases import CHANGES, DETAILS, LONG, MOVES, PARTIAL, PREFIXES, SHORT_TEMPLATES, TEMPLATES, WORDS

BIOMES = ["meadow", "desert", "snow", "forest", "volcanic", "alien"]
LIGHTING = ["day", "sunset", "night", "dawn"]
WEATHER = ["clear", "rain", "snow", "fog"]
EFFECTS = ["none", "fire", "sandstorm", "magic"]
CHARACTERS = ["robot", "knight", "rider", "wizard"]
COLORS = ["red", "blue", "green", "gold"]
PERSPECTIVE = ["third", "first"]
ATTRIBUTES = [("biome", BIOMES), ("lighting", LIGHTING), ("weather", WEATHER), ("effects", EFFECTS),
              ("character", CHARACTERS), ("color", COLORS), ("perspective", PERSPECTIVE)]
PLACES = {"V": "perspective", "C": "color", "H": "character", "B": "biome", "T": "lighting", "W": "weather",
          "E": "effects"}  # letters of the templates; M is the movement
INSTRUCTION_PARTS = {"lighting": "environment light: {lighting}.", "weather": "weather: {weather}.",
                     "effects": "effect: {effects}."}
INSTRUCTION_TEMPLATE = " ".join(INSTRUCTION_PARTS.values())
PREFIX_SHARE = 0.12
KIND_SHARES = {"short": 0.3, "partial": 0.15, "medium": 0.35, "long": 0.2}
DETAIL_SHARE = 0.5  # share of the optional sentences that a long caption contains


def named(values: list[int]) -> dict[str, str]:
    """Names of the attribute values (order of ATTRIBUTES)."""
    return {name: names[values[i]] for i, (name, names) in enumerate(ATTRIBUTES)}


def fill(template: str, names: dict[str, str], rng: random.Random, move: str) -> tuple[str, set[str]]:
    """The template with a phrase in each place, and the attributes it says."""
    letters = {field for _, field, _, _ in Formatter().parse(template) if field}
    words, said = {"M": rng.choice(MOVES[move])}, set()
    for letter in sorted(letters - {"M"}):
        name = PLACES[letter]
        words[letter] = rng.choice(WORDS[name][names[name]])
        if words[letter]:
            said.add(name)
    if words.get("E"):
        words["E"] = " and " + words["E"]
    return template.format(**words), said


def partial(names: dict[str, str], rng: random.Random) -> tuple[str, set[str]]:
    """Fragments of one to three attributes, in any order."""
    chosen = rng.sample(sorted(names), rng.choice([1, 1, 2, 2, 3]))
    fragments, said = [], set()
    for name in chosen:
        text = rng.choice(WORDS[name][names[name]])
        if text:
            fragments.append(rng.choice(PARTIAL[name]).format(text))
            said.add(name)
    return rng.choice([", ", ", ", " ", ". "]).join(fragments) or "a game", said


def long_caption(names: dict[str, str], rng: random.Random, move: str) -> tuple[str, set[str]]:
    """Several sentences: character, environment, action, atmosphere and camera, each with optional details."""
    sentences, said = [], set()
    for part, attributes in LONG["details"].items():
        text, told = fill(rng.choice(LONG["parts"][part]), names, rng, move)
        sentences.append(text)
        said |= told
        for name in attributes:
            if rng.random() < DETAIL_SHARE:
                sentences.append(rng.choice(DETAILS[name][names[name]]))
                said.add(name)
    if rng.random() < DETAIL_SHARE:
        sentences.append(rng.choice(LONG["closing"]))
    return " ".join(s for s in sentences if s), said


def caption_said(values: list[int], rng: random.Random, move: str, short: float | None = None) -> tuple[str, set[str]]:
    """A caption of a clip with these values (order of ATTRIBUTES) whose character does `move`, and what it says.

    `short` is the share of short captions; 0 also leaves out the partial ones, so that all attributes but an absent
    effect are said.
    """
    shares = dict(KIND_SHARES)
    if short is not None:
        shares |= {"short": short, "partial": 0.0}
        rest = (1 - short) / (shares["medium"] + shares["long"])
        shares |= {kind: shares[kind] * rest for kind in ("medium", "long")}
    kind = rng.choices(list(shares), list(shares.values()))[0]
    names = named(values)
    if kind == "partial":
        text, said = partial(names, rng)
    elif kind == "long":
        text, said = long_caption(names, rng, move)
    else:
        text, said = fill(rng.choice(SHORT_TEMPLATES if kind == "short" else TEMPLATES), names, rng, move)
    if rng.random() < PREFIX_SHARE:
        text = rng.choice(PREFIXES) + " " + text
    return text.replace("  ", " ").strip(), said


def caption(values: list[int], rng: random.Random, move: str, short: float | None = None) -> str:
    """The text alone of `caption_said`."""
    return caption_said(values, rng, move, short)[0]


def known(values: list[int], rng: random.Random | None = None, plain: float = 0.5) -> dict[str, str]:
    """What a structured instruction says of a state: the bare names, or with an rng in a share 1 - plain, phrases."""
    names = named(values)
    if rng is not None and rng.random() >= plain:
        return {name: rng.choice(WORDS[name][names[name]]) or "none" for name in INSTRUCTION_PARTS}
    return {name: names[name] for name in INSTRUCTION_PARTS}


def instruction(known: dict[str, str]) -> str:
    """The structured instruction of what is known among lighting, weather and effects; empty where nothing is."""
    extra = set(known) - set(INSTRUCTION_PARTS)
    if extra:
        raise ValueError(f"instruction about {sorted(extra)}: allowed are {list(INSTRUCTION_PARTS)}")
    return " ".join(part.format(**known) for name, part in INSTRUCTION_PARTS.items() if name in known)


def change(before: list[int], after: list[int], rng: random.Random) -> str | None:
    """A free instruction for one thing that differs between two states, or None where nothing differs."""
    differing = [i for i, (name, _) in enumerate(ATTRIBUTES) if name in CHANGES and before[i] != after[i]]
    if not differing:
        return None
    i = rng.choice(differing)
    name, names = ATTRIBUTES[i]
    choices = list(CHANGES[name][names[after[i]]])
    if name == "weather" and names[after[i]] == "clear":
        choices += CHANGES["stop_weather"][names[before[i]]]
    if name == "effects" and names[after[i]] == "none":
        choices += CHANGES["stop_effects"][names[before[i]]]
    return rng.choice(choices)


def damage(text: str, rng: random.Random, typo: float = 0.03, drop: float = 0.05) -> str:
    """Drops some words and swaps letters in others, so that slips in a prompt do little harm."""
    words = []
    for word in text.split(" "):
        draw = rng.random()
        if draw >= typo + drop:
            words.append(word)
        elif draw < typo and len(word) > 3:
            i = rng.randrange(1, len(word) - 2)
            words.append(word[:i] + word[i + 1] + word[i] + word[i + 2:])
    return " ".join(words) or text


def move_names(actions) -> list[str]:
    """The dominant movement of each clip from its keys [B,T,6] (numpy): a key of MOVES."""
    names = []
    for w, s, a, d, space, shift in actions.mean(1):
        if w > 0.5:
            names.append("run" if shift > 0.4 else "forward")
        elif s > 0.5:
            names.append("back")
        elif a > 0.5:
            names.append("left")
        elif d > 0.5:
            names.append("right")
        elif space > 0.3:
            names.append("jump")
        else:
            names.append("idle" if w < 0.2 else "forward")
    return names


def all_texts() -> list[str]:
    """Every phrase and every template without its places."""
    texts = [p for group in (*WORDS.values(), *DETAILS.values(), *CHANGES.values(), MOVES) for ps in group.values()
             for p in ps]
    blank = dict.fromkeys([*PLACES, "M"], "")
    templates = SHORT_TEMPLATES + TEMPLATES + [t for ts in LONG["parts"].values() for t in ts]
    texts += [t.format(**blank) for t in templates] + [t.format("") for ts in PARTIAL.values() for t in ts]
    names = " ".join(n for _, values in ATTRIBUTES for n in values)
    parts = INSTRUCTION_TEMPLATE.format(lighting="", weather="", effects="")
    return texts + PREFIXES + LONG["closing"] + [names, parts]
