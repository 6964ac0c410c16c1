"""The engine against Hugging Face transformers in float32: logits, pre-RoPE keys, values, squared gradients, perplexity."""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.numpy import load_file  # noqa: E402

BUILD = Path(os.environ["KVCAL_BUILD"])
SHARED = Path(os.environ.get("KVCAL_SHARED_DATA", ""))
SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).parents[2]))
DUMP = BUILD / "bin" / "model_dump"


def random_model(kind, folder):
    """A small random model of a family, with the features that its config can ask for."""
    torch.manual_seed(7)
    shape = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8, vocab_size=160,
                 max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.3)
    llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=32, rope_theta=500000.0)
    llama, mistral = transformers.LlamaConfig, transformers.MistralConfig
    config = {
        "llama3": lambda: llama(**shape, num_key_value_heads=2, rope_parameters=llama3, rms_norm_eps=1e-5),
        "llama-linear": lambda: llama(**shape, num_key_value_heads=8,
                                      rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0)),
        "llama-dynamic": lambda: llama(**{**shape, "max_position_embeddings": 48}, num_key_value_heads=4,
                                       rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0)),
        "llama-bias-wide-heads": lambda: llama(**shape, num_key_value_heads=1, head_dim=24, attention_bias=True,
                                               mlp_bias=True),
        "llama-both-ropes": lambda: llama(**shape, num_key_value_heads=8),
        "llama-tied-with-a-head": lambda: llama(**{**shape, "tie_word_embeddings": False}, num_key_value_heads=8),
        "mistral-window": lambda: mistral(**shape, num_key_value_heads=2, sliding_window=17),
        "mistral-no-window": lambda: mistral(**shape, num_key_value_heads=2, head_dim=16, sliding_window=None),
    }[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    changes = {"llama-both-ropes": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                                    "rope_scaling": {"type": "linear", "factor": 8.0}},
               "llama-tied-with-a-head": {"tie_word_embeddings": True}}.get(kind)
    if changes:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def shared_weights(name):
    folder = SHARED / "weights" / name
    if not folder.exists():
        pytest.skip(f"{folder} is missing")
    return folder


MODELS = ["TinyStories-656K", "stories260K-hf", "bundled", "llama3", "llama-linear", "llama-dynamic",
          "llama-bias-wide-heads", "llama-both-ropes", "llama-tied-with-a-head", "mistral-window", "mistral-no-window"]


@pytest.fixture(params=MODELS)
def model_folder(request, tmp_path):
    if request.param in ("TinyStories-656K", "stories260K-hf"):
        return shared_weights(request.param)
    if request.param == "bundled":
        return SOURCE / "data" / "model"
    return random_model(request.param, tmp_path / "model")


def dump(folder, tokens, tmp_path, dtype="float32"):
    np.save(tmp_path / "tokens.npy", tokens.astype(np.int32))
    out = tmp_path / "dump.safetensors"
    subprocess.run([DUMP, folder, tmp_path / "tokens.npy", out, dtype], check=True)
    return load_file(out)


def transformers_pass(folder, tokens):
    """Logits, keys, values and summed squared gradients by hooks on k_proj and v_proj, whose outputs are pre-RoPE."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    result = {}
    for sample, row in enumerate(tokens):
        kept = {}
        hooks = []
        for index, layer in enumerate(model.model.layers):
            for name in ("k_proj", "v_proj"):
                def keep(_module, _inputs, output, at=(name, index)):
                    output.retain_grad()
                    kept[at] = output
                hooks.append(getattr(layer.self_attn, name).register_forward_hook(keep))
        ids = torch.tensor(row[None].astype(np.int64))
        outputs = model(ids, use_cache=False)
        loss = torch.nn.functional.cross_entropy(outputs.logits[0, :-1], ids[0, 1:])
        loss.backward()
        for hook in hooks:
            hook.remove()
        result[f"logits.{sample}"] = outputs.logits[0].detach().numpy()
        for (name, index), tensor in kept.items():
            kind = {"k_proj": "key", "v_proj": "value"}[name]
            result[f"{kind}s.{sample}.{index}"] = tensor[0].detach().numpy()
            squares = tensor.grad[0].double().pow(2).sum(0).numpy()
            key = f"{kind}_fisher.{index}"
            result[key] = result.get(key, 0) + squares
        result.setdefault("loss", []).append(loss.item())
    result["loss"] = np.array(result["loss"])
    return result


def test_agrees_with_transformers(model_folder, tmp_path):
    vocab = json.loads((Path(model_folder) / "config.json").read_text())["vocab_size"]
    tokens = np.random.default_rng(3).integers(3, vocab, size=(2, 130))
    ours = dump(model_folder, tokens, tmp_path)
    theirs = transformers_pass(model_folder, tokens)
    assert set(ours) == set(theirs)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    for name, expected in theirs.items():
        largest = np.abs(expected).max()
        tolerance = 2e-4 if name.startswith("logits") else 1e-3 if "fisher" in name else 1e-4
        worst = np.abs(ours[name] - expected).max() / largest
        assert worst <= tolerance, f"{name}: {worst:.2e} of the largest magnitude"


def test_bfloat16_stays_near(tmp_path):
    folder = SOURCE / "data" / "model"
    tokens = np.random.default_rng(4).integers(3, 4096, size=(1, 200))
    exact, rounded = (dump(folder, tokens, tmp_path, dtype) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(rounded["loss"], exact["loss"], rtol=1e-2)


def test_perplexity_of_stories260k_by_llama_cpp(tmp_path):
    """llama-perplexity on the first 60,000 bytes of wiki.test.raw, context 256, 20 chunks: 116.25."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = shared_weights("stories260K-hf")
    text = (SHARED / "text" / "wiki.test.raw").read_bytes()[:60000].decode("utf-8", errors="ignore")
    tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ids = np.array([1] + tokenizer.encode(text))
    windows = ids[: 20 * 256].reshape(20, 256).copy()
    windows[:, 0] = 1
    ours = dump(folder, windows, tmp_path)
    total = 0.0
    for sample, row in enumerate(windows):
        logits = torch.tensor(ours[f"logits.{sample}"])
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(row[1:]), reduction="none")
        total += losses[127:].double().sum().item()
    perplexity = math.exp(total / (20 * 128))
    assert perplexity == pytest.approx(116.25, rel=0.01)
