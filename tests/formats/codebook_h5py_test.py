"""A codebook as h5py sees it, with no code of ours: names, types, Fletcher-32, content_sha256; and edits that the reader must refuse.

KVCAL_BUILD names the build folder, whose bin/ holds codebook_sample and codebook_read_sample.
"""

import hashlib
import json
import os
import pathlib
import subprocess

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")

BUILD = os.environ.get("KVCAL_BUILD")
pytestmark = pytest.mark.skipif(not BUILD, reason="KVCAL_BUILD is not set")


def program(name):
    path = pathlib.Path(BUILD) / "bin" / name
    if not path.exists():
        pytest.skip(f"{path} is not built")
    return str(path)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "codebook.h5"
    subprocess.run([program("codebook_sample"), str(path)], check=True)
    return path


def read(path):
    done = subprocess.run([program("codebook_read_sample"), str(path)], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def content_sha256(file):
    """As docs/codebook-format.md defines it."""
    records = {}

    def add(path, item):
        if isinstance(item, h5py.Dataset):
            records[path] = item[()]
        for name, value in item.attrs.items():
            records[f"{path}@{name}"] = value

    add("/", file)
    file.visititems(lambda name, item: add("/" + name, item))
    digest = hashlib.sha256()
    for path in sorted(records, key=lambda p: p.encode()):
        if path == "/@content_sha256":
            continue
        value = records[path]
        if isinstance(value, (str, bytes)):
            kind, shape, data = "string", (), value if isinstance(value, bytes) else value.encode()
        else:
            array = np.asarray(value)
            kind, shape, data = array.dtype.name, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes()
        for text in (path, kind, ",".join(map(str, shape))):
            digest.update(text.encode() + b"\0")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def test_a_host_programs_own_file_is_flushed_at_its_exit(path, tmp_path):
    own = tmp_path / "host.h5"
    done = subprocess.run([program("hdf5_host"), str(own), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with h5py.File(own, "r") as file:
        assert file["host"][:].tolist() == [1, 2, 3]


def test_names_types_and_values(path):
    with h5py.File(path, "r") as file:
        assert file.attrs["format"] == b"kvcal-codebook"
        assert file.attrs["schema_major"] == 1 and file.attrs["schema_minor"] == 3
        assert file.attrs["complete"] == 1 and file.attrs["complete"].dtype == np.uint8
        assert list(file) == ["calibration", "layers", "model"]
        assert list(file["layers"]) == ["0000", "0002"]
        assert set(file["model"].attrs) == {
            "name", "architecture", "config_sha256", "weights_sha256", "num_layers", "num_attention_heads",
            "num_kv_heads", "head_dim", "rope"}
        assert set(file["calibration"].attrs) == {
            "options", "texts", "tokens_sha256", "samples", "seqlen", "tokens", "bos", "sinks", "seed", "dtype",
            "device", "value_scope", "sensitivity", "fisher_scale", "loss", "revision"}
        assert json.loads(file["calibration"].attrs["texts"])[1]["name"] == 'stôries "2".txt'
        assert file["calibration"].attrs["seed"] == -7
        layer = file["layers/0000"]
        assert [int(layer.attrs[n]) for n in ("kv_heads", "key_dim", "value_dim", "window")] == [2, 4, 3, 0]
        assert list(layer["key"]) == ["fisher_channel", "magnitudes", "outliers_0", "outliers_0.01", "with_sinks"]
        assert list(layer["key/outliers_0.01"]) == ["histogram", "lower", "nuq2", "nuq3", "upper"]
        assert list(layer["key/with_sinks/outliers_0"]) == ["histogram", "lower", "nuq2", "nuq3", "upper"]
        assert list(layer["key_rope/outliers_0.01"]) == ["lower", "upper"]
        for tensor in ("key", "key_rope", "key_envelope", "value"):
            shapes = {name: item.shape for name, item in layer[f"{tensor}/magnitudes"].items()}
            channels = 6 if tensor == "value" else 8
            assert shapes == {"channel_quantiles": (channels, 8), "channel_best": (channels, 3), "head_quantiles": (2, 8),
                              "head_best": (2, 3), "tensor_quantiles": (1, 8), "tensor_best": (1, 3)}
        assert list(layer["value/outliers_0.01"]) == ["histogram", "nuq2", "nuq3"]
        assert layer["value/fisher_channel"].shape == (6,)
        np.testing.assert_allclose(layer["key/outliers_0.01/lower"], -3.5 + 0.1 * np.arange(8), rtol=1e-6)
        centroids = layer["key/outliers_0.01/nuq3/centroids"]
        assert centroids.shape == (8,)
        assert centroids.attrs["qnorm_scale"] == 1.03 and centroids.attrs["objective"] == 12.5
        assert centroids.attrs["weights"] == b"fisher"
        assert list(layer["key/outliers_0.01/nuq2"]) == ["centroids", "histogram", "scale", "zero"]
        assert layer["key/outliers_0.01/nuq2/scale"].shape == (8,) and list(layer["value/outliers_0/nuq2"]) == ["centroids"]
        assert layer["value"].attrs["rotation"] == b"hadamard" and layer["value"].attrs["rotation_block"] == 1


def test_every_dataset_is_float32_with_fletcher32(path):
    seen = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: seen.append(item) if isinstance(item, h5py.Dataset) else None)
        assert len(seen) == 2 * (2 + 2 * (2 * 2 + 2 * 2 * 2 + 2 * 2) + 2 * 2 * 3 + 2 * 2 + 4 * 3 * 2)
        for dataset in seen:
            assert dataset.fletcher32 and dataset.dtype == np.dtype("<f4"), dataset.name


def test_content_sha256_can_be_recomputed(path):
    with h5py.File(path, "r") as file:
        assert content_sha256(file).encode() == file.attrs["content_sha256"]


def reseal(file):
    file.attrs["content_sha256"] = np.bytes_(content_sha256(file))


def test_what_a_newer_minor_version_adds_is_passed_over_but_hashed(path):
    with h5py.File(path, "r+") as file:
        file.attrs["schema_minor"] = 4
        file["layers/0000/key/outliers_0.01/nuq3"].create_dataset("steps", data=np.ones(8, "f4"), fletcher32=True)
        file["layers/0000"].attrs["note"] = "text of variable length"
        file.create_group("extra").attrs["list"] = np.arange(3)
        reseal(file)
    assert read(path).startswith("ok ")
    with h5py.File(path, "r+") as file:
        file["extra"].attrs["list"] = np.arange(3) + 1
    assert "the content does not match" in read(path)


def set_attribute(place, name, value):
    return lambda file: file[place].attrs.__setitem__(name, value)


def delete_attribute(place, name):
    return lambda file: file[place].attrs.__delitem__(name)


def replace(place, **options):
    def edit(file):
        attributes = dict(file[place].attrs)
        del file[place]
        dataset = file.create_dataset(place, **options)
        dataset.attrs.update(attributes)
    return edit


def set_element(place, index, value):
    return lambda file: file[place].__setitem__(index, value)


def link(name, target):
    return lambda file: file.__setitem__(name, target if not isinstance(target, str) else file[target])


KEY = "layers/0000/key/"
CENTROIDS = KEY + "outliers_0.01/nuq3/centroids"
EDITS = {
    "another format": (set_attribute("/", "format", "other"), "/@format: the format is 'other'"),
    "no format": (delete_attribute("/", "format"), "/@format: missing"),
    "newer": (set_attribute("/", "schema_major", 2), "/@schema_major: schema 2 is newer than 1"),
    "older": (set_attribute("/", "schema_major", 0), "there is no schema 0"),
    "version as text": (set_attribute("/", "schema_major", "1"), "/@schema_major: has the type string"),
    "incomplete": (set_attribute("/", "complete", np.uint8(0)), "not complete"),
    "no complete": (delete_attribute("/", "complete"), "not complete"),
    "no hash": (delete_attribute("/", "content_sha256"), "/@content_sha256: the attribute is missing"),
    "no model": (lambda f: f.__delitem__("model"), "/model: the group is missing"),
    "no value": (lambda f: f.__delitem__("layers/0000/value"), "/layers/0000/value: the group is missing"),
    "no layers": (lambda f: f.__delitem__("layers"), "/layers: the group is missing"),
    "no upper": (lambda f: f.__delitem__(KEY + "outliers_0.01/upper"), "/outliers_0.01/upper: the dataset is missing"),
    "no rope": (delete_attribute("layers/0000", "rope"), "/layers/0000@rope: the attribute is missing"),
    "renamed model": (set_attribute("model", "name", "x"), "the content does not match"),
    "edited seed": (set_attribute("calibration", "seed", 1), "the content does not match"),
    "edited value": (set_element(KEY + "fisher_channel", 0, 9), "the content does not match"),
    "nan": (set_element(CENTROIDS, 2, np.nan), "/centroids: element 2 is not finite"),
    "descending": (set_element(CENTROIDS, 2, -8), "/centroids: centroid 2 (-8) is below"),
    "crossed": (set_element(KEY + "outliers_0/lower", 1, 99), "channel 1: lower 99 is above upper"),
    "heads": (set_attribute("layers/0000", "kv_heads", 3), "fisher_channel: has 8 elements; the layer's shape asks for 12"),
    "short": (replace(CENTROIDS, data=np.zeros(7, "f4"), fletcher32=True), "has 7 elements; the layer's shape asks for 8"),
    "double": (replace(CENTROIDS, data=np.zeros(8), fletcher32=True), "has the type float64; expected float32"),
    "big-endian": (replace(CENTROIDS, data=np.zeros(8, ">f4"), fletcher32=True), "element type that schema 1 does not allow"),
    "matrix": (replace(CENTROIDS, data=np.zeros((2, 4), "f4"), fletcher32=True), "has 2 dimensions"),
    "unchecked": (replace(CENTROIDS, data=np.zeros(8, "f4")), "carries no Fletcher-32"),
    "compressed": (replace(CENTROIDS, data=np.zeros(8, "f4"), fletcher32=True, compression="gzip"), "carries the filter 1"),
    "bomb": (replace(CENTROIDS, shape=(1 << 40,), chunks=(1 << 10,), dtype="f4", fletcher32=True), "more than the file stores"),
    "soft link": (link("soft", h5py.SoftLink("/model")), "/soft: a link to another place"),
    "external link": (link("external", h5py.ExternalLink("/etc/passwd", "/")), "/external: a link to another place"),
    "cycle": (link("model/loop", "/"), "the same object under two names"),
    "odd name": (lambda f: f.create_group("a@b"), "characters that schema 1 does not allow"),
    "boolean": (set_attribute("model", "flag", True), "/model@flag: has an element type"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_is_refused_with_the_reason(path, name):
    edit, reason = EDITS[name]
    with h5py.File(path, "r+") as file:
        edit(file)
    assert reason in read(path)


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    for version in ("earliest", "latest"):
        path = tmp_path / f"{version}.h5"
        with h5py.File(path, "w", libver=version) as file:
            file.create_group("weights")
        assert "an HDF5 file, but not a codebook of kvcal" in read(path)
