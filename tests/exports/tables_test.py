"""Exports that hold tables (safetensors, c-header, onnx-genai), read back by others: every number is h5py's."""
import ast
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
TEXT = SOURCE / "data" / "demo" / "calibrate.txt"
LAYERS, KV_HEADS, DIM = 5, 2, 64
LEVELS = [0.9, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 1]
QMAX = {"int8": 128, "int4": 8, "fp8": 448}
JSON_ATTRIBUTES = ("rope", "options", "texts")

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def kvcal(*arguments):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def export(codebook, out, name, *more):
    result = kvcal("export", codebook, "--format", name, "--out", out, *more)
    assert result.returncode == 0, result
    return result


def refused(result, code, *parts):
    """Exit code `code`, nothing on standard output, and a last line on standard error that has all the parts."""
    assert result.returncode == code, result
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("kvcal: error: "), result.stderr
    for part in parts:
        assert part in last


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    out = tmp_path_factory.mktemp("codebook") / "a.h5"
    result = kvcal("calibrate", "-m", MODEL, "-f", TEXT, "-o", out, "--samples", 2, "--seqlen", 128, "--ablation",
                   "--dtype", "float32", "--quiet")
    assert result.returncode == 0, result.stderr
    return out


def content_sha256(file):
    """As docs/codebook-format.md defines it."""
    records = {f"/@{name}": value for name, value in file.attrs.items() if name != "content_sha256"}

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            records["/" + name] = item[()]
        records.update({f"/{name}@{key}": value for key, value in item.attrs.items()})

    file.visititems(add)
    digest = hashlib.sha256()
    for path, value in sorted(records.items(), key=lambda record: record[0].encode()):
        if isinstance(value, (str, bytes)):
            kind, shape, data = "string", (), value.encode() if isinstance(value, str) else value
        else:
            array = np.asarray(value)
            kind, shape, data = array.dtype.name, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes()
        for text in (path, kind, ",".join(map(str, shape))):
            digest.update(text.encode() + b"\0")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def changed(codebook, path, change):
    """A copy at `path` on which change(file) was called, with a content_sha256 that fits."""
    shutil.copyfile(codebook, path)
    with h5py.File(path, "r+") as file:
        change(file)
        file.attrs["content_sha256"] = np.bytes_(content_sha256(file))
    return path


def remove(*paths):
    def change(file):
        for path in paths:
            del file[path]

    return change


def set_text(path, name, text):
    """An attribute of text as kvcal writes it: of fixed length, UTF-8."""

    def change(file):
        data = text.encode()
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(len(data))
        kind.set_cset(h5py.h5t.CSET_UTF8)
        kind.set_strpad(h5py.h5t.STR_NULLPAD)
        del file[path].attrs[name]
        attribute = h5py.h5a.create(file[path].id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
        attribute.write(np.array(data, dtype=f"S{len(data)}"), kind)

    return change


def set_number(path, index, number):
    def change(file):
        file[path][index] = number

    return change


def set_window(file):
    file["layers/0003"].attrs.modify("window", np.int64(512))


def remove_magnitudes(file):
    for layer in file["layers"].values():
        for name in ("key", "value", "key_rope", "key_envelope"):
            del layer[name]["magnitudes"]
        del layer["key_envelope"]
    file.attrs.modify("schema_minor", np.int64(1))


# safetensors


def plain(value):
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if hasattr(value, "item") else value


def as_json(name, value):
    return json.loads(plain(value)) if name in JSON_ATTRIBUTES else plain(value)


def check_safetensors(codebook, exported):
    """Every dataset and every attribute of the HDF5 file, no more and no less."""
    safetensors = pytest.importorskip("safetensors")
    datasets, attributes = {}, {}
    with h5py.File(codebook, "r") as file:
        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                datasets[name] = item[()]
            if len(item.attrs):
                attributes[name] = {key: as_json(key, value) for key, value in item.attrs.items()}

        visit("/", file)
        file.visititems(visit)
    with safetensors.safe_open(exported, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    assert set(tensors) == set(datasets)
    for name, expected in datasets.items():
        assert tensors[name].dtype == np.float32 and tensors[name].shape == expected.shape, name
        assert tensors[name].tobytes() == expected.tobytes(), name
    assert set(metadata) == {"format", "schema", "content_sha256", "kvcal"}
    held = json.loads(metadata["kvcal"])
    assert held == attributes
    root = attributes["/"]
    assert metadata["format"] == "kvcal-codebook"
    assert metadata["schema"] == f"{root['schema_major']}.{root['schema_minor']}"
    assert metadata["content_sha256"] == root["content_sha256"]
    return tensors, held


def test_safetensors_holds_all_that_the_codebook_holds(codebook, tmp_path):
    out = tmp_path / "codebook.safetensors"
    export(codebook, out, "safetensors")
    tensors, attributes = check_safetensors(codebook, out)
    assert "layers/0000/key/outliers_0.01/nuq3/centroids" in tensors
    assert "layers/0004/value/with_sinks/outliers_0/nuq2/centroids" in tensors
    assert "layers/0001/key_rope/outliers_0.01/lower" in tensors
    assert tensors["layers/0002/key_envelope/magnitudes/channel_quantiles"].shape == (KV_HEADS * DIM, 8)
    assert attributes["model"]["num_layers"] == LAYERS
    assert attributes["layers/0000/key/outliers_0.01"]["fraction"] == 0.01
    assert attributes["calibration"]["texts"][0]["name"] == TEXT.name


def test_safetensors_of_an_older_codebook_names_its_schema(codebook, tmp_path):
    old = changed(codebook, tmp_path / "old.h5", remove_magnitudes)
    out = tmp_path / "old.safetensors"
    export(old, out, "safetensors")
    tensors, attributes = check_safetensors(old, out)
    assert attributes["/"]["schema_minor"] == 1 and not any("magnitudes" in name for name in tensors)


def test_the_same_codebook_gives_the_same_bytes(codebook, tmp_path):
    for name, more in (("safetensors", ()), ("c-header", ("--method", "nuq3-1%")), ("onnx-genai", ())):
        for file in ("a", "b"):
            export(codebook, tmp_path / f"{name}.{file}", name, *more)
        assert (tmp_path / f"{name}.a").read_bytes() == (tmp_path / f"{name}.b").read_bytes()


# c-header

PRINTS_ALL = r"""
#include <stdio.h>
#include "codebook.h"

static void print(const char *name, int layer, const float *numbers, int count) {
  int i;
  if (numbers == NULL) return;
  printf("%d %s", layer, name);
  for (i = 0; i < count; ++i) printf(" %a", (double)numbers[i]);
  printf("\n");
}

int main(void) {
  int i;
  printf("%s\n%s\n%s\n%s\n%s\n", KVCAL_MODEL_NAME, KVCAL_CONFIG_SHA256, KVCAL_WEIGHTS_SHA256, KVCAL_CONTENT_SHA256,
         KVCAL_DATATYPE);
  printf("%d %d %a %d %d %d %d\n", KVCAL_BITS, KVCAL_CENTROIDS, KVCAL_OUTLIER_FRACTION, KVCAL_QNORM, KVCAL_SINKS,
         KVCAL_VALUES_BY_HEAD, KVCAL_NUM_LAYERS);
  printf("%d %d %d\n", KVCAL_KV_HEADS, KVCAL_KEY_DIM, KVCAL_VALUE_DIM);
  for (i = 0; i < KVCAL_NUM_LAYERS; ++i) {
    const struct kvcal_layer *layer = &kvcal_layers[i];
    printf("%d sizes %d %d %d\n", i, layer->kv_heads, layer->key_dim, layer->value_dim);
    print("key_lower", i, layer->key_lower, layer->kv_heads * layer->key_dim);
    print("key_upper", i, layer->key_upper, layer->kv_heads * layer->key_dim);
    print("key_centroids", i, layer->key_centroids, KVCAL_CENTROIDS);
    print("value_centroids", i, layer->value_centroids, KVCAL_CENTROIDS);
    print("key_levels", i, layer->key_levels, KVCAL_CENTROIDS);
    print("value_levels", i, layer->value_levels, KVCAL_CENTROIDS);
  }
  return 0;
}
"""


def printed(codebook, folder, method, compiler="gcc", *flags):
    """What a program that includes the header prints: its lines up to the tables, then {(layer, name): words}."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    folder.mkdir(exist_ok=True)
    export(codebook, folder / "codebook.h", "c-header", "--method", method)
    program = folder / ("print.c" if compiler == "gcc" else "print.cpp")
    program.write_text(PRINTS_ALL)
    built = subprocess.run([compiler, *(flags or ["-std=c99"]), "-Wall", "-Wextra", "-pedantic", "-Werror",
                            program, "-o", folder / "print"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    lines = subprocess.run([folder / "print"], capture_output=True, check=True).stdout.decode().split("\n")
    tables = {}
    for line in lines[7:-1]:
        layer, name, *words = line.split(" ")
        tables[int(layer), name] = words
    return lines[:7], tables


def floats(words):
    numbers = [float.fromhex(word) for word in words]
    narrow = np.array(numbers, np.float32)
    assert narrow.tolist() == numbers  # %a of a float has no more digits than a float
    return narrow


def check_tables(codebook, tables, fraction, bits, qnorm):
    with h5py.File(codebook, "r") as file:
        for i in range(LAYERS):
            path = f"layers/{i:04}"
            if path not in file:
                assert tables[i, "sizes"] == ["0", "0", "0"]
                assert not [name for layer, name in tables if layer == i and name != "sizes"]
                continue
            assert tables[i, "sizes"] == [str(KV_HEADS), str(DIM), str(DIM)]
            for name in ("lower", "upper"):
                expected = file[f"{path}/key/outliers_{fraction}/{name}"][:]
                assert floats(tables[i, f"key_{name}"]).tobytes() == expected.tobytes()
            for tensor in ("key", "value"):
                centroids = file[f"{path}/{tensor}/outliers_{fraction}/nuq{bits}/centroids"]
                assert floats(tables[i, f"{tensor}_centroids"]).tobytes() == centroids[:].tobytes()
                expected = centroids[:]
                if qnorm:
                    scale, offset = (np.float32(centroids.attrs[f"qnorm_{name}"]) for name in ("scale", "offset"))
                    expected = centroids[:] * scale + offset
                    assert expected.dtype == np.float32
                levels = floats(tables[i, f"{tensor}_levels"])
                assert levels.tobytes() == expected.tobytes()
                if qnorm:
                    assert levels.tobytes() != centroids[:].tobytes()


@pytest.mark.parametrize("method, fraction, bits, qnorm",
                         [("nuq3-1%", "0.01", 3, False), ("nuq4-1%-qn", "0.01", 4, True), ("nuq2", "0", 2, False)])
def test_c_header(codebook, tmp_path, method, fraction, bits, qnorm):
    lines, tables = printed(codebook, tmp_path / "c", method)
    with h5py.File(codebook, "r") as file:
        model = file["model"].attrs
        texts = [model["name"], model["config_sha256"], model["weights_sha256"], file.attrs["content_sha256"]]
        assert lines[:4] == [text.decode() for text in texts]
        sinks = file["calibration"].attrs["sinks"]
        exact = float(file[f"layers/0000/key/outliers_{fraction}"].attrs["fraction"])
    assert lines[4] == method
    words = lines[5].split()
    assert float.fromhex(words.pop(2)) == exact
    assert list(map(int, words)) == [bits, 2**bits, int(qnorm), sinks, 0, LAYERS]
    assert lines[6] == f"{KV_HEADS} {DIM} {DIM}"
    assert len(tables) == 7 * LAYERS
    check_tables(codebook, tables, fraction, bits, qnorm)


def test_c_header_is_cpp_too(codebook, tmp_path):
    _, tables = printed(codebook, tmp_path / "cpp", "nuq3-1%", "g++", "-std=c++11")
    check_tables(codebook, tables, "0.01", 3, False)


def test_c_header_of_a_codebook_without_a_layer(codebook, tmp_path):
    partial = changed(codebook, tmp_path / "partial.h5", remove("layers/0002"))
    _, tables = printed(partial, tmp_path / "c", "nuq3-1%")
    assert len(tables) == 7 * LAYERS - 6
    check_tables(partial, tables, "0.01", 3, False)


def test_c_header_escapes_text(codebook, tmp_path):
    name = 'a"b\\c */ // ??/ ??= ünï\tend'
    named = changed(codebook, tmp_path / "named.h5", set_text("model", "name", name))
    lines, _ = printed(named, tmp_path / "c", "nuq3-1%")
    assert lines[0] == name


def test_c_header_refuses_a_text_longer_than_a_compiler_takes(codebook, tmp_path):
    named = changed(codebook, tmp_path / "named.h5", set_text("model", "name", "a" * 5000))
    out = tmp_path / "codebook.h"
    refused(kvcal("export", named, "--format", "c-header", "--method", "nuq3-1%", "--out", out), 1, "5000 bytes")
    assert not out.exists()


def test_c_header_refuses_what_is_not_held(codebook, tmp_path):
    out = tmp_path / "codebook.h"
    result = kvcal("export", codebook, "--format", "c-header", "--out", out)
    assert result.returncode != 0 and "nuq3-1%" in result.stderr
    result = kvcal("export", codebook, "--format", "c-header", "--method", "nuq7-1%", "--out", out)
    assert result.returncode != 0
    lacks = changed(codebook, tmp_path / "lacks.h5", remove("layers/0003/value/outliers_0.01/nuq3"))
    result = kvcal("export", lacks, "--format", "c-header", "--method", "nuq3-1%", "--out", out)
    refused(result, 1, "layer 3", "value", "nuq3-1%")
    assert not out.exists()


# onnx-genai


def thresholds(file, layer, tensor, scope, clip, kind):
    group = file[f"layers/{layer:04}/{tensor}/magnitudes"]
    if clip == "best":
        return group[f"{scope}_best"][:, list(QMAX).index(kind)]
    level = 1 if clip == "max" else float(clip[:-1]) / 100
    return group[f"{scope}_quantiles"][:, [abs(level - one) < 1e-9 for one in LEVELS].index(True)]


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("clip", ["max", "99.99%", "best"])
@pytest.mark.parametrize("scope", ["channel", "tensor"])
@pytest.mark.parametrize("kind", list(QMAX))
def test_onnx_genai_scales_are_thresholds_over_qmax(codebook, tmp_path, kind, scope, clip, measured):
    out = tmp_path / "scales.json"
    more = ["--measured-keys"] if measured else []
    export(codebook, out, "onnx-genai", "--type", kind, "--per", scope, "--clip", clip, *more)
    held = json.loads(out.read_text())
    assert set(held) == {"scales", "layer_ids", "qmax"} and set(held["scales"]) == {"k_scales", "v_scales"}
    assert held["layer_ids"] == list(range(LAYERS))
    assert held["qmax"] == QMAX[kind] and isinstance(held["qmax"], int)
    count = KV_HEADS * DIM if scope == "channel" else 1
    with h5py.File(codebook, "r") as file:
        for name, tensor in (("k_scales", "key_rope" if measured else "key_envelope"), ("v_scales", "value")):
            assert [len(row) for row in held["scales"][name]] == [count] * LAYERS
            for layer, row in enumerate(held["scales"][name]):
                expected = thresholds(file, layer, tensor, scope, clip, kind) / np.float32(QMAX[kind])
                assert expected.dtype == np.float32
                assert np.array(row, np.float32).tobytes() == expected.tobytes()  # digits enough to read it back
                assert (np.array(row) > 0).all()


def test_envelope_is_shared_by_the_pair_that_rope_turns(codebook, tmp_path):
    export(codebook, tmp_path / "scales.json", "onnx-genai", "--clip", "max")
    export(codebook, tmp_path / "measured.json", "onnx-genai", "--clip", "max", "--measured-keys")
    envelope, measured = (np.array(json.loads((tmp_path / f"{name}.json").read_text())["scales"]["k_scales"])
                          for name in ("scales", "measured"))
    pairs = envelope.reshape(LAYERS, KV_HEADS, 2, DIM // 2)
    assert (pairs[:, :, 0] == pairs[:, :, 1]).all()
    assert (envelope >= measured * (1 - 1e-6)).all() and (envelope > measured).any()


def test_onnx_genai_says_how_to_build_and_what_gets_lost(codebook, tmp_path):
    for kind in QMAX:
        out = tmp_path / f"{kind}.json"
        result = kvcal("export", codebook, "--format", "onnx-genai", "--type", kind, "--out", out, "--json", "-")
        assert result.returncode == 0, result
        report = json.loads(result.stdout)
        assert report["files"] == [str(out)]
        for part in (f"kv_cache_quant_scheme={kind}_per_channel", f"kv_cache_scale_file={out}",
                     "-e cuda" if kind == "fp8" else "-e cpu"):
            assert part in report["serve"]
        assert "0.16" in report["needs"] and "k_scale" in report["beware"]
        assert any("fp8" in warning for warning in report["warnings"]) == (kind == "fp8")


@pytest.mark.parametrize("name, change, parts", [
    ("a layer is absent", remove("layers/0002"), ["layer 2", "lacks"]),
    ("a sliding window", set_window, ["layer 3", "window", "512"]),
    ("no magnitudes", remove_magnitudes, ["layer 0", "1.2"]),
    ("a threshold of 0", set_number("layers/0001/value/magnitudes/channel_quantiles", (7, slice(None)), 0),
     ["layer 1", "value", "7"]),
    ("a subnormal threshold", set_number("layers/0001/value/magnitudes/channel_quantiles", (7, slice(None)), 1e-40),
     ["layer 1", "value", "7"]),
])
def test_onnx_genai_refuses(codebook, tmp_path, name, change, parts):
    out = tmp_path / "scales.json"
    refused(kvcal("export", changed(codebook, tmp_path / "changed.h5", change), "--format", "onnx-genai", "--clip", "max",
                  "--out", out), 1, *parts)
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] == ["changed.h5"]


def test_onnx_genai_has_no_scales_per_head(codebook, tmp_path):
    out = tmp_path / "scales.json"
    refused(kvcal("export", codebook, "--format", "onnx-genai", "--per", "head", "--out", out), 2, "head")
    assert not out.exists()


@pytest.mark.parametrize("name, more", [("safetensors", []), ("c-header", ["--method", "nuq3-1%"]), ("onnx-genai", [])])
def test_what_exists_is_left_alone(codebook, tmp_path, name, more):
    out = tmp_path / "mine"
    out.write_text("mine")
    result = kvcal("export", codebook, "--format", name, "--out", out, *more)
    assert result.returncode in (1, 2) and result.stdout == "" and str(out) in result.stderr
    assert out.read_text() == "mine" and list(tmp_path.iterdir()) == [out]


# The command that serves it


def served(codebook, out, name, *more):
    return json.loads(export(codebook, out, name, *more, "--json", "-").stdout)["serve"]


@pytest.fixture
def odd_folder(tmp_path):
    folder = tmp_path / 'a b\'s "c" \\ $HOME'
    folder.mkdir()
    return folder


def test_safetensors_serve_command_reads_the_export(codebook, odd_folder):
    pytest.importorskip("safetensors")
    out = odd_folder / "mine.safetensors"
    words = shlex.split(served(codebook, out, "safetensors"))
    assert words[:2] == ["python", "-c"] and len(words) == 3
    result = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert f"'num_layers': {LAYERS}" in result.stdout and "layers/0000/key/outliers_0.01/nuq3/centroids" in result.stdout


def test_serve_commands_quote_paths(codebook, odd_folder):
    out = odd_folder / "overlay"
    vllm, sglang, transformers = served(codebook, out, "compressed-tensors", "--model", MODEL).split("\n")
    assert shlex.split(vllm) == ["vllm", "serve", str(out), "--kv-cache-dtype", "fp8"]
    assert shlex.split(sglang)[3:5] == ["--model-path", str(out)]
    literal = transformers.removeprefix("AutoModelForCausalLM.from_pretrained(").removesuffix(
        ") of transformers: a simulation")
    assert ast.literal_eval(literal) == str(out)
    modelopt = odd_folder / "modelopt"
    assert shlex.split(served(codebook, modelopt, "modelopt", "--model", MODEL))[:2] == ["trtllm-serve", str(modelopt)]
    scales = odd_folder / "scales.json"
    assert shlex.split(served(codebook, scales, "onnx-genai"))[-1] == f"kv_cache_scale_file={scales}"
