"""What `kvcal calibrate --dtype float32` stores, against the definitions of docs/method.md computed anew in numpy: keys and
values as the engine sees them, gradients from transformers in double, datatypes from plain dynamic programming."""

import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BUILD = Path(os.environ["KVCAL_BUILD"])
SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).parents[2]))
BUNDLED = SOURCE / "data" / "model"
VOCAB, LAYERS, KV_HEADS = 4096, 5, 2
SAMPLES, SEQLEN, SINKS = 2, 20, 3
FRACTIONS = (0, 0.05)
BITS = (2, 3)
KINDS = ("key", "value")
# Those of which the datatypes are fitted anew.
FITTED = (0, 3)
# Of objectives: the run takes gradients in float32.
OBJECTIVE_TOLERANCE = 5e-6

# The runs, each with what it asks for beside --sinks, --outliers and --bits.
RUNS = {"plain": (), "head": ("--value-scope", "head"), "unscaled": ("--fisher-scale", "none"),
        "insensitive": ("--sensitivity", "none")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("oracle")
    np.save(path / "tokens.npy", np.random.default_rng(11).integers(3, VOCAB, size=(SAMPLES, SEQLEN)).astype(np.int32))
    return path


@pytest.fixture(scope="module")
def books(folder):
    """Each run's codebook, open."""
    files = {}
    for name, more in RUNS.items():
        out = folder / f"{name}.h5"
        arguments = [BUILD / "bin" / "kvcal", "calibrate", "--model", BUNDLED, "--tokens", folder / "tokens.npy", "--out", out,
                     "--dtype", "float32", "--sinks", SINKS, "--bits", "2,3", "--outliers", "0,0.05", "--threads", 2, *more]
        result = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        files[name] = h5py.File(out)
    yield files
    for file in files.values():
        file.close()


@pytest.fixture(scope="module")
def captured(folder):
    """(kind, layer) -> [samples, tokens, channels] in double, what is cached."""
    subprocess.run([BUILD / "bin" / "model_dump", BUNDLED, folder / "tokens.npy", folder / "dump.safetensors"], check=True)
    dump = load_file(folder / "dump.safetensors")
    return {(kind, layer): np.stack([dump[f"{kind}s.{s}.{layer}"] for s in range(SAMPLES)]).astype(np.float64)
            for kind in KINDS for layer in range(LAYERS)}


@pytest.fixture(scope="module")
def gradients(folder):
    """(kind, layer) -> [samples, tokens, channels], of each sample's mean cross-entropy: of what k_proj and v_proj give."""
    model = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float64, attn_implementation="eager")
    kept = {}
    for index, layer in enumerate(model.model.layers):
        for kind, module in (("key", layer.self_attn.k_proj), ("value", layer.self_attn.v_proj)):
            def keep(_module, _inputs, output, at=(kind, index)):
                output.retain_grad()
                kept.setdefault(at, []).append(output)
            module.register_forward_hook(keep)
    for row in np.load(folder / "tokens.npy"):
        ids = torch.tensor(row[None].astype(np.int64))
        logits = model(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    return {at: np.stack([output.grad[0].numpy() for output in outputs]) for at, outputs in kept.items()}


def without_sinks(x):
    return x[:, SINKS:].reshape(-1, x.shape[-1])


def without_the_last(x):
    """What a mistake would leave out."""
    return x[:, : SEQLEN - SINKS].reshape(-1, x.shape[-1])


def thresholds(x, fraction, axis):
    low, high = np.quantile(x, [fraction / 2, 1 - fraction / 2], axis=axis, keepdims=True)
    # As they are stored.
    return low.astype(np.float32).astype(np.float64), high.astype(np.float32).astype(np.float64)


def points_and_weights(x, squares, fraction, groups, scaled):
    """The inliers x' and their F s^2 (F where not scaled); groups: 0 for thresholds of each channel, else of so many parts of
    each token. Also how many elements were left out."""
    if groups > 0:
        x, squares = (a.reshape(len(a), groups, -1) for a in (x, squares))
    low, high = thresholds(x, fraction, axis=-1 if groups > 0 else 0)
    zero, span = np.broadcast_arrays((high + low) / 2, (high - low) / 2, x)[:2]
    assert span.min() > 1e-6, "a constant channel, of which this knows nothing"
    inside = (x >= low) & (x <= high)
    weights = squares * span**2 if scaled else squares
    return ((x - zero) / span)[inside], weights[inside], np.count_nonzero(~inside)


def optimal_objectives(points, weights, most):
    """The least sum of w (x - q(x))^2 with 1, 2, ... most centroids, by dynamic programming over the sorted points."""
    distinct, where = np.unique(points, return_inverse=True)
    mass = np.bincount(where, weights).astype(np.longdouble)
    # Moments from left to right: a range's cost is the difference of two.
    x = distinct.astype(np.longdouble)
    w0, w1, w2 = (np.concatenate([[0], np.cumsum(mass * x**power)]) for power in range(3))
    best = np.full((most + 1, len(x) + 1), np.inf)
    best[0, 0] = 0
    for end in range(1, len(x) + 1):
        total = w0[end] - w0[:end]
        moment = w1[end] - w1[:end]
        cost = w2[end] - w2[:end] - np.divide(moment**2, total, out=np.zeros_like(total), where=total > 0)
        # Every cost is a sum of squares: only their differences above need the longer type.
        best[1:, end] = (best[:-1, :end] + np.maximum(cost, 0).astype(np.float64)).min(axis=1)
    return best[1:, -1]


def h5py_text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def quantised(points, centroids):
    return centroids[np.abs(points[:, None] - centroids[None]).argmin(axis=1)]


def test_the_dynamic_programming_is_right_on_a_small_case():
    """The oracle itself, against every way to cut eight points in three."""
    rng = np.random.default_rng(5)
    points, weights = np.sort(rng.uniform(-1, 1, 8)), rng.uniform(0.1, 1, 8)

    def cost(first, last):
        part, mass = points[first:last], weights[first:last]
        return (mass * (part - np.average(part, weights=mass)) ** 2).sum()
    least = min(cost(0, a) + cost(a, b) + cost(b, 8) for a in range(1, 7) for b in range(a + 1, 8))
    np.testing.assert_allclose(optimal_objectives(points, weights, 3)[2], least, rtol=1e-12)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_thresholds_leave_out_the_first_tokens_of_each_sample(books, captured, layer, fraction):
    x = captured["key", layer]
    group = books["plain"][f"layers/{layer:04d}/key/outliers_{fraction:g}"]
    low, high = (group[name][:].astype(np.float64) for name in ("lower", "upper"))
    tolerance = 1e-6 * np.ptp(without_sinks(x), axis=0)

    def differences(rows):
        expected = np.quantile(rows, [fraction / 2, 1 - fraction / 2], axis=0)
        return np.maximum(np.abs(low - expected[0]), np.abs(high - expected[1])) / tolerance
    assert differences(without_sinks(x)).max() <= 1
    # So would not pass what leaves out others, or none.
    assert differences(without_the_last(x)).max() > 100
    assert differences(x.reshape(-1, x.shape[-1])).max() > 100


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind", KINDS)
def test_fisher_channel_leaves_out_the_first_tokens_of_each_sample(books, gradients, layer, kind):
    squares = gradients[kind, layer] ** 2
    for name in ("plain", "head", "unscaled"):
        stored = books[name][f"layers/{layer:04d}/{kind}/fisher_channel"][:]
        np.testing.assert_allclose(stored, without_sinks(squares).sum(axis=0), rtol=1e-4)
    stored = books["plain"][f"layers/{layer:04d}/{kind}/fisher_channel"][:]
    for others in (without_the_last(squares), squares.reshape(-1, squares.shape[-1])):
        assert np.abs(stored / others.sum(axis=0) - 1).max() > 0.01
    counts = books["insensitive"][f"layers/{layer:04d}/{kind}/fisher_channel"][:]
    np.testing.assert_array_equal(counts, SAMPLES * (SEQLEN - SINKS))


@pytest.mark.parametrize("layer", FITTED)
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name,kind", [("plain", "key"), ("plain", "value"), ("head", "value"), ("unscaled", "key"),
                                       ("unscaled", "value"), ("insensitive", "key"), ("insensitive", "value")])
def test_datatypes_reach_the_optimum(books, captured, gradients, name, kind, fraction, layer):
    x = without_sinks(captured[kind, layer])
    insensitive = name == "insensitive"
    squares = np.ones_like(x) if insensitive else without_sinks(gradients[kind, layer]) ** 2
    groups = 0 if kind == "key" else KV_HEADS if name == "head" else 1
    points, weights, left_out = points_and_weights(x, squares, fraction, groups, scaled=name != "unscaled")
    assert (left_out > 0) == (fraction > 0)
    optima = optimal_objectives(points, weights, 1 << max(BITS))
    # Without gradients nothing but the arithmetic of the fit differs.
    near = 1e-9 if insensitive else OBJECTIVE_TOLERANCE
    for bits in BITS:
        stored = books[name][f"layers/{layer:04d}/{kind}/outliers_{fraction:g}/nuq{bits}/centroids"]
        centroids = stored[:].astype(np.float64)
        attributes = dict(stored.attrs)
        assert len(centroids) == 1 << bits and np.all(np.diff(centroids) > 0)
        assert np.all(np.abs(centroids) <= 1)
        objective, optimum = attributes["objective"], optima[(1 << bits) - 1]
        assert objective == pytest.approx(optimum, rel=near)
        assert optimum * 0.99 < attributes["lower_bound"] <= optimum * (1 + near)
        nearest = quantised(points, centroids)
        assert (weights * (points - nearest) ** 2).sum() == pytest.approx(objective, rel=1e-5)
        # A datatype for other weights or other points would not do: one that is even misses it.
        even = np.linspace(-1, 1, 1 << bits)
        assert (weights * (points - quantised(points, even)) ** 2).sum() > objective * 1.01
        scale = points.std() / nearest.std()
        assert attributes["qnorm_scale"] == pytest.approx(scale, rel=1e-4)
        assert attributes["qnorm_offset"] == pytest.approx(points.mean() - nearest.mean() * scale, abs=1e-4)
        assert h5py_text(attributes["weights"]) == ("none" if insensitive else "fisher")
