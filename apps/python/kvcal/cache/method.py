"""Names of ways to store a cache, as in docs/methods.md: those that a cache of packed codes can serve."""
from __future__ import annotations

import re
from dataclasses import dataclass

from kvcal.errors import UsageError

_REASONS = {
    "-paged": "pages with a fixed number of slots are an engine's layout; this cache stores by token",
    "-kernels": "the CUDA kernels read an engine's pages; this cache stores by token",
    "-nosink": "this cache keeps a sequence's first tokens exact, and -nosink is for measuring what that gives",
}


@dataclass(frozen=True)
class Method:
    """nuqB, nuqB-P%, each with -qn; "recipe": for each tensor what `kvcal allocate` chose; or "exact": floats, for tests."""

    bits: int = 4
    fraction: float = 0.0  # of outliers, 0 to 0.5
    qnorm: bool = False
    exact: bool = False
    recipe: bool = False

    def __post_init__(self) -> None:
        if self.exact or self.recipe:
            return
        if self.bits not in (2, 3, 4):
            raise UsageError(f"codes have 2, 3 or 4 bits, not {self.bits!r}")
        if not 0 <= self.fraction < 0.5:
            raise UsageError(f"the fraction of outliers is {self.fraction!r}; it is at least 0 and below 0.5 (0.01 is 1 %)")

    @property
    def name(self) -> str:
        if self.exact or self.recipe:
            return "exact" if self.exact else "recipe"
        percent = f"-{self.fraction * 100:g}%" if self.fraction else ""
        return f"nuq{self.bits}{percent}{'-qn' if self.qnorm else ''}"

    @property
    def group(self) -> str:
        """The codebook's group of this fraction, which rounds it as %g does."""
        return f"outliers_{self.fraction:g}"


def parse_method(text: str) -> Method:
    """ "nuq3-1%-qn" to what it says. Raises UsageError for other names, with the reason where it is a known one."""
    if text in ("exact", "recipe"):
        return Method(exact=text == "exact", recipe=text == "recipe")
    for suffix, reason in _REASONS.items():
        if text.startswith(("nuq", "recipe")) and text.endswith(suffix):
            raise UsageError(f"{text}: {reason}. Take {text.removesuffix(suffix)}")
    match = re.fullmatch(r"nuq(\d)(?:-(\d+(?:\.\d+)?)%)?(-qn)?", text)
    if match is None:
        raise UsageError(f"{text!r} is no method of this cache; it knows nuqB and nuqB-P%, each with -qn, such as nuq4-1%, "
                         "and recipe")
    return Method(int(match[1]), float(match[2] or 0) / 100, match[3] is not None)
