"""Linear heads that read the attributes from mean-pooled text features, and what they get right on paraphrases.

The engine needs none of this: the heads shape the features while the encoder learns, and measure them.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from . import lexicon, phrases, tokenizer
from .text_data import IGNORE, NAMES, UNSAID, VALUES

PARAPHRASES = Path(__file__).parent.parent / "paraphrases.tsv"
SPLITTER = tokenizer.build(tokenizer.words())
COMMON_LETTERS = 3  # words of up to so many letters say nothing


class Heads(nn.Module):
    """Features [B,D] -> for each attribute logits [B,values+1]; the last one is "unsaid"."""

    def __init__(self, width: int):
        super().__init__()
        self.of = nn.ModuleDict({name: nn.Linear(width, count + 1) for name, count in zip(NAMES, UNSAID)})

    def forward(self, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: head(pooled) for name, head in self.of.items()}

    def loss(self, pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy over the attributes; labels [B,7] int64, IGNORE where nobody knows."""
        losses = [F.cross_entropy(logits, labels[:, i], ignore_index=IGNORE, reduction="sum")
                  for i, logits in enumerate(self(pooled).values())]
        return sum(losses) / (labels != IGNORE).sum().clamp(min=1)


def pool(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the real pieces: [B,L,D], [B,L] -> [B,D]."""
    return (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def paraphrases(path: Path = PARAPHRASES) -> list[tuple[str, dict[str, str]]]:
    """The hand-written texts and what they say. Errors name the line and what is allowed."""
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text, tab, said = line.partition("\t")
        if not tab or not text:
            raise ValueError(f"{path.name}:{number}: allowed is text, a tab, name=value")
        values = dict(item.split("=", 1) for item in said.split(" "))
        for name, value in values.items():
            if value not in VALUES.get(name, []):
                raise ValueError(f"{path.name}:{number}: {name}={value}: allowed are {VALUES.get(name, NAMES)}")
        pairs.append((text, values))
    return pairs


def words_of(texts: list[str]) -> set[str]:
    """The words of the texts as the tokenizer sees them before it cuts them into pieces."""
    split = (SPLITTER.pre_tokenizer.pre_tokenize_str(SPLITTER.normalizer.normalize_str(text)) for text in texts)
    return {word for pairs in split for word, _ in pairs}


def hold_out(labelled: dict) -> dict:
    """The labelled phrases without those that share a word with a paraphrase: to see what the teacher alone brings."""
    used = {w for w in words_of([text for text, _ in paraphrases()]) if len(w) > COMMON_LETTERS}
    return {name: {value: [p for p in texts if not words_of([p]) & used] for value, texts in values.items()}
            for name, values in labelled.items()}


def taught_words(name: str, value: str) -> set[str]:
    """Words of more than COMMON_LETTERS letters that a training text uses to say this value."""
    texts = [*lexicon.LABELLED[name][value], *phrases.WORDS[name][value], *phrases.DETAILS[name][value],
             *phrases.CHANGES.get(name, {}).get(value, [])]
    return {w for w in words_of(texts) if len(w) > COMMON_LETTERS}


@torch.no_grad()
def judge(text_model, heads: Heads, tok, dev, length: int = 64) -> dict:
    """Accuracy on the paraphrases.

    values: the right value is the likeliest one of the attribute; strict: "unsaid" is not likelier; new: `values`
    where no word of the text says that value in training; false_claims: share of the unsaid attributes of which a
    value is told.
    """
    pairs = paraphrases()
    ids = tokenizer.encode(tok, [text for text, _ in pairs], dev, length)
    logits = {n: v.float().cpu() for n, v in heads(pool(*text_model(ids))).items()}
    words = [words_of([text]) for text, _ in pairs]
    result, mistakes, claims, silent = {}, [], 0, 0
    for i, name in enumerate(NAMES):
        best, strict = logits[name][:, :-1].argmax(1).tolist(), logits[name].argmax(1).tolist()
        rows = [r for r, (_, said) in enumerate(pairs) if name in said]
        right = {r: VALUES[name].index(pairs[r][1][name]) for r in rows}
        taught = {value: taught_words(name, value) for value in VALUES[name]}
        new = [r for r in rows if not words[r] & taught[pairs[r][1][name]]]
        claims += sum(strict[r] != UNSAID[i] for r in range(len(pairs)) if r not in right)
        silent += len(pairs) - len(rows)
        result[name] = {"count": len(rows), "values": share([best[r] == right[r] for r in rows]),
                        "strict": share([strict[r] == right[r] for r in rows]),
                        "new_count": len(new), "new": share([best[r] == right[r] for r in new])}
        mistakes += [f"{pairs[r][0]}: {name}={VALUES[name][best[r]]}, not {VALUES[name][right[r]]}"
                     for r in rows if best[r] != right[r]]
    mean = {key: share([result[n][key] for n in NAMES]) for key in ("values", "strict")}
    new = [result[n] for n in NAMES if result[n]["new_count"]]
    mean["new"] = round(sum(r["new"] * r["new_count"] for r in new) / max(1, sum(r["new_count"] for r in new)), 4)
    return {"attributes": result, "mean": mean, "false_claims": round(claims / silent, 4), "mistakes": mistakes}


def share(items: list) -> float:
    return round(sum(items) / max(1, len(items)), 4)


def table(report: dict) -> str:
    """The report as lines."""
    lines = [f"{n:12} {r['count']:4} values {r['values']:.3f} strict {r['strict']:.3f} new {r['new']:.3f} "
             f"({r['new_count']})" for n, r in report["attributes"].items()]
    mean = report["mean"]
    return "\n".join(lines + [f"mean values {mean['values']:.3f} strict {mean['strict']:.3f} new {mean['new']:.3f} "
                              f"false claims {report['false_claims']:.3f}"])
