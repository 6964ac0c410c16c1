"""kvcal.kmeans: the program's result to the bit, and no worse than scikit-learn's."""
import json
import os
import pathlib
import subprocess

import pytest

kvcal = pytest.importorskip("kvcal")
pytest.importorskip("kvcal._core", reason="the package was built without its extension")
np = pytest.importorskip("numpy")

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")).resolve() / "bin" / "kvcal"


def numbers(dtype, count=20_000):
    generator = np.random.default_rng(5)
    return generator.standard_t(4, count).astype(dtype), generator.exponential(1, count).astype(dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_equals_the_program(dtype, weighted, tmp_path):
    x, weights = numbers(dtype)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", weights)
    more = ["--weights", tmp_path / "w.npy"] if weighted else []
    out = subprocess.run([KVCAL, "kmeans", "--x", tmp_path / "x.npy", "--k", "8", "--json", "-", *more], check=True, capture_output=True)
    expected = json.loads(out.stdout)
    result = kvcal.kmeans(x, weights if weighted else None, 8)
    assert result.centroids.tolist() == expected["centroids"]
    assert (result.objective, result.lower_bound) == (expected["objective"], expected["lower_bound"])


def test_is_no_worse_than_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x, weights = numbers("f8", 5000)
    theirs = cluster.KMeans(8, n_init=10, random_state=0).fit(x[:, None], sample_weight=weights)
    ours = kvcal.kmeans(x, weights, 8)
    assert ours.lower_bound <= ours.objective <= theirs.inertia_ * (1 + 1e-12)
    nearest = np.abs(x[:, None] - ours.centroids).min(1)
    assert ours.objective == pytest.approx((weights * nearest**2).sum(), rel=1e-12)


def test_arrays_of_any_shape_and_layout():
    x, weights = numbers("f4")
    expected = kvcal.kmeans(x, weights, 4)
    for points, scales in ((x.reshape(100, 200), weights.reshape(100, 200)), (x[::-1], weights[::-1]),
                           (np.asfortranarray(x.reshape(100, 200)), weights.reshape(100, 200))):
        assert kvcal.kmeans(points, scales, 4).objective == pytest.approx(expected.objective, rel=1e-9)
    assert kvcal.kmeans([0, 0, 1, 1, 9], k=3).centroids.tolist() == [0, 1, 9]


def test_contiguous_arrays_are_not_copied():
    resource = pytest.importorskip("resource")
    x = np.random.default_rng(0).standard_normal(1 << 24, dtype="f4")  # 64 MiB
    weights = np.ones_like(x)
    x.flags.writeable = weights.flags.writeable = False
    kvcal.kmeans(x[:1000], weights[:1000], 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kvcal.kmeans(x, weights, 4, gap=1e-3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10, "KiB more than the solver's own buffers take"


@pytest.mark.parametrize("arguments,kind,reason", [
    (dict(x=[1.0, float("nan")], k=1), "Error", "index 1"),
    (dict(x=[1.0, 2.0], weights=[1.0, -1.0], k=1), "Error", "weight at index 1"),
    (dict(x=[], k=1), "Error", "points"),
    (dict(x=[1.0], weights=[1.0, 2.0], k=1), "UsageError", "shape"),
    (dict(x=[1.0], k=0), "UsageError", "1 to 256"),
    (dict(x=["a"], k=1), "UsageError", "real numbers"),
])
def test_refusals(arguments, kind, reason):
    with pytest.raises(getattr(kvcal, kind), match=reason):
        kvcal.kmeans(**arguments)
