"""Whether a codebook is one for a model, and where in the model what a cache hooks into lies."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from kvcal.cache.codebook_tables import Codebook
from kvcal.cache.rotary import check_convention
from kvcal.errors import Error

# A codebook's names of rope parameters, and transformers'.
_ROPE_NAMES = {"type": "rope_type", "theta": "rope_theta", "factor": "factor", "low_freq_factor": "low_freq_factor",
               "high_freq_factor": "high_freq_factor", "original_max_positions": "original_max_position_embeddings"}


@dataclass(frozen=True, eq=False)
class ModelParts:
    """Modules of a model: the decoder, the attention of each layer, and all that make cos and sin."""

    decoder: nn.Module
    attentions: list[nn.Module]
    rotaries: list[nn.Module]
    windows: list[int]  # of each layer; 0: none


def find_parts(model: PreTrainedModel) -> ModelParts:
    """Raises Error where the model is not a decoder whose every layer is attention, full or in a sliding window."""
    config = model.config.get_text_config(decoder=True)
    decoder = model.get_decoder()
    by_layer: dict[int, nn.Module] = {}
    for name, module in decoder.named_modules():
        if type(module).__name__.endswith("Attention") and isinstance(index := getattr(module, "layer_idx", None), int):
            if index in by_layer:
                raise Error(f"{type(model).__name__}: two attention modules of layer {index}, the second one {name}")
            by_layer[index] = module
    if sorted(by_layer) != list(range(config.num_hidden_layers)):
        raise Error(f"{type(model).__name__}: {config.num_hidden_layers} layers, attention modules with a layer_idx in "
                    f"{sorted(by_layer)}")
    kinds, options = get_layer_types_and_kwargs(config)
    other = set(kinds) - {"full_attention", "sliding_attention"}
    if other:
        raise Error(f"{type(model).__name__}: layers of {', '.join(sorted(other))}; this cache serves full and sliding attention")
    windows = [int(option.get("sliding_window") or 0) for option in options]
    rotaries = [module for module in decoder.modules() if type(module).__name__.endswith("RotaryEmbedding")]
    return ModelParts(decoder, [by_layer[index] for index in sorted(by_layer)], rotaries, windows)


def _rope_of(config: Any, kind: str) -> dict[str, Any]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters[kind] if isinstance(parameters.get(kind), dict) else parameters


def check_match(codebook: Codebook, model: PreTrainedModel, parts: ModelParts) -> None:
    """Raises Error naming what differs where the codebook is another model's. config_sha256 is over kvcal's own reading of
    config.json and is not compared."""
    config = model.config.get_text_config(decoder=True)

    def require(what: str, of_codebook: Any, of_model: Any) -> None:
        if of_codebook != of_model:
            raise Error(f"{codebook.path} is the codebook of another model ({codebook.model.get('name', 'without a name')}): "
                        f"{what} is {of_codebook} there, {of_model} in {type(model).__name__}")

    architectures = model.config.architectures or []
    if len(architectures) == 1 and "architecture" in codebook.model:
        require("the architecture", codebook.model["architecture"], architectures[0])
    require("the number of layers", len(codebook.layers), config.num_hidden_layers)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if "num_attention_heads" in codebook.model:
        require("the number of attention heads", codebook.model["num_attention_heads"], config.num_attention_heads)
    kinds = get_layer_types_and_kwargs(config)[0]
    for index, (layer, kind) in enumerate(zip(codebook.layers, kinds, strict=True)):
        require(f"layer {index}'s kv_heads", layer.kv_heads, heads)
        require(f"layer {index}'s head dimension", (layer.key_dim, layer.value_dim), (dim, dim))
        require(f"layer {index}'s window", layer.window, parts.windows[index])
        require(f"whether layer {index} rotates", layer.rope is not None,
                bool(getattr(parts.attentions[index], "use_rope", layer.rope is not None)))
        rope = _rope_of(config, kind)
        for name, value in (layer.rope or {}).items():
            if (theirs := rope.get(_ROPE_NAMES.get(name, name))) is not None:
                require(f"layer {index}'s rope {name}", value, theirs)
    if model.dtype == torch.float16 and model.device.type == "cpu":
        raise Error("the model is in float16 on the CPU; load it in bfloat16 or float32")
    for kind in {type(parts.attentions[i]): i for i, layer in enumerate(codebook.layers) if layer.rope}.values():
        check_convention(parts.attentions[kind])
