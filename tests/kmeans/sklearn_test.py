"""`kvcal kmeans` beside scikit-learn's KMeans: never above its best of 20 seeds, and an honest objective.

Takes the build folder from KVCAL_BUILD; the program is built with KVCAL_PROGRAM=ON.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

np = pytest.importorskip("numpy")
cluster = pytest.importorskip("sklearn.cluster")

SEEDS = 20


def program():
    build = os.environ.get("KVCAL_BUILD")
    if not build:
        pytest.skip("KVCAL_BUILD is not set: name the build folder")
    path = pathlib.Path(build) / "bin" / "kvcal"
    if not path.exists():
        pytest.skip(f"{path} is missing: build with KVCAL_PROGRAM=ON")
    return path


def solve(folder, points, weights, k):
    np.save(folder / "x.npy", points)
    arguments = [program(), "kmeans", "--x", folder / "x.npy", "--k", str(k), "--json", "-"]
    if weights is not None:
        np.save(folder / "w.npy", weights)
        arguments += ["--weights", folder / "w.npy"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def objective(points, weights, centroids):
    x = points.astype(np.longdouble)
    c = np.sort(np.asarray(centroids, dtype=np.longdouble))
    nearest = np.searchsorted((c[1:] + c[:-1]) / 2, x)
    return float(np.sum(weights.astype(np.longdouble) * (x - c[nearest]) ** 2))


def inputs(name):
    random = np.random.default_rng(3)
    n = 20000
    if name == "gaussian":
        return random.standard_normal(n), np.ones(n)
    if name == "heavy":
        return random.standard_t(4, n), np.exp(2 * random.standard_normal(n))
    if name == "clusters":
        return random.integers(0, 12, n) + 0.05 * random.standard_normal(n), random.random(n)
    return np.clip(0.4 * random.standard_t(5, n), -1, 1), random.standard_normal(n) ** 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [4, 8, 16])
@pytest.mark.parametrize("name", ["gaussian", "heavy", "clusters", "normalised"])
def test_never_above_scikit_learn(tmp_path, name, k, dtype):
    check(tmp_path, *(a.astype(dtype) for a in inputs(name)), k)


@pytest.fixture(scope="module")
def real_layer():
    """Normalised keys and values of the bundled model's layer 2, 1 % outliers left out, with weights F s^2."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    source = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).parents[2]))
    sys.path.insert(0, str(source / "tests" / "bench"))
    from calibrate_baseline import capture
    from compare_calibrate import first_tokens
    folder = source / "data" / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    captured = capture(model, first_tokens(folder, source / "data" / "demo" / "calibrate.txt", (2, 256)))
    layer = {}
    for name, axis in (("k_proj", 0), ("v_proj", 1)):
        x, fisher = (a.astype(np.float64) for a in captured[2, name])
        lower, upper = np.quantile(x, [0.005, 0.995], axis=axis, keepdims=True)
        inlier = (x >= lower) & (x <= upper)
        zero, scale = (upper + lower) / 2, (upper - lower) / 2
        layer[name] = ((x - zero) / scale)[inlier], (fisher * scale**2)[inlier]
    return layer


@pytest.mark.parametrize("k", [4, 8, 16])
@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_never_above_scikit_learn_on_a_real_layer(tmp_path, real_layer, name, k):
    check(tmp_path, *real_layer[name], k)


def check(tmp_path, points, weights, k):
    ours = solve(tmp_path, points, weights, k)
    assert ours["n"] == len(points) and ours["k"] == k and len(ours["centroids"]) == k
    assert ours["objective"] == pytest.approx(objective(points, weights, ours["centroids"]), rel=1e-9)
    assert ours["lower_bound"] <= ours["objective"] <= ours["lower_bound"] * (1 + 1e-11)
    best = np.inf
    for seed in range(SEEDS):
        fit = cluster.KMeans(n_clusters=k, n_init=1, max_iter=50, random_state=seed)
        # Weights far below 1 would end its iterations at once: it compares shifts of centres with a tolerance.
        fit.fit(points[:, None], sample_weight=weights / weights.max())
        best = min(best, objective(points, weights, fit.cluster_centers_[:, 0]))
    assert ours["objective"] <= best * (1 + 1e-12)


def test_no_weights_are_unit_weights(tmp_path):
    points, _ = inputs("heavy")
    without = solve(tmp_path, points, None, 8)
    with_ones = solve(tmp_path, points, np.ones(len(points)), 8)
    assert without["centroids"] == with_ones["centroids"]
    assert without["objective"] == with_ones["objective"]
