"""What `kvcal calibrate --dtype float32` stores, against the definitions of docs/method.md computed anew in numpy: keys and
values as the engine sees them, gradients from transformers in double, datatypes from plain dynamic programming."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.linalg import hadamard

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
# Parts of [-1, 1], and how far a part's share of the weight may lie off: gradients are taken in float32, and a point at the
# edge of two parts may fall in either.
BINS, SHARE_TOLERANCE = 128, 1e-5
LEVELS = (0.9, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999)
SCOPES = ("channel", "head", "tensor")
# As of what is stored: whether after RoPE, whether the length of pairs.
MAGNITUDES = {"key": (False, False), "key_rope": (True, False), "key_envelope": (False, True), "value": (False, False)}
# Of numbers that share a scale, how many parts of their maximum errors are taken at the middles of; what is tried of it.
ERROR_PARTS, TRIED = 512, np.linspace(0.22, 1, 40)

# The runs, each with what it asks for beside --sinks, --outliers and --bits.
PAPER = ("--ranges", "threshold")
RUNS = {"plain": PAPER, "head": (*PAPER, "--value-scope", "head"), "unscaled": (*PAPER, "--fisher-scale", "none"),
        "insensitive": (*PAPER, "--sensitivity", "none"), "ablation": ("--ablation",),
        "turned": ("--ranges", "fitted", "--value-rotation", "hadamard")}
# Which kinds' datatypes are fitted anew, of which run.
FITS = [("plain", "key"), ("plain", "value"), ("head", "value"), ("unscaled", "key"), ("unscaled", "value"),
        ("insensitive", "key"), ("insensitive", "value"), ("ablation", "key"), ("ablation", "value"), ("turned", "value")]


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


@pytest.fixture(scope="module")
def rotated(folder):
    """layer -> [samples, tokens, channels] in double: keys after RoPE."""
    model = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float64, attn_implementation="eager")
    modeling = sys.modules[type(model).__module__]
    rope, kept = modeling.apply_rotary_pos_emb, []

    def rope_and_keep(*arguments, **named):
        """Called once for each layer, in their order; k: [samples, kv_heads, tokens, head_dim]."""
        q, k = rope(*arguments, **named)
        kept.append(k.transpose(1, 2).flatten(2).numpy())
        return q, k
    with torch.no_grad(), mock.patch.object(modeling, "apply_rotary_pos_emb", rope_and_keep):
        model(torch.from_numpy(np.load(folder / "tokens.npy").astype(np.int64)), use_cache=False)
    assert len(kept) == LAYERS
    return dict(enumerate(kept))


def every_token(x):
    return x.reshape(-1, x.shape[-1])


def without_sinks(x):
    return x[:, SINKS:].reshape(-1, x.shape[-1])


def without_the_last(x):
    """What a mistake would leave out."""
    return x[:, : SEQLEN - SINKS].reshape(-1, x.shape[-1])


def thresholds(x, fraction, axis):
    low, high = np.quantile(x, [fraction / 2, 1 - fraction / 2], axis=axis, keepdims=True)
    # As they are stored.
    return low.astype(np.float32).astype(np.float64), high.astype(np.float32).astype(np.float64)


def turned(x):
    """Each head by a Walsh-Hadamard matrix; the bundled model's heads have a power of two of channels."""
    heads = x.reshape(len(x), KV_HEADS, -1)
    size = heads.shape[-1]
    return (heads @ (hadamard(size) / np.sqrt(size))).reshape(x.shape)


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


def fitted(books, captured, gradients, name, kind, fraction, layer):
    """What a run stored of a fit; the points and the weights that it was to; how many elements were left out."""
    # The ablation's own fits are those that count sinks.
    tokens, path = (every_token, f"{kind}/with_sinks") if name == "ablation" else (without_sinks, kind)
    x, slopes = tokens(captured[kind, layer]), tokens(gradients[kind, layer])
    if name == "turned":
        # Extremes must be themselves, once thresholds are float32.
        x, slopes = turned(x).astype(np.float32).astype(np.float64), turned(slopes)
    squares = np.ones_like(x) if name == "insensitive" else slopes**2
    groups = 0 if kind == "key" else KV_HEADS if name == "head" else 1
    group = books[name][f"layers/{layer:04d}/{path}/outliers_{fraction:g}"]
    return group, *points_and_weights(x, squares, fraction, groups, scaled=name != "unscaled")


def shares(points, weights):
    """Of all weight, by equal parts of [-1, 1]."""
    parts = np.clip(np.floor((points + 1) / 2 * BINS), 0, BINS - 1).astype(int)
    return np.bincount(parts, weights, minlength=BINS) / weights.sum()


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


def threshold_differences(group, rows, fraction):
    """Of each channel's stored thresholds from its quantiles over rows, the larger."""
    low, high = np.quantile(rows, [fraction / 2, 1 - fraction / 2], axis=0)
    return np.maximum(np.abs(group["lower"][:] - low), np.abs(group["upper"][:] - high))


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_thresholds_leave_out_the_first_tokens_of_each_sample(books, captured, layer, fraction):
    x = captured["key", layer]
    group = books["plain"][f"layers/{layer:04d}/key/outliers_{fraction:g}"]
    tolerance = 1e-6 * np.ptp(without_sinks(x), axis=0)
    assert (threshold_differences(group, without_sinks(x), fraction) / tolerance).max() <= 1
    # So would not pass what leaves out others, or none.
    for others in (without_the_last(x), every_token(x)):
        assert (threshold_differences(group, others, fraction) / tolerance).max() > 100


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_thresholds_of_the_ablation_count_every_token(books, captured, rotated, layer, fraction):
    """Before RoPE and after it; there transformers computes in double what the run does in float32."""
    before, after = captured["key", layer], rotated[layer]
    for path, x, near, other in (("key/with_sinks", before, 1e-6, after), ("key_rope", after, 1e-5, before)):
        group = books["ablation"][f"layers/{layer:04d}/{path}/outliers_{fraction:g}"]
        tolerance = near * np.ptp(every_token(x), axis=0)
        assert (threshold_differences(group, every_token(x), fraction) / tolerance).max() <= 1
        # So would not pass what leaves sinks out, or the keys at the other side of RoPE.
        for others in (without_sinks(x), every_token(other)):
            assert (threshold_differences(group, others, fraction) / tolerance).max() > 100


def test_the_ablation_adds_to_the_file_and_changes_nothing_in_it(books):
    def datasets(name):
        paths = []
        books[name]["layers"].visit(paths.append)
        items = {path: books[name]["layers"][path] for path in paths}
        return {path: item for path, item in items.items() if isinstance(item, h5py.Dataset)}
    plain, ablation = datasets("plain"), datasets("ablation")
    added = ablation.keys() - plain.keys()
    assert plain.keys() <= ablation.keys()
    assert {path.split("/outliers_")[0] for path in added} == {
        f"{layer:04d}/{what}" for layer in range(LAYERS) for what in ("key/with_sinks", "value/with_sinks")}
    assert not any("with_sinks" in path for path in plain)
    for path, item in plain.items():
        np.testing.assert_array_equal(item[:], ablation[path][:], err_msg=path)
        assert dict(item.attrs) == dict(ablation[path].attrs), path


def test_the_ablation_needs_sinks(folder):
    arguments = [BUILD / "bin" / "kvcal", "calibrate", "--model", BUNDLED, "--tokens", folder / "tokens.npy", "--out",
                 folder / "none.h5", "--ablation", "--sinks", 0]
    result = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result
    assert "--ablation" in result.stderr and "--sinks" in result.stderr
    assert not (folder / "none.h5").exists()


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind", KINDS)
def test_fisher_channel_leaves_out_the_first_tokens_of_each_sample(books, gradients, layer, kind):
    squares = gradients[kind, layer] ** 2
    for name in ("plain", "head", "unscaled"):
        stored = books[name][f"layers/{layer:04d}/{kind}/fisher_channel"][:]
        np.testing.assert_allclose(stored, without_sinks(squares).sum(axis=0), rtol=1e-4)
    stored = books["plain"][f"layers/{layer:04d}/{kind}/fisher_channel"][:]
    for others in (without_the_last(squares), every_token(squares)):
        assert np.abs(stored / others.sum(axis=0) - 1).max() > 0.01
    counts = books["insensitive"][f"layers/{layer:04d}/{kind}/fisher_channel"][:]
    np.testing.assert_array_equal(counts, SAMPLES * (SEQLEN - SINKS))


@pytest.mark.parametrize("layer", FITTED)
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name,kind", FITS)
def test_histograms_are_of_the_weight(books, captured, gradients, name, kind, fraction, layer):
    group, points, weights, _ = fitted(books, captured, gradients, name, kind, fraction, layer)
    stored = group["histogram"][:]
    assert (stored.dtype, stored.shape) == (np.float32, (BINS,))
    np.testing.assert_allclose(stored, shares(points, weights), rtol=0, atol=SHARE_TOLERANCE)
    # Points that count alike, or parts that begin elsewhere, would not do.
    for other in (shares(points, np.ones_like(weights)), shares(points + 1 / BINS, weights)):
        assert np.abs(stored - other).max() > 50 * SHARE_TOLERANCE


@pytest.mark.parametrize("layer", FITTED)
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_the_ablation_are_others(books, kind, fraction, layer):
    """What tells the fits that count sinks from those that do not: neither would pass for the other above."""
    tensor, name = books["ablation"][f"layers/{layer:04d}/{kind}"], f"outliers_{fraction:g}"
    assert np.abs(tensor[name]["histogram"][:] - tensor["with_sinks"][name]["histogram"][:]).max() > 50 * SHARE_TOLERANCE
    for bits in BITS:
        own, counted = (tensor[f"{path}/nuq{bits}/centroids"].attrs["objective"] for path in (name, f"with_sinks/{name}"))
        assert abs(counted / own - 1) > 100 * OBJECTIVE_TOLERANCE


@pytest.mark.parametrize("layer", FITTED)
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name,kind", FITS)
def test_datatypes_reach_the_optimum(books, captured, gradients, name, kind, fraction, layer):
    insensitive = name == "insensitive"
    group, points, weights, left_out = fitted(books, captured, gradients, name, kind, fraction, layer)
    assert (left_out > 0) == (fraction > 0)
    optima = optimal_objectives(points, weights, 1 << max(BITS))
    # Without gradients nothing but the arithmetic of the fit differs.
    near = 1e-9 if insensitive else OBJECTIVE_TOLERANCE
    for bits in BITS:
        stored = group[f"nuq{bits}/centroids"]
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


@pytest.mark.parametrize("layer", FITTED)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_fitted_ranges_err_less_and_have_the_optimal_datatype(books, captured, gradients, fraction, layer):
    plain, own = (books[name][f"layers/{layer:04d}/key/outliers_{fraction:g}"] for name in ("plain", "turned"))
    x, squares = without_sinks(captured["key", layer]), without_sinks(gradients["key", layer]) ** 2
    low, high = thresholds(x, fraction, axis=0)
    inside = (x >= low) & (x <= high)
    for name in ("lower", "upper", "histogram"):
        np.testing.assert_array_equal(own[name][:], plain[name][:])
    for bits in BITS:
        stored, attributes = own[f"nuq{bits}"], dict(own[f"nuq{bits}/centroids"].attrs)
        scale, zero, centroids = (stored[name][:].astype(np.float64) for name in ("scale", "zero", "centroids"))
        points, weights = ((x - zero) / scale)[inside], (squares * scale**2)[inside]
        optimum = optimal_objectives(points, weights, 1 << bits)[-1]
        assert attributes["objective"] == pytest.approx(optimum, rel=2 * OBJECTIVE_TOLERANCE)
        assert optimum * 0.99 < attributes["lower_bound"] <= optimum * (1 + 2 * OBJECTIVE_TOLERANCE)
        nearest = quantised(points, centroids)
        assert (weights * (points - nearest) ** 2).sum() == pytest.approx(attributes["objective"], rel=1e-5)
        assert attributes["objective"] < 0.98 * plain[f"nuq{bits}/centroids"].attrs["objective"]
        assert (centroids[0], centroids[-1]) == (-1, 1)
        np.testing.assert_allclose(stored["histogram"][:], shares(points, weights), rtol=0, atol=10 * SHARE_TOLERANCE)
        spread = points.std() / nearest.std()
        assert attributes["qnorm_scale"] == pytest.approx(spread, rel=1e-4)
        assert attributes["qnorm_offset"] == pytest.approx(points.mean() - nearest.mean() * spread, abs=1e-4)


@pytest.mark.parametrize("layer", FITTED)
def test_of_turned_values_only_what_is_quantised_is_turned(books, layer):
    plain, own = (books[name][f"layers/{layer:04d}/value"] for name in ("plain", "turned"))
    assert h5py_text(own.attrs["rotation"]) == "hadamard"
    assert own.attrs["rotation_block"] == books["turned"][f"layers/{layer:04d}"].attrs["value_dim"]
    assert "rotation" not in plain.attrs and "scale" not in own["outliers_0/nuq2"]
    for name in ("fisher_channel", "magnitudes/channel_quantiles", "magnitudes/tensor_best"):
        np.testing.assert_array_equal(own[name][:], plain[name][:])
    assert np.abs(own["outliers_0/histogram"][:] - plain["outliers_0/histogram"][:]).max() > 50 * SHARE_TOLERANCE


def by_pairs(a, combine):
    """[tokens, channels], each the combination of what RoPE turns together."""
    pairs = a.reshape(len(a), KV_HEADS, 2, -1)
    return np.broadcast_to(combine(pairs[:, :, :1], pairs[:, :, 1:]), pairs.shape).reshape(a.shape)


def magnitudes(captured, gradients, rotated, path, layer, tokens=every_token):
    """x and squared gradients, [tokens, channels] each, as `path` is to count them."""
    turned, lengths = MAGNITUDES[path]
    kind = "value" if path == "value" else "key"
    x, squares = (tokens(a) for a in (rotated[layer] if turned else captured[kind, layer], gradients[kind, layer] ** 2))
    return (by_pairs(x, np.hypot) if lengths else x,
            by_pairs(squares, lambda a, b: (a + b) / 2) if turned or lengths else squares)


def sharing(a, scope):
    """[count, numbers]: those of one scale in a row."""
    return a.T.reshape({"channel": a.shape[1], "head": KV_HEADS, "tensor": 1}[scope], -1)


def symmetric_error(x, weights, threshold, column):
    """As int8, int4 or E4M3."""
    if column == 2:
        scaled = torch.from_numpy(np.clip(x / threshold * 448, -448, 448))
        back = scaled.to(torch.float8_e4m3fn).double().numpy() * threshold / 448
    else:
        codes = (128, 8)[column]
        back = np.clip(np.rint(x / threshold * codes), -codes, codes - 1) * threshold / codes
    return (weights * (back - x) ** 2).sum()


def in_parts(x, weights):
    """Where the weight of each part of the magnitudes lies on average, by sign, and how much it is."""
    part = np.minimum(np.floor(np.abs(x) / np.abs(x).max() * ERROR_PARTS), ERROR_PARTS - 1).astype(int) + ERROR_PARTS * (x < 0)
    sums = np.bincount(part, weights, 2 * ERROR_PARTS)
    moments = np.bincount(part, weights * x, 2 * ERROR_PARTS)
    return moments[sums > 0] / sums[sums > 0], sums[sums > 0]


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("path", MAGNITUDES)
def test_quantiles_of_magnitudes_count_every_token(books, captured, gradients, rotated, path, layer):
    group = books["plain"][f"layers/{layer:04d}/{path}/magnitudes"]
    x = np.abs(magnitudes(captured, gradients, rotated, path, layer)[0])
    other = {"key": "key_rope", "key_rope": "key", "key_envelope": "key", "value": "key"}[path]
    mistakes = [np.abs(magnitudes(captured, gradients, rotated, other, layer)[0]),
                np.abs(magnitudes(captured, gradients, rotated, path, layer, without_sinks)[0])]
    for scope in SCOPES:
        stored, rows = group[f"{scope}_quantiles"][:].astype(np.float64), sharing(x, scope)
        largest = rows.max(axis=1)
        np.testing.assert_allclose(stored[:, -1], largest, rtol=1e-5)
        # A quantile lies in the part of the maximum where the order statistic does: one of the numbers themselves.
        exact = np.quantile(rows, LEVELS, axis=1, method="inverted_cdf").T
        # Those of heads and tensor are made of their channels' parts, each taken for its middle.
        parts = 1 if scope == "channel" else 1.5
        assert (np.abs(stored[:, :-1] - exact) / largest[:, None]).max() < parts / 4096 + 1e-5
        for mistake in mistakes:
            wrong = np.quantile(sharing(mistake, scope), LEVELS, axis=1, method="inverted_cdf").T
            assert (np.abs(stored[:, :-1] - wrong) / largest[:, None]).max() > 4 / 4096
    for mistake in mistakes:
        assert np.abs(group["channel_quantiles"][:, -1] / mistake.max(axis=0) - 1).max() > 0.01


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("path", MAGNITUDES)
def test_best_thresholds_leave_the_least_weighted_error(books, captured, gradients, rotated, path, layer):
    group = books["plain"][f"layers/{layer:04d}/{path}/magnitudes"]
    x, squares = magnitudes(captured, gradients, rotated, path, layer)
    gains, unweighted = [], []
    for scope in SCOPES:
        rows, weights = sharing(x, scope), sharing(squares, scope)
        if path == "key_envelope":  # a length may turn to either side
            rows, weights = np.concatenate([rows, -rows], axis=1), np.concatenate([weights, weights], axis=1) / 2
        stored = group[f"{scope}_best"][:].astype(np.float64)
        largest = np.abs(rows).max(axis=1)
        assert stored.min() > 0 and (stored / largest[:, None]).max() < 1 + 1e-5
        for row in range(0, len(rows), 16 if scope == "channel" else 1):
            weighted, alike = in_parts(rows[row], weights[row]), in_parts(rows[row], np.ones_like(rows[row]))
            for column in range(3):
                def ratio(numbers, column=column, best=stored[row, column], largest=largest[row], shares=TRIED):
                    """The error of our threshold over the least of some."""
                    return symmetric_error(*numbers, best, column) / min(
                        symmetric_error(*numbers, share * largest, column) for share in shares)
                assert ratio(weighted) <= 1.02, (scope, row, column)
                unweighted.append(ratio(alike))
                if column == 1 and scope != "channel":
                    # Of the numbers themselves and of any threshold: int4's steps are wide beside the parts.
                    exact = rows[row], weights[row]
                    assert ratio(exact, shares=np.linspace(0.22, 1, 300)) <= 1.02, (scope, row)
                    gains.append(1 / ratio(exact, shares=[1]))
    # So neither the maximum would do, nor a threshold of numbers that count alike.
    assert max(gains) > 1.1 and max(unweighted) > 1.1
