"""The hooks by which a cache learns of a forward: its mask, its positions, and the cos and sin of each layer.

They hold the cache by a weak reference and go with it.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard
from weakref import ReferenceType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kvcal.cache.model_match import ModelParts
from kvcal.cache.rotary import RotaryCall

if TYPE_CHECKING:
    from kvcal.cache.kvcal_cache import KvcalCache


def _is_pair(x: Any) -> TypeGuard[tuple[Tensor, Tensor]]:
    return isinstance(x, tuple) and len(x) == 2 and all(isinstance(part, Tensor) for part in x)


def _before_forward(cache: ReferenceType[KvcalCache], decoder: nn.Module) -> Callable[..., None]:
    signature = inspect.signature(decoder.forward)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        held = cache()
        # Under whichever name: past_key_values, or cache from transformers 5.24 on.
        if held is None or all(value is not held for value in (*args, *kwargs.values())):
            return
        given = signature.bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is not None:  # else the model itself complains
            held.begin_step(given.get("attention_mask"), tokens.shape[0], tokens.shape[1])

    return hook


def _after_forward(cache: ReferenceType[KvcalCache]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        held = cache()
        if held is not None and held.step is not None:
            held.end_step()

    return hook


def _after_rotary(cache: ReferenceType[KvcalCache], rotary: nn.Module) -> Callable[..., None]:
    signature = inspect.signature(rotary.forward)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        held = cache()
        if held is None or held.step is None or not _is_pair(output):
            return
        arguments = signature.bind(*args, **kwargs).arguments
        if "position_ids" in arguments:
            held.note_positions(arguments["position_ids"])
            held.step.calls.append(RotaryCall(module, arguments, output))

    return hook


def _before_attention(cache: ReferenceType[KvcalCache], layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        held = cache()
        if held is None or held.step is None:
            return
        given = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)
        if _is_pair(given):
            held.step.embeddings[layer] = given

    return hook


def add_hooks(cache: ReferenceType[KvcalCache], parts: ModelParts) -> list[RemovableHandle]:
    decoder = parts.decoder
    handles = [decoder.register_forward_pre_hook(_before_forward(cache, decoder), with_kwargs=True),
               decoder.register_forward_hook(_after_forward(cache), with_kwargs=True, always_call=True)]
    handles += [rotary.register_forward_hook(_after_rotary(cache, rotary), with_kwargs=True) for rotary in parts.rotaries]
    handles += [attention.register_forward_pre_hook(_before_attention(cache, layer), with_kwargs=True)
                for layer, attention in enumerate(parts.attentions)]
    return handles


def remove_hooks(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
