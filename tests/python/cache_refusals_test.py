"""What KvcalCache refuses, and what it leaves behind on a model: nothing."""
import copy
import gc
import weakref

import pytest
from tiny_models import (
    DIM,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    exports,
    generate,
    make_model,
    padded,
    prompt,
    torch,
    transformers,
    write_export,
)

import kvcal
from kvcal import KvcalCache

__all__ = ["exports"]


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_go_with_the_cache(exports):
    model, path = exports("llama")
    before = hooks_of(model)
    with KvcalCache.from_file(path, model) as cache:
        assert hooks_of(model) > before
    assert hooks_of(model) == before
    cache = KvcalCache.from_file(path, model)
    gone = weakref.ref(cache)
    generate(model, cache, dict(input_ids=prompt()))
    del cache
    gc.collect()
    assert gone() is None and hooks_of(model) == before


def refuses(*parts, kind=kvcal.Error):
    return pytest.raises(kind, match=".*".join(parts))


@pytest.mark.parametrize("method,reason", [
    ("nuq4-1%-paged", "pages"), ("nuq3-kernels", "pages"), ("nuq3-1%-nosink", "first tokens"), ("kivi2", "no method"),
    ("nuq", "no method"), ("nuq5", "2, 3 or 4 bits"), ("nuq4-60%", "below 0.5")])
def test_other_methods_are_refused(exports, method, reason):
    model, path = exports("llama")
    with refuses(reason, kind=kvcal.UsageError):
        KvcalCache.from_file(path, model, method=method)


def test_what_the_codebook_lacks_is_refused_with_what_it_has(exports):
    model, path = exports("llama")
    with refuses("holds no nuq4-2%", "it has nuq2, nuq3, nuq4, nuq2-1%, nuq3-1%, nuq4-1%"):
        KvcalCache.from_file(path, model, outliers=0.02)


@pytest.mark.parametrize("changes,what", [
    (dict(architecture="MistralForCausalLM"), "the architecture"), (dict(layer_kv_heads=4), "kv_heads"),
    (dict(num_attention_heads=8), "attention heads"), (dict(layer_value_dim=8, layer_key_dim=8), "head dimension"),
    (dict(layer_rope={"type": "default", "theta": 500000.0}), "rope theta"), (dict(layer_window=64), "window")])
def test_the_codebook_of_another_model_is_refused(tmp_path, changes, what):
    model = make_model("llama", architectures=["LlamaForCausalLM"])
    path = write_export(tmp_path / "other.safetensors", model, **changes)
    with refuses("another model", what):
        KvcalCache.from_file(path, model, method="exact")


def test_a_model_of_other_depth_is_refused(exports):
    with refuses("another model", "number of layers is 3 there, 2"):
        KvcalCache.from_file(exports("llama")[1], make_model("llama", num_hidden_layers=2))


def test_files_that_are_no_export_are_refused(tmp_path, exports):
    model, _ = exports("llama")
    file = tmp_path / "model.h5"
    command = "kvcal export .*model.h5 --format safetensors --out .*model.safetensors"
    for content, what in ((b"\x89HDF\r\n\x1a\n" + bytes(64), command),
                          (b"text", "no safetensors file")):
        file.write_bytes(content)
        with refuses(what):
            KvcalCache.from_file(file, model)
    with refuses("absent", "No such file"):
        KvcalCache.from_file(tmp_path / "absent", model)
    for metadata, what in (({}, "no `kvcal` in its metadata"), ({"kvcal": "{"}, "damaged"), ({"kvcal": "{}"}, "damaged"),
                           ({"kvcal": '{"/": {"format": "kvcal-codebook", "schema_major": 2}}'}, "schema 1")):
        with refuses(what):
            KvcalCache.from_file(write_export(file, model, metadata=metadata), model)


def test_families_that_rotate_other_pairs_are_refused(tmp_path):
    torch.manual_seed(7)
    model = transformers.CohereForCausalLM(transformers.CohereConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=KV_HEADS, pad_token_id=0)).eval()
    with refuses("other pairs of channels"):
        KvcalCache.from_file(write_export(tmp_path / "cohere.safetensors", model), model)


@pytest.mark.parametrize("mask,what", [([[1, 1, 1, 0], [1, 1, 1, 1]], "sequence 0 is padded on the right"),
                                       ([[1, 1, 1, 1], [1, 0, 1, 1]], "holes"), ([[1, 1, 1], [1, 1, 1]], "expected")])
def test_masks_that_are_not_of_left_padding_are_refused(exports, mask, what):
    model, path = exports("llama")
    with KvcalCache.from_file(path, model) as cache, torch.no_grad(), refuses("attention_mask", what):
        model(prompt(2, 4), attention_mask=torch.tensor(mask), past_key_values=cache)


def test_later_masks_must_agree_with_the_first(exports):
    model, path = exports("llama")
    batch = padded()
    with KvcalCache.from_file(path, model) as cache, torch.no_grad():
        model(**batch, past_key_values=cache)
        with refuses("padded", "no attention_mask"):
            model(prompt(3, 1), past_key_values=cache)
        with refuses("sequence 1 has 0 pads, of which the cache holds 4"):
            model(prompt(3, 1), attention_mask=torch.ones(3, 12), past_key_values=cache)
        mask = torch.cat([batch["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
        model(prompt(3, 1), attention_mask=mask, past_key_values=cache)
        with refuses("holds 3 sequences, the forward has 2"):
            model(prompt(2, 1), past_key_values=cache)


def test_updates_without_hooks_are_refused(exports):
    model, path = exports("llama")
    keys = torch.zeros(1, KV_HEADS, 1, DIM)
    cache = KvcalCache.from_file(path, model)
    with refuses("outside a forward"):
        cache.update(keys, keys, 0)
    cache.close()
    with refuses("close"), torch.no_grad():
        model(prompt(), past_key_values=cache)
    other, _ = exports("qwen3")
    with KvcalCache.from_file(path, model) as cache, refuses("outside a forward of the model"), torch.no_grad():
        other(prompt(), past_key_values=cache)
    with refuses("no copy"):
        copy.deepcopy(cache)


@pytest.mark.parametrize("projection,number,token,what", [
    ("v_proj", float("nan"), 0, "layer 1, values: sequence 0, token 0, channel 5: the number to keep is not finite"),
    ("k_proj", float("inf"), 3, "layer 1, keys: sequence 0, token 3, channel [05]: the number to quantise is not finite"),
    ("v_proj", 1e30, 0, "layer 1, values: sequence 0, token 0, channel 5: the sink overflows fp16, whose largest is 65504"),
    ("v_proj", 1e30, 3, "layer 1, values: sequence 0, token 3, channel 5: the outlier overflows fp16")])
def test_numbers_that_cannot_be_stored_are_refused(exports, projection, number, token, what):
    model, path = exports("llama")
    ids = prompt(1, 6)

    def spoil(module, args, output):
        output[0, token, 5] = number

    with KvcalCache.from_file(path, model) as cache, torch.no_grad():
        handle = getattr(model.model.layers[1].self_attn, projection).register_forward_hook(spoil)
        with refuses(what):
            model(ids, past_key_values=cache)
        handle.remove()
        with refuses("call reset"):
            model(ids, past_key_values=cache)
        cache.reset()
        assert model(ids, past_key_values=cache).logits.isfinite().all()


def test_half_precision_on_the_cpu_gradients_and_static_use_are_refused(exports):
    model, path = exports("llama")
    with refuses("float16 on the CPU"):
        KvcalCache.from_file(path, copy.deepcopy(model).half())
    with KvcalCache.from_file(path, model) as cache:
        with refuses("no_grad"):
            model(prompt(), past_key_values=cache)
        cache.reset()
        assert not cache.is_compileable
        with refuses("static"):
            cache.early_initialization(1, KV_HEADS, DIM, torch.float32, "cpu")
        with pytest.raises(ValueError, match="cache_implementation"):
            generate(model, cache, dict(input_ids=prompt()), cache_implementation="static")
        with refuses("negative", kind=kvcal.UsageError):
            cache.crop(3)


def test_a_window_is_cropped_only_where_the_past_was_recorded(exports):
    model, path = exports("mistral")
    with KvcalCache.from_file(path, model) as cache, torch.no_grad():
        model(prompt(1, 30), past_key_values=cache)
        with refuses("activate_past_recording"):
            cache.crop(-1)
        with refuses("layer does not hold"):
            cache.layers[0].reorder_cache(torch.tensor([0]))
