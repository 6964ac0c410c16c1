"""KvcalCache in transformers' own generation: what it gives back, what it stores."""
import copy
import os
import subprocess
import sys

import pytest
from tiny_models import (
    DIM,
    KV_HEADS,
    LAYERS,
    MODELS,
    ROPES,
    SOURCE,
    WINDOW,
    exports,
    generate,
    make_model,
    padded,
    prompt,
    torch,
    transformers,
)

from kvcal import KvcalCache
from kvcal.cache.rotary import rotate, settle, unrotate

__all__ = ["exports"]


def repeating():
    return {"input_ids": prompt(1, 6).repeat(1, 4)}


MODES = {
    "greedy": (dict(input_ids=prompt(2)), {}),
    "sampling": (dict(input_ids=prompt(2)), dict(do_sample=True)),
    "beams": (dict(input_ids=prompt(2)), dict(num_beams=3)),
    "padded beams": (padded(), dict(num_beams=3)),
    "several": (dict(input_ids=prompt(2)), dict(do_sample=True, num_return_sequences=3)),
    "prompt lookup": (repeating(), dict(prompt_lookup_num_tokens=4)),
    "padded": (padded(), {}),
    "chunks": (dict(input_ids=prompt(2, 23)), dict(prefill_chunk_size=5)),
    "padded chunks": (padded(), dict(prefill_chunk_size=4)),
    "one token": (dict(input_ids=prompt(1, 1)), {}),
}


def dynamic(model):
    return transformers.DynamicCache(config=model.config)


def farthest(x, other):
    return (x - other).abs().max().item()


# Scaled ropes differ from plain ones in cos and sin alone.
FEW = ("padded beams", "prompt lookup", "chunks")
PAIRS = [(name, mode) for name in MODELS for mode in MODES if name in ("llama", "mistral", "qwen3-mixed") or mode in FEW]
# A family that rotates half of the channels; one with a rope of its own for layers with a window.
PAIRS += [("stablelm", "padded chunks"), ("gemma3", "padded"), ("gemma3", "prompt lookup")]


@pytest.mark.parametrize("name,mode", PAIRS)
def test_exact_storage_generates_what_dynamic_cache_does(exports, name, mode):
    model, path = exports(name)
    inputs, options = MODES[mode]
    expected = generate(model, dynamic(model), inputs, **options)
    with KvcalCache.from_file(path, model, method="exact") as cache:
        assert torch.equal(generate(model, cache, inputs, **options), expected)
        assert expected.shape[1] == inputs["input_ids"].shape[1] + 40


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_eager_attention_and_an_assistant(exports, name):
    model, path = exports(name, "eager")
    for inputs, options in (MODES["greedy"], MODES["padded"]):
        expected = generate(model, dynamic(model), inputs, **options)
        with KvcalCache.from_file(path, model, method="exact") as cache:
            assert torch.equal(generate(model, cache, inputs, **options), expected)
    assistant = make_model("llama", num_hidden_layers=1)
    expected = generate(model, dynamic(model), MODES["one token"][0], assistant_model=assistant)
    with KvcalCache.from_file(path, model, method="exact") as cache:
        assert torch.equal(generate(model, cache, MODES["one token"][0], assistant_model=assistant), expected)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3-mixed"])
@pytest.mark.parametrize("start", ["padded", "prompt lookup"])
def test_a_second_turn_a_copy_and_a_reset(exports, name, start):
    model, path = exports(name)
    inputs, options = MODES[start]
    ours = KvcalCache.from_file(path, model, method="exact")
    results = []
    for cache in (dynamic(model), ours):
        first = generate(model, cache, inputs, **options)
        longer = {"input_ids": torch.cat([first, prompt(first.shape[0], 5, seed=6)], 1)}
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        longer["attention_mask"] = torch.cat([mask, torch.ones(mask.shape[0], 45, dtype=torch.long)], 1)
        if cache is ours:
            other = copy.deepcopy(cache)
            generate(model, other, longer, **options)
            other.close()
        results.append(generate(model, cache, longer, **options))
    assert torch.equal(*results)
    ours.reset()
    assert ours.nbytes == 0 and ours.get_seq_length() == 0
    again = MODES["padded"][0]
    assert torch.equal(generate(model, ours, again), generate(model, dynamic(model), again))
    ours.close()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["nuq4-1%", "nuq2"])
def test_a_step_at_a_time_sees_what_a_whole_window_sees(exports, name, method):
    """A token is stored by itself: logits of a prefill are those of any cut of it, with sinks that come one by one."""
    model, path = exports(name, sinks=3)
    model = copy.deepcopy(model).double()  # so that no rounding of another order of sums decides a code
    ids = prompt(2, 31)
    logits = []
    for cuts in ([31], [1] * 31, [2, 9, 20]):
        with KvcalCache.from_file(path, model, method=method) as cache, torch.no_grad():
            logits.append(torch.cat([model(part, past_key_values=cache).logits for part in ids.split(cuts, 1)], 1))
    for other in logits[1:]:
        assert farthest(other, logits[0]) < 1e-4


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["nuq4-1%", "nuq3"])
def test_padding_on_the_left_changes_no_sequence(exports, name, method):
    model, path = exports(name, sinks=2)
    model = copy.deepcopy(model).double()
    batch = padded()
    tail = prompt(3, 4, seed=8)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with KvcalCache.from_file(path, model, method=method) as cache, torch.no_grad():
        model(batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=positions[:, :11], past_key_values=cache)
        together = model(tail, attention_mask=mask, position_ids=positions[:, 11:], past_key_values=cache).logits
    for row, pads in enumerate((0, 4, 10)):
        with KvcalCache.from_file(path, model, method=method) as cache, torch.no_grad():
            model(batch["input_ids"][row : row + 1, pads:], past_key_values=cache)
            alone = model(tail[row : row + 1], past_key_values=cache).logits
        assert farthest(together[row], alone[0]) < 1e-4


@pytest.mark.parametrize("name", ["llama", *ROPES, "mistral", "qwen3"])
def test_stored_keys_of_one_token_do_not_depend_on_its_position(exports, name):
    model, path = exports(name)
    ids = torch.full((1, 40), 17)
    with KvcalCache.from_file(path, model, method="exact") as cache, torch.no_grad():
        model(ids[:, :30], past_key_values=cache)
        model(ids[:, 30:], past_key_values=cache)
        keys = cache.layers[0].stored[0]
        keys = keys.decode(keys.start, keys.stop, cache.layout)
        assert (keys - keys[:1]).abs().max() < 1e-5 * keys.abs().max()
        assert keys.abs().max() > 0.1
    with KvcalCache.from_file(path, model, bits=4, outliers=0) as cache, torch.no_grad():
        model(ids, past_key_values=cache)
        codes = next(cache.layers[0].stored[0].tensors())
        same = (codes == codes.mode(0).values).float().mean()
        assert same > 0.97  # a number on a midpoint may fall to either side


def test_rotating_back_undoes_scaled_and_partial_rotation():
    x, angles = torch.randn(2, 3, 5, 16), torch.rand(2, 1, 5, 4).repeat(1, 1, 1, 2) * 6
    cos, sin = 1.3 * angles.cos(), 1.3 * angles.sin()
    assert torch.allclose(unrotate(rotate(x, cos, sin), cos, sin), x, atol=1e-5)
    assert torch.equal(rotate(x, cos, sin)[..., 8:], x[..., 8:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_key_on_a_threshold_stays_there_whatever_rounding_did(dtype):
    keys, angles = torch.randn(1, 2, 500, 16).to(dtype).float(), torch.rand(1, 1, 500, 8).repeat(1, 1, 1, 2) * 100
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    back = unrotate(rotate(keys.to(dtype), cos, sin).float(), cos.float(), sin.float())
    assert ((back > keys) | (back < keys)).float().mean() > 0.5
    assert torch.equal(settle(back, keys, keys, 16, dtype), keys)
    beyond = 0.05 * torch.ones(16)
    assert torch.equal(settle(back, keys - beyond, keys + beyond, 16, dtype), back)
    assert torch.equal(settle(back + 1, keys, keys, 16, dtype), back + 1)


def held(cache):
    return sum(tensor.element_size() * tensor.numel() for tensor in cache.tensors())


def rows_of(tokens, sinks=1):
    return tokens - min(tokens, sinks), min(tokens, sinks)


def expected_bytes(bits, tokens, keeps_outliers, outliers, groups=1, sinks=1):
    """docs/methods.md: of one layer's keys and values of one sequence."""
    rows, exact = rows_of(tokens, sinks)
    channels = KV_HEADS * DIM
    size = 2 * rows * (channels * bits // 8) + 4 * groups * rows + 2 * exact * channels * 2
    return size + (2 * rows * 2 + 4 * outliers if keeps_outliers else 0)


@pytest.mark.parametrize("scope,groups", [("token", 1), ("head", KV_HEADS)])
@pytest.mark.parametrize("method", ["nuq2", "nuq3", "nuq4", "nuq3-1%", "nuq4-1%-qn"])
def test_bytes_are_those_of_the_format(exports, method, scope, groups):
    model, path = exports("llama", scope=scope, sinks=2)
    with KvcalCache.from_file(path, model, method=method) as cache:
        generate(model, cache, MODES["greedy"][0])
        tokens, outliers = cache.get_seq_length(), sum(s.outliers for layer in cache.layers for s in layer.stored)
        keeps = "%" in method
        assert tokens == 48 and (outliers > 0) == keeps
        sizes = expected_bytes(int(method[3]), tokens, keeps, 0, groups, sinks=2)
        assert cache.nbytes == held(cache) == 2 * LAYERS * sizes + 4 * outliers
        assert cache.fp16_nbytes == 2 * 2 * LAYERS * tokens * KV_HEADS * DIM * 2
        assert cache.bits_per_value == 16 * cache.nbytes / cache.fp16_nbytes
        assert cache.position_bytes == 4 * 2 * tokens
        per_key = 4 * KV_HEADS * DIM * (3 if keeps else 1)
        assert cache.table_bytes == LAYERS * (per_key + 2 * 4 * (2 * 2 ** int(method[3]) - 1))


@pytest.mark.parametrize("name,windowed", [("mistral", 3), ("qwen3-mixed", 2)])
def test_windows_hold_what_the_next_step_needs(exports, name, windowed):
    model, path = exports(name)
    with KvcalCache.from_file(path, model, bits=4, outliers=0) as cache:
        generate(model, cache, dict(input_ids=prompt(2)))
        full, window = expected_bytes(4, 48, False, 0), expected_bytes(4, WINDOW - 1, False, 0, sinks=0)
        assert cache.nbytes == held(cache) == 2 * ((LAYERS - windowed) * full + windowed * window)
        assert cache.position_bytes == 4 * 2 * (WINDOW - 1 if windowed == LAYERS else 48)


def test_the_cache_as_text(exports):
    model, path = exports("llama")
    cache = KvcalCache.from_file(path, model)
    assert repr(cache) == "KvcalCache(nuq4-1%, 3 layers, empty)"
    generate(model, cache, dict(input_ids=prompt(2)))
    assert "2 sequences of 48 tokens" in repr(cache) and "bits/value" in repr(cache)
    cache.close()
    assert "closed" in repr(cache)


def test_caches_of_one_model_do_not_disturb_each_other(exports):
    model, path = exports("mistral")
    texts = [prompt(1, 30, seed) for seed in (21, 22)]
    alone = []
    for text in texts:
        with KvcalCache.from_file(path, model) as cache, torch.no_grad():
            alone.append([model(token, past_key_values=cache).logits for token in text.split(3, 1)])
    caches = [KvcalCache.from_file(path, model) for _ in texts]
    with torch.no_grad():
        for step in range(10):
            for text, cache, expected in zip(texts, caches, alone):
                assert torch.equal(model(text[:, 3 * step : 3 * step + 3], past_key_values=cache).logits, expected[step])
            model(texts[0], past_key_values=dynamic(model))


def test_repeating_and_selecting_a_batch(exports):
    model, path = exports("mistral")
    batch, order = padded(), [2, 2, 1, 1]
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # which differ from one sequence to the other
    with KvcalCache.from_file(path, model) as cache, torch.no_grad():
        model(**batch, position_ids=positions[:, :-1], past_key_values=cache)
        other = copy.deepcopy(cache)
        whole = model(torch.full((3, 1), 9), attention_mask=mask, position_ids=positions[:, -1:], past_key_values=cache).logits
        other.batch_select_indices(torch.tensor([2, 1]))
        other.batch_repeat_interleave(2)
        logits = model(torch.full((4, 1), 9), attention_mask=mask[order], position_ids=positions[order, -1:],
                       past_key_values=other).logits
        assert torch.allclose(logits, whole[order], atol=1e-4)


def test_bfloat16_and_the_package_without_torch(exports):
    model, path = exports("llama")
    half = copy.deepcopy(model).to(torch.bfloat16)
    with KvcalCache.from_file(path, half) as cache, torch.no_grad():
        logits = half(prompt(1, 20), past_key_values=cache).logits
        assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    code = "import sys, kvcal; kvcal.Error; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(SOURCE / "apps" / "python")})
