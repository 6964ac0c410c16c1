"""What the cache's tests share: random models of a few thousand weights, and exports for them as `kvcal export` would write."""
import json
import os
import pathlib

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
VOCABULARY, LAYERS, KV_HEADS, DIM, WINDOW = 128, 3, 2, 16, 12
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
             num_key_value_heads=KV_HEADS, head_dim=DIM, max_position_embeddings=512, initializer_range=0.3,
             bos_token_id=1, eos_token_id=None, pad_token_id=0)
ROPES = {
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, rope_theta=10000.0),
    "llama3": dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64, rope_theta=10000.0),
    "linear": dict(rope_type="linear", factor=2.0, rope_theta=10000.0),
    "dynamic": dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0),
}


def make_model(name, attention="sdpa", **changes):
    torch.manual_seed(7)
    options = {**SHAPE, **changes, "attn_implementation": attention}
    if name == "stablelm":
        model = transformers.StableLmForCausalLM(transformers.StableLmConfig(**options, partial_rotary_factor=0.5))
    elif name == "gemma3":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
            **options, sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=DIM))
    elif name == "mistral":
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**options, sliding_window=WINDOW))
    elif name == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**options))
    elif name == "qwen3-mixed":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
            **options, use_sliding_window=True, sliding_window=WINDOW, layer_types=kinds))
    else:
        rope = {"rope_parameters": ROPES[name]} if name in ROPES else {}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options, **rope))
    return model.eval()


MODELS = ["llama", "yarn", "llama3", "linear", "mistral", "qwen3", "qwen3-mixed"]


def write_export(path, model, sinks=1, scope="token", metadata=None, **changes):
    """An export with what `kvcal export` writes of a codebook: thresholds from a run of the model, even centroids.
    changes: attributes of "model", and of all layers where their name begins with layer_."""
    config = model.config
    with torch.no_grad():
        cache = transformers.DynamicCache(config=config)
        model(torch.randint(2, VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(3)), past_key_values=cache)
    ropes = config.rope_parameters
    rope = {"type": ropes["rope_type"], "theta": ropes["rope_theta"]} if "rope_type" in ropes else {"type": "default"}
    window_of = [getattr(layer, "sliding_window", 0) for layer in cache.layers]
    tensors, attributes = {}, {
        "/": {"format": "kvcal-codebook", "schema_major": 1, "schema_minor": 2, "complete": 1},
        "model": {"name": "tiny", "num_layers": len(cache.layers), "num_kv_heads": KV_HEADS, "head_dim": DIM,
                  "num_attention_heads": 4},
        "calibration": {"sinks": sinks, "value_scope": scope}}
    attributes["model"].update({name: value for name, value in changes.items() if not name.startswith("layer_")})
    for index, layer in enumerate(cache.layers):
        path_of = f"layers/{index:04d}"
        attributes[path_of] = {"kv_heads": KV_HEADS, "key_dim": DIM, "value_dim": DIM, "window": window_of[index],
                               "rope": rope}
        attributes[path_of].update({name[6:]: value for name, value in changes.items() if name.startswith("layer_")})
        reach = layer.keys.abs().amax((0, 2)).view(-1)
        for name in ("key", "value"):
            for fraction in (0.0, 0.01):
                group = f"{path_of}/{name}/outliers_{fraction:g}"
                attributes[group] = {"fraction": fraction}
                for bits in (2, 3, 4):
                    tensors[f"{group}/nuq{bits}/centroids"] = torch.linspace(-1, 1, 2**bits)
                    attributes[f"{group}/nuq{bits}/centroids"] = {"qnorm_scale": 1.01, "qnorm_offset": 0.001}
                if name == "key":
                    tensors[f"{group}/lower"], tensors[f"{group}/upper"] = -0.8 * reach, 0.8 * reach + 1e-3
    save_file(tensors, path, {"kvcal": json.dumps(attributes)} if metadata is None else metadata)
    return path


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """exports(name, ...) is the model and its export, each made once."""
    made = {}

    def get(name, attention="sdpa", **options):
        key = (name, attention, *sorted(options.items()))
        if key not in made:
            model = make_model(name, attention)
            made[key] = model, write_export(tmp_path_factory.mktemp("export") / "tiny.safetensors", model, **options)
        return made[key]

    return get


def prompt(batch=1, length=9, seed=5):
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded():
    ids, mask = prompt(3, 11), torch.ones(3, 11, dtype=torch.long)
    for row, pads in enumerate((0, 4, 10)):
        ids[row, :pads], mask[row, :pads] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, cache, inputs, **options):
    torch.manual_seed(11)
    return model.generate(**inputs, past_key_values=cache, max_new_tokens=40, min_new_tokens=40, **options)
