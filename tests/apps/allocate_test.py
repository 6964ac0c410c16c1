"""`kvcal allocate`: its choice against scipy's integer programming, on divergences and bytes that are worked out here from the file
and the formats' descriptions; then through the packed bytes by validate, in plan and in inspect."""
import json
import os
import pathlib
import subprocess

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")
optimize = pytest.importorskip("scipy.optimize")

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
CALIBRATED = SOURCE / "data" / "demo" / "calibrate.txt"
OTHER = SOURCE / "data" / "demo" / "validate.txt"
CONTEXT = 131072
SINKS = 1

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)
if not (MODEL.exists() and OTHER.exists()):
    pytest.skip(f"no data in {SOURCE}", allow_module_level=True)


def kvcal(*arguments):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def refused(result, code, *parts):
    assert result.returncode == code, result
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("kvcal: error: ")]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "a.h5"
    result = kvcal("calibrate", "-q", "-m", MODEL, "-f", CALIBRATED, "-o", path, "--samples", 8, "--seqlen", 512, "--ranges", "fitted")
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture
def codebook(calibrated, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(calibrated.read_bytes())
    return path


def allocate(codebook, *arguments):
    result = kvcal("allocate", codebook, "-q", *arguments, "--json", "-")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def tensor_bytes(scope, channels, bits, fraction, tokens):
    """docs/memory.md: codes of each token's channels, a scale and a zero for each token of values, of outliers their number in
    each token, a value and a place; sinks in fp16."""
    rows = tokens - min(SINKS, tokens)
    size = rows * -(-channels * bits // 8) + (tokens - rows) * channels * 2
    if scope == "token":
        size += rows * 4
    if fraction > 0:
        outliers = round(fraction * rows * channels) if scope == "channel" else rows * token_outliers(channels, fraction)
        size += outliers * 4 + rows * 2
    return size


def token_outliers(channels, fraction):
    """Beyond the interpolated quantiles at half the fraction from either end, of distinct numbers."""
    return 2 * int(np.ceil(fraction / 2 * (channels - 1)))


def items(codebook, min_bits=2, keep=(), context=CONTEXT):
    """[(layer, tensor, channels, [(bits, fraction, bytes or None, divergence)])]"""
    found = []
    with h5py.File(codebook) as file:
        calibration = file["calibration"].attrs
        samples = int(calibration["samples"])
        scale = (int(calibration["tokens"]) / samples - 1) / (2 * samples)
        for number, layer in file["layers"].items():
            for name, dim in (("key", "key_dim"), ("value", "value_dim")):
                channels = int(layer.attrs["kv_heads"] * layer.attrs[dim])
                options = []
                for group in layer[name]:
                    if not group.startswith("outliers_"):
                        continue
                    fraction = float(layer[name][group].attrs["fraction"])
                    for bits in (2, 3, 4):
                        if bits >= min_bits and f"nuq{bits}" in layer[name][group]:
                            objective = layer[name][group][f"nuq{bits}/centroids"].attrs["objective"]
                            options.append((bits, fraction, scale * float(objective)))
                if int(number) in keep:
                    options = [(16, 0.0, 0.0)]
                found.append((int(number), name, channels, options))
    return found


def best(options, sizes, budget):
    """The least sum of divergences of one option each within the budget, by mixed integer programming."""
    costs = [cost for item in options for _, _, cost in item[3]]
    starts = np.cumsum([0, *[len(item[3]) for item in options]])
    one_each = np.zeros((len(options), len(costs)))
    for i in range(len(options)):
        one_each[i, starts[i]:starts[i + 1]] = 1
    unit = max(costs)
    result = optimize.milp(np.array(costs) / unit, integrality=np.ones(len(costs)), bounds=optimize.Bounds(0, 1),
                           constraints=[optimize.LinearConstraint(one_each, 1, 1),
                                        optimize.LinearConstraint(np.array([sizes]) / 2**20, 0, budget / 2**20)],
                           options={"mip_rel_gap": 1e-12})
    assert result.success
    chosen = np.round(result.x)
    return float(np.dot(chosen, costs)), int(np.dot(chosen, sizes))


def sizes_of(options, context=CONTEXT):
    """Bytes of each option of each item."""
    scope = {"key": "channel", "value": "token"}
    return [channels * context * 2 if bits == 16 else tensor_bytes(scope[name], channels, bits, fraction, context)
            for _, name, channels, choices in options for bits, fraction, _ in choices]


@pytest.mark.parametrize("bits", [2.13, 2.3, 2.5, 2.75, 3.0, 3.2, 3.5, 4.0, 4.6, 16])
def test_the_choice_is_that_of_integer_programming(codebook, bits):
    options = items(codebook)
    sizes = sizes_of(options)
    values = sum(item[2] for item in options) * CONTEXT
    report = allocate(codebook, "--bits-per-value", bits)
    budget = report["budget_bytes"]
    assert 0 <= budget - bits / 8 * values < 1
    expected, _ = best(options, sizes, budget)
    assert report["kl"] == pytest.approx(expected, rel=1e-9)
    assert report["kl_lower_bound"] == report["kl"]
    assert report["bytes"] <= budget
    # What it says of each tensor is what it sums.
    cost = {(layer, name, b, f): c for layer, name, _, choices in options for b, f, c in choices}
    flat = iter(sizes)
    size = {(layer, name, b, f): next(flat) for layer, name, _, choices in options for b, f, _ in choices}
    chosen = [(one["layer"], one["tensor"], one["bits"], one["outliers"]) for one in report["tensors"]]
    assert [one[:2] for one in chosen] == [item[:2] for item in options]
    assert sum(cost[one] for one in chosen) == pytest.approx(report["kl"], rel=1e-12)
    assert sum(size[one] for one in chosen) == report["bytes"]
    assert report["bits_per_value"] == pytest.approx(8 * report["bytes"] / values)


def test_a_budget_in_bytes_at_a_context(codebook):
    options = items(codebook)
    sizes = sizes_of(options, context=4096)
    report = allocate(codebook, "--bytes-at", "4K", "2MB")
    assert (report["context"], report["budget_bytes"]) == (4096, 2 * 2**20)
    expected, _ = best(options, sizes, 2 * 2**20)
    assert report["kl"] == pytest.approx(expected, rel=1e-9)


def test_what_is_left_open(codebook):
    report = allocate(codebook, "-b", 9, "--min-bits", 3, "--keep-layers", "1,3")
    expected, _ = best(items(codebook, 3, (1, 3)), sizes_of(items(codebook, 3, (1, 3))), report["budget_bytes"])
    assert report["kl"] == pytest.approx(expected, rel=1e-9)
    for one in report["tensors"]:
        assert one["bits"] == 16 if one["layer"] in (1, 3) else one["bits"] >= 3
        assert (one["method"] == "fp") == (one["layer"] in (1, 3))


def test_the_file_keeps_it_and_all_else(codebook, calibrated):
    report = allocate(codebook, "-b", 3)
    with h5py.File(codebook) as file, h5py.File(calibrated) as before:
        assert set(file) - set(before) == {"recipe"}
        names = []
        before.visit(names.append)
        for name in names:
            if isinstance(before[name], h5py.Dataset):
                assert np.array_equal(file[name][()], before[name][()]), name
            assert dict(file[name].attrs) == dict(before[name].attrs), name
        recipe = file["recipe"]
        assert recipe.attrs["source"].decode() == "estimated"
        assert json.loads(recipe.attrs["options"]) == {"bits_per_value": 3, "context": CONTEXT, "keep_layers": [], "min_bits": 2,
                                                       "paged": False}
        for one in report["tensors"]:
            tensor = recipe[f"{one['layer']:04}/{one['tensor']}"].attrs
            assert (tensor["bits"], tensor["fraction"]) == (one["bits"], one["outliers"])
        curve = recipe["curve"][:]
        assert np.all(np.diff(curve[:, 0]) >= 0) and np.all(np.diff(curve[:, 1]) <= 0)
    inspected = json.loads(kvcal("inspect", codebook, "--json", "-").stdout)
    assert inspected["recipe"]["kl"] == report["kl"]
    assert inspected["summary"]["recipe"]["bits_per_value"] == pytest.approx(report["bits_per_value"], rel=1e-12)
    assert "recipe" in kvcal("inspect", codebook).stdout
    assert kvcal("diff", codebook, calibrated).returncode == 3


def test_out_leaves_the_codebook_alone(codebook, tmp_path):
    before = codebook.read_bytes()
    allocate(codebook, "-b", 3, "-o", tmp_path / "b.h5")
    assert codebook.read_bytes() == before
    allocate(codebook, "-b", 3)
    assert codebook.read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_validate_stores_each_tensor_as_the_recipe_says(codebook):
    """Errors by tensor are those of the method that it got; bits are those of its bytes; a kept layer has none."""
    report = allocate(codebook, "-b", 5.5, "--keep-layers", "0")
    methods = sorted({one["method"] for one in report["tensors"]} - {"fp"})
    result = kvcal("validate", "-q", "-m", MODEL, "-c", codebook, "-f", OTHER, "--seqlen", 512, "--windows", 2, "--methods",
                   ",".join([*methods, "recipe"]), "--json", "-")
    assert result.returncode == 0, result.stderr
    validated = {method["name"]: method for method in json.loads(result.stdout)["methods"]}
    compared = 0
    for one in report["tensors"]:
        layer = next(entry for entry in validated["recipe"]["layers"] if entry["layer"] == one["layer"])
        if one["method"] == "fp":
            assert layer[one["tensor"]]["relative"] == 0
            continue
        uniform = next(entry for entry in validated[one["method"]]["layers"] if entry["layer"] == one["layer"])
        assert layer[one["tensor"]]["relative"] == uniform[one["tensor"]]["relative"]
        compared += 1
    assert compared > 0
    assert validated["recipe"]["bits_per_value"] == pytest.approx(report["bits_per_value"], rel=0.03)
    assert validated["recipe"]["kld_mean"] < validated[methods[0]]["kld_mean"]


def test_a_recipe_beats_the_datatype_of_its_size(codebook):
    """The bundled model at the bytes of nuq3, and of nuq2 with outliers: less divergence, as foretold."""
    for uniform in ("nuq3", "nuq2-1%"):
        report = allocate(codebook, "-b", 16)
        bits = next(one for one in report["uniform"] if one["method"] == uniform)
        report = allocate(codebook, "-b", bits["bits_per_value"])
        result = kvcal("validate", "-q", "-m", MODEL, "-c", codebook, "-f", OTHER, "--seqlen", 512, "--windows", 8, "--methods",
                       f"{uniform},recipe", "--json", "-")
        validated = {method["name"]: method for method in json.loads(result.stdout)["methods"]}
        assert validated["recipe"]["kld_mean"] < 0.85 * validated[uniform]["kld_mean"]
        # Damage adds up: what each tensor alone is estimated to cost comes near to what all do together.
        assert 0.7 < validated["recipe"]["kld_mean"] / report["kl"] < 1.5


def test_measured_divergences_are_those_of_validate(codebook):
    inputs = ["-m", MODEL, "-f", OTHER, "--seqlen", 256, "--windows", 2, "--dtype", "float32"]
    report = allocate(codebook, "-b", 3, "--measure-all", *inputs)
    result = kvcal("validate", "-q", "-c", codebook, *inputs, "--per-layer-kl", "--methods", "nuq2,nuq3,nuq4,nuq2-1%,nuq3-1%,nuq4-1%",
                   "--json", "-")
    validated = {method["name"]: method for method in json.loads(result.stdout)["methods"]}

    def alone(one, method):
        layer = next(entry for entry in validated[method]["layers"] if entry["layer"] == one["layer"])
        return max(0.0, layer[one["tensor"]]["kld_mean"])

    for one in report["tensors"]:
        assert one["kl"] == pytest.approx(alone(one, one["method"]), rel=1e-12)
    measured = [(layer, name, channels, [(bits, fraction, alone({"layer": layer, "tensor": name}, f"nuq{bits}{'-1%' if fraction else ''}"))
                                         for bits, fraction, _ in choices]) for layer, name, channels, choices in items(codebook)]
    expected, _ = best(measured, sizes_of(measured), report["budget_bytes"])
    assert report["kl"] == pytest.approx(expected, rel=1e-9)
    # One datatype measured: that one is as measured, the others stand to it as the file's objectives do.
    one_measured = allocate(codebook, "-b", 3, *inputs)
    assert one_measured["source"] == "measured"
    objective = {(layer, name, bits, fraction): cost for layer, name, _, choices in items(codebook) for bits, fraction, cost in choices}
    for one in one_measured["tensors"]:
        key = (one["layer"], one["tensor"])
        expected = alone(one, "nuq2-1%") * objective[(*key, one["bits"], one["outliers"])] / objective[(*key, 2, 0.01)]
        assert one["kl"] == pytest.approx(expected, rel=1e-9)


def test_plan_weighs_the_recipe(codebook):
    report = allocate(codebook, "-b", 3)
    result = kvcal("plan", "--codebook", codebook, "--context", CONTEXT, "--json", "-")
    assert result.returncode == 0, result.stderr
    methods = {method["name"]: method for method in json.loads(result.stdout)["methods"]}
    assert methods["recipe"]["cache_bytes"] == report["bytes"]
    beside = json.loads(kvcal("plan", "--codebook", codebook, "--model", MODEL, "--json", "-").stdout)
    assert beside["weights_bytes"] > 0
    assert {method["name"]: method for method in beside["methods"]}["recipe"]["cache_bytes"] == report["bytes"]


def test_pages_have_bytes_of_their_own(codebook):
    report = allocate(codebook, "-b", 3.3, "--paged")
    methods = {method["name"]: method for method in json.loads(
        kvcal("plan", "--codebook", codebook, "--methods", "recipe,recipe-paged", "--json", "-").stdout)["methods"]}
    assert methods["recipe-paged"]["cache_bytes"] == report["bytes"] <= report["budget_bytes"]
    assert methods["recipe"]["cache_bytes"] < report["bytes"]


def test_a_budget_that_cannot_be_met_names_the_smallest_that_can(codebook, tmp_path):
    before = codebook.read_bytes()
    result = kvcal("allocate", codebook, "-b", 1.5)
    refused(result, 1, "1.5 bits per value", "the smallest that can is 2.1")
    smallest = float(result.stderr.split("smallest that can is ")[1].split()[0])
    assert codebook.read_bytes() == before
    allocate(codebook, "-b", smallest)
    result = kvcal("allocate", codebook, "--bytes-at", "1K", "1K", "--min-bits", 3)
    refused(result, 1, "1024 tokens in 1024 bytes", "a lower --min-bits takes less")
    allocate(codebook, "--bytes-at", "1K", result.stderr.split("smallest that can is ")[1].split()[0], "--min-bits", 3)


@pytest.mark.parametrize("arguments, parts", [
    ([], ["give a budget"]),
    (["-b", 3, "--bytes-at", "1K", "1M"], ["two budgets"]),
    (["-b", 0], ["--bits-per-value is 0"]),
    (["-b", "many"], ["--bits-per-value"]),
    (["-b", 3, "--min-bits", 5], ["--min-bits"]),
    (["-b", 3, "--keep-layers", 99], ["--keep-layers has 99"]),
    (["-b", 3, "--measure-all"], ["--measure-all", "--model"]),
    (["-b", 3, "--text", "a.txt"], ["--model"]),
    (["-b", 3, "--model", "m"], ["--text"]),
])
def test_what_makes_no_sense_is_refused(codebook, arguments, parts):
    before = codebook.read_bytes()
    refused(kvcal("allocate", codebook, *arguments), 2, *parts)
    assert codebook.read_bytes() == before


def test_a_codebook_that_estimates_nothing_wants_a_model(tmp_path):
    path = tmp_path / "a.h5"
    kvcal("calibrate", "-q", "-m", MODEL, "-f", CALIBRATED, "-o", path, "--samples", 2, "--seqlen", 64, "--sensitivity", "none")
    refused(kvcal("allocate", path, "-b", 3), 1, "--model DIR --text FILE", "layer 0, key")
    report = allocate(path, "-b", 3, "-m", MODEL, "-f", OTHER, "--seqlen", 64, "--windows", 1)
    assert report["kl"] > 0


def test_without_a_recipe_the_method_is_refused(calibrated):
    refused(kvcal("validate", "-m", MODEL, "-c", calibrated, "-f", OTHER, "--methods", "recipe"), 1, "kvcal allocate writes one")
