"""The Llama-architecture model in PyTorch, and the checkpoint it is saved as."""

import json
import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import nn

from .settings import BOS, EOS, TEMPERATURE, TOP_P, write_atomically


class Attention(nn.Module):
    """Causal grouped-query attention with half-split rotary embedding."""

    def __init__(self, shape):
        super().__init__()
        self.head_dim, self.groups = shape.head_dim, shape.heads // shape.kv_heads
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x, rotary):
        def heads_first(projected):
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        def rotate(states):
            cos, sin = rotary
            low, high = states.float().chunk(2, dim=-1)
            turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
            return turned.to(states.dtype)

        query = rotate(heads_first(self.q_proj(x)))
        key = rotate(heads_first(self.k_proj(x))).repeat_interleave(self.groups, dim=1)
        value = heads_first(self.v_proj(x)).repeat_interleave(self.groups, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x, rotary):
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A Llama-architecture model whose parameter names are those of a checkpoint."""

    def __init__(self, shape):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.model.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.model.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        positions = torch.arange(shape.max_positions, dtype=torch.float32)
        angles = torch.outer(positions, shape.rope_theta**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.init_weights(shape)

    def init_weights(self, shape):
        """Draw all matrices small, those that write to the residual stream smaller."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / math.sqrt(2 * shape.layers) if residual else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens):
        """Return the logits for a batch of token windows."""
        rotary = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rotary)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def loss(self, tokens, targets):
        """Return the mean next-token cross-entropy."""
        logits = self(tokens).flatten(0, 1)
        return F.cross_entropy(logits.float(), targets.flatten())


def save_model(model, shape, model_folder):
    """Write config.json, generation_config.json and the BF16 weights."""
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    ids = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **ids,
    }
    generation = {**ids, "do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P}
    write_atomically(model_folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_atomically(
        model_folder / "generation_config.json", json.dumps(generation, indent=2) + "\n"
    )
    weights = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    temporary = model_folder / "model.safetensors.tmp"
    temporary.write_bytes(save(weights, metadata={"format": "pt"}))
    os.replace(temporary, model_folder / "model.safetensors")
