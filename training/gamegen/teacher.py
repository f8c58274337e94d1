"""The sentence encoder that the text encoder learns from: all-MiniLM-L6-v2 (Apache-2.0), a BERT of six layers.

The word list is cut to our pieces and matrices are kept in 8 bits by row, so that the file stays under 15 MiB. Row i of
the word table belongs to our piece i; one more row at the end is the classification token that opens each text.
"""
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .checkpoint import dequantize, quantize

WIDTH, HEADS, LAYERS, FEED_FORWARD = 384, 12, 6, 1536
POSITIONS = 304  # 300 pieces of ours, the classification token, and some room
EPSILON = 1e-12


class Layer(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm_attention = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.up, self.down = nn.Linear(WIDTH, FEED_FORWARD), nn.Linear(FEED_FORWARD, WIDTH)
        self.norm_out = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x [B,L,384], mask [B,1,1,L] bool -> [B,L,384]."""
        b, length, _ = x.shape
        q, k, v = (f(x).reshape(b, length, HEADS, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # [B,12,L,32]
        x = self.norm_attention(x + self.out(y.transpose(1, 2).reshape(b, length, -1)))
        return self.norm_out(x + self.down(F.gelu(self.up(x))))


class Teacher(nn.Module):
    """Piece ids [B,L] of our tokenizer -> features of these pieces [B,L,384] and sentences [B,384] of length one."""

    def __init__(self, words: int):
        super().__init__()
        self.words = nn.Embedding(words + 1, WIDTH)
        self.places = nn.Embedding(POSITIONS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = F.pad(ids, (1, 0), value=self.words.num_embeddings - 1)  # [B,1+L]
        mask = ids != 0
        x = self.norm(self.words(ids) + self.places.weight[:ids.shape[1]])  # [B,1+L,384]
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return x[:, 1:], F.normalize(mean.float(), dim=-1)


def renamed(source: dict, rows: list[int]) -> dict:
    """The state of a Teacher from BERT's tensors; `rows` are the source's rows of our pieces, then that of [CLS]."""
    first = source["embeddings.token_type_embeddings.weight"][0]  # all text is of the first kind: added to every place
    state = {"words.weight": source["embeddings.word_embeddings.weight"][rows],
             "places.weight": source["embeddings.position_embeddings.weight"][:POSITIONS] + first}
    names = {"norm": "embeddings.LayerNorm"}
    parts = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
             "out": "attention.output.dense", "norm_attention": "attention.output.LayerNorm",
             "up": "intermediate.dense", "down": "output.dense", "norm_out": "output.LayerNorm"}
    for i in range(LAYERS):
        names |= {f"layers.{i}.{ours}": f"encoder.layer.{i}.{theirs}" for ours, theirs in parts.items()}
    for ours, theirs in names.items():
        state |= {f"{ours}.{kind}": source[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    return state


def pack(source: dict, rows: list[int]) -> dict:
    """The tensors to store."""
    return quantize(renamed(source, rows))


def load(path) -> Teacher:
    """A stored teacher in f32, frozen."""
    state = dequantize(load_file(path))
    teacher = Teacher(state["words.weight"].shape[0] - 1)
    teacher.load_state_dict(state)
    return teacher.eval().requires_grad_(False)
