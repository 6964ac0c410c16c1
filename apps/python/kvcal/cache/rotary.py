"""Rotary position embeddings of the rotate_half form, forth and back, by the model's own rotary module."""
from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kvcal.errors import Error


# Of float32, relative; see settle().
_ROUNDING = 16 * torch.finfo(torch.float32).eps


def _turn_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [..., dim]; cos, sin: [..., rotary_dim] for the first channels, which broadcast with it."""
    rotary = cos.shape[-1]
    turned = x[..., :rotary] * cos + _turn_half(x[..., :rotary]) * sin
    return turned if rotary == x.shape[-1] else torch.cat([turned, x[..., rotary:]], -1)


def unrotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The inverse of rotate(): the same with -sin, divided by the square of what the embedding scales by (yarn; and what
    rounding cos and sin to the model's dtype leaves)."""
    square = cos * cos + sin * sin
    return rotate(x, cos / square, -sin / square)


def settle(x: Tensor, lower: Tensor, upper: Tensor, rotary: int, dtype: torch.dtype) -> Tensor:
    """x: [..., dim], from unrotate() of keys that were rotated in `dtype`; lower, upper: thresholds of each channel, which
    broadcast with it. A number that lies no farther beyond a threshold than rounding can have taken it is put on the threshold.

    In the first layer a key hangs on its token alone, and the key of a frequent token often is a channel's quantile itself.
    Without this, every second such key would be an outlier. Rounding errs in units of the length of a pair of channels: by at
    most 1 eps of dtype when keys are rotated and 2 of float32 on the way back; and by some more of float32 where the projection
    adds in another order than the calibration did."""
    turned = x[..., :rotary]
    reach = (turned * turned + _turn_half(turned).square()).sqrt() * (torch.finfo(dtype).eps + _ROUNDING)
    reach = torch.nn.functional.pad(reach, (0, x.shape[-1] - rotary))
    x = torch.where((x > upper) & (x - reach <= upper), upper, x)
    return torch.where((x < lower) & (x + reach >= lower), lower, x)


def check_convention(attention: nn.Module) -> None:
    """Raises Error where the family of an attention module pairs channels in another way than rotate()."""
    name = type(attention).__name__
    apply = getattr(sys.modules.get(type(attention).__module__), "apply_rotary_pos_emb", None)
    if apply is None:
        raise Error(f"{name}: its module has no apply_rotary_pos_emb to compare with, so how it rotates is not known")
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 1, 1, 3, 8, generator=generator).unbind()
    angles = 6 * torch.rand(1, 3, 4, generator=generator).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    try:
        with torch.no_grad():
            turned = apply(query, key, cos, sin)[1]
    except Exception as error:
        raise Error(f"{name}: its apply_rotary_pos_emb takes no (query, key, cos, sin): {error}") from error
    if turned.shape != key.shape or not torch.allclose(turned, rotate(key, cos, sin), atol=1e-5):
        raise Error(f"{name}: it rotates other pairs of channels than (c, c + dim / 2), interleaved ones perhaps; keys cannot be "
                    "taken back before RoPE")


@dataclass(eq=False)
class RotaryCall:
    """A call of a rotary module in a step, that can be made again for other positions."""

    module: nn.Module
    arguments: dict[str, Any]
    output: tuple[Tensor, Tensor]  # cos and sin of the step: [batch or 1, times, rotary_dim]
    _whole: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin in float32 of positions [batch, times]: computed at the first call, for all layers of the step."""
        if self._whole is None:
            arguments = dict(self.arguments)
            x = next(iter(arguments))
            arguments[x] = torch.empty(0, dtype=torch.float32, device=positions.device)
            arguments["position_ids"] = positions.long()
            with torch.no_grad():
                # Not a call of the module, which would run its hooks.
                self._whole = self.module.forward(**arguments)
        return self._whole
