"""KvcalCache: a transformers cache of packed codes."""
from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcal.cache.cache_layer import KvcalLayer
from kvcal.cache.codebook_tables import Codebook, read_codebook
from kvcal.cache.hooks import add_hooks, remove_hooks
from kvcal.cache.layout import Layout
from kvcal.cache.method import Method, parse_method
from kvcal.cache.model_match import check_match, find_parts
from kvcal.cache.step import Step
from kvcal.errors import Error, UsageError


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


class KvcalCache(Cache):
    """Keys before RoPE and values as packed codes, outliers and a sequence's first tokens in fp16; for `past_key_values`.

    A step un-rotates the new keys, stores them, and gives attention all of them decoded and rotated again: the model computes
    with what is stored. Beside that the cache holds one int32 position for each token and sequence (`position_bytes`).
    One forward at a time; a batch may be padded on the left, with its attention_mask."""

    layers: list[KvcalLayer]  # type: ignore[assignment]

    def __init__(self, codebook: Codebook, model: PreTrainedModel, method: Method) -> None:
        parts = find_parts(model)
        check_match(codebook, model, parts)
        this = weakref.ref(self)
        super().__init__(layers=[KvcalLayer(index, tables, this) for index, tables in enumerate(codebook.layers)])
        self.method = method
        self.step: Step | None = None  # the forward that is under way
        self._codebook = codebook
        self._model = weakref.ref(model)
        self._handles = add_hooks(this, parts)
        self._finalizer = weakref.finalize(self, remove_hooks, self._handles)
        self._finalizer.atexit = False
        self._forget()

    def _forget(self) -> None:
        self.layout = Layout(sinks=self._codebook.sinks)
        self.positions = torch.empty(0, 0, dtype=torch.int32)  # [batch, times], from positions_start on
        self.positions_start = 0
        self._broken = False

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], model: PreTrainedModel, *, bits: int = 4, outliers: float = 0.01,
                  qnorm: bool = False, method: str | None = None) -> KvcalCache:
        """path: of `kvcal export FILE.h5 --format safetensors`. bits: 2, 3 or 4; outliers: their fraction; qnorm: whether codes
        come back with Q-Norm. method: a name of docs/methods.md in place of the three, "nuq4-1%"; "recipe", for each tensor what
        `kvcal allocate` chose (what it keeps stays as floats of the model's dtype); or "exact", which stores all so, for tests.
        Raises Error where the file is none, is another model's, or lacks the tables, with what it has."""
        chosen = Method(bits, outliers, qnorm) if method is None else parse_method(method)
        return cls(read_codebook(path, chosen), model, chosen)

    def begin_step(self, mask: Tensor | None, batch: int, times: int) -> None:
        """Called by the model's hooks before a forward of [batch, times] tokens."""
        if self._broken:
            raise Error("an earlier forward failed halfway, so that the layers hold different tokens; call reset()")
        self.step = None
        start = self.get_seq_length()
        if start == 0:
            self.reset()
        elif batch != self.layout.batch:
            raise Error(f"the cache holds {self.layout.batch} sequences, the forward has {batch}; reset() it, or change it with "
                        "batch_repeat_interleave(), batch_select_indices() or reorder_cache()")
        pads = self._pads(mask, batch, start, start + times)
        self.layout = Layout(pads, self._codebook.sinks)
        self.step = Step(self.layout, start, start + times)

    def _pads(self, mask: Tensor | None, batch: int, start: int, stop: int) -> tuple[int, ...]:
        held = self.layout.pads if start else (0,) * batch
        if mask is None:
            if any(held):
                raise Error("the batch was padded, and this forward has no attention_mask")
            return held
        if not isinstance(mask, Tensor) or mask.shape != (batch, stop):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise Error(f"attention_mask: expected [batch, tokens] = {(batch, stop)}, all tokens so far counted, found {shape}")
        real = mask != 0
        counts = stop - real.sum(1)
        on_left = real == (torch.arange(stop, device=mask.device) >= counts[:, None])
        *found, fits = torch.cat([counts, on_left.all()[None].long()]).tolist()
        if not fits:
            last = real[:, -1].tolist()
            where = f"sequence {last.index(False)} is padded on the right" if False in last else "it has holes"
            raise Error(f"attention_mask: {where}; pad on the left (tokenizer.padding_side = 'left'). Without an attention_mask "
                        "generate() takes each pad token for padding, also one that was generated")
        for sequence, (now, before) in enumerate(zip(found, held, strict=True)):
            if now < before or (now > before and before < start):
                raise Error(f"attention_mask: sequence {sequence} has {now} pads, of which the cache holds {before}")
        return tuple(found)

    def note_positions(self, positions: Tensor) -> None:
        """Called by the hooks with what a rotary module is given: [batch or 1, times]."""
        assert self.step is not None
        times, batch = self.step.stop - self.step.start, self.layout.batch
        if positions.ndim != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != times:
            raise Error(f"position_ids of the shape {tuple(positions.shape)}, expected {(batch, times)}: one for each token")
        if self.positions_start + self.positions.shape[1] == self.step.stop and self.positions.shape[1]:
            return  # of a second rotary module
        new = positions.to(torch.int32).expand(batch, times)
        self.positions = torch.cat([self.positions.to(new.device), new], 1) if self.step.start else new.contiguous()

    def end_step(self) -> None:
        """Called by the hooks after a forward, also one that raised."""
        step, self.step = self.step, None
        assert step is not None
        lengths = {layer.get_seq_length() for layer in self.layers}
        if lengths != {step.stop}:
            self._broken = lengths != {step.start}
            self.layout = self.layout.crop(step.start)
            self._keep_positions(step.start)
            return
        self._broken = True
        step.check_faults()
        self._broken = False
        self._keep_positions(step.stop)

    def _keep_positions(self, stop: int) -> None:
        start = min(layer.start for layer in self.layers)
        if self.positions.shape[1] and (start, stop - start) != (self.positions_start, self.positions.shape[1]):
            self.positions = self.positions[:, start - self.positions_start : stop - self.positions_start].clone()
            self.positions_start = start

    def crop(self, tokens_to_remove: int) -> None:
        """Removes that many tokens from the end, a number of 0 or below as transformers has it. Windowed layers that record the
        past drop what no step needs any more."""
        if tokens_to_remove > 0:
            raise UsageError(f"crop({tokens_to_remove}): give the number of tokens to remove as a negative number")
        length = max(0, self.get_seq_length() + tokens_to_remove)
        for layer in self.layers:
            layer.crop_to(length, self.layout)
        self.layout = self.layout.crop(length)
        self._keep_positions(length)

    def _select(self, sequences: Tensor) -> None:
        if self.get_seq_length() == 0:
            return
        places = [0] * len(sequences) if self.layout.is_even else sequences.tolist()
        for layer in self.layers:
            layer.select(sequences if self.layout.is_even else places, self.layout)
        self.layout = self.layout.select(places)
        self.positions = self.positions.index_select(0, sequences.to(self.positions.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self.layout.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(torch.arange(self.layout.batch, device=indices.device)[indices])

    def reset(self) -> None:
        """Forgets all tokens; another batch may follow."""
        super().reset()
        self._forget()

    def early_initialization(self, *args: Any, **kwargs: Any) -> None:
        raise Error("this cache grows with its tokens: it is no static cache, and cannot be exported or compiled")

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that hold the sequences' keys and values."""
        for layer in self.layers:
            yield from layer.tensors()

    @property
    def nbytes(self) -> int:
        """What the sequences' keys and values take: codes, scales, counts, outliers, sinks."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def position_bytes(self) -> int:
        return self.positions.nbytes

    @property
    def table_bytes(self) -> int:
        """The codebook's, once for all sequences."""
        return sum(layer.tables.nbytes for layer in self.layers)

    @property
    def _values(self) -> int:
        held = ((layer.get_seq_length() - layer.start, layer.tables) for layer in self.layers)
        return self.layout.batch * sum(n * tables.kv_heads * (tables.key_dim + tables.value_dim) for n, tables in held)

    @property
    def fp16_nbytes(self) -> int:
        """What the same tokens take in fp16."""
        return 2 * self._values

    @property
    def bits_per_value(self) -> float:
        return 8 * self.nbytes / self._values if self._values else 0.0

    @property
    def batch_size(self) -> int:
        return self.layout.batch or -1

    def __repr__(self) -> str:
        held = "empty"
        if self._values:
            sequences = "1 sequence" if self.layout.batch == 1 else f"{self.layout.batch} sequences"
            held = (f"{sequences} of {self.get_seq_length()} tokens, {_size(self.nbytes)} = "
                    f"{self.bits_per_value:.4g} bits/value, fp16 takes {_size(self.fp16_nbytes)}")
        closed = "" if self._finalizer.alive else ", closed"
        return f"KvcalCache({self.method.name}, {len(self.layers)} layers, {held}{closed})"

    def __deepcopy__(self, memo: dict[int, Any]) -> KvcalCache:
        """A cache of its own for the same model, with hooks of its own; stored tensors are shared, since they never change."""
        model = self._model()
        if model is None or not self._finalizer.alive:
            raise Error("a cache that was closed, or whose model is gone, has no copy")
        other = KvcalCache(self._codebook, model, self.method)
        other.layout, other._broken = self.layout, self._broken
        other.positions, other.positions_start = self.positions, self.positions_start
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            theirs.stored = None if mine.stored is None else (copy.copy(mine.stored[0]), copy.copy(mine.stored[1]))
            theirs.is_initialized, theirs.record_past = mine.is_initialized, mine.record_past
        return other

    def close(self) -> None:
        """Takes the hooks off the model; the cache can then no longer be used."""
        self._finalizer()

    def __enter__(self) -> KvcalCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
