"""The codec by rows on the CPU: the C++ one, where the package has its extension."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kvcal import _core
from kvcal.cache.codec import EncodedRows, TensorTables, TorchRowCodec
from kvcal.errors import Error, UsageError

_NO_FAULTS = (-1, -1, -1)


def _bits(x: Tensor | None) -> np.ndarray | None:
    """fp16 numbers as their bit patterns."""
    return None if x is None else x.contiguous().view(torch.int16).numpy().view(np.uint16)


def _floats(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else x.contiguous().numpy()


def _wide(x: Tensor | None) -> np.ndarray:
    """Unsigned bit patterns of 16 or 32 bits as uint32."""
    if x is None:
        return np.empty(0, np.uint32)
    return x.numpy().view(np.uint16 if x.dtype == torch.int16 else np.uint32).astype(np.uint32, copy=False)


def _narrow(x: np.ndarray, dtype: torch.dtype) -> Tensor:
    """uint32 as unsigned bit patterns of `dtype`."""
    return torch.from_numpy(x.astype(np.uint16).view(np.int16) if dtype == torch.int16 else x.view(np.int32))


class NativeRowCodec:
    """For one layer's keys or values, on the CPU: the bytes and the numbers of TorchRowCodec, faster."""

    def __init__(self, tables: TensorTables) -> None:
        self._native = _core.RowTables(tables.bits, tables.channels, tables.fraction, tables.groups, tables.midpoints.numpy(),
                                       tables.levels.numpy(), _bits(tables.scale), _bits(tables.zero), _floats(tables.lower),
                                       _floats(tables.upper))

    def encode_rows(self, x: Tensor, tables: TensorTables) -> tuple[EncodedRows, Tensor]:
        try:
            codes, affines, counts, indices, values = self._native.encode(x.contiguous().numpy(), torch.get_num_threads())
        except UsageError:
            raise
        except Error:
            return TorchRowCodec().encode_rows(x, tables)  # says which number it was
        half = torch.from_numpy(affines.view(np.float16)).reshape(len(codes), tables.groups, 2) if tables.groups else None
        if not tables.keeps_outliers:
            return EncodedRows(torch.from_numpy(codes), half), torch.tensor(_NO_FAULTS)
        rows = EncodedRows(torch.from_numpy(codes), half, _narrow(counts, tables.index_dtype), _narrow(indices, tables.index_dtype),
                           torch.from_numpy(values.view(np.float16)))
        return rows, torch.tensor(_NO_FAULTS)

    def decode_rows(self, rows: EncodedRows, tables: TensorTables) -> Tensor:
        affines = np.empty((len(rows), 0, 2), np.uint16) if rows.affines is None else _bits(rows.affines)
        values = np.empty(0, np.uint16) if rows.values is None else _bits(rows.values)
        return torch.from_numpy(self._native.decode(rows.codes.contiguous().numpy(), affines, _wide(rows.counts), _wide(rows.indices),
                                                    values, torch.get_num_threads()))
