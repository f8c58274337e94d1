#!/usr/bin/env python3
"""Checks of the text side: pieces, captions, instructions, the hand-written paraphrases, the teacher's storage."""
import os
import random
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from gamegen import captions, checkpoint, lexicon, phrases, teacher, text_data, text_encoder, text_heads, tokenizer

PARAPHRASES = 200
PER_VALUE_MIN = 3
TEXT_ENCODER_BYTES = 5 << 20
TEACHER_BYTES = 15 << 20
PUBLISHED = [0.6660, 0.1046, 0.1411]  # cosines in the documentation of sentence-transformers
FIRST_PIECES = ["<pad>", "</s>", "<unk>", "!", '"', "#"]


def test_pieces():
    pieces = tokenizer.words()
    assert pieces[:6] == FIRST_PIECES and len(pieces) == len(set(pieces)) <= 8192
    assert all(p and p == p.strip() for p in pieces)
    tok = tokenizer.build(pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "tokenizer.json")
        tok.save(path)
        again = tokenizer.Tokenizer.from_file(path)
    for text in ["A sorcerer in a CRIMSON robe!", "snow, café; 12:30", "", "x" * 150]:
        assert again.encode(text).ids == tok.encode(text).ids
        assert tok.encode(text).ids[-1] == 1
    assert tok.encode("!").ids == [3, 1]


def test_every_ascii_text_has_pieces():
    tok, rng = tokenizer.build(tokenizer.words()), random.Random(1)
    printable = [chr(c) for c in range(32, 127)]
    texts = printable + ["".join(rng.choices(printable, k=40)) for _ in range(500)]
    texts += ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=30)) for _ in range(200)]
    assert all(2 not in e.ids for e in tok.encode_batch(texts))
    for word in ("moors", "qzxv9", "extraterrestrials"):
        joined = "".join(t.removeprefix("##") for t in tok.encode(word).tokens[:-1])
        assert joined == word, joined


def test_encode_pads_and_cuts():
    tok = tokenizer.build(tokenizer.words())
    ids = tokenizer.encode(tok, ["rain, snow!", "night " * 400])
    assert ids.shape == (2, tokenizer.MAX_LENGTH) and (ids[0] != 0).sum() == 5 and ids[1, -1] == 1
    short = tokenizer.encode(tok, ["night " * 400], length=16)
    assert short.shape == (1, 16) and short[0, -1] == 1 and short[0, 0] == short[0, 14]
    for length in (1, tokenizer.MAX_LENGTH + 1):
        try:
            tokenizer.encode(tok, ["a"], length=length)
        except ValueError as error:
            assert str(length) in str(error)
        else:
            raise AssertionError(length)


def every_value():
    """Lists of attribute values in which each value occurs."""
    return [[(k + shift) % len(names) for k, (_, names) in enumerate(captions.ATTRIBUTES)] for shift in range(12)]


def test_captions():
    tok, rng = tokenizer.build(tokenizer.words()), random.Random(2)
    texts, counts = [], Counter()
    for values in every_value() * 150:
        text, said = captions.caption_said(values, rng, rng.choice(list(captions.MOVES)))
        assert text and "{" not in text and "  " not in text and said <= set(text_data.NAMES), text
        counts[len(said)] += 1
        texts.append(text)
    lengths = [len(e.ids) for e in tok.encode_batch(texts)]
    longest, shortest = max(lengths), min(lengths)
    assert 100 < longest < tokenizer.MAX_LENGTH and shortest <= 4, (longest, shortest)
    assert all(counts[n] for n in (1, 2, 3, 6, 7)), counts
    whole = [captions.caption_said(v, rng, "run", 0.0)[1] | {"effects"} for v in every_value()]
    assert all(len(said) == len(text_data.NAMES) for said in whole)


def test_phrases_cover_every_value():
    for name, values in captions.ATTRIBUTES:
        for value in values:
            for table in (phrases.WORDS, phrases.DETAILS, lexicon.LABELLED):
                assert len([p for p in table[name][value] if p]) >= 2, (name, value)
    for name in captions.INSTRUCTION_PARTS:
        assert set(phrases.CHANGES[name]) == set(dict(captions.ATTRIBUTES)[name])
    owners = Counter(p for name in lexicon.LABELLED for ps in lexicon.LABELLED[name].values() for p in set(ps))
    both = {"dark", "inferno", "northern lights", "early"} | {p for p, n in owners.items() if n == 1}
    assert set(owners) <= both, set(owners) - both


def test_instructions():
    assert captions.instruction({}) == ""
    assert captions.instruction({"effects": "fire", "lighting": "night"}) == "environment light: night. effect: fire."
    state = captions.known([0] * 7)
    assert captions.instruction(state) == captions.INSTRUCTION_TEMPLATE.format(**state)
    try:
        captions.instruction({"biome": "snow"})
    except ValueError as error:
        assert "biome" in str(error) and "weather" in str(error)
    else:
        raise AssertionError("biome")
    rng, before = random.Random(3), [0] * 7
    assert captions.change(before, before, rng) is None
    for i in (1, 2, 3):
        after = before[:i] + [1] + before[i + 1:]
        assert captions.change(before, after, rng) and captions.change(after, before, rng)


def test_damage_never_empties():
    rng = random.Random(4)
    assert all(captions.damage("a red robot walks in the desert", rng, 0.5, 0.5) for _ in range(200))


def test_paraphrases():
    """Hand-written, of all values, and in words of their own.

    A text that holds a whole phrase of the captions of two words or more (articles aside), or no word that the
    captions lack, would measure the templates and not the vocabulary.
    """
    pairs = text_heads.paraphrases()
    assert len(pairs) == len({text for text, _ in pairs}) == PARAPHRASES, len(pairs)
    counts = Counter(f"{name}={value}" for _, said in pairs for name, value in said.items())
    for name, values in captions.ATTRIBUTES:
        for value in values:
            assert counts[f"{name}={value}"] >= PER_VALUE_MIN, (name, value)
    bare = [re.sub(r"^(a|an|the) ", "", p) for p in captions.all_texts()]
    lists = [f" {p} " for p in bare if len(p.split()) >= 2]
    used = text_heads.words_of(captions.all_texts())
    wrong = [(text, p) for text, _ in pairs for p in lists if p in f" {text} "]
    assert wrong == [], wrong
    stale = [text for text, _ in pairs if not text_heads.words_of([text]) - used]
    assert stale == [], stale


def test_paraphrase_errors_name_the_line():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.tsv"
        for line, part in (("no tab", "a tab"), ("x\tbiome=sea", "meadow"), ("x\tsize=big", "biome")):
            path.write_text("frost\tbiome=snow\n" + line + "\n")
            try:
                text_heads.paraphrases(path)
            except ValueError as error:
                assert "p.tsv:2" in str(error) and part in str(error), error
            else:
                raise AssertionError(line)


def test_training_texts_are_labelled():
    writer = text_data.Writer(5, {"biome": {"snow": ["icy cape"]}})
    texts, labels = writer.texts(3000)
    assert all(texts) and labels.shape == (3000, 7)
    assert all(int(labels[:, i].max()) == unsaid and int(labels[:, i].min()) == text_data.IGNORE
               for i, unsaid in enumerate(text_data.UNSAID))
    hand = {text for text, _ in text_heads.paraphrases()}
    assert not hand & set(texts)


def test_batches_hold_every_row_once():
    lengths = torch.randint(2, 90, (500,))
    groups = text_data.batches(lengths, 1000, random.Random(6))
    assert sorted(torch.cat(groups).tolist()) == list(range(500))
    assert all(len(g) == 1 or len(g) * int(lengths[g].max()) <= 1000 for g in groups)


def test_teacher_storage():
    """8 bits by row keep the teacher's sentences; padding does not change them."""
    torch.manual_seed(7)
    fresh = teacher.Teacher(200).eval()
    state = checkpoint.dequantize(checkpoint.quantize(fresh.state_dict()))
    assert set(state) == set(fresh.state_dict())
    stored = teacher.Teacher(200).eval()
    stored.load_state_dict(state)
    ids = torch.randint(1, 200, (4, 12))
    padded = torch.nn.functional.pad(ids, (0, 5))
    with torch.no_grad():
        (_, a), (_, b), (pieces, c) = fresh(ids), stored(ids), stored(padded)
    assert (a * b).sum(-1).min() > 0.999 and (b - c).abs().max() < 1e-5 and pieces.shape == (4, 17, teacher.WIDTH)


def test_teacher_file():
    """The packed teacher, where GAMEGEN_TEACHER names it, gives the similarities that its makers publish."""
    path = os.environ.get("GAMEGEN_TEACHER")
    if not path:
        return "GAMEGEN_TEACHER names no file"
    assert Path(path).stat().st_size <= TEACHER_BYTES
    tok, model = tokenizer.build(tokenizer.words()), teacher.load(path)
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    _, s = model(tokenizer.encode(tok, texts, length=16))
    found = torch.stack([s[0] @ s[1], s[0] @ s[2], s[1] @ s[2]])
    assert (found - torch.tensor(PUBLISHED)).abs().max() < 0.03, found


def test_encoder_size():
    model = text_encoder.T5Encoder(text_encoder.default_config(len(tokenizer.words())))
    assert model.cfg["max_length"] == tokenizer.MAX_LENGTH
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_part(Path(folder), model.cfg, model.state_dict(), "model")
        size = (Path(folder) / "model.safetensors").stat().st_size
    assert size <= TEXT_ENCODER_BYTES, size


def main():
    for test in [f for name, f in globals().items() if name.startswith("test_")]:
        skipped = test()
        print(f"{test.__name__}: {'skipped: ' + skipped if skipped else 'ok'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
