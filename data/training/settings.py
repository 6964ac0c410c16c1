"""What the steps share: the shape of the model, the recipe of its training, the way files are written."""

import os
from dataclasses import dataclass

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCAB_SIZE = 4096
TEMPERATURE, TOP_P = 0.8, 0.95


@dataclass(frozen=True)
class ModelShape:
    """The shape of the Llama-architecture model."""

    vocab: int = VOCAB_SIZE
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 688
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 2048


@dataclass(frozen=True)
class Recipe:
    """The training recipe; a stage is (context, windows per step, share of tokens)."""

    stages: tuple = ((512, 8, 0.85), (2048, 2, 0.15))
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    weight_decay: float = 0.1
    warmup_share: float = 0.02
    decay_share: float = 0.6
    final_rate: float = 0.03
    grad_clip: float = 1.0
    spaced_share: float = 0.3


def write_atomically(path, text):
    """Write a text file under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
