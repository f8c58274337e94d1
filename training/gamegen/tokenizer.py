"""Subword tokenizer (WordPiece) over a pruned word list, kept in Hugging Face's tokenizer.json format.

`pieces.txt` is a selection from the word list of all-MiniLM-L6-v2 (Apache-2.0; `train_text.py pieces` makes it): all
letters, digits and marks of ASCII, so that every such text has pieces, then what captions need, words near to game
worlds in meaning, and frequent English.
"""
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
MAX_LENGTH = 300  # of the model; training may pad shorter
WORD_LETTERS_MAX = 200  # a longer word becomes <unk>
PIECES = Path(__file__).with_name("pieces.txt")  # one piece a line, in the order of their ids


def words() -> list[str]:
    """The pieces in the order of the ids."""
    return PIECES.read_text().split("\n")[:-1]


def build(pieces: list[str]) -> Tokenizer:
    """Lower case without accents; punctuation on its own; longest pieces first; </s> at the end; <= MAX_LENGTH ids."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=WORD_LETTERS_MAX))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, ids[END])])
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], device="cpu", length: int = MAX_LENGTH) -> torch.Tensor:
    """Token ids [B,length]; a padded place has id 0, a longer text is cut and still ends with </s>."""
    if not 2 <= length <= MAX_LENGTH:
        raise ValueError(f"length {length}: allowed are 2 to {MAX_LENGTH}")
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, encoding in zip(ids, tokenizer.encode_batch(texts)):
        found = [i for i, real in zip(encoding.ids, encoding.attention_mask) if real]
        if len(found) > length:
            found = found[:length - 1] + found[-1:]
        row[:len(found)] = torch.tensor(found)
    return ids.to(device)
