"""`kvcal merge`: codebooks of two halves of a sample against that of the whole, read with h5py."""
import hashlib
import json
import shutil

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")
tokenizers = pytest.importorskip("tokenizers")

from validate_test import MODEL, OTHER, SOURCE, kvcal, refused  # noqa: E402

SAMPLES, SEQLEN = 16, 256


def done(*arguments):
    result = kvcal(*arguments)
    assert result.returncode == 0, result.stderr
    return result


def tokens(folder, name, windows):
    path = folder / f"{name}.npy"
    np.save(path, windows.astype(np.int32))
    return path


def calibrated(folder, name, windows, *options):
    out = folder / f"{name}.h5"
    done("calibrate", "-q", "-m", MODEL, "--tokens", tokens(folder, name, windows), "-o", out, "--dtype", "float32", *options)
    return out


@pytest.fixture(scope="module")
def windows():
    text = (SOURCE / "data" / "demo" / "calibrate.txt").read_text()
    ids = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids
    return np.array(ids[:SAMPLES * SEQLEN]).reshape(SAMPLES, SEQLEN)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, windows):
    folder = tmp_path_factory.mktemp("runs")
    return {"a": calibrated(folder, "a", windows[:6]), "b": calibrated(folder, "b", windows[6:]), "all": calibrated(folder, "all", windows)}


@pytest.fixture(scope="module")
def merged(runs):
    out = runs["a"].parent / "merged.h5"
    result = done("merge", runs["a"], runs["b"], "-o", out, "--json", "-")
    return out, json.loads(result.stdout)


def tensors(file):
    return [(int(number), name, layer[name]) for number, layer in file["layers"].items() for name in ("key", "value")]


def path_of(layer, name):
    return f"layers/{layer:04}/{name}"


def test_sums_and_ends_are_those_of_one_run(runs, merged):
    with h5py.File(merged[0]) as found, h5py.File(runs["all"]) as whole:
        for layer, name, tensor in tensors(whole):
            own = found[path_of(layer, name)]
            np.testing.assert_allclose(own["fisher_channel"][:], tensor["fisher_channel"][:], rtol=1e-5)
            assert np.array_equal(own["magnitudes/channel_quantiles"][:, -1], tensor["magnitudes/channel_quantiles"][:, -1])
            if name == "key":
                for end in ("lower", "upper"):
                    assert np.array_equal(own[f"outliers_0/{end}"][:], tensor[f"outliers_0/{end}"][:])
        own, its = found["calibration"].attrs, whole["calibration"].attrs
        for field in ("samples", "tokens", "seqlen", "sinks", "bos", "dtype", "value_scope", "sensitivity", "fisher_scale"):
            assert own[field] == its[field], field
        assert own["loss"] == pytest.approx(its["loss"], rel=1e-9)


def test_thresholds_lie_between_those_of_the_runs_and_near_the_exact_ones(runs, merged):
    report = {(one["layer"], one["tensor"]): one for one in merged[1]["tensors"]}
    errors, first_errors, second_errors = [], [], []
    with h5py.File(merged[0]) as found, h5py.File(runs["a"]) as a, h5py.File(runs["b"]) as b, h5py.File(runs["all"]) as whole:
        for layer, name, _ in tensors(whole):
            if name == "value":
                assert report[layer, name]["threshold_spread"] == report[layer, name]["widest_threshold_spread"] == 0
                continue
            group = f"{path_of(layer, name)}/outliers_0.01"
            half = (found[group]["upper"][:] - found[group]["lower"][:]).astype(np.float64) / 2
            spread = np.zeros(len(half))
            for end in ("lower", "upper"):
                mine, first, second, exact = (file[group][end][:].astype(np.float64) for file in (found, a, b, whole))
                low, high = np.minimum(first, second), np.maximum(first, second)
                assert np.all((low <= mine) & (mine <= high))
                errors.append(np.abs(mine - exact) / half)
                first_errors.append(np.abs(first - exact) / half)
                second_errors.append(np.abs(second - exact) / half)
                spread = np.maximum(spread, (high - low) / half)
            assert report[layer, name]["threshold_spread"] == pytest.approx(spread.mean(), rel=1e-5)
            assert report[layer, name]["widest_threshold_spread"] == pytest.approx(spread.max(), rel=1e-5)
    assert np.mean(errors) < 0.03
    assert np.mean(errors) < min(np.mean(first_errors), np.mean(second_errors))


@pytest.mark.parametrize("fraction", ["0", "0.01"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_datatypes_of_values_are_nearly_the_optimum_and_those_of_keys_near(runs, merged, fraction, bits):
    path = f"outliers_{fraction}/nuq{bits}/centroids"
    sums = {"found": 0.0, "whole": 0.0}
    with h5py.File(merged[0]) as found, h5py.File(runs["all"]) as whole:
        for layer, name, tensor in tensors(whole):
            mine, exact = found[path_of(layer, name)][path], tensor[path]
            assert mine.attrs["lower_bound"] == 0
            assert np.all(np.diff(mine[:]) >= 0) and np.all(np.abs(mine[:]) <= 1)
            if name == "value":
                assert mine.attrs["objective"] == pytest.approx(exact.attrs["objective"], rel=0.02)
            else:
                sums["found"] += mine.attrs["objective"]
                sums["whole"] += exact.attrs["objective"]
                assert np.all(found[path_of(layer, name)][f"outliers_{fraction}/nuq{bits}/scale"][:] > 0)
    assert 0.9 < sums["found"] / sums["whole"] < 1.4  # an estimate


def test_it_costs_what_one_run_over_all_costs(runs, merged, tmp_path):
    """Through the packed bytes, by the independent scores of validate."""
    divergence = {}
    for name, codebook in (("merged", merged[0]), ("all", runs["all"])):
        report = tmp_path / f"{name}.json"
        done("validate", "-q", "-m", MODEL, "-c", codebook, "-f", OTHER, "--seqlen", 256, "--windows", 16, "--dtype", "float32",
             "--methods", "nuq2,nuq3-1%,nuq4", "--json", report)
        divergence[name] = {m["name"]: m["kld_mean"] for m in json.loads(report.read_text())["methods"]}
    for method in ("nuq2", "nuq3-1%", "nuq4"):
        assert divergence["merged"][method] == pytest.approx(divergence["all"][method], rel=0.06), method


def test_the_report_and_where_the_file_says_it_comes_from(runs, merged):
    out, report = merged
    assert report["out"] == str(out)
    assert [run["samples"] for run in report["runs"]] == [6, 10]
    assert report["merged"]["samples"] == SAMPLES and report["merged"]["tokens"] == SAMPLES * SEQLEN
    assert report["warnings"] == []
    with h5py.File(out) as found, h5py.File(runs["a"]) as a, h5py.File(runs["b"]) as b:
        assert found.attrs["content_sha256"].decode() == report["content_sha256"]
        options = json.loads(found["calibration"].attrs["options"])
        assert [run["content_sha256"] for run in options["merged"]] == [file.attrs["content_sha256"].decode() for file in (a, b)]
        assert [run["samples"] for run in options["merged"]] == [6, 10]
        joined = b"".join(file["calibration"].attrs["tokens_sha256"] for file in (a, b))
        assert found["calibration"].attrs["tokens_sha256"].decode() == hashlib.sha256(joined).hexdigest()
        for method in report["methods"]:
            bits, fraction = int(method["name"][3]), "0.01" if method["name"].endswith("1%") else "0"
            sums = {key: sum(tensor[f"outliers_{fraction}/nuq{bits}/centroids"].attrs["objective"] for _, _, tensor in tensors(file))
                    for key, file in (("a", a), ("b", b), ("found", found))}
            assert method["own_error"] == pytest.approx(sums["a"] + sums["b"], rel=1e-9)
            assert method["error"] == pytest.approx(sums["found"], rel=1e-9)
            assert method["error_excess"] == pytest.approx(method["error"] / method["own_error"] - 1, abs=1e-12)
    text = done("inspect", out).stdout
    assert "16 samples of 256" in text
    assert "of merged runs" in done("inspect", out, "--layer", 0).stdout
    shown = done("merge", runs["a"], runs["b"], "-o", out, "--overwrite").stdout
    assert all(len(line) <= 200 for line in shown.splitlines())
    for part in ("nuq3-1%", "Thresholds", "Exact", str(runs["b"])):
        assert part in shown


def test_what_was_merged_can_be_merged_again(runs, windows, merged, tmp_path):
    c = calibrated(tmp_path, "c", windows[::-1, ::-1][:4])
    done("merge", merged[0], c, "-o", tmp_path / "two.h5")
    done("merge", runs["a"], runs["b"], c, "-o", tmp_path / "one.h5")
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "two.h5") as two:
        for layer, name, tensor in tensors(one):
            np.testing.assert_allclose(two[path_of(layer, name)]["fisher_channel"][:], tensor["fisher_channel"][:], rtol=1e-6)
        runs_of = [json.loads(file["calibration"].attrs["options"])["merged"] for file in (one, two)]
        assert runs_of[0] == runs_of[1] and len(runs_of[0]) == 3
        assert one["calibration"].attrs["samples"] == two["calibration"].attrs["samples"] == SAMPLES + 4


def test_windows_of_other_lengths_are_brought_to_one_unit(runs, windows, tmp_path):
    """The divergence that a file foretells, T / (2 N) times the objective, is then the mean of the runs' by tokens."""
    short = calibrated(tmp_path, "short", windows[6:].reshape(20, 128))
    done("merge", runs["a"], short, "-o", tmp_path / "mixed.h5")
    with h5py.File(tmp_path / "mixed.h5") as mixed, h5py.File(runs["a"]) as a, h5py.File(short) as b:
        targets = {"a": 255, "b": 127, "mixed": (6 * 256 + 20 * 128) / 26 - 1}
        for layer, name, tensor in tensors(mixed):
            expected = sum(file[path_of(layer, name)]["fisher_channel"][:].astype(np.float64) * (targets[run] / targets["mixed"])**2
                           for run, file in (("a", a), ("b", b)))
            np.testing.assert_allclose(tensor["fisher_channel"][:], expected, rtol=1e-6)
        assert mixed["calibration"].attrs["seqlen"] == 256


@pytest.mark.parametrize("options", [("--value-rotation", "hadamard"), ("--ablation",), ("--sensitivity", "none"),
                                     ("--fisher-scale", "none", "--ranges", "threshold"), ("--fisher-scale", "none"),
                                     ("--value-scope", "head", "--bits", "3"), ("--outliers", "0.01,0.05")])
def test_other_ways_of_calibrating(windows, tmp_path, options):
    a, b = (calibrated(tmp_path, name, part, *options) for name, part in (("a", windows[:4]), ("b", windows[4:8])))
    whole = calibrated(tmp_path, "all", windows[:8], *options)
    done("merge", a, b, "-o", tmp_path / "m.h5")
    done("inspect", tmp_path / "m.h5", "--all")
    with h5py.File(tmp_path / "m.h5") as found, h5py.File(whole) as exact:
        names = {file: set() for file in (found, exact)}
        for file, own in names.items():
            file.visit(own.add)
        # A fit may fall back on the thresholds' ranges, and that of the whole needn't be the one that does.
        optional = ("scale", "zero", "histogram")
        assert {n for n in names[found] if not n.endswith(optional)} == {n for n in names[exact] if not n.endswith(optional)}
        errors = {}
        for layer, name, tensor in tensors(exact):
            own = found[path_of(layer, name)]
            assert own.attrs.get("rotation") == tensor.attrs.get("rotation")
            np.testing.assert_allclose(own["fisher_channel"][:], tensor["fisher_channel"][:], rtol=1e-5)
            for group in (group for group in own if group.startswith("outliers_")):
                for which, one in (("mine", own), ("its", tensor)):
                    key = (name, group, which)
                    errors[key] = errors.get(key, 0) + one[f"{group}/nuq3/centroids"].attrs["objective"]
        for name, group, _ in errors:
            assert 0.9 < errors[name, group, "mine"] / errors[name, group, "its"] < 1.4, (name, group)


def test_validating_on_the_tokens_of_a_run_is_said(runs, merged, tmp_path):
    for name in ("a", "b"):
        npy = runs["a"].parent / f"{name}.npy"
        done_so = done("validate", "-q", "-m", MODEL, "-c", merged[0], "--tokens", npy, "--dtype", "float32", "--methods", "nuq4")
        assert "calibrated on" in done_so.stderr


def test_a_recipe_is_not_carried_over(runs, tmp_path):
    allotted = tmp_path / "a.h5"
    done("allocate", runs["a"], "-b", 3, "-o", allotted, "-q")
    done("merge", allotted, runs["b"], "-o", tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        assert "recipe" not in file
    done("allocate", tmp_path / "m.h5", "-b", 3, "-q")


def test_the_same_sample_twice_is_said(runs, merged, tmp_path):
    copy = tmp_path / "copy.h5"
    shutil.copy(runs["a"], copy)
    result = done("merge", runs["a"], copy, "-o", tmp_path / "m.h5")
    assert "the same tokens" in result.stderr
    result = done("merge", runs["a"], merged[0], "-o", tmp_path / "m.h5", "--overwrite")
    assert "the same tokens" in result.stderr


def test_what_is_refused(runs, windows, tmp_path):
    out = tmp_path / "out.h5"
    a, b = runs["a"], runs["b"]
    refused(kvcal("merge", a, "-o", out), 2, "two or more")
    refused(kvcal("merge", "-o", out), 2, "FILES")
    refused(kvcal("merge", a, b), 2, "--out")
    refused(kvcal("merge", a, b, a, "-o", out), 2, str(a), "twice")
    linked = tmp_path / "linked.h5"
    linked.symlink_to(b)
    refused(kvcal("merge", b, linked, "-o", out), 2, "twice")
    refused(kvcal("merge", a, b, "-o", a, "--overwrite"), 2, "one of the codebooks")
    refused(kvcal("merge", a, tmp_path / "absent.h5", "-o", out), 1, "absent.h5")
    for options, parts in ((("--sinks", 2), ("--sinks", "(2)", "(1)")), (("--ranges", "threshold"), ("--ranges", "threshold", "fitted")),
                           (("--bits", "2,3"), ("layer 0", "keys", "nuq4")), (("--sensitivity", "none"), ("--sensitivity", "fisher")),
                           (("--outliers", "0,0.0100000001"), ("keys", "sixth digit")),
                           (("--value-rotation", "hadamard"), ("values", "turned"))):
        other = calibrated(tmp_path, "other", windows[:2, :64], "--overwrite", *options)
        refused(kvcal("merge", a, other, "-o", out), 1, str(other), *parts)
    broken = tmp_path / "broken.h5"
    data = bytearray(b.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    refused(kvcal("merge", a, broken, "-o", out), 1, str(broken))
    assert not out.exists()
    out.write_bytes(b"mine")
    refused(kvcal("merge", a, b, "-o", out), 1, str(out), "--overwrite")
    assert out.read_bytes() == b"mine"
    done("merge", a, b, "-o", out, "--overwrite")
    done("inspect", out)


def test_another_model_is_refused(runs, windows, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "config.json").read_text())
    config["rms_norm_eps"] = 2 * config["rms_norm_eps"]
    (model / "config.json").write_text(json.dumps(config))
    other = tmp_path / "other.h5"
    done("calibrate", "-q", "-m", model, "--tokens", tokens(tmp_path, "t", windows[:2, :64]), "-o", other, "--dtype", "float32")
    refused(kvcal("merge", runs["a"], other, "-o", tmp_path / "out.h5"), 1, str(other), "another model")
    assert not (tmp_path / "out.h5").exists()


def test_the_same_runs_give_the_same_bytes(runs, merged, tmp_path):
    done("merge", runs["a"], runs["b"], "-o", tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == merged[0].read_bytes()
