"""One layer's keys or values of a batch, before RoPE: packed rows, and sinks in fp16; or plain floats, for tests.

Both kinds hold the times `start` to `stop` and take and give [times, batch, channels]. Nothing is changed in place: a copy of
such an object shares its tensors.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from kvcal.cache.codec import HALF_MAX, EncodedRows, TensorTables, concatenate, first_true, row_codec, turn_hadamard, unsigned
from kvcal.cache.layout import Layout, moved, split


class StoredTensor(Protocol):
    start: int
    stop: int

    def append(self, x: Tensor, layout: Layout) -> Tensor | None:
        """Adds x: float32 [times, batch, channels]. Returns faults that describe_fault() explains; None: nothing is checked."""
        ...

    def decode(self, start: int, stop: int, layout: Layout) -> Tensor:
        """[stop - start, batch, channels], float32."""
        ...

    def keep(self, start: int, stop: int, layout: Layout) -> None:
        """Drops the times outside of start to stop."""
        ...

    def select(self, sequences: Tensor | list[int], layout: Layout) -> None:
        """Takes `sequences` of the batch, whose layout it was; one may be taken several times. A list where the layout is not
        even."""
        ...

    def tensors(self) -> Iterator[Tensor]: ...


def describe_fault(faults: list[int], channels: int, groups: int, layout: Layout, start: int, stop: int) -> str | None:
    """What append() of the times start to stop found: "sequence 0, token 5, channel 7: ..."; None: nothing."""
    if max(faults) < 0:
        return None
    sink = layout.is_sink(start, stop).view(-1)
    coded, sinks = (~sink).nonzero()[:, 0].tolist(), sink.nonzero()[:, 0].tolist()
    width = channels // max(groups, 1)
    infinite, overflow = "is not finite", f"overflows fp16, whose largest is {HALF_MAX:g}"
    kinds = [(coded, channels, 1, f"the number to quantise {infinite}"), (sinks, channels, 1, f"the number to keep {infinite}"),
             (coded, channels, 1, f"the outlier {overflow}"), (sinks, channels, 1, f"the sink {overflow}"),
             (coded, max(groups, 1), width, f"the range or zero of its thresholds {overflow}")]
    for (places, columns, unit, what), at in zip(kinds, faults, strict=True):
        if at >= 0:
            time, sequence = divmod(places[at // columns], layout.batch)
            token = start + time - layout.pads[sequence]
            return f"sequence {sequence}, token {token}, channel {at % columns * unit}: {what}"
    return None


class PackedTensor:
    """Codes, scales, counts, outliers and sinks."""

    # tables: on the device of what will be appended.
    def __init__(self, tables: TensorTables) -> None:
        self.start = self.stop = 0
        self._tables = tables
        self._rows: EncodedRows | None = None
        self._sinks: Tensor | None = None  # [sinks of all sequences, channels], fp16; None: there are none

    def tensors(self) -> Iterator[Tensor]:
        if self._rows is not None:
            yield from self._rows.parts()
        if self._sinks is not None:
            yield self._sinks

    @property
    def outliers(self) -> int:
        return 0 if self._rows is None or self._rows.indices is None else self._rows.indices.numel()

    def append(self, x: Tensor, layout: Layout) -> Tensor:
        start, self.stop = self.stop, self.stop + x.shape[0]
        x = x.reshape(-1, x.shape[-1])
        if self._tables.rotation:
            x = turn_hadamard(x, self._tables.rotation)
        none = torch.full((), -1, dtype=torch.int64, device=x.device)
        infinite, overflow = none, none
        if layout.sinks_before(self.stop) > layout.sinks_before(start):
            kept, coded = split(layout, start, self.stop, x.device)
            sinks, x = x[kept], x[coded]
            infinite, overflow = first_true(~sinks.isfinite()), first_true(sinks.half().isinf())
            self._sinks = sinks.half() if self._sinks is None else torch.cat([self._sinks, sinks.half()])
        rows, faults = row_codec(x.device, self._tables).encode_rows(x, self._tables)
        self._rows = rows if self._rows is None else concatenate([self._rows, rows])
        return torch.stack([faults[0], infinite, faults[1], overflow, faults[2]])

    def decode(self, start: int, stop: int, layout: Layout) -> Tensor:
        x = self._decode(start, stop, layout)
        return turn_hadamard(x, self._tables.rotation) if self._tables.rotation else x

    def _decode(self, start: int, stop: int, layout: Layout) -> Tensor:
        assert self._rows is not None
        first = layout.rows_before(self.start)
        rows = self._slice(layout.rows_before(start) - first, layout.rows_before(stop) - first)
        coded = row_codec(rows.codes.device, self._tables).decode_rows(rows, self._tables)
        shape = (stop - start, layout.batch, self._tables.channels)
        sinks_start = layout.sinks_before(start)
        sinks = layout.sinks_before(stop) - sinks_start
        if sinks == 0:
            return coded.view(shape)
        assert self._sinks is not None
        head = min(layout.head, stop)
        sink_places, coded_places = split(layout, start, head, coded.device)
        x = coded.new_empty(shape[0] * shape[1], shape[2])
        offset = sinks_start - layout.sinks_before(self.start)
        x.index_copy_(0, sink_places, self._sinks[offset : offset + sinks].float())
        x.index_copy_(0, coded_places, coded[: len(coded_places)])
        x[(head - start) * layout.batch :] = coded[len(coded_places) :]
        return x.view(shape)

    def keep(self, start: int, stop: int, layout: Layout) -> None:
        start = max(start, self.start)
        if self._rows is None or (start, stop) == (self.start, self.stop):
            return
        first = layout.rows_before(self.start)
        # Cloned, so that what is dropped takes no memory.
        rows = self._slice(layout.rows_before(start) - first, layout.rows_before(stop) - first)
        self._rows = EncodedRows(*(None if part is None else part.clone() for part in vars(rows).values()))
        if self._sinks is not None:
            first = layout.sinks_before(self.start)
            sinks = self._sinks[layout.sinks_before(start) - first : layout.sinks_before(stop) - first]
            self._sinks = sinks.clone() if len(sinks) else None
        self.start, self.stop = start, stop

    def select(self, sequences: Tensor | list[int], layout: Layout) -> None:
        if self._rows is None:
            return
        self._rows = self._gather(self._places(sequences, layout, len(self._rows), sink=False))
        if self._sinks is not None:
            self._sinks = self._sinks[self._places(sequences, layout, len(self._sinks), sink=True)]

    def _places(self, sequences: Tensor | list[int], layout: Layout, count: int, sink: bool) -> Tensor:
        assert self._rows is not None
        device = self._rows.codes.device
        if isinstance(sequences, list):
            return moved(layout, tuple(sequences), self.start, self.stop, sink, device)
        times = torch.arange(0, count, layout.batch, device=device)
        return (times[:, None] + sequences.to(device)).view(-1)

    def _slice(self, start: int, stop: int) -> EncodedRows:
        rows = self._rows
        assert rows is not None
        if (start, stop) == (0, len(rows)):
            return rows
        affines = None if rows.affines is None else rows.affines[start:stop]
        if rows.counts is None or rows.indices is None or rows.values is None:
            return EncodedRows(rows.codes[start:stop], affines)
        counts = rows.wide_counts()
        first, last = torch.stack([counts[:start].sum(), counts[:stop].sum()]).tolist()
        return EncodedRows(rows.codes[start:stop], affines, rows.counts[start:stop], rows.indices[first:last],
                           rows.values[first:last])

    def _gather(self, places: Tensor) -> EncodedRows:
        rows = self._rows
        assert rows is not None
        affines = None if rows.affines is None else rows.affines[places]
        if rows.counts is None or rows.indices is None or rows.values is None:
            return EncodedRows(rows.codes[places], affines)
        ends, counts = rows.wide_counts().cumsum(0), rows.counts[places]
        wide = unsigned(counts)
        # Outlier j of a row lies at the row's first one plus j, before and after.
        moved_by = ends[places] - wide.cumsum(0)
        outliers = torch.repeat_interleave(moved_by, wide)
        outliers += torch.arange(outliers.numel(), device=outliers.device)
        return EncodedRows(rows.codes[places], affines, counts, rows.indices[outliers], rows.values[outliers])


class FloatTensor:
    """The numbers themselves, in `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.start = self.stop = 0
        self._dtype = dtype
        self._x: Tensor | None = None  # [times, batch, channels]

    def tensors(self) -> Iterator[Tensor]:
        if self._x is not None:
            yield self._x

    def append(self, x: Tensor, layout: Layout) -> None:
        x = x.to(self._dtype)
        self._x = x if self._x is None else torch.cat([self._x, x])
        self.stop += x.shape[0]

    def decode(self, start: int, stop: int, layout: Layout) -> Tensor:
        assert self._x is not None
        return self._x[start - self.start : stop - self.start].float()

    def keep(self, start: int, stop: int, layout: Layout) -> None:
        start = max(start, self.start)
        if self._x is None or (start, stop) == (self.start, self.stop):
            return
        self._x = self._x[start - self.start : stop - self.start].clone()
        self.start, self.stop = start, stop

    def select(self, sequences: Tensor | list[int], layout: Layout) -> None:
        if self._x is not None:
            self._x = self._x[:, torch.as_tensor(sequences, device=self._x.device)]
