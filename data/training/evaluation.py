"""The saved checkpoint measured: against transformers, and by its perplexity."""

import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from .model import Llama
from .settings import BOS, ModelShape


def load_checkpoint(model_folder, **options):
    """Load the saved BF16 weights with transformers."""
    return AutoModelForCausalLM.from_pretrained(model_folder, **options).eval()


@torch.no_grad()
def check_against_transformers(reference, shape, model_folder, seed):
    """Compare the logits of this file's model with those of transformers; return the gap."""
    model = Llama(shape)
    weights = load_file(model_folder / "model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(shape.vocab, (1, shape.max_positions), generator=generator)
    ours, theirs = model(tokens), reference(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    return (ours - theirs).abs().max().item()


@torch.no_grad()
def perplexity(model, token_ids, bos, context, batch_tokens=8192):
    """Return (perplexity, scored tokens) over windows of `context` tokens.

    Each window is BOS and the next `context - 1` tokens of the text, without
    overlap; all positions after the first are scored.  An incomplete last
    window is left out.
    """
    body = context - 1
    windows = torch.tensor(token_ids[: len(token_ids) // body * body]).view(-1, body)
    total = 0.0
    for targets in windows.split(max(1, batch_tokens // context)):
        tokens = torch.cat((torch.full((len(targets), 1), bos), targets), dim=1)
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
        total += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
    return math.exp(total / windows.numel()), windows.numel()


def evaluate(tokenizer, text_path, model_folder, seed):
    """Check the checkpoint and print its size and its perplexity."""
    model = load_checkpoint(model_folder, dtype=torch.float32)
    gap = check_against_transformers(model, ModelShape(), model_folder, seed)
    print(f"logits against transformers: largest difference {gap:.2e}")
    print(f"parameters: {sum(p.numel() for p in model.parameters())}")
    text = text_path.read_text(encoding="utf-8")
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    for context in (512, 2048):
        value, scored = perplexity(model, token_ids, tokenizer.token_to_id(BOS), context)
        print(
            f"{text_path.name}: perplexity {value:.3f} in windows of {context}, "
            f"{scored} of {len(token_ids)} tokens scored",
            flush=True,
        )
