"""`kvcal export`: an option that would change nothing is refused, as are places that are the model's own; a refusal names the
file; what kvcal's kernels take otherwise is said."""
import json
import shutil

import pytest

from tables_test import MODEL, changed, codebook, h5py, kvcal, np, refused, remove, remove_magnitudes, set_text  # noqa: F401

SCALES = {"--type": ["int8"], "--per": ["tensor"], "--clip": ["best"], "--measured-keys": []}
WHOLE, NO_SCALES = "it holds the whole codebook", "it holds no scales"
NO_LINKS, NO_COMPARISON = "it links no files of a model", "without --model: nothing is compared"
DATATYPE = "its scales belong to no datatype"
TABLES = ("c-header", "kvquant", "flat")

IN_VAIN = [
    *[("safetensors", option, value, WHOLE) for option, value in SCALES.items()],
    *[(form, option, value, NO_SCALES) for form in TABLES for option, value in SCALES.items()],
    *[(form, "--copy", [], NO_LINKS) for form in ("safetensors", "onnx-genai", *TABLES)],
    *[(form, "--force", [], NO_COMPARISON) for form in ("safetensors", "onnx-genai", *TABLES)],
    *[(form, "--force", ["--model", MODEL], "with --model") for form in ("safetensors", "onnx-genai", *TABLES)],
]


def needed(form):
    """What the format does not do without."""
    if form in TABLES:
        return ["--method", "nuq3-1%"]
    return ["--model", MODEL] if form in ("compressed-tensors", "modelopt") else []


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("form, option, value, why", IN_VAIN)
def test_an_option_without_effect_is_refused(codebook, tmp_path, form, option, value, why):  # noqa: F811
    result = kvcal("export", codebook, "--format", form, "--out", tmp_path / "out", *needed(form), option, *value)
    refused(result, 2, f"--format {form} ", option, why)
    assert names(tmp_path) == []


def test_options_are_looked_at_before_the_codebook_is_read(tmp_path):
    refused(kvcal("export", tmp_path / "absent.h5", "--format", "flat", "--clip", "best", "--out", tmp_path / "out"), 2, "--clip")


@pytest.mark.parametrize("form", ["compressed-tensors", "modelopt"])
def test_an_overlay_needs_the_model(codebook, tmp_path, form):  # noqa: F811
    for more in ([], ["--force"], ["--copy"]):
        refused(kvcal("export", codebook, "--format", form, "--out", tmp_path / "out", *more), 2, form, "--model")
    assert names(tmp_path) == []


@pytest.mark.parametrize("form, why", [("safetensors", WHOLE), ("onnx-genai", DATATYPE), ("compressed-tensors", DATATYPE)])
def test_a_datatype_that_changes_nothing_is_told(codebook, tmp_path, form, why):  # noqa: F811
    result = kvcal("export", codebook, "--format", form, "--out", tmp_path / "out", *needed(form), "--method", "nuq3-1%")
    assert result.returncode == 0 and f"--method nuq3-1% changes nothing of {form}: {why}" in result.stderr


@pytest.mark.parametrize("option, value", [
    *SCALES.items(), ("--method", ["nuq3-1%"]), ("--copy", []), ("--force", []), ("--model", [MODEL]), ("--format", ["modelopt"]),
    ("--out", ["out"]), ("--into", ["model"])])
def test_a_check_takes_the_codebook_and_json_only(codebook, tmp_path, option, value):  # noqa: F811
    scales = tmp_path / "scales.json"
    assert kvcal("export", codebook, "--format", "onnx-genai", "--out", scales).returncode == 0
    refused(kvcal("export", "--check", scales, codebook, option, *value), 2, "--check", f"leave out {option}")
    assert names(tmp_path) == ["scales.json"]


def test_a_check_names_all_that_it_does_not_take(tmp_path):
    refused(kvcal("export", "--check", tmp_path, "--force", "--clip", "max"), 2, "--force, --clip")


def test_a_check_of_nothing(codebook):  # noqa: F811
    refused(kvcal("export", codebook, "--check", ""), 2, "--check needs a path")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    return folder


@pytest.mark.parametrize("form, more", [("compressed-tensors", []), ("modelopt", ["--force"]), ("safetensors", [])])
def test_the_models_folder_is_not_touched(codebook, tmp_path, model, form, more):  # noqa: F811
    (tmp_path / "link").symlink_to(model)
    before = names(tmp_path)
    for out in (model / "out", tmp_path / "link" / "out", model):
        refused(kvcal("export", codebook, "--format", form, "--model", model, "--out", out, *more), 2, f"--out {out}",
                str(model), "elsewhere")
        assert names(tmp_path) == before


def test_beside_the_models_folder_is_fine(codebook, tmp_path, model):  # noqa: F811
    result = kvcal("export", codebook, "--format", "compressed-tensors", "--model", model, "--out", tmp_path / "model-fp8")
    assert result.returncode == 0, result


@pytest.mark.parametrize("form, change, parts", [
    *[(form, remove_magnitudes, ["layer 0, keys: ", "1.2"]) for form in ("onnx-genai", "compressed-tensors", "modelopt")],
    *[(form, remove("layers/0003/value/outliers_0.01/nuq3"), ["layer 3, value", "nuq3-1%"]) for form in ("flat", "c-header")],
])
def test_a_refused_layer_is_of_a_file(codebook, tmp_path, form, change, parts):  # noqa: F811
    old = changed(codebook, tmp_path / "old.h5", change)
    result = kvcal("export", old, "--format", form, "--out", tmp_path / "out", *needed(form))
    refused(result, 1, f"{old}: {parts[0]}", *parts)
    assert names(tmp_path) == ["old.h5"]


def test_a_refused_layer_is_of_a_file_in_a_merge_and_a_check(codebook, tmp_path, model):  # noqa: F811
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (model / "config.json").write_text(json.dumps(config))
    old = changed(codebook, tmp_path / "old.h5", remove_magnitudes)
    before = names(tmp_path)
    refused(kvcal("export", old, "--format", "compressed-tensors", "--into", model), 1, f"{old}: layer 0, keys: ")
    assert names(tmp_path) == before
    scales = tmp_path / "scales.json"
    assert kvcal("export", codebook, "--format", "onnx-genai", "--out", scales).returncode == 0
    refused(kvcal("export", "--check", scales, old), 1, f"{old}: layer 0, keys: ")


def narrow_heads(file):
    """The same channels as twice as many heads of half the size."""
    remove_magnitudes(file)
    for layer in file["layers"].values():
        for name, number in (("kv_heads", 4), ("key_dim", 32), ("value_dim", 32)):
            layer.attrs.modify(name, np.int64(number))


BY_HEAD = set_text("calibration", "value_scope", "head")


def set_sinks(number):
    return lambda file: file["calibration"].attrs.modify("sinks", np.int64(number))


@pytest.mark.parametrize("changes, parts", [
    ([], [["over all heads", "--value-scope head"]]),
    ([BY_HEAD], []),
    ([BY_HEAD, set_sinks(16)], []),
    ([BY_HEAD, set_sinks(17)], [["up to 16 sinks", "17 sinks"]]),
    ([BY_HEAD, narrow_heads], [["64, 128 and 256", "layer 0 has 32"]]),
    ([narrow_heads, set_sinks(20)], [["--value-scope head"], ["layer 0 has 32"], ["20 sinks"]]),
])
def test_flat_says_what_the_kernels_take(codebook, tmp_path, changes, parts):  # noqa: F811
    def change(file):
        for one in changes:
            one(file)

    out = tmp_path / "a.flat"
    result = kvcal("export", changed(codebook, tmp_path / "a.h5", change), "--format", "flat", "--method", "nuq3-1%", "--out", out,
                   "--json", "-")
    assert result.returncode == 0, result
    report = json.loads(result.stdout)
    assert len(report["warnings"]) == len(parts), report
    for warning, words in zip(report["warnings"], parts):
        assert all(word in warning for word in words), warning
        assert f"kvcal: warning: {warning}" in result.stderr
    assert f"kvcal_codebook_open(<bytes of {out}>" in report["serve"] and "docs/kernels.md" in report["serve"]
    assert "\n" not in report["serve"]


def test_quiet_prints_warnings_only(codebook, tmp_path):  # noqa: F811
    report = tmp_path / "report.json"
    result = kvcal("export", codebook, "--format", "flat", "--method", "nuq3", "--out", tmp_path / "a", "--json", report, "-q")
    assert result.returncode == 0 and result.stdout == "" and "warning" in result.stderr
    assert json.loads(report.read_text())["files"] == [str(tmp_path / "a")]
    loud = kvcal("export", codebook, "--format", "flat", "--method", "nuq3", "--out", tmp_path / "b")
    assert "Wrote " in loud.stdout and "Serve it with" in loud.stdout


def test_a_quiet_check_prints_problems_only(codebook, tmp_path):  # noqa: F811
    scales = tmp_path / "scales.json"
    assert kvcal("export", codebook, "--format", "onnx-genai", "--out", scales, "--quiet").stdout == ""
    result = kvcal("export", "--check", scales, codebook, "--quiet")
    assert result.returncode == 0 and result.stdout == ""
    content = json.loads(scales.read_text())
    del content["qmax"]
    scales.write_text(json.dumps(content))
    result = kvcal("export", "--check", scales, "--quiet")
    assert result.returncode == 3 and "qmax" in result.stdout
