"""Text of the training clips: captions of what a clip shows and instructions that change it.

The paper captions game video in five parts (arXiv 2411.00769, section 2.2): character, environment, actions,
atmosphere and camera. The renderer knows these exactly, so captions are put together from synonyms and templates.
"""
import random

BIOMES = ["meadow", "desert", "snow", "forest", "volcanic", "alien"]
LIGHTING = ["day", "sunset", "night", "dawn"]
WEATHER = ["clear", "rain", "snow", "fog"]
EFFECTS = ["none", "fire", "sandstorm", "magic"]
CHARACTERS = ["robot", "knight", "rider", "wizard"]
COLORS = ["red", "blue", "green", "gold"]
PERSPECTIVE = ["third", "first"]
ATTRIBUTES = [("biome", BIOMES), ("lighting", LIGHTING), ("weather", WEATHER), ("effects", EFFECTS),
              ("character", CHARACTERS), ("color", COLORS), ("perspective", PERSPECTIVE)]
INSTRUCTION_TEMPLATE = "environment light: {lighting}. weather: {weather}. effect: {effects}."

WORDS = {
    "biome": {
        "meadow": ["a green meadow", "rolling grassland", "grassy hills with flowers", "a lush green valley",
                   "open countryside with trees and cottages", "green plains", "a grass field", "a flower meadow"],
        "desert": ["a sandy desert", "golden sand dunes", "an arid desert with cacti", "the desert",
                   "a dry wasteland of dunes and red rocks", "a hot desert", "dunes of sand"],
        "snow": ["a snowy mountain landscape", "a frozen tundra", "snow covered hills with pine trees",
                 "a white winter land", "an icy snowfield", "a snowy land", "snowy mountains", "an ice world"],
        "forest": ["a dense forest", "deep woodland", "an autumn forest with pines", "the woods",
                   "a dark forest full of trees and rocks", "a forest", "a jungle of trees"],
        "volcanic": ["a volcanic wasteland", "black volcanic rock with rivers of lava",
                     "a scorched land of lava and ash", "a burning volcano region", "a lava field with dark spires",
                     "a volcano", "volcanic land with magma"],
        "alien": ["an alien planet", "a strange purple world with glowing crystals", "another planet with teal water",
                  "an alien landscape of giant mushrooms and crystals", "a fantasy crystal valley", "an alien world",
                  "a magical crystal land"],
    },
    "lighting": {
        "day": ["during the day", "in bright daylight", "at noon", "under a blue sky", "in the daytime", "at midday",
                "on a sunny day", "in sunlight"],
        "sunset": ["at sunset", "at dusk", "in the orange evening light", "under a setting sun", "in the evening",
                   "at twilight", "with a sunset sky"],
        "night": ["at night", "in the dark of night", "under the moon and stars", "in moonlight", "at midnight",
                  "on a dark night", "under a starry sky", "by night"],
        "dawn": ["at dawn", "at sunrise", "in the early morning", "in soft pink morning light", "at daybreak",
                 "in the morning"],
    },
    "weather": {
        "clear": ["clear weather", "a clear sky", "no clouds", "fair weather", "calm clear air", "sunny weather",
                  "a cloudless sky"],
        "rain": ["rain", "heavy rain", "a rainy storm", "falling rain and wet ground", "rainy weather", "a rainstorm",
                 "drizzle"],
        "snow": ["snow", "falling snow", "a snowfall", "snowflakes in the air", "snowy weather", "a blizzard",
                 "a snowstorm"],
        "fog": ["fog", "thick fog", "mist", "a foggy haze", "misty weather", "foggy weather", "dense mist"],
    },
    "effects": {
        "none": ["", "", "no special effects", "nothing unusual happens", ""],
        "fire": ["fire and embers", "burning ground with flying sparks", "flames and glowing embers",
                 "fire everywhere", "sparks of fire", "fire", "burning flames"],
        "sandstorm": ["a sandstorm", "blowing sand and dust", "a dust storm", "swirling sand",
                      "strong wind with sand", "sandstorm", "dust in the wind"],
        "magic": ["magic sparkles", "magical lights and an aurora", "a glowing spell of blue magic",
                  "enchanted particles", "arcane magic in the air", "magic", "glowing magic lights"],
    },
    "character": {
        "robot": ["robot", "android", "mech", "machine", "robot explorer", "droid", "cyborg"],
        "knight": ["knight", "armored knight", "warrior in armor", "swordsman", "knight with a cape", "warrior",
                   "paladin"],
        "rider": ["rider on a horse", "horse rider", "cowboy on horseback", "horseman", "traveler riding a horse",
                  "cowboy", "rider"],
        "wizard": ["wizard", "sorcerer", "mage", "wizard with a staff", "old wizard", "spellcaster"],
    },
    "color": {
        "red": ["red", "crimson", "scarlet"], "blue": ["blue", "azure", "navy"], "green": ["green", "emerald"],
        "gold": ["golden", "yellow", "gold"],
    },
    "perspective": {
        "third": ["third person view", "seen from behind", "a third person game", "camera behind the character",
                  "third-person perspective", "third person", "over the shoulder camera"],
        "first": ["first person view", "seen through the eyes of the character", "a first person game", "pov shot",
                  "first-person perspective", "first person", "fps game"],
    },
}
MOVES = {
    "idle": ["stands still", "waits", "is idle", "stands"],
    "forward": ["walks forward", "moves ahead", "is walking", "walks", "explores", "wanders", "goes forward"],
    "run": ["runs forward", "is running", "sprints ahead", "runs", "rushes ahead"],
    "back": ["walks backward", "steps back", "moves back"],
    "left": ["turns left", "looks to the left"], "right": ["turns right", "looks to the right"],
    "jump": ["jumps", "leaps"],
}
FULL_TEMPLATES = [
    "{V}. a {C} {H} {M} in {B} {T}, with {W}{E}.", "{C} {H} {M}, {B}, {T}, {W}{E}, {V}",
    "open world game: {B} {T}. {W}{E}. the player is a {C} {H} who {M}. {V}.",
    "in {B}, {T}, a {C} {H} {M}. weather: {W}{E}. {V}.", "a {C} {H} {M} through {B} {T}{E}, {W}, {V}.",
    "{B} with {W} {T}{E}; a {C} {H}; {V}", "a video game in {V} where a {C} {H} {M} across {B} {T} in {W}{E}",
    "cinematic open world video game, {B}, {T}, {W}{E}, {C} {H}, {V}",
    "character: {C} {H}. environment: {B}. light: {T}. weather: {W}{E}. camera: {V}. action: {M}.",
]
SHORT_TEMPLATES = [
    "{B}, {T}", "{H} in {B}", "a {C} {H} {T}", "{B} with {W}", "{C} {H}, {B}, {T}, {W}", "{V}, {B}", "{B}{E}",
    "{T}, {W}{E}", "{B}", "a {C} {H} in {B}", "a {H} {M} in {B} {T}", "{B} {T} in {V}", "a {C} {H} {M}",
    "a beautiful game world: {B} {T}", "play a {C} {H} in {B}",
]

# Words around a prompt that say nothing about the picture.
PREFIXES = ["show me", "i want to see", "please make", "an epic scene of", "a realistic view of",
            "a very detailed view of", "high quality video of", "an adventure in this style:", "explore",
            "play in", "a big open world:",
            "imagine", "create a game with", "generate"]

# Free instructions; each list entry says only what changes.
CHANGES = {
    "lighting": {
        "day": ["turn to day", "make it day", "the sun comes up", "change the time to noon", "let it be bright day"],
        "sunset": ["turn to sunset", "make it sunset", "the sun goes down", "change the light to evening"],
        "night": ["turn to night", "make it night", "night falls", "make it dark", "change the time to midnight"],
        "dawn": ["turn to dawn", "make it dawn", "morning comes", "the sun rises", "change the light to sunrise"],
    },
    "weather": {
        "clear": ["make it clear", "the sky clears", "stop the rain", "stop the snow", "remove the fog",
                  "clear the weather", "the weather becomes clear"],
        "rain": ["make it rain", "let it rain", "it starts to rain", "start the rain", "rain falls now"],
        "snow": ["make it snow", "let it snow", "it starts to snow", "start a snowfall", "snow falls now"],
        "fog": ["make it foggy", "fog comes up", "mist rises", "add fog", "the air becomes misty"],
    },
    "effects": {
        "none": ["stop the effect", "remove the effect", "the fire goes out", "end the sandstorm", "the magic ends"],
        "fire": ["the ground catches fire", "set the ground on fire", "start a fire", "add fire", "let it burn"],
        "sandstorm": ["start a sandstorm", "a sandstorm comes up", "the wind blows sand", "add a dust storm"],
        "magic": ["cast a magic spell", "add magic", "magic lights appear", "start the magic", "the air glows"],
    },
}
UNKNOWN_WORD = "<unk>"
PREFIX_SHARE = 0.12


def caption(values: list[int], rng: random.Random, move: str, short: float = 0.3) -> str:
    """A caption of a clip with these attribute values (order of ATTRIBUTES) whose character does `move`."""
    word = {name: rng.choice(WORDS[name][names[values[i]]]) for i, (name, names) in enumerate(ATTRIBUTES)}
    template = rng.choice(SHORT_TEMPLATES if rng.random() < short else FULL_TEMPLATES)
    effect = " and " + word["effects"] if word["effects"] else ""
    text = template.format(V=word["perspective"], C=word["color"], H=word["character"], M=rng.choice(MOVES[move]),
                           B=word["biome"], T=word["lighting"], W=word["weather"], E=effect)
    if rng.random() < PREFIX_SHARE:
        text = rng.choice(PREFIXES) + " " + text
    return text.replace("  ", " ")


def instruction(values: list[int], rng: random.Random | None = None, plain: float = 0.5) -> str:
    """The structured instruction for the state `values`; without an rng, or in a share `plain`, the bare names."""
    names = {name: names[values[i]] for i, (name, names) in enumerate(ATTRIBUTES)}
    if rng is not None and rng.random() >= plain:
        names = {name: rng.choice(WORDS[name][names[name]]) or "none" for name in ("lighting", "weather", "effects")}
    return INSTRUCTION_TEMPLATE.format(lighting=names["lighting"], weather=names["weather"], effects=names["effects"])


def change(before: list[int], after: list[int], rng: random.Random) -> str | None:
    """A free instruction for what differs between two states, or None where nothing differs."""
    for i, (name, names) in enumerate(ATTRIBUTES):
        if name in CHANGES and before[i] != after[i]:
            return rng.choice(CHANGES[name][names[after[i]]])
    return None


def damage(text: str, rng: random.Random, unknown: float = 0.06, drop: float = 0.04) -> str:
    """Replaces words by the unknown word and drops some, so that unseen words in a prompt do little harm."""
    words = []
    for word in text.split(" "):
        draw = rng.random()
        if draw >= unknown + drop:
            words.append(word)
        elif draw < unknown:
            words.append(UNKNOWN_WORD)
    return " ".join(words)


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
    """Every phrase and template, for the vocabulary."""
    texts = [p for group in (*WORDS.values(), MOVES) for phrases in group.values() for p in phrases]
    texts += [p for group in CHANGES.values() for phrases in group.values() for p in phrases]
    blank = dict(V="", C="", H="", M="", B="", T="", W="", E="")
    texts += [t.format(**blank) for t in FULL_TEMPLATES + SHORT_TEMPLATES]
    names = " ".join(n for _, values in ATTRIBUTES for n in values)
    return texts + PREFIXES + [names, INSTRUCTION_TEMPLATE.format(lighting="", weather="", effects="")]
