"""A layer of the cache: takes a step's keys and values, gives back all that attention may see, as they are stored."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvcal.cache.codebook_tables import LayerTables
from kvcal.cache.layout import Layout
from kvcal.cache.packed_tensor import FloatTensor, PackedTensor, StoredTensor
from kvcal.cache.rotary import rotate, settle, unrotate
from kvcal.cache.step import Rotation, Step
from kvcal.errors import Error

if TYPE_CHECKING:
    from kvcal.cache.kvcal_cache import KvcalCache

# Numbers that are decoded at once.
_BLOCK = 1 << 21

# Turns x [batch, heads, times, dim] of the times from the first number to the second.
_Turn = Callable[[Tensor, int, int], Tensor]


def _time_major(x: Tensor) -> Tensor:
    """[batch, heads, times, dim] to [times, batch, heads * dim]."""
    return x.permute(2, 0, 1, 3).flatten(2)


class KvcalLayer(CacheLayerMixin):
    """Grows by what update() gets; with a window it holds the last window - 1 tokens between steps, as transformers' does."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, index: int, tables: LayerTables, cache: ReferenceType[KvcalCache]) -> None:
        super().__init__()
        self.is_sliding = tables.window > 0
        self.sliding_window = tables.window
        self.record_past = False
        self.tables = tables
        self.stored: tuple[StoredTensor, StoredTensor] | None = None  # keys, values
        self._index = index
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        key, value = self.tables.key, self.tables.value
        if key is None or value is None:
            self.stored = FloatTensor(key_states.dtype), FloatTensor(value_states.dtype)
        else:
            key, value = key.to(key_states.device), value.to(value_states.device)
            self.tables = replace(self.tables, key=key, value=value)
            self.stored = PackedTensor(key), PackedTensor(value)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """key_states, value_states: [batch, kv_heads, times, dim], keys after RoPE. Returns those of all tokens that attention
        may see, in their dtype."""
        cache = self._cache()
        step = None if cache is None else cache.step
        if cache is None or step is None:
            raise Error(f"layer {self._index}: update() outside a forward of the model that the cache was made for, or after "
                        "close(): without the model's hooks the cache does not know the tokens' positions")
        self._check(key_states, value_states, step)
        rotation = step.rotation(self._index) if self.tables.rope is not None else None
        if self.stored is None:
            self.lazy_initialization(key_states, value_states)
        assert self.stored is not None
        self._append(0, self._before_rope(key_states, rotation), step)
        self._append(1, value_states.float(), step)
        first = self._first_visible(key_states.shape[-2])
        seen = (self._read(0, first, key_states, step.layout, self._turn(rotation, cache, key_states.device)),
                self._read(1, first, value_states, step.layout, None))
        if self.is_sliding and not self.record_past:
            self._trim(self.get_seq_length(), step.layout)
        return seen

    def _check(self, key_states: Tensor, value_states: Tensor, step: Step) -> None:
        where = f"layer {self._index}"
        if torch.compiler.is_compiling():
            raise Error(f"{where}: this cache grows and does not compile; call the model without torch.compile")
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise Error(f"{where}: stored keys and values have no gradients; call the model under torch.no_grad() or "
                        "torch.inference_mode()")
        if key_states.dtype == torch.float16 and key_states.device.type == "cpu":
            raise Error(f"{where}: float16 on the CPU; load the model in bfloat16 or float32")
        tables, times = self.tables, step.stop - step.start
        for name, x, dim in (("keys", key_states, tables.key_dim), ("values", value_states, tables.value_dim)):
            expected = (step.layout.batch, tables.kv_heads, times, dim)
            if x.shape != expected:
                raise Error(f"{where}: {name} of the shape {tuple(x.shape)}, expected {expected}")
        if self.get_seq_length() != step.start:
            raise Error(f"{where}: updated twice in one step")

    def _before_rope(self, key_states: Tensor, rotation: Rotation | None) -> Tensor:
        if rotation is None:
            return key_states.float()
        cos, sin = (part.float().to(key_states.device)[:, None] for part in (rotation.cos, rotation.sin))
        keys, tables = unrotate(key_states.float(), cos, sin), self.tables.key
        if tables is None or tables.lower is None or tables.upper is None:
            return keys
        lower, upper = (bound.view(-1, 1, keys.shape[-1]) for bound in (tables.lower, tables.upper))
        return settle(keys, lower, upper, cos.shape[-1], key_states.dtype)

    def _append(self, which: int, x: Tensor, step: Step) -> None:
        assert self.stored is not None
        faults = self.stored[which].append(_time_major(x), step.layout)
        tables = (self.tables.key, self.tables.value)[which]
        if faults is not None and tables is not None:
            step.note_faults(f"layer {self._index}, {('keys', 'values')[which]}", tables, faults)

    def _first_visible(self, times: int) -> int:
        assert self.stored is not None
        first = self.stored[0].start
        return max(first, self.stored[0].stop - times - self.sliding_window + 1) if self.is_sliding else first

    def _turn(self, rotation: Rotation | None, cache: KvcalCache, device: torch.device) -> _Turn | None:
        if rotation is None:
            return None
        cos, sin = (part.to(device) for part in rotation.call.at(cache.positions))

        def turn(x: Tensor, start: int, stop: int) -> Tensor:
            times = slice(start - cache.positions_start, stop - cache.positions_start)
            return rotate(x, cos[:, None, times], sin[:, None, times])

        return turn

    def _read(self, which: int, start: int, like: Tensor, layout: Layout, turn: _Turn | None) -> Tensor:
        assert self.stored is not None
        stored = self.stored[which]
        batch, heads, _, dim = like.shape
        seen = like.new_empty(batch, heads, stored.stop - start, dim)
        block = max(1, _BLOCK // (batch * heads * dim))
        for first in range(start, stored.stop, block):
            last = min(first + block, stored.stop)
            x = stored.decode(first, last, layout).view(-1, batch, heads, dim).permute(1, 2, 0, 3)
            seen[:, :, first - start : last - start] = x if turn is None else turn(x, first, last)
        return seen

    def _trim(self, length: int, layout: Layout) -> None:
        if self.stored is not None:
            start = max(0, length - self.sliding_window + 1) if self.is_sliding else 0
            for stored in self.stored:
                stored.keep(start, length, layout)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many tokens attention sees in a step of `query_length`, and the time of the first one."""
        length = self.get_seq_length()
        offset = max(length - self.sliding_window + 1, 0) if self.is_sliding else 0
        return length - offset + query_length, offset

    def get_seq_length(self) -> int:
        """Tokens that the layer has seen, also those that fell out of its window."""
        return 0 if self.stored is None else self.stored[0].stop

    def get_max_length(self) -> int:
        return self.sliding_window if self.is_sliding else -1

    def activate_past_recording(self) -> None:
        """From now on a windowed layer drops tokens in crop() only, so that crop() can take back a step."""
        self.record_past = True

    @property
    def start(self) -> int:
        """The time of the first token that is held."""
        return 0 if self.stored is None else self.stored[0].start

    def tensors(self) -> Iterator[Tensor]:
        for stored in self.stored or ():
            yield from stored.tensors()

    def crop_to(self, length: int, layout: Layout) -> None:
        if length < self.get_seq_length() and self.start > max(0, length - self.sliding_window + 1):
            raise Error(f"layer {self._index}: what {length} tokens need has fallen out of the window of {self.sliding_window}; "
                        "call activate_past_recording() before the steps that crop() is to take back")
        self._trim(length, layout)

    def select(self, sequences: Tensor | list[int], layout: Layout) -> None:
        for stored in self.stored or ():
            stored.select(sequences, layout)

    def reset(self) -> None:
        self.stored = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise Error("reorder the whole cache: a layer does not hold the tokens' positions")
