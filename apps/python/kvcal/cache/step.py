"""What one forward of the model hands to the layers of its cache."""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvcal.cache.codec import TensorTables
from kvcal.cache.layout import Layout
from kvcal.cache.packed_tensor import describe_fault
from kvcal.cache.rotary import RotaryCall
from kvcal.errors import Error


@dataclass(frozen=True, eq=False)
class Rotation:
    """cos and sin of the step's tokens, [batch or 1, times, rotary_dim], and the call of the rotary module that made them."""

    call: RotaryCall
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, eq=False)
class _Appended:
    name: str  # "layer 3, keys"
    channels: int
    groups: int
    faults: Tensor


@dataclass(eq=False)
class Step:
    layout: Layout
    start: int  # the time of the first new token
    stop: int
    calls: list[RotaryCall] = field(default_factory=list)
    embeddings: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by layer
    _appended: list[_Appended] = field(default_factory=list)

    def rotation(self, layer: int) -> Rotation:
        given = self.embeddings.get(layer)
        if given is None:
            raise Error(f"layer {layer}: its attention was given no position_embeddings, so its keys cannot be taken back before "
                        "RoPE")
        made = [call for call in self.calls if call.output[0] is given[0]]
        # A tensor that was moved to another device is no longer the one that was made.
        calls = made or (self.calls if len(self.calls) == 1 else [])
        if not calls:
            raise Error(f"layer {layer}: none of the model's rotary modules made its position_embeddings in this step")
        return Rotation(calls[0], *given)

    def note_faults(self, name: str, tables: TensorTables, faults: Tensor) -> None:
        self._appended.append(_Appended(name, tables.channels, tables.groups, faults))

    def check_faults(self) -> None:
        """Raises Error naming the first number that could not be stored. Waits for the device, once for all layers."""
        device = self._appended[0].faults.device if self._appended else None
        if device is None:
            return
        found = torch.stack([appended.faults.to(device) for appended in self._appended]).tolist()
        for appended, faults in zip(self._appended, found, strict=True):
            what = describe_fault(faults, appended.channels, appended.groups, self.layout, self.start, self.stop)
            if what is not None:
                raise Error(f"{appended.name}: {what}")
