"""HDF5 files that kvcal never writes, made by h5py: codebooks with its defaults are read; damaged ones, and other kinds of file, are
refused before libhdf5 sees them, with the reason and in little memory.

KVCAL_BUILD names the build folder, whose bin/ holds codebook_sample and codebook_read_sample.
"""

import os
import pathlib
import resource
import shutil
import subprocess

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")

BUILD = os.environ.get("KVCAL_BUILD")
pytestmark = pytest.mark.skipif(not BUILD, reason="KVCAL_BUILD is not set")
MEMORY = 1 << 30


def program(name):
    path = pathlib.Path(BUILD) / "bin" / name
    if not path.exists():
        pytest.skip(f"{path} is not built")
    return str(path)


def outcome(path):
    done = subprocess.run([program("codebook_read_sample"), str(path)], capture_output=True, text=True, timeout=20,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)))
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.strip()


def read(path):
    said = outcome(path)
    assert not said.startswith("ok "), said
    return said


@pytest.fixture
def ours(tmp_path):
    path = tmp_path / "ours.h5"
    subprocess.run([program("codebook_sample"), str(path)], check=True)
    return path


def copy(source, target, value=lambda value: value, **options):
    """All of a group, item by item, as who writes a codebook with h5py would."""
    for name, item in source.items():
        if isinstance(item, h5py.Dataset):
            made = target.create_dataset(name, data=item[()], fletcher32=True, **{
                "chunks": item.chunks, **{key: of(item.shape) if callable(of) else of for key, of in options.items()}})
        else:
            made = target.create_group(name)
            copy(item, made, value, **options)
        for key, attribute in item.attrs.items():
            made.attrs[key] = value(attribute)


def rewrite(ours, path, value=lambda value: value, **options):
    with h5py.File(ours, "r") as source, h5py.File(path, "w") as target:
        for name, attribute in source.attrs.items():
            target.attrs[name] = value(attribute)
        copy(source, target, value, **options)
    return path


def decoded(value):
    return value.decode() if isinstance(value, bytes) else value


def small_chunks(shape):
    return tuple(max(1, extent // 3) for extent in shape)


REWRITTEN = {
    "defaults": {},
    "text of variable length": {"value": decoded},
    "several chunks": {"chunks": small_chunks},
    "growing": {"chunks": small_chunks, "maxshape": lambda shape: (None,) * len(shape)},
    "fill values and times": {"fillvalue": 2.5, "track_times": True},
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_what_h5py_writes_with_its_defaults_is_the_same_codebook(ours, tmp_path, name):
    path = rewrite(ours, tmp_path / "a.h5", **REWRITTEN[name])
    assert path.read_bytes()[8] == 0
    said = outcome(ours)
    assert said.startswith("ok ")
    assert outcome(path) == said


def test_what_h5repack_writes_is_the_same_codebook(ours, tmp_path):
    if not shutil.which("h5repack"):
        pytest.skip("no h5repack")
    for options in ([], ["-l", "CHUNK=4"]):
        subprocess.run(["h5repack", *options, str(ours), str(tmp_path / "a.h5")], check=True)
        assert outcome(tmp_path / "a.h5") == outcome(ours)


def number(value, width=8):
    return value.to_bytes(width, "little")


def second_chunk(content, shift, value):
    """Edits the key of the second chunk of the first dataset that has one."""
    at = content.index(b"TREE\1\0")
    while content[at + 6] < 2:
        at = content.index(b"TREE\1\0", at + 1)
    content[at + 24 + 32 + shift : at + 24 + 32 + shift + len(value)] = value


def put(content, at, value):
    content[at : at + len(value)] = value


DAMAGES = {
    "cut": (lambda c: c.__delitem__(slice(len(c) - 8, None)), "and should have"),
    "longer": (lambda c: c.extend(b"x"), "and should have"),
    "base": (lambda c: put(c, 24, number(8)), "its base address is 8"),
    "nodes": (lambda c: put(c, 16, number(0, 2)), "room for twice 0"),
    "tree of the root": (lambda c: put(c, 80, number(96)), "a table of symbols that disagrees"),
    "root": (lambda c: put(c, 64, number(4096)), "object header of version"),
    "names": (lambda c: put(c, c.index(b"HEAP") + 24, number(0)), "belong to something else"),
    "symbols": (lambda c: put(c, c.index(b"SNOD") + 6, number(9, 2)), "a table of symbols with entries: 9"),
    "chunk of another size": (lambda c: second_chunk(c, 0, number(1, 4)), "bytes, and one of 1"),
    "chunk without a checksum": (lambda c: second_chunk(c, 4, number(1, 4)), "a chunk without its checksum"),
    "chunk between chunks": (lambda c: second_chunk(c, 8, number(1)), "a chunk that begins at element 1"),
    "chunk twice": (lambda c: second_chunk(c, 8, number(0)), "chunks in another order"),
    "chunk elsewhere": (lambda c: second_chunk(c, 24, number(96)), "a chunk on bytes that belong to something else"),
    "chunk outside": (lambda c: second_chunk(c, 24, number(len(c))), "bytes are expected here"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_of_h5py_is_refused(ours, tmp_path, name):
    edit, reason = DAMAGES[name]
    path = rewrite(ours, tmp_path / "a.h5", chunks=small_chunks)
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)
    assert reason in read(path)


def many_attributes(file):
    for i in range(20):
        file.attrs[f"a{i}"] = i


def many_links(file):
    for i in range(20):
        file.create_group(f"g{i}")


NEW = {"libver": ("v110", "v110")}
FILES = {
    "another content": ({}, many_links, "/@format: missing: an HDF5 file, but not a codebook of kvcal"),
    "links in a heap, superblock 0": ({"track_order": True}, many_links, "an object header with the flags"),
    "soft link": ({}, lambda f: f.__setitem__("x", h5py.SoftLink("/")), "/x: a link to another place"),
    "superblock 2": ({"libver": ("v108", "v108")}, many_links, "its superblock has version 2"),
    "user block": ({"userblock_size": 512}, many_links, "its signature does not come first"),
    "paged": (NEW | {"fs_strategy": "page"}, many_links, "its superblock has an extension"),
    "attributes in a heap": (NEW, many_attributes, "its attributes in a heap"),
    "links in a heap": (NEW, many_links, "its links in a heap"),
    "order of creation": (NEW | {"track_order": True}, many_links, "an object header with the flags"),
    "growing": (NEW, lambda f: f.create_dataset("x", data=np.ones(9), chunks=(2,), maxshape=(None,)), "more than one chunk"),
    "compound": (NEW, lambda f: f.create_dataset("x", data=np.zeros(3, [("a", "i4")])), "has an element type"),
    "references": (NEW, lambda f: f.attrs.create("x", f.ref, dtype=h5py.ref_dtype), "/@x: has an element type"),
    "named type": (NEW, lambda f: f.__setitem__("x", np.dtype("f8")), "neither a group nor a dataset"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_kinds_are_refused_by_name(name, tmp_path):
    options, fill, reason = FILES[name]
    with h5py.File(tmp_path / "a.h5", "w", **options) as file:
        fill(file)
    assert reason in read(tmp_path / "a.h5")


def test_many_texts_in_one_heap_object_take_no_memory(tmp_path):
    path = tmp_path / "a.h5"
    subprocess.run([program("codebook_sample"), str(path)], check=True)
    # What h5py adds has no checksum in its header.
    with h5py.File(path, "r+") as file:
        group = file.create_group("old")
        group.attrs.create("x", ["y" * (1 << 20)] + ["z"] * 2999, dtype=h5py.string_dtype())
    content = bytearray(path.read_bytes())
    at = content.index(b"x\0\0\0\0\0\0\0\x19") + 8 + 24 + 24  # name, type and shape
    first = bytes(content[at : at + 16])
    assert int.from_bytes(first[:4], "little") == 1 << 20
    content[at : at + 16 * 3000] = first * 3000
    path.write_bytes(content)
    assert "/old@x: holds with others more text than the file has bytes" in read(path)
