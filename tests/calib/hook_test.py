"""A hook that replaces keys before RoPE, keys after it, or values changes the logits as the same replacement in transformers
does, in float32."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

BUILD = Path(os.environ["KVCAL_BUILD"])
SHARED = Path(os.environ.get("KVCAL_SHARED_DATA", ""))
DUMP = BUILD / "bin" / "hook_dump"
SAMPLES, TOKENS = 2, 41
POINTS = ["key.cached", "key.rotated", "value.cached"]


def random_model(kind, folder):
    """Two query heads to each key head; a window that cuts off most of a sample. Weights small enough that logits are of
    size 1 and attention is not all on one token: rounding stays far below the tolerance."""
    torch.manual_seed(11)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 head_dim=8, vocab_size=96, max_position_embeddings=128, tie_word_embeddings=False,
                 initializer_range=0.2)
    config = {"llama": lambda: transformers.LlamaConfig(**shape),
              "mistral-window": lambda: transformers.MistralConfig(**shape, sliding_window=13)}[kind]()
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def dump(folder, tokens, replacements, scratch):
    """hook_dump: what the hook was shown, and logits."""
    np.save(scratch / "tokens.npy", tokens.astype(np.int32))
    save_file(replacements, scratch / "replacements.safetensors")
    out = scratch / "out.safetensors"
    subprocess.run([DUMP, folder, scratch / "tokens.npy", scratch / "replacements.safetensors", out], check=True)
    return load_file(out)


def replacing_hook(name, replacements, shown):
    """A forward hook of k_proj or v_proj, whose outputs are [1, tokens, kv_heads * dim] before RoPE."""
    def hook(_module, _inputs, output):
        shown[name] = output[0].clone()
        return replacements[name][None] if name in replacements else None
    return hook


def replacing_rope(rope, prefix, replacements, shown):
    """A stand-in for apply_rotary_pos_emb, called once for each layer, in their order; k: [1, kv_heads, tokens, dim]."""
    layers = itertools.count()

    def apply(*arguments, **named):
        q, k = rope(*arguments, **named)
        name = f"{prefix}.{next(layers)}.key.rotated"
        shown[name] = k[0].transpose(0, 1).flatten(1)
        if name in replacements:
            k = replacements[name].unflatten(1, (k.shape[1], k.shape[3])).transpose(0, 1)[None]
        return q, k
    return apply


@torch.no_grad()
def transformers_pass(folder, tokens, replacements):
    """The same as dump()."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    modeling = sys.modules[type(model).__module__]
    result = {}
    for sample, row in enumerate(tokens):
        hooks = []
        for index, layer in enumerate(model.model.layers):
            for module, tensor in ((layer.self_attn.k_proj, "key"), (layer.self_attn.v_proj, "value")):
                name = f"{sample}.{index}.{tensor}.cached"
                hooks.append(module.register_forward_hook(replacing_hook(name, replacements, result)))
        rope = replacing_rope(modeling.apply_rotary_pos_emb, sample, replacements, result)
        with mock.patch.object(modeling, "apply_rotary_pos_emb", rope):
            logits = model(torch.tensor(row[None].astype(np.int64)), use_cache=False).logits
        result[f"logits.{sample}"] = logits[0]
        for hook in hooks:
            hook.remove()
    return result


def assert_same(ours, theirs):
    """Logits, and what was shown before any replacement at its place."""
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


class Model:
    """A checkpoint, tokens for it, and what hook_dump says where nothing is replaced."""

    def __init__(self, folder, scratch):
        self.folder = folder
        config = json.loads((Path(folder) / "config.json").read_text())
        self.layers = config["num_hidden_layers"]
        self.tokens = np.random.default_rng(5).integers(3, config["vocab_size"], size=(SAMPLES, TOKENS))
        self.plain = dump(folder, self.tokens, {}, scratch)

    def replacements(self, point, layers):
        """What was shown, plus noise of its own size that differs from token to token."""
        generator = torch.Generator().manual_seed(17)
        result = {}
        for sample, layer in itertools.product(range(SAMPLES), layers):
            name = f"{sample}.{layer}.{point}"
            shown = self.plain[name]
            result[name] = shown + shown.std() * torch.randn(shown.shape, generator=generator)
        return result


@pytest.fixture(scope="module", params=["llama", "mistral-window", "TinyStories-656K"])
def model(request, tmp_path_factory):
    scratch = tmp_path_factory.mktemp(request.param)
    if request.param != "TinyStories-656K":
        return Model(random_model(request.param, scratch / "model"), scratch)
    folder = SHARED / "weights" / request.param
    if not folder.exists():
        pytest.skip(f"{folder} is missing")
    return Model(folder, scratch)


def test_shows_what_transformers_computes(model):
    names = {f"{sample}.{layer}.{point}"
             for sample, layer, point in itertools.product(range(SAMPLES), range(model.layers), POINTS)}
    assert set(model.plain) == names | {f"logits.{sample}" for sample in range(SAMPLES)}
    assert_same(model.plain, transformers_pass(model.folder, model.tokens, {}))


@pytest.mark.parametrize("which", ["one-layer", "all-layers"])
@pytest.mark.parametrize("point", POINTS)
def test_replacement_changes_logits_as_in_transformers(model, point, which, tmp_path):
    layers = [model.layers // 2] if which == "one-layer" else range(model.layers)
    replacements = model.replacements(point, layers)
    ours = dump(model.folder, model.tokens, replacements, tmp_path)
    assert_same(ours, transformers_pass(model.folder, model.tokens, replacements))
    for sample in range(SAMPLES):
        logits = f"logits.{sample}"
        assert (ours[logits] - model.plain[logits]).abs().max() > 1e-2, f"{logits}: nothing was replaced"
