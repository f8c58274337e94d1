"""Texts that the text encoder learns from, with what they say about each attribute.

A label is the index of the value, the count of values where the text says nothing of the attribute ("unsaid"), or
IGNORE where nobody knows: phrases without labels, and what else a pseudo-labelled phrase may say.
"""
import random
from dataclasses import dataclass

import torch

from . import captions, tokenizer
from .lexicon import (CLOTHES, FIGURE_ADJECTIVES, FIGURES, LABELLED, LAND_ADJECTIVES, LAND_NOUNS, LINKS, NEUTRAL,
                      SKY_ADJECTIVES, SKY_NOUNS, VERBS)
from .phrases import PARTIAL, WORDS

IGNORE = -1
NAMES = [name for name, _ in captions.ATTRIBUTES]
VALUES = dict(captions.ATTRIBUTES)
UNSAID = [len(VALUES[name]) for name in NAMES]  # label "unsaid" of each attribute
KINDS = {"caption": 0.3, "mix": 0.36, "instruction": 0.1, "phrase": 0.14, "words": 0.1}
PSEUDO_SHARE = 0.25  # of the phrases of a mix, those that the teacher labelled
ENCODE_ROWS = 20000


@dataclass
class Bank:
    """Texts as ids [N,300] int16 with labels [N,7] int8 (order of NAMES)."""
    ids: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor  # [N] ids of each text


def label(said: dict[str, str], rest: int | None = None) -> list[int]:
    """Labels of a text that says these values; `rest` is the label of all others, by default unsaid."""
    return [VALUES[name].index(said[name]) if name in said else (UNSAID[i] if rest is None else rest)
            for i, name in enumerate(NAMES)]


def land(rng: random.Random) -> str:
    return f"{rng.choice(LAND_ADJECTIVES)} {rng.choice(LAND_NOUNS)}"


def sky(rng: random.Random) -> str:
    return f"{rng.choice(SKY_ADJECTIVES)} {rng.choice(SKY_NOUNS)}"


def figure(rng: random.Random) -> str:
    return f"{rng.choice(FIGURE_ADJECTIVES)} {rng.choice(FIGURES)}"


def clothing(rng: random.Random) -> str:
    return f"{rng.choice(FIGURE_ADJECTIVES)} {rng.choice(CLOTHES)}"


def candidates(rng: random.Random, count: int) -> list[str]:
    """Short phrases without labels: words and combinations of the word lists, `count` of each at most."""
    words = [w for w in tokenizer.words() if w.isalpha() and len(w) > 2]
    words = rng.sample(words, min(count, len(words)))
    makers = [land, sky, figure, clothing]
    return words + sorted({rng.choice(makers)(rng) for _ in range(count)})


def sentence(rng: random.Random) -> str:
    """A sentence without labels over the broad word lists."""
    pattern = rng.choice(["a {f} {v} {l} the {p}", "the {p} {l} a {s}", "{s} {l} the {p}", "{p} and {p2}, {s}",
                          "a {f} {l} a {p} {l2} a {s}", "{f} with a {c} {v} {l} the {p}", "{n}, {p}, {s}", "{s}, {f}"])
    return pattern.format(f=figure(rng), v=rng.choice(VERBS), l=rng.choice(LINKS), l2=rng.choice(LINKS), p=land(rng),
                          p2=land(rng), s=sky(rng), c=clothing(rng), n=rng.choice(NEUTRAL))


class Writer:
    """Writes labelled texts. `pseudo` holds the phrases that the teacher labelled: attribute -> value -> phrases."""

    def __init__(self, seed: int, pseudo: dict[str, dict[str, list[str]]]):
        self.rng, self.pseudo = random.Random(seed), pseudo
        self.pieces = [w for w in tokenizer.words() if w.isalpha()]

    def values(self) -> list[int]:
        return [self.rng.randrange(len(VALUES[name])) for name in NAMES]

    def caption(self) -> tuple[str, list[int]]:
        rng, values = self.rng, self.values()
        text, said = captions.caption_said(values, rng, rng.choice(list(captions.MOVES)))
        if rng.random() < 0.25:
            text = captions.damage(text, rng, drop=0.0)
        names = captions.named(values)
        return text, label({name: names[name] for name in said})

    def instruction(self) -> tuple[str, list[int]]:
        rng, before, after = self.rng, self.values(), self.values()
        if rng.random() < 0.6:
            name = rng.choice(list(captions.INSTRUCTION_PARTS))
            i = NAMES.index(name)
            only = before[:i] + [after[i]] + before[i + 1:]
            text = captions.change(before, only, rng)
            if text is not None:
                return text, label({name: VALUES[name][after[i]]})
        chosen = rng.sample(list(captions.INSTRUCTION_PARTS), rng.choice([1, 2, 3]))
        names = captions.named(after)
        known = captions.known(after, rng)
        return captions.instruction({n: known[n] for n in chosen}), label({n: names[n] for n in chosen})

    def phrase_of(self, name: str, value: str) -> tuple[str, bool]:
        """A phrase that says this value, and whether only the teacher says so."""
        rng = self.rng
        pseudo = self.pseudo.get(name, {}).get(value, [])
        if pseudo and rng.random() < PSEUDO_SHARE:
            return rng.choice(pseudo), True
        source = LABELLED[name][value] if rng.random() < 0.7 else [w for w in WORDS[name][value] if w]
        return rng.choice(source), False

    def mix(self, values: list[int] | None = None) -> tuple[str, list[int]]:
        """One to four attributes in words of the lexicon, in any order, among words that say nothing; `values` of a
        clip, or random ones."""
        rng, names = self.rng, captions.named(values or self.values())
        chosen = rng.sample(NAMES, rng.choice([1, 1, 2, 2, 3, 4]))
        said, parts, unsure = {}, [], False
        for name in chosen:
            text, pseudo = self.phrase_of(name, names[name])
            unsure |= pseudo
            said[name] = names[name]
            parts.append(rng.choice(PARTIAL[name]).format(text) if rng.random() < 0.35 else text)
        for _ in range(rng.choice([0, 0, 1, 2])):
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(NEUTRAL))
        joints = [", ", " ", ". ", " and ", f" {rng.choice(LINKS)} ", f" {rng.choice(LINKS)} a ", " where a "]
        text = parts[0]
        for part in parts[1:]:
            text += rng.choice(joints) + part
        return text, label(said, IGNORE if unsure else None)

    def phrase(self) -> tuple[str, list[int]]:
        """A phrase or a sentence without labels, or one that says nothing."""
        rng = self.rng
        if rng.random() < 0.2:
            return " ".join(rng.sample(NEUTRAL, rng.choice([1, 1, 2, 3]))), label({})
        return rng.choice([land, sky, figure, clothing, sentence, sentence])(rng), [IGNORE] * len(NAMES)

    def words(self) -> tuple[str, list[int]]:
        """Any words of the vocabulary in a row, for the teacher's geometry."""
        return " ".join(self.rng.choices(self.pieces, k=self.rng.choice([1, 1, 2, 3, 6]))), [IGNORE] * len(NAMES)

    def texts(self, count: int) -> tuple[list[str], torch.Tensor]:
        """`count` texts and their labels [count,7] int8."""
        kinds = self.rng.choices(list(KINDS), list(KINDS.values()), k=count)
        pairs = [getattr(self, kind)() for kind in kinds]
        return [t for t, _ in pairs], torch.tensor([l for _, l in pairs], dtype=torch.int8)


def bank(texts: list[str], labels: torch.Tensor, tok) -> Bank:
    """Encodes texts."""
    parts = [tokenizer.encode(tok, texts[i:i + ENCODE_ROWS]).to(torch.int16) for i in range(0, len(texts), ENCODE_ROWS)]
    ids = torch.cat(parts)
    return Bank(ids, labels, (ids != 0).sum(1))


def short(texts: list[str], labels: torch.Tensor, letters: int) -> tuple[list[str], torch.Tensor]:
    """Only the texts of at most so many letters."""
    rows = [i for i, text in enumerate(texts) if len(text) <= letters]
    return [texts[i] for i in rows], labels[rows]


def batches(lengths: torch.Tensor, tokens: int, rng: random.Random) -> list[torch.Tensor]:
    """One epoch: rows grouped by similar length, at most `tokens` padded ids a batch, in random order."""
    noise = torch.rand(len(lengths), generator=torch.Generator().manual_seed(rng.getrandbits(31)))
    order = torch.argsort(lengths + 2 * noise).tolist()
    sizes = lengths.tolist()
    groups, group, longest = [], [], 0
    for row in order:
        longest = max(longest, sizes[row])
        if group and longest * (len(group) + 1) > tokens:
            groups.append(torch.tensor(group))
            group, longest = [], sizes[row]
        group.append(row)
    groups.append(torch.tensor(group))
    rng.shuffle(groups)
    return groups
