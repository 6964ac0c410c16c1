"""The include graph is the drawing of docs/architecture.md: arrows point downward only, room by room.

The build enforces the same for what compiles (base/cmake/kvcal_library.cmake); this also sees headers that nobody includes and
includes by another path.
"""

import os
import re
from pathlib import Path

import pytest

SOURCE = Path(os.environ["KVCAL_SOURCE_DIR"])

# Each room and the rooms below it that it may use.
ARROWS = {
    "base": [],
    "kmeans": ["base"],
    "formats": ["base"],
    "formats/tokenizer": ["formats", "base"],
    "cuda/kernels": [],
    "cuda": ["cuda/kernels", "base"],
    "fisher": ["base"],
    "calib/model": ["fisher", "formats", "base"],
    "calib/text": ["formats/tokenizer", "formats", "base"],
    "calib/plan": ["calib/model", "fisher", "formats", "base"],
    "calib/engine": ["calib/plan", "calib/text", "calib/model", "fisher", "formats", "base"],
    "calib/fit": ["calib/engine", "calib/model", "kmeans", "cuda", "cuda/kernels", "formats", "base"],
    "calib/validate": ["calib/engine", "calib/plan", "calib/text", "calib/model", "cuda", "cuda/kernels", "fisher", "formats", "base"],
    "calib/allocate": ["base"],
    "calib/merge": ["calib/fit", "cuda", "cuda/kernels", "formats", "base"],
    "calib": ["calib/allocate", "calib/merge", "calib/validate", "calib/fit", "calib/engine", "calib/plan", "calib/text", "calib/model", "kmeans", "cuda", "cuda/kernels", "fisher", "formats", "base"],
    "apps/python": ["cuda", "kmeans", "formats", "base"],
    "apps": ["calib", "calib/validate", "calib/plan", "calib/text", "kmeans", "formats", "base"],
}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def room_of(path):
    """The innermost room that holds a path relative to the source; None: of no room."""
    folder = Path(path).parent
    while str(folder) != ".":
        if str(folder) in ARROWS:
            return str(folder)
        folder = folder.parent
    return None


def sources(room):
    for path in sorted((SOURCE / room).rglob("*")):
        relative = path.relative_to(SOURCE)
        if path.suffix in (".h", ".cpp", ".cu", ".inc") and room_of(relative) == room:
            yield relative


def arrow(source, quote, target):
    """What is wrong with an include, or None."""
    folder = target.split("/")[0]
    known = {name.split("/")[0] for name in ARROWS}
    if folder not in known:
        # Standard and other projects' headers stand in angle brackets.
        return None if quote == "<" else f"{source}: \"{target}\" is not a path from the root"
    if quote == "<":
        return f"{source}: <{target}> is ours: quotes"
    if not (SOURCE / target).is_file():
        return f"{source}: {target} is not there"
    here, there = room_of(source), room_of(target)
    if here == there or there in ARROWS[here]:
        return None
    return f"{source}: {here} may not use {there} ({target})"


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_includes_only_rooms_below_it(room):
    files = list(sources(room))
    assert files, f"{room} is empty"
    wrong = []
    for source in files:
        for quote, target in INCLUDE.findall((SOURCE / source).read_text(encoding="utf-8")):
            wrong.append(arrow(source, quote, target))
    assert [text for text in wrong if text] == []


def test_every_target_has_its_place_in_the_drawing():
    """A new room is not taken for a part of the room around it, with all its arrows."""
    folders = {path.parent.relative_to(SOURCE) for path in SOURCE.glob("*/CMakeLists.txt")}
    folders |= {path.parent.relative_to(SOURCE) for path in SOURCE.glob("*/*/CMakeLists.txt")}
    assert {str(folder) for folder in folders if folder.parts[0] in {name.split("/")[0] for name in ARROWS}} == set(ARROWS)


def test_the_arrows_make_no_circle():
    below = {room: set(used) for room, used in ARROWS.items()}
    while below:
        lowest = [room for room, used in below.items() if not used & below.keys()]
        assert lowest, f"a circle among {sorted(below)}"
        for room in lowest:
            del below[room]


def test_an_arrow_upward_is_seen():
    assert "may not use" in arrow(Path("calib/model/model.h"), '"', "calib/engine/session.h")
    assert "may not use" in arrow(Path("formats/codebook.cpp"), '"', "formats/tokenizer/tokenizer.h")
    assert "not a path from the root" in arrow(Path("calib/model/model.h"), '"', "model_config.h")
