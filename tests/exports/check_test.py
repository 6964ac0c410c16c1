"""`kvcal export --check`: what it says of exports of the bundled model, untouched and damaged in the ways in which
loaders lose scales without a word."""
import json
import shutil

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")
pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file  # noqa: E402

from tables_test import (DIM, KV_HEADS, LAYERS, MODEL, changed, codebook, content_sha256, kvcal,  # noqa: E402, F401
                         set_text)

SHARD, INDEX = "kvcal-kv-scales.safetensors", "model.safetensors.index.json"
KEY, VALUE = "model.layers.3.self_attn.k_scale", "model.layers.1.self_attn.v_scale"


def unwrapped(text):
    """What is printed without the breaks of its lines and commands."""
    return " ".join(text.replace("\\\n", " ").split())


def check(path, *codebook):
    """The report as JSON; exit code 3 where it has problems, and the text for people names each of them."""
    result = kvcal("export", "--check", path, *codebook, "--json", "-")
    report = json.loads(result.stdout) if result.returncode in (0, 3) else None
    assert report is not None, result.stderr
    assert set(report) == {"format", "scales", "problems", "smallest", "largest"}
    assert result.returncode == (3 if report["problems"] else 0)
    text = kvcal("export", "--check", path, *codebook)
    assert text.returncode == result.returncode
    for problem in report["problems"]:
        assert "\n" not in problem["problem"]
        told = unwrapped(text.stdout)
        assert problem["name"] in told and problem["problem"] in told
    return report


def problems(path, *codebook):
    return [(problem["name"], problem["problem"]) for problem in check(path, *codebook)["problems"]]


def the_problem(path, *codebook):
    found = problems(path, *codebook)
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope="module")
def larger(codebook, tmp_path_factory):
    """The codebook as if all numbers of the cache had been 100 times as large."""
    path = tmp_path_factory.mktemp("larger") / "b.h5"
    shutil.copyfile(codebook, path)
    with h5py.File(path, "r+") as file:
        def enlarge(name, item):
            if isinstance(item, h5py.Dataset) and "/magnitudes/" in name:
                item[...] = item[()] * np.float32(100)

        file.visititems(enlarge)
        file.attrs["content_sha256"] = np.bytes_(content_sha256(file))
    return path


def exported(codebook, out, form, *more):
    result = kvcal("export", codebook, "--format", form, "--out", out, *more)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def folder(codebook, tmp_path):
    """An overlay with one scale a tensor, at the largest magnitude."""
    return exported(codebook, tmp_path / "out", "compressed-tensors", "--model", MODEL, "--type", "fp8", "--per",
                    "tensor")


@pytest.fixture
def scale_file(codebook, tmp_path):
    return exported(codebook, tmp_path / "scales.json", "onnx-genai", "--type", "int8", "--per", "channel")


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.unlink()  # it may be a link to the model's own
    path.write_text(json.dumps(content))


def change_scales(folder, change):
    scales = load_file(folder / SHARD)
    change(scales)
    save_file(scales, folder / SHARD, metadata={"format": "pt"})


@pytest.mark.parametrize("form, scope", [("compressed-tensors", "tensor"), ("compressed-tensors", "head"),
                                         ("modelopt", "tensor")])
@pytest.mark.parametrize("clip", ["max", "99.9%", "best"])
def test_folders_as_exported_have_no_problems(codebook, larger, tmp_path, form, scope, clip):
    out = exported(codebook, tmp_path / "out", form, "--model", MODEL, "--type", "fp8", "--per", scope, "--clip", clip)
    report = check(out, codebook)
    numbers = np.concatenate([scale.ravel() for scale in load_file(out / SHARD).values()])
    assert report["format"] == form and report["problems"] == []
    assert report["scales"] == numbers.size == 2 * LAYERS * (KV_HEADS if scope == "head" else 1)
    assert np.float32(report["smallest"]) == numbers.min() and np.float32(report["largest"]) == numbers.max()
    assert check(out) == report
    found = problems(out, larger)
    assert len(found) == 2 * LAYERS and all("another model or calibration" in problem for _, problem in found)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("scope", ["channel", "tensor"])
@pytest.mark.parametrize("more", [[], ["--clip", "best"], ["--measured-keys", "--clip", "99%"]])
def test_scale_files_as_exported_have_no_problems(codebook, larger, tmp_path, kind, scope, more):
    out = exported(codebook, tmp_path / "scales.json", "onnx-genai", "--type", kind, "--per", scope, *more)
    report = check(out, codebook)
    assert report["format"] == "onnx-genai" and report["problems"] == [] and check(out) == report
    assert report["scales"] == 2 * LAYERS * (KV_HEADS * DIM if scope == "channel" else 1)
    found = problems(out, larger)
    assert len(found) == 2 * LAYERS and all("another model or calibration" in problem for _, problem in found)


def test_a_scale_removed_from_shard_and_index(folder):
    change_scales(folder, lambda scales: scales.pop(KEY))
    change_json(folder / INDEX, lambda index: index["weight_map"].pop(KEY))
    name, problem = the_problem(folder)
    assert name == KEY and "missing" in problem and "1.0" in problem and "uninitialised" in problem


def test_a_scale_removed_from_the_shard_alone(folder):
    change_scales(folder, lambda scales: scales.pop(KEY))
    name, problem = the_problem(folder)
    assert name == KEY and f"not in {SHARD}" in problem


def test_a_scale_removed_from_the_index_alone(folder):
    change_json(folder / INDEX, lambda index: index["weight_map"].pop(VALUE))
    name, problem = the_problem(folder)
    assert name == VALUE and "does not list it" in problem and SHARD in problem


def test_a_shard_that_is_not_there(folder):
    (folder / SHARD).unlink()
    found = dict(problems(folder))
    assert "not there" in found[SHARD] and len(found) == 1 + 2 * LAYERS and KEY in found


def test_without_an_index_all_files_count(folder):
    (folder / INDEX).unlink()
    assert problems(folder) == []


def test_a_single_file_beside_the_index_hides_the_scales(folder):
    (folder / "model.safetensors").symlink_to(folder / "model-00001-of-00001.safetensors")
    name, problem = the_problem(folder)
    assert name == "model.safetensors" and "transformers" in problem


@pytest.mark.parametrize("number, part", [(1, "exactly 1"), (np.nan, "not finite"), (np.inf, "not finite"),
                                          (0, "not above 0"), (-0.25, "not above 0"), (1e-40, "subnormal")])
def test_a_scale_that_cannot_be_used(folder, number, part):
    change_scales(folder, lambda scales: scales.update({KEY: np.array([number], np.float32)}))
    name, problem = the_problem(folder)
    assert name == KEY and part in problem


@pytest.mark.parametrize("scale, part", [(np.float32(0.125), "[]"), (np.full((1, 1), 0.125, np.float32), "[1, 1]"),
                                         (np.full(KV_HEADS, 0.125, np.float32), "[2]"),
                                         (np.array([3], np.int32), "I32")])
def test_a_scale_of_another_shape_or_type(folder, scale, part):
    change_scales(folder, lambda scales: scales.update({KEY: np.array(scale)}))
    name, problem = the_problem(folder)
    assert name == KEY and part in problem


def test_heads_of_another_model(codebook, tmp_path):
    out = exported(codebook, tmp_path / "out", "compressed-tensors", "--model", MODEL, "--type", "fp8", "--per", "head")
    change_scales(out, lambda scales: scales.update({KEY: np.full((3, 1, 1), 0.125, np.float32)}))
    name, problem = the_problem(out)
    assert name == KEY and "[3, 1, 1]" in problem and "[2, 1, 1]" in problem


def test_a_scale_of_a_layer_that_the_model_lacks(folder):
    name = "model.layers.5.self_attn.k_scale"
    change_scales(folder, lambda scales: scales.update({name: np.array([0.125], np.float32)}))
    change_json(folder / INDEX, lambda index: index["weight_map"].update({name: SHARD}))
    assert the_problem(folder) == (name, "is of a layer that the model of 5 layers does not have")


def test_a_config_without_the_scheme(folder):
    change_json(folder / "config.json", lambda config: config["quantization_config"].pop("kv_cache_scheme"))
    name, problem = the_problem(folder)
    assert name == "config.json" and "ignore" in problem
    change_json(folder / "config.json", lambda config: config.pop("quantization_config"))
    name, problem = the_problem(folder)
    assert name == "config.json" and "ignore" in problem and check(folder)["format"] == "none"


@pytest.mark.parametrize("key, value, part", [("num_bits", 4, "8 bit"), ("type", "int", "8 bit"),
                                              ("dynamic", True, "static"), ("symmetric", False, "symmetric"),
                                              ("strategy", "channel", "strategy")])
def test_another_scheme(folder, key, value, part):
    change_json(folder / "config.json",
                lambda config: config["quantization_config"]["kv_cache_scheme"].update({key: value}))
    name, problem = the_problem(folder)
    assert name == "config.json" and part in problem


def test_a_codebook_of_another_model(folder, codebook):
    change_json(folder / "config.json", lambda config: config.update(num_hidden_layers=4))
    assert ("config.json", "says 4 layers, the codebook 5: of another model") in problems(folder, codebook)


def test_modelopt_of_another_cache(codebook, tmp_path):
    out = exported(codebook, tmp_path / "out", "modelopt", "--model", MODEL, "--type", "fp8", "--per", "tensor")
    change_json(out / "hf_quant_config.json", lambda file: file["quantization"].update(kv_cache_quant_algo="NVFP4"))
    name, problem = the_problem(out)
    assert name == "hf_quant_config.json" and "NVFP4" in problem


def without_layer_2(content):
    for rows in (content["scales"]["k_scales"], content["scales"]["v_scales"], content["layer_ids"]):
        del rows[2]


def set_all(number):
    def change(content):
        content["scales"]["k_scales"][3] = [number] * KV_HEADS * DIM

    return change


@pytest.mark.parametrize("change, name, part", [
    (without_layer_2, "layer 2", "missing"),
    (lambda content: content.pop("qmax"), "qmax", "missing"),
    (lambda content: content.update(qmax=127), "qmax", "127"),
    (lambda content: content.pop("layer_ids"), "layer_ids", "missing"),
    (lambda content: content["layer_ids"].__setitem__(1, 0), "layer_ids", "twice"),
    (lambda content: content["scales"]["v_scales"][1].__setitem__(7, 0), "layer 1, values",
     "1 of 128, the first is number 7"),
    (lambda content: content["scales"]["k_scales"][3].pop(), "layer 3, keys", "127 numbers"),
    (lambda content: content["scales"]["k_scales"].pop(), "k_scales", "4 rows for 5"),
    (lambda content: content["scales"]["k_scales"][3].__setitem__(0, "1"), "layer 3, keys", "no number"),
    (lambda content: content["scales"]["k_scales"][3].__setitem__(0, 1e300), "layer 3, keys", "not finite"),
    (set_all(1), "layer 3, keys", "128 of 128"),
    (lambda content: content.update(model=json.loads(json.dumps(content))), "model", "hides"),
])
def test_a_scale_file_with_a_fault(scale_file, change, name, part):
    change_json(scale_file, change)
    found, problem = the_problem(scale_file)
    assert found == name and part in problem


def test_the_last_layers_are_missed_with_the_codebook_alone(scale_file, codebook):
    def cut(content):
        for rows in (content["scales"]["k_scales"], content["scales"]["v_scales"], content["layer_ids"]):
            rows.pop()

    change_json(scale_file, cut)
    assert problems(scale_file) == []
    name, problem = the_problem(scale_file, codebook)
    assert name == f"layer {LAYERS - 1}" and "missing" in problem


def test_what_cannot_be_read(codebook, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.json").write_text('{"scales": {"k_sc')
    (tmp_path / "other.json").write_text('{"scales": 7}')
    for path, part in ((tmp_path / "nothing", "no such"), (tmp_path / "empty", "config.json"),
                       (tmp_path / "list.json", "not a JSON object"), (tmp_path / "cut.json", "not JSON"),
                       (tmp_path / "other.json", "onnx-genai"), (codebook, "is HDF5"), (MODEL, "no scales")):
        result = kvcal("export", "--check", path)
        assert result.returncode == 1 and result.stdout == ""
        last = result.stderr.splitlines()[-1]
        assert last.startswith("kvcal: error: ") and str(path) in last and part in last


def refusal(path):
    """The error of --check for what holds no scales: it names the file and what can be checked."""
    result = kvcal("export", "--check", path)
    assert result.returncode == 1 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"kvcal: error: {path}: is ")
    for part in ("folders of compressed-tensors and modelopt", "scale files of onnx-genai"):
        assert part in last
    assert "JSON" not in last and "export it anew" not in last
    return last


@pytest.mark.parametrize("form, more", [("flat", ["--method", "nuq3-1%"]), ("c-header", ["--method", "nuq3-1%"]),
                                        ("safetensors", [])])
def test_exports_without_scales_are_named(codebook, tmp_path, form, more):
    out = exported(codebook, tmp_path / "out", form, *more)
    assert f"is an export of {form}, which holds no scales to check" in refusal(out)


def test_other_files_without_scales_are_named(codebook, folder, tmp_path):
    (tmp_path / "quantizers.pickle").write_bytes(b"\x80\x02}.")  # as kvquant's begins, whose models are not GQA
    assert "is an export of kvquant" in refusal(tmp_path / "quantizers.pickle")
    for text in ("// tables\n", "\n#pragma once\n"):
        (tmp_path / "codebook.h").write_text(text)
        assert "is an export of c-header" in refusal(tmp_path / "codebook.h")
    assert "is HDF5, as codebooks are" in refusal(codebook)
    assert "name their folder" in refusal(folder / SHARD)


@pytest.mark.parametrize("number, text", [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_scale_file_with_a_number_that_json_has_not(scale_file, number, text):
    change_json(scale_file, lambda content: content["scales"]["k_scales"][3].__setitem__(5, number))
    assert {"nan": "NaN", "inf": "Infinity"}[text.removeprefix("-")] in scale_file.read_text()
    name, problem = the_problem(scale_file)
    assert name == "layer 3, keys" and problem == f"is not finite (1 of 128, the first is number 5: {text})"


def test_names_of_such_numbers_within_strings_stay(scale_file):
    change_json(scale_file, lambda content: content.update({'[NaN, "': "\\", "note": ': NaN, "Infinity", ['}))
    assert problems(scale_file) == []


SGLANG, SGLANG_PERHAPS, VLLM = "does not map the names of scales for this architecture", "look for 'is not loaded'", (
    "vLLM older than March 2026 skips the scales of this architecture")


@pytest.mark.parametrize("architecture, parts", [
    ("MixtralForCausalLM", [SGLANG]),
    ("Qwen3MoeForCausalLM", [SGLANG, VLLM]),
    ("MistralForCausalLM", [SGLANG_PERHAPS]),
    ("LlamaForCausalLM", []),
])
def test_loaders_that_are_known_to_drop_scales_are_warned_of(codebook, tmp_path, architecture, parts):
    other = changed(codebook, tmp_path / "other.h5", set_text("model", "architecture", architecture))
    result = kvcal("export", other, "--format", "compressed-tensors", "--model", MODEL, "--force", "--out",
                   tmp_path / "out", "--json", "-")
    assert result.returncode == 0, result.stderr
    warnings = [warning for warning in json.loads(result.stdout)["warnings"] if "ForCausalLM" in warning]
    assert len(warnings) == len(parts)
    for warning, part in zip(warnings, parts):
        assert warning.startswith(f"{architecture}: ") and part in warning
