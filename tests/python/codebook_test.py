"""kvcal.Codebook beside h5py: every number of the file, by the names of docs/codebook-format.md."""
import gc
import os
import pathlib

import pytest

kvcal = pytest.importorskip("kvcal")
pytest.importorskip("kvcal._core", reason="the package was built without its extension")
np, h5py = pytest.importorskip("numpy"), pytest.importorskip("h5py")

SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL, DEMO = SOURCE / "data" / "model", SOURCE / "data" / "demo"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    out = tmp_path_factory.mktemp("codebook") / "a.h5"
    with pytest.warns(UserWarning, match="the sample is small"):
        made = kvcal.calibrate(MODEL, DEMO / "calibrate.txt", out=out, samples=2, seqlen=128, bits=[2, 4], outliers=[0, 0.01])
    assert made == kvcal.Codebook(out)
    return out


def test_every_array_and_attribute_of_the_layers(path):
    codebook = kvcal.Codebook(path)
    with h5py.File(path) as file:
        assert [f"{layer.index:04}" for layer in codebook.layers] == list(file["layers"])
        for layer in codebook.layers:
            group = file[f"layers/{layer.index:04}"]
            assert [tensor.name for tensor in layer.tensors] == ["key", "value"]
            for tensor in layer.tensors:
                stored = group[tensor.name]
                assert (tensor.heads, tensor.dim) == (group.attrs["kv_heads"], group.attrs[f"{tensor.name}_dim"])
                assert np.array_equal(tensor.fisher_channel, stored["fisher_channel"])
                assert tensor.threshold_shift == stored.attrs["threshold_shift"]
                for kind in ("channel", "head", "tensor"):
                    assert np.array_equal(getattr(tensor.magnitudes, kind), stored[f"magnitudes/{kind}_quantiles"])
                assert [f"outliers_{outliers.fraction:g}" for outliers in tensor.outliers] == [n for n in stored if n.startswith("outliers_")]
                for outliers in tensor.outliers:
                    check_outliers(outliers, stored[f"outliers_{outliers.fraction:g}"], tensor)


def check_outliers(outliers, stored, tensor):
    for bound in ("lower", "upper"):
        expected = stored[bound][:] if tensor.name == "key" else []
        assert np.array_equal(getattr(outliers, bound), expected)
    assert np.array_equal(outliers.histogram, stored["histogram"])
    assert [datatype.bits for datatype in outliers.datatypes] == [2, 4]
    for datatype in outliers.datatypes:
        centroids = stored[f"nuq{datatype.bits}/centroids"]
        assert np.array_equal(datatype.centroids, centroids)
        for name in ("qnorm_scale", "qnorm_offset", "objective", "lower_bound"):
            assert getattr(datatype, name) == centroids.attrs[name]
        assert datatype.weights == centroids.attrs["weights"].decode()
        assert np.array_equal(tensor.find(datatype.bits, outliers.fraction).centroids, centroids)


def test_where_it_comes_from(path):
    codebook = kvcal.Codebook(path)
    with h5py.File(path) as file:
        for part, group in ((codebook.model, file["model"]), (codebook.calibration, file["calibration"])):
            for name, value in group.attrs.items():
                if name in ("rope", "options", "texts"):
                    continue
                assert getattr(part, name) == (value.decode() if isinstance(value, bytes) else value), name
        assert codebook.content_sha256 == file.attrs["content_sha256"].decode()
        assert codebook.schema == f"{file.attrs['schema_major']}.{file.attrs['schema_minor']}"
    assert codebook.model.rope["theta"] == 10000
    assert [text["name"] for text in codebook.calibration.texts] == ["calibrate.txt"]
    assert codebook.calibration.options["bits"] == [2, 4]


def test_what_it_says_of_itself(path):
    codebook = kvcal.Codebook(path)
    assert repr(codebook).startswith("Codebook of model (LlamaForCausalLM): 5 of 5 layers; bits: 2, 4; outliers: 0 %, 1 %; from 2 x 128 tokens")
    assert len(codebook) == 5 and repr(codebook[3]) == "Layer(3: key, value)"
    assert repr(codebook[3]["key"]) == "Tensor('key', 2 heads of 64)"


def test_arrays_are_read_only_and_outlive_the_codebook(path):
    centroids = kvcal.Codebook(path)[0].key.outliers[0].datatypes[0].centroids
    gc.collect()
    assert np.all(np.diff(centroids) >= 0) and np.abs(centroids).max() <= 1
    with pytest.raises(ValueError):
        centroids[0] = 0


def test_errors_name_the_file_the_place_and_what_there_is(path, tmp_path):
    codebook = kvcal.Codebook(path)
    with pytest.raises(KeyError, match="no layer 9"):
        codebook[9]
    with pytest.raises(KeyError, match="no tensor 'latent'"):
        codebook[0]["latent"]
    with pytest.raises(kvcal.Error, match="3 bits with 1 % outliers"):
        codebook[0].key.find(3, 0.01)
    with pytest.raises(kvcal.Error, match="none.h5"):
        kvcal.Codebook(tmp_path / "none.h5")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.h5").write_bytes(damaged)
    with pytest.raises(kvcal.Error, match="damaged.h5"):
        kvcal.Codebook(tmp_path / "damaged.h5")
