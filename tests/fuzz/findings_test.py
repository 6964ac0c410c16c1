"""Past findings that are too large for corpus/, or that h5py writes: made here and read by replay_NAME, which allows each 10 s and 1 GiB.

KVCAL_BUILD names the build folder, whose bin/ holds the replay programs and codebook_sample.
"""

import gzip
import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest

np = pytest.importorskip("numpy")
h5py = pytest.importorskip("h5py")

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "apps"))
from page_codebooks import changed  # noqa: E402

BUILD = os.environ.get("KVCAL_BUILD")
pytestmark = pytest.mark.skipif(not BUILD, reason="KVCAL_BUILD is not set")
# So that a finding that comes back takes neither the machine nor the day.
MOST_ADDRESS_SPACE = 8 << 30
MOST_SECONDS = 60


def program(name):
    path = pathlib.Path(BUILD) / "bin" / name
    if not path.exists():
        pytest.skip(f"{path} is not built")
    return str(path)


def replay(target, expected, path):
    done = subprocess.run([program(f"replay_{target}"), f"--{expected}", path], capture_output=True, text=True, timeout=MOST_SECONDS,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESS_SPACE, MOST_ADDRESS_SPACE)))
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])


def safetensors(header, data=b""):
    return len(header).to_bytes(8, "little") + header + data


def tokenizer(**parts):
    """tokenizer.json with a vocabulary of five; `parts` replace its sections."""
    vocabulary = {"a": 0, "b": 1, "ab": 2, "$": 3, "<unk>": 4}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]], "unk_token": "<unk>"}
    whole = {"added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    return json.dumps(whole | parts).encode()


def split(pattern):
    return tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})


def merges_longest_first(length):
    """aaa of a and aa before aa of a and a: the text joins to nothing before the end of the list."""
    tokens = ["a" * n for n in range(1, length + 1)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<unk>"])}
    merges = [[token[1:], "a"] for token in reversed(tokens[1:])]
    return tokenizer(model={"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": "<unk>"})


def config(extra):
    whole = json.loads((TESTS.parent / "data" / "model" / "config.json").read_text())
    return json.dumps(whole)[:-1].encode() + b', "extra": ' + extra + b"}"


NESTED = b"[" * 200_000
OBJECTS = b"[" + b'{"a":1},' * 300_000 + b"0]"
TENSORS = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000))
INDEX = '{"weight_map":{' + ",".join(f'"t{i}":"model-00001-of-00002.safetensors"' for i in range(300_000)) + "}}"
HEADER = 99_000_000

CONTENTS = {
    "config: nested": ("config", "refused", lambda: config(NESTED)),
    "config: objects": ("config", "taken", lambda: config(OBJECTS)),
    "tokenizer: nested": ("tokenizer", "refused", lambda: b'{"a":' + NESTED),
    "tokenizer: objects": ("tokenizer", "taken", lambda: tokenizer()[:-1] + b', "extra": ' + OBJECTS + b"}"),
    "index: nested": ("index", "refused", lambda: b'{"a":' + NESTED),
    "index: objects": ("index", "refused", lambda: b'{"weight_map":' + OBJECTS + b"}"),
    "index: names": ("index", "refused", INDEX.encode),
    "safetensors: nested": ("safetensors", "refused", lambda: safetensors(b'{"a":' + NESTED)),
    "safetensors: tensors": ("safetensors", "refused", lambda: safetensors(b"{" + TENSORS.encode() + b"}")),
    "safetensors: long header": ("safetensors", "taken", lambda: safetensors(b"{}".ljust(HEADER))),
    "safetensors: long list": ("safetensors", "refused", lambda: safetensors(b'{"a":[' + b"0," * (HEADER // 2 - 5) + b"0]}")),
    "safetensors: long objects": ("safetensors", "refused", lambda: safetensors(b'{"a":[' + b"{}," * (HEADER // 3 - 5) + b"0]}")),
    "safetensors: long text": ("safetensors", "taken", lambda: safetensors(b'{"__metadata__":{"a":"' + b"x" * (HEADER - 99) + b'"}}')),
    "text: nested": ("text", "refused", lambda: b'{"text": "a"}\n{"text": ' + NESTED),
    "text: objects": ("text", "taken", lambda: b'{"text": "a", "more": ' + OBJECTS + b"}\n"),
    "text: lines": ("text", "taken", lambda: b'{"text": "a"}\n' * 300_000),
    "text: gzip bomb": ("text", "refused", lambda: gzip.compress(bytes(200 << 20), mtime=0)),
    "tokenizer: script x 300": ("tokenizer", "taken", lambda: split(r"\p{Greek}" * 300)),
    "tokenizer: class x 500": ("tokenizer", "taken", lambda: split(r"[^\W\d]" * 500)),
    "tokenizer: a, 200,000 stars": ("tokenizer", "refused", lambda: split("a" + "*" * 200_000)),
    "tokenizer: 100,000 brackets": ("tokenizer", "refused", lambda: split("(" * 100_000)),
    "tokenizer: merges, longest first": ("tokenizer", "taken", lambda: merges_longest_first(2400)),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_large_inputs(name, tmp_path):
    target, expected, content = CONTENTS[name]
    path = tmp_path / "input"
    path.write_bytes(content())
    replay(target, expected, path)


TEXTS = ["\u00df ss SS Stra\u00dfe \u1e9e a aa aaa ab ABab x $ <unk> \u212a k \u017f 123 \t a", "a" * 12 + "$", "xxbxx", "a b\n\nc"]


# A pattern that is taken must also cut as the reference does: (?i)ss, (?i) of a sharp s, a Replace that can match nothing.
@pytest.mark.parametrize("path", sorted((TESTS / "fuzz" / "corpus" / "tokenizer" / "taken").iterdir()), ids=lambda path: path.stem)
def test_tokenizers_that_are_taken_give_the_ids_of_the_reference(path, tmp_path):
    reference = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    (tmp_path / "tokenizer.json").write_bytes(path.read_bytes())
    for text in TEXTS:
        (tmp_path / "text").write_text(text)
        done = subprocess.run([program("tokenize_file"), tmp_path, tmp_path / "text"], capture_output=True, text=True, timeout=MOST_SECONDS)
        assert done.returncode == 0, done.stderr
        assert list(map(int, done.stdout.split())) == reference.encode(text, add_special_tokens=False).ids, text


def many_attributes(file):
    for i in range(20):
        file.attrs[f"a{i}"] = i


def one_dataset(file):
    file.create_dataset("x", data=np.ones(9, "f4"), fletcher32=True)


def bomb(file):
    """A long text in the file's heap, to which an edit of the bytes then lets 3000 elements point."""
    file.create_group("old").attrs.create("x", ["y" * (1 << 20)] + ["z"] * 2999, dtype=h5py.string_dtype())


FOREIGN = {
    "superblock 2": ({"libver": ("v108", "v108")}, one_dataset),
    "superblock 0": ({"libver": ("earliest", "v108")}, one_dataset),
    "dense attributes": ({"libver": ("v110", "v110")}, many_attributes),
    "no codebook": ({"libver": ("v110", "v110")}, one_dataset),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_hdf5_files_of_other_kinds(name, tmp_path):
    options, fill = FOREIGN[name]
    with h5py.File(tmp_path / "a.h5", "w", **options) as file:
        fill(file)
    replay("codebook", "refused", tmp_path / "a.h5")


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.h5"
    subprocess.run([program("codebook_sample"), path], check=True)
    return path


def test_a_codebook_as_it_should_be(sample):
    replay("codebook", "taken", sample)


def test_texts_of_variable_length_that_are_one_and_the_same(sample):
    with h5py.File(sample, "r+") as file:
        bomb(file)
    content = bytearray(sample.read_bytes())
    at = content.index(b"x\0\0\0\0\0\0\0\x19") + 8 + 24 + 24  # name, type and shape
    first = bytes(content[at:at + 16])
    assert int.from_bytes(first[:4], "little") == 1 << 20
    content[at:at + 16 * 3000] = first * 3000
    sample.write_bytes(content)
    replay("codebook", "refused", sample)


KEY = "layers/0000/key/"
CENTROIDS = KEY + "outliers_0.01/nuq3/centroids"


def attribute(place, name, value):
    return lambda file: file[place].attrs.__setitem__(name, value)


def far_centroids(file):
    file[CENTROIDS][:] = np.linspace(-1e30, 1e30, 8, dtype="f4")


def fraction_twice(file):
    file.copy(KEY + "outliers_0", KEY + "outliers_0.0")


# content_sha256 is right in all of them: a rule must tell.
EDITS = {
    "centroids of 1e30": far_centroids,
    "weights of no name": attribute(CENTROIDS, "weights", np.bytes_(b"banana")),
    "a fraction under two names": fraction_twice,
    "a fraction that is another's": attribute(KEY + "outliers_0.01", "fraction", 0.0),
    "lower bound above objective": attribute(CENTROIDS, "lower_bound", 1e9),
    "a negative objective": attribute(CENTROIDS, "objective", -1.0),
    "a negative number of samples": attribute("calibration", "samples", -1),
    "a negative scale": attribute(CENTROIDS, "qnorm_scale", -1.0),
}


@pytest.mark.parametrize("name", EDITS)
def test_codebooks_whose_hash_is_right_and_whose_numbers_are_wrong(name, sample, tmp_path):
    replay("codebook", "refused", changed(sample, tmp_path / "changed.h5", EDITS[name]))
