"""The codec by rows in torch: keys or values of some tokens to the bytes that are stored, and back.

Bit for bit what cuda/row_codec.cpp computes: zero and range rounded to fp16, float32 one operation at a time, a tie takes the
lower code, codes packed little-endian without gaps, a token's thresholds interpolated in double. Rows are tokens, and
channels are kv_heads * dim.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

HALF_MAX = 65504.0
# What overflows when it is rounded to fp16, to nearest and ties to even: halfway to the number after the largest.
_HALF_OVERFLOW = 65520.0
# Numbers that are coded at once, so that temporaries stay small beside a layer of floats.
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class TensorTables:
    """What a layer's keys or values are coded with. `groups`: of channels that a token finds thresholds for; 0: per channel."""

    bits: int
    channels: int
    fraction: float  # of outliers; 0: none are kept
    groups: int
    midpoints: Tensor  # [2^bits - 1], float32: of neighbouring centroids
    levels: Tensor  # [2^bits], float32: what a code comes back as, in units of the range
    zero: Tensor | None = None  # [channels], fp16, where groups is 0
    scale: Tensor | None = None
    lower: Tensor | None = None  # [channels], float32, where groups is 0 and outliers are kept
    upper: Tensor | None = None
    rotation: int = 0  # channels that a Hadamard matrix turns before all else; 0: none

    @property
    def row_bytes(self) -> int:
        return (self.channels * self.bits + 7) // 8

    @property
    def keeps_outliers(self) -> bool:
        return self.fraction > 0

    @property
    def index_dtype(self) -> torch.dtype:
        """Of an outlier's channel and a row's count: 16 bits up to 65535 channels, as bit patterns of a signed type."""
        return torch.int16 if self.channels <= 0xFFFF else torch.int32

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values() if isinstance(tensor, Tensor))

    def to(self, device: torch.device) -> TensorTables:
        return replace(self, **{name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)})


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows as they are stored. Outliers lie row by row, in the order of their channels."""

    codes: Tensor  # [rows, row_bytes], uint8
    affines: Tensor | None = None  # [rows, groups, 2], fp16: range and zero; None where they are the layer's
    counts: Tensor | None = None  # [rows], index_dtype; None where no outliers are kept
    indices: Tensor | None = None  # [outliers], index_dtype
    values: Tensor | None = None  # [outliers], fp16

    def __len__(self) -> int:
        return self.codes.shape[0]

    def parts(self) -> Iterator[Tensor]:
        return (part for field in fields(self) if (part := getattr(self, field.name)) is not None)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts())

    def wide_counts(self) -> Tensor:
        """The counts as int64."""
        assert self.counts is not None
        return unsigned(self.counts)


def unsigned(bits: Tensor) -> Tensor:
    """int16 or int32 bit patterns of unsigned numbers, as int64."""
    return bits.to(torch.int64) & (0xFFFF if bits.dtype == torch.int16 else 0xFFFFFFFF)


class RowCodec(Protocol):
    """The seam where another implementation of the same bytes fits."""

    def encode_rows(self, x: Tensor, tables: TensorTables) -> tuple[EncodedRows, Tensor]:
        """x: [rows, channels], float32. The rows, and their faults: int64 [3], each the flat index of the first number that is
        not finite, of the first outlier that overflows fp16, of the first group of a row whose range or zero does; or -1."""
        ...

    def decode_rows(self, rows: EncodedRows, tables: TensorTables) -> Tensor:
        """[rows, channels], float32."""
        ...


def first_true(mask: Tensor) -> Tensor:
    """The flat index of the first element that holds, int64 []; -1 where none does. Waits for no device."""
    if mask.numel() == 0:
        return torch.full((), -1, dtype=torch.int64, device=mask.device)
    return torch.where(mask.any(), mask.reshape(-1).to(torch.uint8).argmax(), -1)


def turn_hadamard(x: Tensor, block: int) -> Tensor:
    """Turns each block of the channels of x, [..., channels], float32; once more turns it back, but for rounding. Sums and
    differences of channels 1, 2, 4, ... apart, then times 1 / sqrt(block), as cuda/hadamard.cpp does."""
    shape, step = x.shape, 1
    while step < block:
        first, second = x.reshape(-1, 2, step).unbind(1)
        x = torch.stack([first + second, first - second], 1)
        step *= 2
    return x.reshape(shape) * (1 / torch.tensor(float(block)).sqrt()).item()


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """[rows, n], int32, to [rows, ceil(n * bits / 8)], uint8: bit b of code i is bit i * bits + b, least significant first."""
    rows, count = codes.shape
    per_word, word_bytes = (8, 3) if bits == 3 else (8 // bits, 1)
    words_of_row = -(-count // per_word)
    codes = torch.nn.functional.pad(codes, (0, -count % per_word)).view(rows, words_of_row, per_word)
    shifts = bits * torch.arange(per_word, dtype=torch.int32, device=codes.device)
    words = (codes << shifts).sum(-1, dtype=torch.int32, keepdim=True)
    parts = (words >> 8 * torch.arange(word_bytes, dtype=torch.int32, device=codes.device)) & 0xFF
    return parts.to(torch.uint8).view(rows, words_of_row * word_bytes)[:, : (count * bits + 7) // 8].contiguous()


def unpack_codes(packed: Tensor, count: int, bits: int) -> Tensor:
    """What pack_codes() packed: [rows, count], int32."""
    rows = packed.shape[0]
    per_word, word_bytes = (8, 3) if bits == 3 else (8 // bits, 1)
    words_of_row = -(-packed.shape[1] // word_bytes)
    packed = torch.nn.functional.pad(packed, (0, -packed.shape[1] % word_bytes)).view(rows, words_of_row, word_bytes)
    packed = packed.to(torch.int32)
    words = packed[..., :1]
    for byte in range(1, word_bytes):
        words = words | packed[..., byte : byte + 1] << 8 * byte
    shifts = bits * torch.arange(per_word, dtype=torch.int32, device=packed.device)
    return ((words >> shifts) & ((1 << bits) - 1)).view(rows, words_of_row * per_word)[:, :count]


def _quantile_place(q: float, count: int) -> tuple[int, float]:
    position = q * (count - 1)
    below = min(int(position), count - 1)
    fraction = position - below
    return below, fraction if below + 1 < count and fraction > 0 else 0.0


def _between(low: Tensor, high: Tensor, fraction: float) -> Tensor:
    if fraction <= 0:
        return low
    wide = low.double()
    return (wide + fraction * (high.double() - wide)).float()


def thresholds(x: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """The fraction / 2 and 1 - fraction / 2 quantiles of the last dimension, linear interpolation: lower and upper [...]."""
    if fraction == 0:
        return x.amin(-1), x.amax(-1)
    count = x.shape[-1]
    below, part = _quantile_place(fraction / 2, count)
    smallest = x.topk(min(count, below + 2), largest=False).values
    lower = _between(smallest[..., below], smallest[..., min(below + 1, smallest.shape[-1] - 1)], part)
    below, part = _quantile_place(1 - fraction / 2, count)
    largest = x.topk(count - below).values
    return lower, _between(largest[..., -1], largest[..., max(count - below - 2, 0)], part)


def affine_of(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Range and zero of thresholds, rounded to fp16; infinite where they overflow it."""
    return ((upper - lower) * 0.5).half(), ((upper + lower) * 0.5).half()


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, torch.ones_like(scale) / scale, 0)


class TorchRowCodec:
    """On whatever device the rows are."""

    def encode_rows(self, x: Tensor, tables: TensorTables) -> tuple[EncodedRows, Tensor]:
        step = max(1, _BLOCK // tables.channels)
        if x.shape[0] <= step:
            return self._encode(x, tables)
        blocks = [self._encode(block, tables) for block in x.split(step)]
        found = torch.stack([faults for _, faults in blocks])
        units = torch.tensor([tables.channels, tables.channels, max(tables.groups, 1)], device=x.device)
        first = step * torch.arange(len(blocks), device=x.device)[:, None] * units
        # The smallest index, -1 counting as none.
        placed = torch.where(found >= 0, found + first, torch.iinfo(torch.int64).max).amin(0)
        faults = torch.where((found >= 0).any(0), placed, -1)
        return concatenate([rows for rows, _ in blocks]), faults

    def _encode(self, x: Tensor, tables: TensorTables) -> tuple[EncodedRows, Tensor]:
        overflow = torch.full((), -1, dtype=torch.int64, device=x.device)
        affines = None
        if tables.groups == 0:
            assert tables.zero is not None and tables.scale is not None
            u = (x - tables.zero.float()) * _inverse(tables.scale.float())
            lower, upper = tables.lower, tables.upper
            inside = x
        else:
            inside = x.reshape(x.shape[0], tables.groups, tables.channels // tables.groups)
            lower, upper = (bound[..., None] for bound in thresholds(inside, tables.fraction))
            scale, zero = affine_of(lower, upper)
            affines = torch.cat([scale, zero], -1)
            overflow = first_true(affines.isinf().any(-1))
            u = ((inside - zero.float()) * _inverse(scale.float())).view(x.shape)
        codes = pack_codes(torch.bucketize(u, tables.midpoints, out_int32=True), tables.bits)
        finite = first_true(~x.isfinite())
        if not tables.keeps_outliers:
            return EncodedRows(codes, affines), torch.stack([finite, torch.full_like(finite, -1), overflow])
        beyond = ((inside < lower) | (inside > upper)).view(x.shape)
        where = beyond.nonzero()
        counts = beyond.sum(1)
        rows = EncodedRows(codes, affines, counts.to(tables.index_dtype), where[:, 1].to(tables.index_dtype),
                           x[where[:, 0], where[:, 1]].half())
        return rows, torch.stack([finite, first_true(beyond & (x.abs() >= _HALF_OVERFLOW)), overflow])

    def decode_rows(self, rows: EncodedRows, tables: TensorTables) -> Tensor:
        x = tables.levels[unpack_codes(rows.codes, tables.channels, tables.bits)]
        if tables.groups == 0:
            assert tables.zero is not None and tables.scale is not None
            x.mul_(tables.scale.float()).add_(tables.zero.float())
        else:
            assert rows.affines is not None
            affines = rows.affines.float()
            x = x.view(len(rows), tables.groups, tables.channels // tables.groups)
            x = x.mul_(affines[..., :1]).add_(affines[..., 1:]).view(len(rows), tables.channels)
        if rows.indices is not None and rows.values is not None and rows.indices.numel():
            row = torch.repeat_interleave(torch.arange(len(rows), device=x.device), rows.wide_counts(),
                                          output_size=rows.indices.numel())
            x.view(-1).index_copy_(0, row * tables.channels + unsigned(rows.indices), rows.values.float())
        return x


def concatenate(many: list[EncodedRows]) -> EncodedRows:
    """The rows of each, one after the other."""
    columns = ([getattr(rows, field.name) for rows in many] for field in fields(EncodedRows))
    return EncodedRows(*(None if column[0] is None else torch.cat(column) for column in columns))


# A layer's tables live as long as its cache.
_native: WeakKeyDictionary[TensorTables, RowCodec] = WeakKeyDictionary()


def _native_codec(tables: TensorTables) -> RowCodec | None:
    if tables not in _native:
        try:
            from kvcal.cache.native_codec import NativeRowCodec
        except ImportError:  # the source alone, not built
            return None
        _native[tables] = NativeRowCodec(tables)
    return _native[tables]


def row_codec(device: torch.device, tables: TensorTables) -> RowCodec:
    """The codec for tensors on `device`: the C++ one where it was built and they are on the CPU, else torch's."""
    native = _native_codec(tables) if device.type == "cpu" else None
    return native or TorchRowCodec()
