"""The program's jobs as functions: options are its options, with underscores for hyphens.

Each raises `UsageError` for options that contradict each other or the manual, `Error` for everything else, with the reason that the
program gives. Paths may be strings or `os.PathLike`; sizes and counts may be texts as the program takes them: "8GB", "8K".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, overload

from . import program
from ._core import Codebook
from .errors import UsageError

StrPath: TypeAlias = "str | os.PathLike[str]"
Texts: TypeAlias = "StrPath | Sequence[StrPath]"
Count: TypeAlias = "int | str"
OnProgress: TypeAlias = "Callable[[program.Progress], object]"
Bos: TypeAlias = Literal["auto", "each", "first", "none"]


@overload
def calibrate(model: StrPath, text: Texts | None = ..., *, out: StrPath, dry_run: Literal[False] = ..., **options: Any) -> Codebook: ...
@overload
def calibrate(model: StrPath, text: Texts | None = ..., *, out: StrPath, dry_run: Literal[True], **options: Any) -> dict[str, Any]: ...
def calibrate(  # type: ignore[misc]  # the overloads leave the options unnamed
    model: StrPath,
    text: Texts | None = None,
    *,
    out: StrPath,
    tokens: StrPath | None = None,
    text_field: str | None = None,
    overwrite: bool = False,
    samples: Count | None = None,
    seqlen: Count | None = None,
    bos: Bos | None = None,
    parse_special: bool = True,
    seed: int | None = None,
    bits: Sequence[int] | int | None = None,
    outliers: Sequence[float] | float | None = None,
    sinks: int | None = None,
    ablation: bool = False,
    value_scope: Literal["token", "head"] | None = None,
    sensitivity: Literal["fisher", "none"] | None = None,
    fisher_scale: Literal["range", "none"] | None = None,
    ranges: Literal["threshold", "fitted"] | None = None,
    value_rotation: Literal["none", "hadamard"] | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    device: str | None = None,
    threads: int | None = None,
    memory: Count | None = None,
    work: StrPath | None = None,
    html: StrPath | None = None,
    config: StrPath | None = None,
    dry_run: bool = False,
    progress: OnProgress | None = None,
) -> Codebook | dict[str, Any]:
    """`kvcal calibrate`: runs a model over calibration text and writes the codebook of its KV cache to `out`, which it gives.

    model: a folder of the Hugging Face form, or a name in its local cache. text: files like what the model will serve. samples windows of
    seqlen tokens are taken of it (16 of 2048). bits and outliers: all datatypes of one run (2, 3, 4; 0, 0.01). A run that was stopped, by
    Ctrl-C too, goes on with the same call. dry_run: gives what would be done and what memory, disk and time it needs, and does nothing.
    `kvcal calibrate --help` explains each option. progress is called with every step of a stage, at most ten times a second.
    """
    options = dict(locals())
    options.pop("progress")
    report = program.run("calibrate", options, progress)
    return report if dry_run else Codebook(out)


def validate(
    model: StrPath,
    codebook: StrPath | None = None,
    text: Texts | None = None,
    *,
    tokens: StrPath | None = None,
    text_field: str | None = None,
    force: bool = False,
    seqlen: Count | None = None,
    windows: Count | Literal["all"] | None = None,
    bos: Bos | None = None,
    protocol: Literal["kvcal", "kvquant", "llama.cpp"] | None = None,
    parse_special: bool = True,
    methods: Sequence[str] | str | None = None,
    generate: Count | None = None,
    passkey: Sequence[Count] | Count | None = None,
    kernels: bool = False,
    per_layer_kl: bool = False,
    max_kld: float | None = None,
    max_ppl_delta: float | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    device: str | None = None,
    threads: int | None = None,
    memory: Count | None = None,
    work: StrPath | None = None,
    html: StrPath | None = None,
    config: StrPath | None = None,
    progress: OnProgress | None = None,
) -> dict[str, Any]:
    """`kvcal validate`: what a codebook costs on a text that it was not calibrated on; gives what --json is (docs/validation.md).

    Limits (max_kld in nats, max_ppl_delta) that are not met do not raise: the report says so. `kvcal validate --help` explains each
    option.
    """
    options = dict(locals())
    options.pop("progress")
    return program.run("validate", options, progress)


def allocate(
    codebook: StrPath,
    *,
    bits_per_value: float | None = None,
    bytes_at: tuple[Count, Count] | None = None,
    paged: bool = False,
    min_bits: int | None = None,
    keep_layers: Sequence[int] | int | None = None,
    out: StrPath | None = None,
    measure_all: bool = False,
    progress: OnProgress | None = None,
    **measured: Any,
) -> dict[str, Any]:
    """`kvcal allocate`: the exact choice of bits and outliers for each tensor under a budget of bytes; gives what --json is (docs/allocation.md).

    The budget is bits_per_value, or bytes_at=(tokens, size) such as ("128K", "8GB"). The recipe goes into the codebook itself, or with `out`
    into a copy. Divergences are estimated from the file, or measured: measured takes model, text and what else of validate() says on what and
    how.
    """
    options = dict(locals()) | measured
    for name in ("codebook", "progress", "measured"):
        options.pop(name)
    return program.run("allocate", options, progress, positional=[os.fspath(codebook)])


def merge(codebooks: Sequence[StrPath], *, out: StrPath, overwrite: bool = False, config: StrPath | None = None) -> dict[str, Any]:
    """`kvcal merge`: one codebook from those of several runs over other texts; gives how near it comes (docs/merging.md)."""
    if isinstance(codebooks, (str, os.PathLike)):
        raise UsageError(f"merge takes a list of codebooks, not one: {os.fspath(codebooks)}")
    options = dict(out=out, overwrite=overwrite, config=config)
    return program.run("merge", options, positional=[os.fspath(codebook) for codebook in codebooks])


def export(codebook: StrPath, format: str, *, out: StrPath | None = None, **options: Any) -> dict[str, Any]:
    """`kvcal export`: hands a codebook to a serving system; "safetensors" is what KvcalCache reads.

    options: those of the format, such as type="int8", per="channel"; docs/exports has them. Gives the files, the command that serves
    them, and how a scale could get lost.
    """
    return program.run("export", dict(format=format, out=out, **options), positional=[os.fspath(codebook)])
