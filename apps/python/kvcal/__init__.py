"""kvcal: non-uniform codebooks for the KV cache of language models: made, judged, read, and used.

    import kvcal

    codebook = kvcal.calibrate("DIR", "prose.txt", out="model.h5")
    report = kvcal.validate("DIR", "model.h5", "other.txt")
    kvcal.export("model.h5", "safetensors", out="model.safetensors")

    with kvcal.KvcalCache.from_file("model.safetensors", model, bits=4, outliers=0.01) as cache:
        model.generate(**inputs, past_key_values=cache)

`import kvcal` needs neither torch nor transformers; the first use of KvcalCache imports them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import Error, UsageError

if TYPE_CHECKING:
    from ._core import Calibration, Codebook, Datatype, Layer, Magnitudes, Model, OutlierSet, Tensor, __version__
    from .cache import KvcalCache
    from .commands import allocate, calibrate, export, merge, validate
    from .program import Progress
    from .solver import KmeansResult, kmeans

# Where each name is defined; imported at its first use.
_HOMES = {
    "._core": ("Calibration", "Codebook", "Datatype", "Layer", "Magnitudes", "Model", "OutlierSet", "Tensor", "__version__"),
    ".cache": ("KvcalCache",),
    ".commands": ("allocate", "calibrate", "export", "merge", "validate"),
    ".program": ("Progress",),
    ".solver": ("KmeansResult", "kmeans"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Calibration", "Codebook", "Datatype", "Error", "KmeansResult", "KvcalCache", "Layer", "Magnitudes", "Model", "OutlierSet", "Progress",
    "Tensor", "UsageError", "allocate", "calibrate", "export", "kmeans", "merge", "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
