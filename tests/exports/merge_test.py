"""`kvcal export --into`: scales merged into checkpoints that have a quantization_config (their weights are the bundled
model's all the same): what is added, that all else stays byte for byte, and what is refused."""
import json
import os
import pathlib
import struct
import subprocess

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors")

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
TEXT = SOURCE / "data" / "demo" / "calibrate.txt"
LAYERS, KV_HEADS = 5, 2
SHARD, SINGLE, INDEX = "kvcal-kv-scales.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"
LARGEST = 7  # column of the quantiles

GROUPS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}
CT = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
      "config_groups": GROUPS, "ignore": ["lm_head"], "kv_cache_scheme": None, "version": "0.13.0"}
MODELOPT = {"ignore": ["lm_head"], "quant_algo": "FP8", "producer": {"name": "modelopt"}, "quant_method": "modelopt"}
MODELOPT_FILE = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None,
                                                                    "exclude_modules": ["lm_head"]}}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MODELOPT_SCHEME = '{"dynamic": false, "num_bits": 8, "type": "float"}'
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def unwrapped(text):
    """What is printed without the breaks of its lines and commands."""
    return " ".join(text.replace("\\\n", " ").split())


def kvcal(*arguments):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def merge(codebook, folder, *more, form="compressed-tensors", scope="tensor", number="fp8"):
    return kvcal("export", codebook, "--format", form, "--type", number, "--clip", "max", "--per", scope, "--into",
                 folder, *more)


def merged(codebook, folder, **choices):
    result = merge(codebook, folder, **choices)
    assert result.returncode == 0, result.stderr
    check = kvcal("export", "--check", folder, codebook)
    assert check.returncode == 0, check.stdout + check.stderr
    return result


def ct_scheme(strategy):
    return (f'{{"num_bits": 8, "type": "float", "strategy": "{strategy}", "dynamic": false, "symmetric": true, '
            '"group_size": null}')


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def quantized(folder, quantization, fields=None):
    """The bundled model with a quantization_config in a config.json laid out as no JSON writer does it."""
    folder.mkdir()
    for path in MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((MODEL / "config.json").read_text()) | (fields or {})
    text = json.dumps(config, indent=3)
    if quantization is not None:
        assert text.startswith("{\n")
        text = '{ "quantization_config" :' + json.dumps(quantization) + " ,\n" + text[2:]
    (folder / "config.json").write_text(text.replace("1e-05", "1.000e-5") + "\n\n")
    return folder


def save(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def split(folder):
    """model.safetensors into two shards, tensor by tensor in turn; the index's text."""
    raw = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    header.pop("__metadata__", None)
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(header))}
    for shard in sorted(set(shards.values())):
        part, data = {"__metadata__": {"format": "pt"}}, b""
        for name in (name for name in shards if shards[name] == shard):
            begin, end = header[name]["data_offsets"]
            part[name] = header[name] | {"data_offsets": [len(data), len(data) + end - begin]}
            data += raw[8 + size + begin:8 + size + end]
        save(folder / shard, part, data)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": len(raw) - 8 - size, "by": "another"}, "weight_map": shards}
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    return (folder / INDEX).read_text()


def add_tensor(folder, name):
    """In the only file, in front of all others."""
    raw = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    for key, tensor in header.items():
        if key != "__metadata__":
            tensor["data_offsets"] = [at + 4 for at in tensor["data_offsets"]]
    header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    save(folder / "model.safetensors", header, struct.pack("<f", 0.5) + raw[8 + size:])


def scales_of(folder):
    with safetensors.safe_open(folder / SHARD, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_tensor(name) for name in file.keys()}


def check_scales(folder, codebook, shape, names=("k_scale", "v_scale"), scope="tensor"):
    scales = scales_of(folder)
    assert len(scales) == 2 * LAYERS
    with h5py.File(codebook) as file:
        for layer in range(LAYERS):
            for name, tensor in zip(names, ("key_envelope", "value")):
                threshold = file[f"layers/{layer:04}/{tensor}/magnitudes/{scope}_quantiles"][:, LARGEST]
                scale = scales[f"model.layers.{layer}.self_attn.{name}"]
                assert scale.shape == shape and scale.dtype == np.float32
                np.testing.assert_array_equal(scale.ravel(), (threshold.astype(np.float64) / 448).astype(np.float32))


def refused(codebook, folder, *parts, code=1, **choices):
    before = files_of(folder)
    result = merge(codebook, folder, **choices)
    assert result.returncode == code, result
    last = result.stderr.splitlines()[-1]
    assert last.startswith("kvcal: error: ")
    for part in parts:
        assert part in last
    assert files_of(folder) == before


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    out = tmp_path_factory.mktemp("codebook") / "a.h5"
    result = kvcal("calibrate", "-m", MODEL, "-f", TEXT, "-o", out, "--samples", 2, "--seqlen", 128, "--dtype",
                   "float32", "--quiet")
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.parametrize("scope", ["tensor", "head"])
def test_a_checkpoint_of_one_file(codebook, tmp_path, scope):
    folder = quantized(tmp_path / "model", CT)
    old = files_of(folder)
    result = merged(codebook, folder, scope=scope)
    assert f"vllm serve {folder} --kv-cache-dtype fp8" in unwrapped(result.stdout)
    check_scales(folder, codebook, (1,) if scope == "tensor" else (KV_HEADS, 1, 1), scope=scope)
    new = files_of(folder)
    assert new.pop(SINGLE) == old.pop("model.safetensors")  # where that lies, transformers reads no index
    scheme = ct_scheme("tensor" if scope == "tensor" else "attn_head")
    assert new.pop("config.json").decode() == old.pop("config.json").decode().replace(
        '"kv_cache_scheme": null', f'"kv_cache_scheme": {scheme}')
    index = json.loads(new.pop(INDEX))
    with safetensors.safe_open(folder / SINGLE, framework="np") as file:
        weights = dict.fromkeys(file.keys(), SINGLE)
    assert index["weight_map"] == weights | dict.fromkeys(scales_of(folder), SHARD)
    del new[SHARD]
    assert new == old


def test_a_checkpoint_of_shards(codebook, tmp_path):
    folder = quantized(tmp_path / "model", {k: v for k, v in CT.items() if k != "kv_cache_scheme"})
    index = split(folder)
    old = files_of(folder)
    merged(codebook, folder)
    check_scales(folder, codebook, (1,))
    new = files_of(folder)
    added = list(new)
    assert set(added) == set(old) | {SHARD}
    assert {n: b for n, b in new.items() if n not in (SHARD, INDEX, "config.json")} == {
        n: b for n, b in old.items() if n not in (INDEX, "config.json")}
    assert new["config.json"].decode() == old["config.json"].decode().replace(
        '"0.13.0"}', f'"0.13.0", "kv_cache_scheme": {ct_scheme("tensor")}}}')
    size = json.loads(index)["metadata"]["total_size"]
    listed = "".join(f',\n  "model.layers.{i}.self_attn.{n}": "{SHARD}"' for i in range(LAYERS)
                     for n in ("k_scale", "v_scale"))
    expected = index.replace(str(size), str(size + 2 * LAYERS * 4))
    assert expected.endswith('"\n }\n}')
    assert new[INDEX].decode() == expected[:-len("\n }\n}")] + listed + "\n }\n}"


def test_the_places_of_a_quantization(codebook, tmp_path):
    for name, fields in (("old", {"compression_config": CT}), ("text", {"text_config": {"quantization_config": CT}})):
        folder = quantized(tmp_path / name, None, fields)
        old = (folder / "config.json").read_text()
        merged(codebook, folder)
        assert (folder / "config.json").read_text() == old.replace(
            '"kv_cache_scheme": null', f'"kv_cache_scheme": {ct_scheme("tensor")}')


@pytest.mark.parametrize("places", ["both", "config.json", "hf_quant_config.json"])
def test_modelopt(codebook, tmp_path, places):
    folder = quantized(tmp_path / "model", None if places.startswith("hf") else MODELOPT)
    if places != "config.json":
        (folder / "hf_quant_config.json").write_text(json.dumps(MODELOPT_FILE, indent=4))
    old = files_of(folder)
    merged(codebook, folder, form="modelopt")
    check_scales(folder, codebook, (), ("k_proj.k_scale", "v_proj.v_scale"))
    config = old["config.json"].decode()
    if not places.startswith("hf"):
        config = config.replace('"modelopt"} ,', f'"modelopt", "kv_cache_scheme": {MODELOPT_SCHEME}}} ,')
    assert (folder / "config.json").read_text() == config
    if places != "config.json":
        assert (folder / "hf_quant_config.json").read_text() == old["hf_quant_config.json"].decode().replace(
            '"kv_cache_quant_algo": null', '"kv_cache_quant_algo": "FP8"')
    refused(codebook, folder, ".k_scale", form="modelopt")


def test_fp8_has_no_place_for_a_scheme(codebook, tmp_path):
    folder = quantized(tmp_path / "model", FP8)
    config = (folder / "config.json").read_bytes()
    result = merged(codebook, folder)
    assert (folder / "config.json").read_bytes() == config
    assert "without --kv-cache-dtype" in result.stderr
    check_scales(folder, codebook, (1,))
    refused(codebook, folder, ".k_scale")
    refused(codebook, quantized(tmp_path / "heads", FP8), "--per tensor", code=2, scope="head")


def test_links_are_replaced_and_not_written_through(codebook, tmp_path):
    origin = quantized(tmp_path / "origin", CT)
    old = files_of(origin)
    folder = tmp_path / "model"
    folder.mkdir()
    for name in old:
        (folder / name).symlink_to(pathlib.Path("..") / "origin" / name)
    merged(codebook, folder)
    assert files_of(origin) == old
    written = {"config.json", INDEX, SHARD}
    for path in folder.iterdir():
        assert path.is_symlink() == (path.name not in written)
    assert (folder / SINGLE).read_bytes() == old["model.safetensors"]


def test_merging_twice_is_refused(codebook, tmp_path):
    folder = quantized(tmp_path / "model", CT)
    merged(codebook, folder)
    for scope in ("tensor", "head"):
        refused(codebook, folder, "model.layers.0.self_attn.k_scale", "fresh copy", scope=scope)


def test_a_killed_run_is_finished_by_another(codebook, tmp_path):
    done = quantized(tmp_path / "done", CT)
    config = (done / "config.json").read_bytes()
    merged(codebook, done)
    expected = files_of(done)
    for i, undo in enumerate((("config.json",), ("config.json", "model.safetensors"),
                              ("config.json", "model.safetensors", INDEX),
                              ("config.json", "model.safetensors", INDEX, SHARD))):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, content in expected.items():
            (folder / name).write_bytes(content)
        (folder / "config.json").write_bytes(config)
        if "model.safetensors" in undo:
            os.link(folder / SINGLE, folder / "model.safetensors")
        if INDEX in undo:
            index = json.loads(expected[INDEX])
            index["weight_map"] = {n: "model.safetensors" for n, f in index["weight_map"].items() if f == SINGLE}
            (folder / INDEX).write_text(json.dumps(index))
        if SHARD in undo:
            (folder / SHARD).unlink()
        merged(codebook, folder)
        assert files_of(folder) == expected


@pytest.mark.parametrize("quantization, parts", [
    (None, ("no quantization_config", "--out")),
    ({"quant_method": "gptq", "bits": 4}, ("gptq",)),
    ({"quant_method": "awq"}, ("awq",)),
    ({"quant_method": "mxfp4"}, ("mxfp4",)),
    ({"bits": 4}, ("not named",)),
    (CT | {"kv_cache_scheme": FLOAT8 | {"num_bits": 4}}, ("kv_cache_scheme", "8 bit float")),
    (CT | {"kv_cache_scheme": FLOAT8 | {"type": "int"}}, ("kv_cache_scheme", "8 bit float")),
    (CT | {"kv_cache_scheme": FLOAT8 | {"dynamic": True}}, ("kv_cache_scheme", "static")),
    (CT | {"kv_cache_scheme": FLOAT8 | {"symmetric": False}}, ("kv_cache_scheme", "symmetric")),
    (CT | {"config_groups": {"q": {"targets": ["re:.*self_attn$"]}}}, ("config group 'q'",)),
    (MODELOPT, ("--format modelopt",)),
])
def test_other_quantizations_are_refused(codebook, tmp_path, quantization, parts):
    refused(codebook, quantized(tmp_path / "model", quantization), *parts)


@pytest.mark.parametrize("fields, part", [
    ({"num_hidden_layers": 6}, "num_hidden_layers"), ({"num_key_value_heads": 4}, "num_key_value_heads"),
    ({"head_dim": 32}, "head_dim"), ({"head_dim": None, "hidden_size": 128}, "head_dim"),
])
def test_other_sizes_are_refused(codebook, tmp_path, fields, part):
    refused(codebook, quantized(tmp_path / "model", CT, fields), part, "of another model")


def test_scales_that_are_there_are_refused(codebook, tmp_path):
    for i, name in enumerate(("self_attn.k_scale", "self_attn.v_proj.v_scale", "self_attn.k_zero_point")):
        folder = quantized(tmp_path / str(i), CT)
        add_tensor(folder, f"model.layers.3.{name}")
        refused(codebook, folder, f"model.layers.3.{name}", "already")


def test_other_scales_of_modelopt_are_refused(codebook, tmp_path):
    folder = quantized(tmp_path / "model", MODELOPT)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"kv_cache_quant_algo": "NVFP4"}}))
    refused(codebook, folder, "NVFP4", form="modelopt")
    (folder / "hf_quant_config.json").write_text(json.dumps(MODELOPT_FILE))
    (folder / "quant_cfg.json").write_text(json.dumps({"kv_cache_quant_algo": None}))
    refused(codebook, folder, "quant_cfg.json", form="modelopt")


def test_leftovers_are_refused(codebook, tmp_path):
    folder = quantized(tmp_path / "model", CT)
    (folder / SINGLE).write_bytes(b"another's")
    refused(codebook, folder, SINGLE)
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    refused(codebook, folder, INDEX)


def test_wrong_usage(codebook, tmp_path):
    folder = quantized(tmp_path / "model", CT)
    old = files_of(folder)
    refused(codebook, folder, "--type fp8", code=2, number="int8")
    refused(codebook, folder, "--per tensor", code=2, scope="channel")
    refused(codebook, folder, "compressed-tensors, modelopt", code=2, form="safetensors")
    refused(codebook, folder, "--format compressed-tensors", form="modelopt")
    for more in (("--out", tmp_path / "out"), ("--model", MODEL), ("--copy",), ("--force",)):
        result = merge(codebook, folder, *more)
        assert result.returncode == 2 and "--into" in result.stderr
    assert files_of(folder) == old and not (tmp_path / "out").exists()


def test_transformers_finds_the_scales(codebook, tmp_path):
    pytest.importorskip("compressed_tensors")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    plain = {"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "frozen",
             "config_groups": {}, "ignore": []}
    folder = quantized(tmp_path / "model", plain)
    merged(codebook, folder)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                                    output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], info
    scales = scales_of(folder)
    for i, layer in enumerate(model.model.layers):
        for name in ("k_scale", "v_scale"):
            loaded = getattr(layer.self_attn, name).detach().numpy()
            np.testing.assert_array_equal(loaded, scales[f"model.layers.{i}.self_attn.{name}"])
