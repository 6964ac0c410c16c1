"""The solver alone: optimal centroids of weighted numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import UsageError


@dataclass(frozen=True)
class KmeansResult:
    """`objective` is that of the clusters' exact means, of which `centroids` are the nearest doubles."""

    centroids: npt.NDArray[np.float64]  #: [k], ascending, in the units of the points
    objective: float  #: sum of weight times squared distance to the nearest centroid
    lower_bound: float  #: no k centroids do better, as proven


def kmeans(x: npt.ArrayLike, weights: npt.ArrayLike | None = None, k: int = 8, *, gap: float = 0.0, threads: int = 0) -> KmeansResult:
    """The k centroids of least weighted squared error of the numbers x: the proven optimum, not a local one.

    x: any shape, finite; float32 or float64, C-contiguous, is read where it lies, anything else copied. weights: as many, 0 or more; each
    1 by default. gap: may stop once within this share of the optimum. threads: 0 for all CPUs. Raises Error for numbers that are not
    finite or weights that are negative or all zero, UsageError for k beyond 1 to 256 and sizes that differ.
    """
    points, scales = np.asarray(x), None if weights is None else np.asarray(weights)
    if scales is not None and scales.shape != points.shape:
        raise UsageError(f"weights have the shape {scales.shape} and x {points.shape}: give one weight for each number")
    for name, array in (("x", points), ("weights", scales)):
        if array is not None and not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
            raise UsageError(f"{name} is of {array.dtype}: give real numbers")
    # As the program: float32 throughout where neither needs more.
    narrow = all(array is None or array.dtype in (np.float16, np.float32) for array in (points, scales))
    dtype = np.float32 if narrow else np.float64
    points = np.ascontiguousarray(points, dtype)
    scales = np.ones(points.shape, dtype) if scales is None else np.ascontiguousarray(scales, dtype)
    return KmeansResult(*_core.solve_kmeans(points, scales, k, gap, threads))
