"""Word-level tokenizer over a fixed word list, kept in Hugging Face's tokenizer.json format."""
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from .captions import all_texts

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
MAX_LENGTH = 40
VOCABULARY = Path(__file__).with_name("vocabulary.txt")  # one word a line, in the order of their ids; only append


def words() -> list[str]:
    """The vocabulary in the order of the ids."""
    return VOCABULARY.read_text().split("\n")[:-1]


def build(vocabulary: list[str]) -> Tokenizer:
    """Lower case; punctuation on its own; unknown words become <unk>; </s> at the end; at most MAX_LENGTH ids."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("[.,:;!?]"), "isolated"), pre_tokenizers.WhitespaceSplit()])
    end = vocabulary.index(END)
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.enable_padding(pad_id=vocabulary.index(PAD), pad_token=PAD, length=MAX_LENGTH)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], device="cpu") -> torch.Tensor:
    """Token ids [B,MAX_LENGTH]; a padded place has id 0."""
    ids = [e.ids for e in tokenizer.encode_batch(texts)]
    return torch.tensor(ids, dtype=torch.long).to(device)


def missing_words() -> list[str]:
    """Words of the captions that the vocabulary lacks."""
    known = set(words())
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("[.,:;!?]"), "isolated"), pre_tokenizers.WhitespaceSplit()])
    used = {word for text in all_texts() for word, _ in split.pre_tokenize_str(text.lower())}
    return sorted(used - known)
