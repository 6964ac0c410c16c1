"""`kvcal export --format compressed-tensors` and `modelopt`: the overlay as safetensors, the compressed-tensors package
and transformers read it, beside the codebook as h5py reads it."""
import json
import os
import pathlib
import subprocess

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors")

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
CALIBRATED = SOURCE / "data" / "demo" / "calibrate.txt"
LAYERS, KV_HEADS = 5, 2
SHARD, SINGLE, INDEX = "kvcal-kv-scales.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"
CT_NAMES, MODELOPT_NAMES = ("k_scale", "v_scale"), ("k_proj.k_scale", "v_proj.v_scale")
LARGEST, FP8 = 7, 2  # columns of the quantiles and of the best thresholds

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def unwrapped(text):
    """What is printed without the breaks of its lines and commands."""
    return " ".join(text.replace("\\\n", " ").split())


def kvcal(*arguments):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def export(codebook, out, *more, scope="tensor", clip="best", model=MODEL, form="compressed-tensors", number="fp8"):
    return kvcal("export", codebook, "--format", form, "--type", number, "--model", model, "--clip", clip, "--per", scope,
                 "--out", out, *more)


def exported(codebook, out, *more, **choices):
    result = export(codebook, out, *more, **choices)
    assert result.returncode == 0, result.stderr
    return out


def refused(codebook, out, code, *parts, **choices):
    """Exit code, one line that has all the parts, and nothing beside `out` that was not there before."""
    before = sorted(path.name for path in out.parent.iterdir())
    result = export(codebook, out, **choices)
    assert result.returncode == code, result
    last = result.stderr.splitlines()[-1]
    assert last.startswith("kvcal: error: ")
    for part in parts:
        assert part in last
    assert sorted(path.name for path in out.parent.iterdir()) == before


def copy_of_model(folder, **config):
    folder.mkdir()
    for path in MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    fields = json.loads((MODEL / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def numbers_of(path):
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_tensor(name) for name in file.keys()}


def names_of(path):
    with safetensors.safe_open(path, framework="np") as file:
        return set(file.keys())


def thresholds(codebook, layer, scope, clip):
    """Of keys (the envelope of the pairs that RoPE turns) and values: [1] or [kv_heads]."""
    with h5py.File(codebook) as file:
        for tensor in ("key_envelope", "value"):
            group = file[f"layers/{layer:04}/{tensor}/magnitudes"]
            yield group[f"{scope}_best"][:, FP8] if clip == "best" else group[f"{scope}_quantiles"][:, LARGEST]


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    out = tmp_path_factory.mktemp("codebook") / "a.h5"
    result = kvcal("calibrate", "-m", MODEL, "-f", CALIBRATED, "-o", out, "--samples", 2, "--seqlen", 128, "--dtype",
                   "float32", "--quiet")
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def by_tensor(codebook, tmp_path_factory):
    return exported(codebook, tmp_path_factory.mktemp("by_tensor") / "out")


@pytest.fixture(scope="module")
def by_head(codebook, tmp_path_factory):
    return exported(codebook, tmp_path_factory.mktemp("by_head") / "out", scope="head", clip="max")


def check_scales(out, codebook, scope, clip, shape, names):
    scales = numbers_of(out / SHARD)
    assert len(scales) == 2 * LAYERS
    for layer in range(LAYERS):
        for name, threshold in zip(names, thresholds(codebook, layer, scope, clip)):
            scale = scales[f"model.layers.{layer}.self_attn.{name}"]
            assert scale.shape == shape and scale.dtype == np.float32
            assert np.isfinite(scale).all() and (scale > 0).all() and (scale != 1).all()
            np.testing.assert_array_equal(scale.ravel(), (threshold.astype(np.float64) / 448).astype(np.float32))


def test_scales_of_tensors_are_thresholds_over_448(by_tensor, codebook):
    check_scales(by_tensor, codebook, "tensor", "best", (1,), CT_NAMES)


def test_scales_of_heads_are_thresholds_over_448(by_head, codebook):
    check_scales(by_head, codebook, "head", "max", (KV_HEADS, 1, 1), CT_NAMES)


def test_the_index_lists_the_tensors_of_all_shards(by_tensor):
    index = json.loads((by_tensor / INDEX).read_text())
    assert set(index["weight_map"].values()) == {SHARD, SINGLE}
    for shard in (SHARD, SINGLE):
        assert names_of(by_tensor / shard) == {n for n, file in index["weight_map"].items() if file == shard}
    assert not (by_tensor / "model.safetensors").exists()  # where it is, transformers reads no index
    header = (MODEL / "model.safetensors").read_bytes()[:8]
    weights = (MODEL / "model.safetensors").stat().st_size - 8 - int.from_bytes(header, "little")
    assert index["metadata"] == {"total_size": weights + 2 * LAYERS * 4}


def test_other_files_are_links_to_the_model(by_tensor):
    written = {"config.json", INDEX, SHARD}
    for path in by_tensor.iterdir():
        assert path.is_symlink() != (path.name in written)
        if path.is_symlink():
            name = "model.safetensors" if path.name == SINGLE else path.name
            assert pathlib.Path(os.readlink(path)) == (MODEL / name).resolve()
    names = {path.name for path in MODEL.iterdir()} - {"model.safetensors"} | {SINGLE, INDEX, SHARD}
    assert {path.name for path in by_tensor.iterdir()} == names


def test_copies_need_no_model(codebook, tmp_path):
    model = copy_of_model(tmp_path / "model")
    out = exported(codebook, tmp_path / "out", "--copy", model=model)
    assert not any(path.is_symlink() for path in out.iterdir())
    assert (out / SINGLE).read_bytes() == (model / "model.safetensors").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_the_config_keeps_its_keys_and_their_order(by_tensor, by_head):
    old = json.loads((MODEL / "config.json").read_text())
    for folder, strategy in ((by_tensor, "tensor"), (by_head, "attn_head")):
        new = json.loads((folder / "config.json").read_text())
        assert list(new) == [*old, "quantization_config"]
        quantization = new.pop("quantization_config")
        assert new == old
        assert quantization["quant_method"] == "compressed-tensors" and quantization["config_groups"] == {}
        assert quantization["kv_cache_scheme"]["strategy"] == strategy


def test_shards_of_the_model_stay_as_they_are(codebook, tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file
    model = copy_of_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(weights))}
    for shard in set(shards.values()):
        save_file({n: weights[n] for n in shards if shards[n] == shard}, model / shard, metadata={"format": "pt"})
    bytes_of_weights = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_parameters": 7, "total_size": bytes_of_weights}, "weight_map": shards}
    (model / INDEX).write_text(json.dumps(index))
    out = exported(codebook, tmp_path / "out", model=model)
    new = json.loads((out / INDEX).read_text())
    assert new["metadata"] == {"total_parameters": 7, "total_size": bytes_of_weights + 2 * LAYERS * 4}
    assert {n: f for n, f in new["weight_map"].items() if f != SHARD} == shards
    assert {n for n, f in new["weight_map"].items() if f == SHARD} == names_of(out / SHARD)


def test_the_report_says_how_to_serve_and_what_to_beware_of(codebook, tmp_path):
    result = export(codebook, tmp_path / "out", scope="head")
    assert result.returncode == 0
    told = unwrapped(result.stdout)
    assert f"vllm serve {tmp_path / 'out'} --kv-cache-dtype fp8" in told
    assert "0.15.0" in told and "is not loaded" in told
    assert "SGLang ignores them" in result.stderr


@pytest.mark.parametrize("strategy", ["tensor", "attn_head"])
def test_the_package_validates_the_config(strategy, by_tensor, by_head):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    folder = by_tensor if strategy == "tensor" else by_head
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    valid = quantization.QuantizationConfig.model_validate(config)
    scheme = valid.kv_cache_scheme
    assert (scheme.num_bits, scheme.type, scheme.strategy) == (8, "float", strategy)
    assert scheme.symmetric and not scheme.dynamic and valid.config_groups == {}


def attentions(model):
    return [layer.self_attn for layer in model.model.layers]


@pytest.mark.parametrize("scope", ["tensor", "head"])
def test_transformers_runs_with_the_scales(scope, by_tensor, by_head):
    pytest.importorskip("compressed_tensors")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = by_tensor if scope == "tensor" else by_head
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, info = load(folder, dtype=torch.float32, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], info
    scales = numbers_of(folder / SHARD)
    for i, attention in enumerate(attentions(model)):
        assert attention.quantization_status.value == "frozen" and hasattr(attention, "kv_cache")
        for name in CT_NAMES:
            loaded = getattr(attention, name).detach().numpy()
            np.testing.assert_array_equal(loaded, scales[f"model.layers.{i}.self_attn.{name}"])

    ids = torch.arange(1, 33)[None]
    with torch.no_grad():
        result = model.eval()(ids, use_cache=True)
        plain = load(MODEL, dtype=torch.float32).eval()(ids).logits
        for layer, attention in zip(result.past_key_values.layers, attentions(model)):
            for cached, scale in ((layer.keys, attention.k_scale), (layer.values, attention.v_scale)):
                grid = (cached / scale).to(torch.float8_e4m3fn).float() * scale
                assert torch.equal(grid, cached)
        error = (result.logits - plain).abs().max()
        for attention in attentions(model):
            attention.k_scale.mul_(0.001)
        wrong = (model(ids).logits - plain).abs().max()
    assert 0 < error < wrong / 4


def test_modelopt_has_its_names_and_leaves_the_config(codebook, tmp_path):
    out = exported(codebook, tmp_path / "out", form="modelopt")
    check_scales(out, codebook, "tensor", "best", (), MODELOPT_NAMES)
    assert (out / "config.json").is_symlink()
    config = json.loads((out / "hf_quant_config.json").read_text())
    assert config["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    refused(codebook, tmp_path / "heads", 2, "--per tensor", form="modelopt", scope="head")
    model = copy_of_model(tmp_path / "model")
    (model / "hf_quant_config.json").write_bytes((out / "hf_quant_config.json").read_bytes())
    for form in ("modelopt", "compressed-tensors"):
        refused(codebook, tmp_path / "again", 1, "hf_quant_config.json", form=form, model=model)


def test_what_is_refused_leaves_nothing(codebook, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine").write_text("mine")
    refused(codebook, there, 1, str(there))
    assert [path.name for path in there.iterdir()] == ["mine"]
    refused(codebook, tmp_path / "out", 2, "--per tensor", scope="channel")
    refused(codebook, tmp_path / "out", 2, "--type fp8", number="int8")
    refused(codebook, tmp_path / "out", 1, model=copy_of_model(tmp_path / "other", rope_theta=5000.0))
    quantized = copy_of_model(tmp_path / "quantized", quantization_config={"quant_method": "fp8"})
    refused(codebook, tmp_path / "out", 1, "fp8", model=quantized)


def test_a_failure_in_the_middle_leaves_nothing(codebook, tmp_path):
    model = copy_of_model(tmp_path / "model")
    (model / SHARD).write_bytes(b"another's")
    refused(codebook, tmp_path / "out", 1, SHARD, model=model)
    (model / SHARD).unlink()
    (model / "zz.txt").symlink_to(tmp_path / "nothing")
    refused(codebook, tmp_path / "out", 1, "zz.txt", model=model)
