"""Damage that a disk does: one flipped byte in the payload of a dataset or an attribute is refused with one line that names its place.

Where the payload lies. A dataset: h5py's get_chunk_info() (each is one chunk, and Fletcher-32 over it). An attribute: its message in the
object's header, read here after the HDF5 File Format Specification 3.0, IV.A.1.b and IV.A.2.m; the header is an OHDR block and the OCHK
blocks that it is continued in, each with one checksum (Jenkins's lookup3) over all of its messages: the reader names
the object and its attributes under that checksum. Where the checksum is made good as well, only a rule or content_sha256 tells.

KVCAL_BUILD names the build folder (bin/kvcal, bin/codebook_read_sample).
"""
import os
import pathlib
import random
import re
import subprocess
from typing import NamedTuple

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")

BIN = pathlib.Path(os.environ.get("KVCAL_BUILD", "")) / "bin"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
for name in ("kvcal", "codebook_read_sample"):
    if not (BIN / name).exists():
        pytest.skip(f"needs KVCAL_BUILD with bin/{name}", allow_module_level=True)


class Payload(NamedTuple):
    place: str  # of the dataset, or of the object that has the attribute; "/" is the root
    attribute: str | None
    begin: int
    end: int
    block: tuple[int, int] | None  # of the header: the begin, and the end of what its checksum covers

    @property
    def path(self):
        return self.place if self.attribute is None else f"{self.place}@{self.attribute}"

    @property
    def kind(self):
        return re.sub("/layers/[0-9]+", "/layers/N", self.path)

    @property
    def name(self):
        return self.attribute or self.place.rsplit("/", 1)[1]


def number(data, at, width):
    return int.from_bytes(data[at:at + width], "little")


def header_messages(data, address):
    """Each message of a version-2 object header: type, begin, end, block."""
    assert data[address:address + 5] == b"OHDR\x02"
    flags = data[address + 5]
    assert flags & 4 == 0  # no creation order in each message
    at = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    blocks = [(address, at + width, at + width + number(data, at, width))]
    for start, begin, end in blocks:
        at = begin
        while end - at >= 4:
            kind, length = data[at], number(data, at + 1, 2)
            at += 4
            yield kind, at, at + length, (start, end)
            if kind == 0x10:
                block, size = number(data, at, 8), number(data, at + 8, 8)
                assert data[block:block + 4] == b"OCHK"
                blocks.append((block, block + 4, block + size - 4))
            at += length


def attributes(data, address):
    """Name, begin and end of the value, block: of each attribute (messages of version 3)."""
    for kind, begin, end, block in header_messages(data, address):
        if kind == 0x0C:
            assert data[begin] == 3
            name, datatype, dataspace = (number(data, begin + at, 2) for at in (2, 4, 6))
            yield data[begin + 9:begin + 9 + name - 1].decode(), begin + 9 + name + datatype + dataspace, end, block


def find_payloads(path):
    data = path.read_bytes()
    found = []

    def visit(name, item):
        place = "/" + name
        if isinstance(item, h5py.Dataset):
            assert item.id.get_num_chunks() == 1
            chunk = item.id.get_chunk_info(0)
            # The last 4 bytes of a chunk are its Fletcher-32.
            found.append(Payload(place, None, chunk.byte_offset, chunk.byte_offset + chunk.size - 4, None))
            assert data[found[-1].begin:found[-1].end] == item[()].tobytes()
        here = {name: (begin, end, block) for name, begin, end, block in attributes(data, h5py.h5o.get_info(item.id).addr)}
        assert set(here) == set(item.attrs)
        for name, (begin, end, block) in here.items():
            found.append(Payload(place, name, begin, end, block))
            assert data[begin:end].rstrip(b"\0") == np.asarray(item.attrs[name]).tobytes().rstrip(b"\0")

    with h5py.File(path, "r") as file:
        visit("", file)
        file.visititems(visit)
    return data, found


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    """The bytes of a real codebook, and where each payload lies in them."""
    path = tmp_path_factory.mktemp("flips") / "codebook.h5"
    subprocess.run([BIN / "kvcal", "calibrate", "--model", SOURCE / "data" / "model", "--text", SOURCE / "data" / "demo" / "calibrate.txt",
                    "--out", path, "--samples", "2", "--seqlen", "64", "--ablation", "--quiet"], check=True, capture_output=True, timeout=300)
    data, payloads = find_payloads(path)
    assert len({p.path for p in payloads}) == len(payloads) > 500
    return data, payloads


def one_of_each(field, payloads, rng):
    """Of those that share a kind (the path without the layer's number) or a name, any one."""
    return list({getattr(p, field): p for p in rng.sample(payloads, len(payloads))}.values())


def flipped(data, payload, rng, mask=None):
    damaged = bytearray(data)
    damaged[rng.randrange(payload.begin, payload.end)] ^= mask or rng.randrange(1, 256)
    return damaged


def inspected(path, damaged):
    """The one line with which kvcal inspect refuses the bytes."""
    path.write_bytes(damaged)
    done = subprocess.run([BIN / "kvcal", "inspect", path], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith(f"kvcal: error: {path}: ") and done.stderr.index("\n") == len(done.stderr) - 1, done.stderr
    return done.stderr


def refusal(path, damaged):
    """As inspected(), of the reader alone, which takes a fifth of the time."""
    path.write_bytes(damaged)
    done = subprocess.run([BIN / "codebook_read_sample", path], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "") and done.stdout.startswith(f"{path}: "), (done.stdout, done.stderr)
    return done.stdout


def names_place(line, payload):
    """The path of the dataset; of an attribute its object, and those that share the checksum."""
    if payload.attribute is None:
        return f": {payload.path}: " in line
    return re.search(f": {re.escape(payload.place)}: .* over the attributes .*@{re.escape(payload.attribute)}\\b", line) is not None


def test_inspect_names_what_is_damaged(codebook, tmp_path):
    data, payloads = codebook
    rng = random.Random(1)
    for payload in one_of_each("name", payloads, rng):
        line = inspected(tmp_path / "damaged.h5", flipped(data, payload, rng))
        assert names_place(line, payload), (payload, line)


def test_the_reader_names_what_is_damaged(codebook, tmp_path):
    data, payloads = codebook
    rng = random.Random(2)
    for payload in {*one_of_each("kind", payloads, rng), *rng.sample(payloads, 200)}:
        line = refusal(tmp_path / "damaged.h5", flipped(data, payload, rng))
        assert names_place(line, payload), (payload, line)


def lookup3(data):
    """Bob Jenkins's hash, from his description: blocks of three little-endian words; one kind of mixing between, another at the end."""
    def rotated(x, k):
        return (x << k | x >> 32 - k) & 0xFFFFFFFF

    s = [0xDEADBEEF + len(data) & 0xFFFFFFFF] * 3
    for at in range(0, len(data), 12):
        block = data[at:at + 12]
        s = [s[i] + number(block, 4 * i, 4) & 0xFFFFFFFF for i in range(3)]
        if at + 12 < len(data):
            for i, k in enumerate((4, 6, 8, 16, 19, 4)):
                a, b, c = i % 3, (i + 1) % 3, (i + 2) % 3
                s[a] = (s[a] - s[c] & 0xFFFFFFFF) ^ rotated(s[c], k)
                s[c] = s[c] + s[b] & 0xFFFFFFFF
        else:
            for i, k in enumerate((14, 11, 25, 16, 4, 14, 24)):
                a, b = (i + 2) % 3, (i + 1) % 3
                s[a] = (s[a] ^ s[b]) - rotated(s[b], k) & 0xFFFFFFFF
    return s[2]


def resealed(damaged, payload):
    begin, end = payload.block
    damaged[end:end + 4] = lookup3(damaged[begin:end]).to_bytes(4, "little")
    return damaged


def test_headers_carry_the_checksum_that_is_computed_here(codebook):
    data, payloads = codebook
    for begin, end in {p.block for p in payloads if p.block}:
        assert lookup3(data[begin:end]) == number(data, end, 4)


def is_text(data, payload, tmp_path):
    path = tmp_path / "whole.h5"
    if not path.exists():
        path.write_bytes(data)
    with h5py.File(path, "r") as file:
        return isinstance(file[payload.place].attrs[payload.attribute], bytes)


@pytest.mark.parametrize("mask", [1, 0x80])
def test_an_attribute_changed_under_a_good_checksum_is_refused(mask, codebook, tmp_path):
    """With its highest bit flipped a text is not UTF-8, and named. Other values: a rule names them or what disagrees with them, within the
    tensor or around it; those that are as good as the true ones, content_sha256 alone tells."""
    data, payloads = codebook
    rng = random.Random(mask)
    for payload in one_of_each("kind", [p for p in payloads if p.attribute], rng):
        line = refusal(tmp_path / "damaged.h5", resealed(flipped(data, payload, rng, mask), payload))
        if mask == 0x80 and is_text(data, payload, tmp_path):
            assert f": {payload.path}: is not UTF-8 text" in line
            continue
        named = re.search("damaged.h5: (/[^@:]*)", line)[1]
        tensor = "/".join(payload.place.split("/")[:4])
        related = named.startswith(tensor) or payload.place.startswith(named + "/")
        assert related or "/@content_sha256: the content does not match" in line, (payload, line)
