"""Which tokens of a batch are sinks and which are coded, and where they lie: in the order of (time, sequence)."""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """A batch of sequences, padded on the left. A time is a token's place in the batch, pads counted, from 0; a sequence's
    first `sinks` real tokens are kept exact."""

    pads: tuple[int, ...] = ()  # of each sequence
    sinks: int = 0

    @property
    def batch(self) -> int:
        return len(self.pads)

    @property
    def is_even(self) -> bool:
        """Whether all sequences are padded alike: sinks then lie at the same times."""
        return len(set(self.pads)) <= 1

    @property
    def head(self) -> int:
        """The time from which on there are no sinks."""
        return max(self.pads, default=0) + self.sinks

    def sinks_before(self, time: int) -> int:
        return sum(min(max(time - pad, 0), self.sinks) for pad in self.pads)

    def rows_before(self, time: int) -> int:
        """Coded tokens of all sequences before `time`."""
        return time * self.batch - self.sinks_before(time)

    def is_sink(self, start: int, stop: int) -> Tensor:
        """[stop - start, batch], bool, on the CPU."""
        order = torch.arange(start, stop)[:, None] - torch.tensor(self.pads, dtype=torch.int64)
        return (order >= 0) & (order < self.sinks)

    def crop(self, length: int) -> Layout:
        return replace(self, pads=tuple(min(pad, length) for pad in self.pads))

    def select(self, sequences: list[int]) -> Layout:
        return replace(self, pads=tuple(self.pads[sequence] for sequence in sequences))


@lru_cache(maxsize=64)
def split(layout: Layout, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places of sinks and of coded tokens among those at the times start to stop, (stop - start) * batch: two of int64."""
    sink = layout.is_sink(start, stop).view(-1)
    return sink.nonzero()[:, 0].to(device), (~sink).nonzero()[:, 0].to(device)


@lru_cache(maxsize=64)
def moved(layout: Layout, sequences: tuple[int, ...], start: int, stop: int, sink: bool, device: torch.device) -> Tensor:
    """For the sequences that are selected, where their sinks (or coded tokens) of the times start to stop were among all."""
    kind = layout.is_sink(start, stop) == sink
    rank = (kind.view(-1).cumsum(0) - 1).view(kind.shape)
    chosen = torch.tensor(sequences, dtype=torch.int64)
    return rank[:, chosen][kind[:, chosen]].to(device)
