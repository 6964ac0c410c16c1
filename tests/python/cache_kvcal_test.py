"""KvcalCache beside the program: the perplexity of `kvcal validate`, the bytes of `kvcal plan`, of the bundled model."""
import json
import math
import os
import pathlib
import subprocess

import numpy as np
import pytest
from tiny_models import SOURCE, torch, transformers

from kvcal import Error, KvcalCache

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
MODEL = SOURCE / "data" / "model"
DEMO = SOURCE / "data" / "demo"
LAYERS, CHANNELS = 5, 128
WINDOWS, SEQLEN = 4, 192
# What is calibrated: thresholds of values by token and by head; fitted ranges of keys and turned values.
RUNS = {"token": (), "head": ("--value-scope", "head"), "turned": ("--ranges", "fitted", "--value-rotation", "hadamard")}

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def kvcal(*arguments):
    result = subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens():
    """[windows, seqlen] of text that was not calibrated on."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    text = (DEMO / "validate.txt").read_text(encoding="utf-8")[:4000]
    return torch.tensor(tokenizer(text)["input_ids"][: WINDOWS * SEQLEN]).view(WINDOWS, SEQLEN)


@pytest.fixture(scope="module", params=RUNS)
def export(request, tmp_path_factory):
    """(codebook, its export) of a run."""
    folder = tmp_path_factory.mktemp(request.param)
    book, out = folder / "model.h5", folder / "model.safetensors"
    kvcal("calibrate", "-m", MODEL, "-f", DEMO / "calibrate.txt", "--samples", 4, "--seqlen", 256, "--dtype", "float32",
          "--threads", 2, *RUNS[request.param], "-o", book)
    kvcal("allocate", book, "--bits-per-value", 5.5, "--keep-layers", 1, "--quiet")
    kvcal("export", book, "--format", "safetensors", "--out", out)
    return book, out


@pytest.fixture(scope="module")
def validated(export, tokens, tmp_path_factory):
    """What `kvcal validate` says of each method, for the same tokens."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(file, tokens.numpy().astype(np.int32))
    report = kvcal("validate", "-m", MODEL, "--codebook", export[0], "--tokens", file, "--dtype", "float32", "--json", "-",
                   "--methods", "nuq4-1%,nuq3,nuq2-1%,nuq2-1%-qn,recipe")
    return {method["name"]: method for method in json.loads(report)["methods"]}


def log_probabilities(model, cache, ids, cuts):
    with torch.no_grad():
        return torch.cat([model(part, past_key_values=cache).logits for part in ids.split(cuts, 1)], 1)[:, :-1].log_softmax(-1)


def perplexity(log_p, ids):
    return math.exp(-log_p.gather(-1, ids[:, 1:, None]).mean().item())


@pytest.mark.parametrize("method", ["nuq4-1%", "nuq3", "nuq2-1%", "nuq2-1%-qn", "recipe"])
def test_perplexity_divergence_and_bits_are_those_of_validate(model, tokens, export, validated, method):
    full = log_probabilities(model, None, tokens, [SEQLEN])
    assert abs(perplexity(full, tokens) - validated["fp"]["ppl"]) < 2e-3
    for cuts in ([SEQLEN], [SEQLEN - 60] + [1] * 20 + [40]):
        with KvcalCache.from_file(export[1], model, method=method) as cache:
            log_p = log_probabilities(model, cache, tokens, cuts)
            # validate counts outliers of keys that the full-precision model computes.
            # What a recipe keeps is stored in the model's float32, and counts as 16 bits in validate.
            kept = 16 / LAYERS if method == "recipe" else 0
            near = 5e-3 if "%" in method or kept else 1e-9
            assert abs(cache.bits_per_value - kept - validated[method]["bits_per_value"]) < near
        # One code that falls to the other side by rounding moves a window by so much; most windows agree to five digits.
        assert abs(perplexity(log_p, tokens) - validated[method]["ppl"]) < 1e-2
        divergence = (full.exp() * (full - log_p)).sum(-1).mean().item()
        assert abs(divergence / validated[method]["kld_mean"] - 1) < 1e-2


def test_frequent_tokens_at_a_threshold_are_no_outliers(model, tokens, export, validated):
    """In the first layer, where keys hang on the token alone: as many outliers as validate counts."""
    observed = validated["nuq2-1%"]["layers"][0]["key"]["outliers_observed"]
    with KvcalCache.from_file(export[1], model, bits=2) as cache:
        log_probabilities(model, cache, tokens, [SEQLEN])
        found = cache.layers[0].stored[0].outliers
    assert found == round(observed * WINDOWS * (SEQLEN - 1) * CHANNELS)


def planned(method, batch):
    report = json.loads(kvcal("plan", "-m", MODEL, "--context", SEQLEN, "--batch", batch, "--methods", method, "--json", "-"))
    return report["methods"][0]


@pytest.mark.parametrize("method", ["nuq2", "nuq3", "nuq4", "nuq3-1%"])
def test_bytes_are_those_of_plan(model, tokens, export, method):
    if export[1].parent.name.startswith("head"):
        pytest.skip("plan without a codebook takes thresholds by token")
    plan = planned(method, WINDOWS)
    with KvcalCache.from_file(export[1], model, method=method) as cache:
        log_probabilities(model, cache, tokens, [SEQLEN])
        expected = plan["cache_bytes"]
        if "%" in method:
            rows, found = WINDOWS * LAYERS * (SEQLEN - 1), sum(s.outliers for layer in cache.layers for s in layer.stored)
            of_keys, of_values = round(0.01 * (SEQLEN - 1) * CHANNELS) * WINDOWS * LAYERS, 2 * rows
            expected += 4 * (found - of_keys - of_values)
            assert sum(layer.stored[1].outliers for layer in cache.layers) == of_values
        assert cache.nbytes == expected
        midpoints = LAYERS * 2 * 4 * (2 ** int(method[3]) - 1)
        assert cache.table_bytes == plan["static_bytes"] + midpoints


def test_the_hdf5_file_is_refused_with_the_command_that_exports_it(model, export):
    with pytest.raises(Error, match="kvcal export .*model.h5 --format safetensors --out .*model.safetensors"):
        KvcalCache.from_file(export[0], model)


def test_a_trained_model_of_another_shape(export, tmp_path):
    shared = pathlib.Path(os.environ.get("KVCAL_SHARED_DATA", SOURCE.parent / "shared" / "data")) / "weights" / "TinyStories-656K"
    if not shared.exists():
        pytest.skip(f"no model at {shared}")
    other = transformers.AutoModelForCausalLM.from_pretrained(shared, dtype=torch.float32).eval()
    with pytest.raises(Error, match="another model"):
        KvcalCache.from_file(export[1], other)
    ids = torch.randint(3, 1000, (6, 64), generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "tokens.npy", ids.numpy().astype(np.int32))
    kvcal("calibrate", "-m", shared, "--tokens", tmp_path / "tokens.npy", "--dtype", "float32", "--threads", 2,
          "-o", tmp_path / "other.h5")
    kvcal("export", tmp_path / "other.h5", "--format", "safetensors", "--out", tmp_path / "other.safetensors")
    report = json.loads(kvcal("validate", "-m", shared, "--codebook", tmp_path / "other.h5", "--tokens", tmp_path / "tokens.npy",
                              "--dtype", "float32", "--methods", "nuq3-1%", "--json", "-"))
    with KvcalCache.from_file(tmp_path / "other.safetensors", other, bits=3) as cache:
        measured = perplexity(log_probabilities(other, cache, ids, [64]), ids)
    assert abs(measured / report["methods"][1]["ppl"] - 1) < 1e-3
