"""Reads the file of `kvcal export --format safetensors` (docs/exports/safetensors.md): what a cache needs of a codebook."""
from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvcal.cache.codec import TensorTables, affine_of
from kvcal.cache.method import Method
from kvcal.errors import Error

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_KEPT_BITS = 16  # of a tensor that a recipe keeps as it is


@dataclass(frozen=True, eq=False)
class LayerTables:
    """One layer's shape, and what its keys and values are coded with; without tables for the method "exact", and for what a recipe
    keeps as it is."""

    kv_heads: int
    key_dim: int  # per head
    value_dim: int
    rope: dict[str, Any] | None
    window: int  # of sliding-window attention; 0: none
    key: TensorTables | None = None
    value: TensorTables | None = None

    @property
    def nbytes(self) -> int:
        return sum(tables.nbytes for tables in (self.key, self.value) if tables)


@dataclass(frozen=True, eq=False)
class Codebook:
    """A codebook for one method."""

    path: Path
    model: dict[str, Any]  # attributes of /model
    sinks: int  # first tokens of a sequence that are kept exact
    layers: list[LayerTables]


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as start:
                if start.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE:
                    raise Error(f"{path} is the codebook's HDF5 file; this needs its export: "
                                f"kvcal export {path} --format safetensors --out {path.with_suffix('.safetensors')}")
            self._tensors = safe_open(path, "pt")
        except OSError as error:
            raise Error(f"{path}: {error.strerror or error}") from error
        except SafetensorError as error:
            raise Error(f"{path} is no safetensors file: {error}") from error
        text = (self._tensors.metadata() or {}).get("kvcal")
        if text is None:
            raise Error(f"{path} has no `kvcal` in its metadata: it was not exported by `kvcal export --format safetensors`, "
                        "or a tool that rewrote it dropped the metadata")
        try:
            self.attributes = cast(dict[str, dict[str, Any]], json.loads(text))
            root = self.attributes["/"]
            form, major = root["format"], root["schema_major"]
        except (ValueError, KeyError, TypeError) as error:
            raise Error(f"{path}: the metadata `kvcal` is damaged: {error}") from error
        if (form, major) != ("kvcal-codebook", 1):
            raise Error(f"{path}: expected a kvcal-codebook of schema 1, found {form!r} of schema {major!r}")
        self.names = set(self._tensors.keys())

    def attribute(self, path: str, name: str) -> Any:
        try:
            return self.attributes[path][name]
        except (KeyError, TypeError):
            raise Error(f"{self.path}: {path} has no attribute {name!r}") from None

    def tensor(self, name: str, size: int) -> Tensor:
        if name not in self.names:
            raise Error(f"{self.path} has no tensor {name}")
        tensor = self._tensors.get_tensor(name)
        if tensor.dtype != torch.float32 or tensor.shape != (size,) or not bool(tensor.isfinite().all()):
            raise Error(f"{self.path}: {name} is not {size} finite float32 but {tensor.dtype} {tuple(tensor.shape)}")
        return tensor

    def methods(self, tensor: str) -> list[str]:
        """Names of what the file holds of a tensor, "layers/0000/key"."""
        found = []
        for name in self.names:
            folder, _, leaf = name.removesuffix("/centroids").rpartition("/")
            group = folder.removeprefix(tensor + "/")
            if name.endswith("/centroids") and group.startswith("outliers_") and "/" not in group:
                if leaf.removeprefix("nuq") in ("2", "3", "4"):
                    found.append(Method(int(leaf[3:]), float(self.attribute(folder, "fraction"))))
        return [method.name for method in sorted(found, key=lambda method: (method.fraction, method.bits))]


def _tensor_tables(file: _File, layer: str, name: str, method: Method, heads: int, dim: int, groups: int) -> TensorTables:
    tensor = f"{layer}/{name}"
    group = f"{tensor}/{method.group}"
    centroids_name = f"{group}/nuq{method.bits}/centroids"
    if centroids_name not in file.names:
        wanted, has = method.name.removesuffix("-qn"), ", ".join(file.methods(tensor))
        raise Error(f"{file.path} holds no {wanted} for {tensor}; it has {has}")
    centroids = file.tensor(centroids_name, 1 << method.bits)
    if bool((centroids.diff() < 0).any()):
        raise Error(f"{file.path}: {centroids_name} descends")
    levels = centroids
    if method.qnorm:
        scale, offset = (file.attribute(centroids_name, f"qnorm_{name}") for name in ("scale", "offset"))
        levels = centroids * torch.tensor(scale, dtype=torch.float32) + torch.tensor(offset, dtype=torch.float32)
    rotation = _rotation(file, tensor, dim)
    fraction = float(file.attribute(group, "fraction"))
    midpoints = (centroids[:-1] + centroids[1:]) * 0.5
    if groups:
        return TensorTables(method.bits, heads * dim, fraction, groups, midpoints, levels, rotation=rotation)
    lower, upper = (file.tensor(f"{group}/{bound}", heads * dim) for bound in ("lower", "upper"))
    if bool((lower > upper).any()):
        raise Error(f"{file.path}: {group}: lower above upper")
    ranges = f"{group}/nuq{method.bits}"
    if f"{ranges}/scale" in file.names:
        scale, zero = (file.tensor(f"{ranges}/{part}", heads * dim).half() for part in ("scale", "zero"))
    else:
        scale, zero = affine_of(lower, upper)
    if bool((scale.isinf() | zero.isinf()).any()):
        raise Error(f"{file.path}: {group}: range or zero of a channel overflows fp16")
    bounds = (lower, upper) if fraction else (None, None)
    return TensorTables(method.bits, heads * dim, fraction, 0, midpoints, levels, zero, scale, *bounds)


def _rotation(file: _File, tensor: str, dim: int) -> int:
    attributes = file.attributes.get(tensor, {})
    name = attributes.get("rotation")
    if name is None:
        return 0
    block = attributes.get("rotation_block")
    if name != "hadamard":
        raise Error(f"{file.path}: {tensor} is turned by {name!r}, which this version of kvcal does not know; update kvcal")
    if not isinstance(block, int) or block < 1 or block & (block - 1) or dim % block:
        raise Error(f"{file.path}: {tensor}: rotation_block is {block!r}, no power of two that divides the {dim} channels of a head")
    return block


def _layer_tables(file: _File, path: str, method: Method, value_scope: str) -> LayerTables:
    attributes = file.attributes[path]
    if not all(name in attributes for name in ("kv_heads", "key_dim", "value_dim")):
        raise Error(f"{file.path}: {path} caches other tensors than a key and a value for each kv head; this cache has no place "
                    "for them")
    heads, key_dim, value_dim = (int(attributes[name]) for name in ("kv_heads", "key_dim", "value_dim"))
    shape = LayerTables(heads, key_dim, value_dim, attributes.get("rope"), int(attributes.get("window", 0)))
    if method.exact:
        return shape
    groups = heads if value_scope == "head" else 1

    def tables(name: str, dim: int, groups: int) -> TensorTables | None:
        stored = _method_of(file, path, name, method)
        return None if stored is None else _tensor_tables(file, path, name, stored, heads, dim, groups)

    return replace(shape, key=tables("key", key_dim, 0), value=tables("value", value_dim, groups))


def _method_of(file: _File, layer: str, tensor: str, method: Method) -> Method | None:
    """What the tensor is stored by; None: as it is."""
    if not method.recipe:
        return method
    if "recipe" not in file.attributes:
        raise Error(f"{file.path} has no recipe; kvcal allocate writes one into the codebook, which is then exported anew")
    path = f"recipe/{layer.removeprefix('layers/')}/{tensor}"
    bits, fraction = file.attribute(path, "bits"), file.attribute(path, "fraction")
    return None if bits == _KEPT_BITS else Method(bits, float(fraction))


def read_codebook(path: str | os.PathLike[str], method: Method) -> Codebook:
    """Raises Error where the file is none, is damaged, or holds no tables for the method, with what it has."""
    file = _File(Path(path))
    scope = file.attribute("calibration", "value_scope")
    if scope not in ("token", "head"):
        raise Error(f"{file.path}: value_scope is {scope!r}, neither token nor head")
    names = sorted(name for name in file.attributes if name.startswith("layers/") and name.count("/") == 1)
    if not names or names != [f"layers/{index:04d}" for index in range(len(names))]:
        raise Error(f"{file.path}: layers without a cache of their own; this cache has one for each layer: {', '.join(names)}")
    layers = [_layer_tables(file, name, method, scope) for name in names]
    return Codebook(file.path, file.attributes.get("model", {}), int(file.attribute("calibration", "sinks")), layers)
