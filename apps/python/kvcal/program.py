"""The `kvcal` program that the package brings, and how Python runs it."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Error, UsageError

_PREFIX = "kvcal: error: "
_WARNING = "kvcal: warning: "
_WRONG_USAGE, _LIMIT_NOT_MET = 2, 3
# Flags that say something when they are False.
_HAVE_A_NO = ("parse_special",)
_HAVE_WORDS = ("text", "bytes_at")
_log = logging.getLogger("kvcal")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `done` of `total` (None: not known) steps of the stage, counted in `unit`."""

    stage: str
    done: int
    total: int | None
    unit: str
    detail: str = ""


def path() -> pathlib.Path:
    """The program's file."""
    return pathlib.Path(__file__).with_name("bin") / "kvcal"


def main() -> None:
    """`kvcal` on PATH: becomes the program."""
    os.execv(path(), ["kvcal", *sys.argv[1:]])


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Keywords as the program's options: None is left out, True is a flag, a sequence a list with commas; texts, and what else a comma may be
    part of, are words of their own."""
    words: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is None or value is False and name not in _HAVE_A_NO:
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, (list, tuple)):
            items = [str(os.fspath(item) if isinstance(item, os.PathLike) else item) for item in value]
            words += [option, *items] if name in _HAVE_WORDS else [f"{option}={','.join(items)}"]
        else:
            words.append(f"{option}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return words


def run(command: str, options: Mapping[str, Any], progress: Callable[[Progress], object] | None = None,
        positional: Iterable[str] = ()) -> dict[str, Any]:
    """Runs `kvcal command` and gives what its --json is.

    Raises UsageError and Error with the program's own reason. Its warnings are Python's. Where Ctrl-C or the callback ends the run, the
    program is told, and has ended, before the exception goes on: what it keeps to go on with is whole.
    """
    words = [os.fspath(path()), command, *positional, *arguments(options), "--json", "-"]
    shows_progress = command in ("allocate", "calibrate", "validate")
    if shows_progress:
        words += ["--progress", "json"]
    # In a session of its own: a Ctrl-C of the terminal reaches it once, through us.
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stderr is not None
    output: list[bytes] = []
    reader = threading.Thread(target=lambda stream: output.append(stream.read()), args=(process.stdout,), daemon=True)
    reader.start()
    try:
        errors = _follow(process.stderr, progress)
        code = process.wait()
    except BaseException:
        _stop(process)
        raise
    finally:
        reader.join()
        process.stdout.close()
        process.stderr.close()
    if code not in (0, _LIMIT_NOT_MET):
        _fail(command, code, errors)
    return json.loads(output[0]) if output[0].strip() else {}


def _follow(stream: Iterable[bytes], progress: Callable[[Progress], object] | None) -> list[str]:
    """Hands on what the program says of its progress; the lines that are something else."""
    others = []
    stage = Progress("", 0, None, "")
    for raw in stream:
        line = raw.decode(errors="replace").rstrip("\n")
        if line.startswith(_WARNING):
            warnings.warn(line.removeprefix(_WARNING), stacklevel=4)
            continue
        if not line.startswith('{"event"'):
            others.append(line)
            continue
        event = json.loads(line)
        if event["event"] == "warning":
            warnings.warn(event["text"], stacklevel=4)
        elif event["event"] == "info":
            _log.info(event["text"])
        elif event["event"] == "stage":
            stage = Progress(event["name"], 0, event["total"] or None, event["unit"])
        elif event["event"] == "advance":
            stage = Progress(stage.stage, event["done"], stage.total, stage.unit, event["detail"])
        else:
            continue
        if progress is not None and event["event"] in ("stage", "advance"):
            progress(stage)
    return others


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    try:
        process.stderr.read()
        process.wait()
    except KeyboardInterrupt:
        # Whoever asks twice means it.
        process.kill()
        process.wait()


def _fail(command: str, code: int, lines: list[str]) -> None:
    reasons = [line.removeprefix(_PREFIX) for line in lines if line.startswith(_PREFIX)]
    reason = reasons[-1] if reasons else "\n".join(lines[-5:])
    if code == _WRONG_USAGE:
        raise UsageError(reason)
    if code < 0 or code > 128:
        name = signal.Signals(-code if code < 0 else code - 128).name
        raise Error(f"kvcal {command} was ended by {name}" + (f": {reason}" if reason else ""))
    raise Error(reason or f"kvcal {command} ended with {code}")
