"""`kvcal plan` as a user meets it, against sizes worked out here from the models' shapes and the formats' descriptions.

Nothing here comes from the program but what is tested. Only config.json files are written: plan reads no weights."""
import json
import math
import os
import pathlib
import re
import subprocess
import time

import numpy as np
import pytest

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
CALIBRATED = SOURCE / "data" / "demo" / "calibrate.txt"
OTHER = SOURCE / "data" / "demo" / "validate.txt"
GIB = 2**30
K = 1024
M = 1024 * K
WIDTH = 60  # columns of a table, at most
PAGE = 64

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16"}
LLAMA_70B = LLAMA | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
    "torch_dtype": "bfloat16"}
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 32000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
CONFIGS = {"Llama-2-7B": LLAMA, "Llama-3-70B": LLAMA_70B, "Mistral-7B-v0.1": MISTRAL}
PARAMETERS = {"Llama-2-7B": 6_738_415_616, "Llama-3-70B": 70_553_706_496, "Mistral-7B-v0.1": 7_241_732_096}
DEFAULTS = ["fp", "fp8"] + [f"nuq{bits}{outliers}{paged}" for outliers in ("", "-1%") for bits in (4, 3, 2)
                            for paged in ("", "-paged")]
# docs/kernels.md, of pages of 64 tokens at 1 %: slots of a tile of 16 keys, of a strip of 16 channels of values.
SLOTS = {64: (16, 40), 128: (32, 20), 256: (48, 20)}

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)
needs_data = pytest.mark.skipif(not (MODEL.exists() and OTHER.exists()), reason=f"no data in {SOURCE}")


def kvcal(*arguments, **options):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options)


def refused(result, code, *parts):
    """Exit code `code`, and one line on standard error that has all the parts."""
    assert result.returncode == code, result
    assert result.stdout == ""
    assert result.stderr.startswith("kvcal: error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def plan(model, *more):
    result = kvcal("plan", "--model", model, "--json", "-", *more)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def by_name(report):
    return {method["name"]: method for method in report["methods"]}


def cache_bytes(model, *more, methods):
    """By method."""
    sizes = by_name(plan(model, "--methods", ",".join(methods), *more))
    return {name: sizes[name]["cache_bytes"] for name in methods}


def write_config(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of nothing but a config.json, by name."""
    root = tmp_path_factory.mktemp("models")
    return {name: write_config(root / name, config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def llama(models):
    return models["Llama-2-7B"]


def head_dim(config):
    return config["hidden_size"] // config["num_attention_heads"]


def parameters_of(config):
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * head_dim(config)
    attention = 2 * hidden * hidden + 2 * hidden * kv  # q, o; k, v
    layer = attention + 3 * hidden * inner + 2 * hidden  # gate, up, down; two norms
    embeddings = vocabulary * hidden * (1 if config["tie_word_embeddings"] else 2)
    return config["num_hidden_layers"] * layer + embeddings + hidden


def kept(config, context):
    return min(context, config.get("sliding_window") or context)


def values_beyond(channels, fraction):
    """Numbers of a token outside its quantiles fraction / 2 and 1 - fraction / 2, where all of them differ."""
    x = np.random.default_rng(7).permutation(channels).astype(float)
    low, high = np.quantile(x, [fraction / 2, 1 - fraction / 2], method="linear")
    return int(((x < low) | (x > high)).sum())


def nuq_bytes(bits, tokens, channels, fraction=0.0):
    """A layer's keys and values by token (cuda/row_codec.h): the first token in fp16, the others packed."""
    rows = tokens - 1
    codes = rows * math.ceil(channels * bits / 8)
    size = 2 * (codes + 2 * channels) + 4 * rows  # of values a scale and a zero
    if fraction:
        keys, values = round(fraction * rows * channels), rows * values_beyond(channels, fraction)
        size += 2 * rows * 2 + (keys + values) * (2 + 2)  # a count a row; an index and a number each
    return size


def record_bytes(bits, dim, slots):
    """cuda/kernels/record_format.h, for a page of 64 tokens of a kv head."""
    codes = 2 * (PAGE * dim * bits // 8)
    outliers = PAGE // 16 * slots[0] * 4 + dim // 16 * slots[1] * 4
    return math.ceil((codes + PAGE * 4 + outliers) / 128) * 128


def paged_bytes(bits, tokens, heads, dim, outliers):
    """A layer's keys and values in pages: all of each page, and the first token in fp16 beside them."""
    slots = SLOTS[dim] if outliers else (0, 0)
    return math.ceil(tokens / PAGE) * heads * record_bytes(bits, dim, slots) + 2 * heads * dim * 2


def kivi_bytes(bits, tokens, channels):
    """Keys in groups of 32 tokens of a channel, 128 tokens at a time; values in groups of 32 channels, all but the newest
    128 tokens; 4 bytes a group; what is left in fp16."""
    keys = tokens // 128 * 128
    values = max(0, tokens - 128)
    coded = (keys + values) * channels
    return coded * bits // 8 + coded // 32 * 4 + (2 * tokens - keys - values) * channels * 2


def hand_counted(config, context):
    """The bytes of one sequence in this model's cache, by method."""
    tokens, heads, dim = kept(config, context), config["num_key_value_heads"], head_dim(config)
    channels = heads * dim
    numbers = 2 * tokens * channels
    layer = {
        "fp": 2 * numbers,
        "fp8": numbers,
        "int4": numbers // 2 + 2 * tokens * 4,
        "q8_0": numbers // 32 * 34,
        "q4_0": numbers // 32 * 18,
        "turbo3": numbers * 3 // 8 + numbers // dim * 2,
        "kivi2": kivi_bytes(2, tokens, channels),
        "kivi4": kivi_bytes(4, tokens, channels)}
    for bits in (2, 3, 4):
        layer[f"nuq{bits}"] = nuq_bytes(bits, tokens, channels)
        layer[f"nuq{bits}-1%"] = nuq_bytes(bits, tokens, channels, 0.01)
        layer[f"nuq{bits}-paged"] = paged_bytes(bits, tokens, heads, dim, False)
        layer[f"nuq{bits}-1%-paged"] = paged_bytes(bits, tokens, heads, dim, True)
    return {name: config["num_hidden_layers"] * size for name, size in layer.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_said_of_the_model_and_how_fast(models, name):
    config = CONFIGS[name]
    assert parameters_of(config) == PARAMETERS[name]
    begin = time.monotonic()
    report = plan(models[name])
    assert time.monotonic() - begin < 5  # a fraction of a second on an idle machine
    assert report["model"] == name and report["architecture"] == config["architectures"][0]
    assert report["layers"] == config["num_hidden_layers"]
    assert (report["kv_heads"], report["head_dim"]) == (config["num_key_value_heads"], 128)
    assert report["window"] == config.get("sliding_window", 0)
    assert report["max_positions"] == config["max_position_embeddings"]
    assert report["parameters"] == PARAMETERS[name]
    assert report["weights_bytes"] == 2 * PARAMETERS[name]
    assert (report["weights_dtype"], report["weights_from"]) == (config["torch_dtype"], "config")
    assert (report["context"], report["batch"], report["gpus"]) == (128 * K, 1, 1)
    assert (report["sinks"], report["page_tokens"], report["gpu_memory_bytes"]) == (1, PAGE, None)
    assert [method["name"] for method in report["methods"]] == DEFAULTS
    assert any("was trained for" in warning for warning in report["warnings"])
    assert plan(models[name] / "config.json") == report


def test_a_context_that_the_model_knows_is_no_warning(llama):
    assert plan(llama, "--context", "4K")["warnings"] == []
    assert len(plan(llama, "--context", 4097)["warnings"]) == 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("context", [1, 2, 65, 1000, 4096, 4097, 128 * K, M + 1])
def test_bytes_of_every_method(models, name, context):
    config = CONFIGS[name]
    expected = hand_counted(config, context)
    sizes = by_name(plan(models[name], "--context", context, "--methods", ",".join(expected)))
    assert {method: size["cache_bytes"] for method, size in sizes.items()} == expected
    numbers = 2 * config["num_hidden_layers"] * kept(config, context) * config["num_key_value_heads"] * 128
    for method, size in sizes.items():
        assert size["bits_per_value"] == pytest.approx(8 * expected[method] / numbers, rel=1e-12)
        assert size["cache_bytes_per_gpu"] == size["cache_bytes"] + size["static_bytes"]
        assert size["total_bytes_per_gpu"] == size["cache_bytes_per_gpu"] + 2 * PARAMETERS[name]
        assert (size["fits"], size["margin_bytes"], size["largest_context"]) == (None, None, None)


def test_values_beyond_their_quantiles_are_more_than_nominal():
    assert {channels: values_beyond(channels, 0.01) for channels in (64, 128, 512, 1024, 4096)} == {
        64: 2, 128: 2, 512: 6, 1024: 12, 4096: 42}


def test_records_are_those_of_the_documentation():
    assert [record_bytes(bits, dim, slots) for dim in SLOTS for bits in (2, 3, 4) for slots in ((0, 0), SLOTS[dim])] == [
        2304, 3200, 3328, 4224, 4352, 5248, 4352, 5504, 6400, 7552, 8448, 9600, 8448, 10496, 12544, 14592, 16640, 18688]


@pytest.mark.parametrize("dim", SLOTS)
def test_pages_of_every_head_dimension(tmp_path, dim):
    heads = 4
    model = write_config(tmp_path / "model", LLAMA | {"head_dim": dim, "num_key_value_heads": heads})
    names = [f"nuq{bits}{outliers}-paged" for bits in (2, 3, 4) for outliers in ("", "-1%")]
    got = cache_bytes(model, "--context", 1000, methods=names)
    assert got == {f"nuq{bits}{'-1%' if outliers else ''}-paged": 32 * paged_bytes(bits, 1000, heads, dim, outliers)
                   for bits in (2, 3, 4) for outliers in (False, True)}


def test_the_last_page_is_padded(llama):
    at = {context: cache_bytes(llama, "--context", context, methods=["nuq3-1%-paged"])["nuq3-1%-paged"]
          for context in (64, 65, 100, 128, 129)}
    page = 32 * 32 * 7552
    assert at[65] == at[100] == at[128] == at[64] + page and at[129] == at[128] + page


def test_kvquants_figures(llama):
    """Hooper et al. 2024: the cache of LLaMA-7B, in GiB, of which it counts codes and 4 bytes an outlier."""
    def figures(context):
        return {name: method["kvquant_bytes"] for name, method in by_name(plan(llama, "--context", context)).items()}

    at_128k, at_1m = figures("128K"), figures("1M")
    for name, published in {"fp": 64.0, "nuq4": 16.0, "nuq3": 12.0, "nuq2": 8.0, "nuq3-1%": 13.3, "nuq2-1%": 9.3}.items():
        assert round(at_128k[name] / GIB, 1) == published, name
    assert round(at_1m["nuq2"] / GIB, 1) == 64.0
    assert at_128k["nuq3-1%"] == pytest.approx(64 * GIB * (3 + 0.01 * 32) / 16)
    for name in DEFAULTS:
        assert (at_128k[name] is None) == (name == "fp8" or name.endswith("-paged")), name


def test_what_is_stored_is_more_than_kvquant_counts(llama):
    for method in plan(llama)["methods"]:
        if method["kvquant_bytes"] is None or method["name"] == "fp":
            continue
        assert method["kvquant_bytes"] < method["cache_bytes"] < 1.01 * method["kvquant_bytes"]


def test_tables_of_the_model_stand_apart(llama):
    """Keys' scale and zero of each channel in fp16, with outliers two thresholds in fp32; each datatype's levels in fp32."""
    static = {name: method["static_bytes"] for name, method in by_name(plan(llama)).items()}
    for bits in (2, 3, 4):
        for paged in ("", "-paged"):
            assert static[f"nuq{bits}{paged}"] == 32 * (4096 * 4 + 2 * 4 * 2**bits)
            assert static[f"nuq{bits}-1%{paged}"] == 32 * (4096 * (4 + 8) + 2 * 4 * 2**bits)
    assert static["fp"] == static["fp8"] == 0
    more = by_name(plan(llama, "--batch", 7, "--context", 3))
    assert {name: method["static_bytes"] for name, method in more.items()} == static


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_multiplies(models, name):
    one, seven = (by_name(plan(models[name], "--context", 1000, "--batch", batch)) for batch in (1, 7))
    for method in DEFAULTS:
        assert seven[method]["cache_bytes"] == 7 * one[method]["cache_bytes"]
        assert seven[method]["bits_per_value"] == one[method]["bits_per_value"]
        assert seven[method]["static_bytes"] == one[method]["static_bytes"]
        if one[method]["kvquant_bytes"] is not None:
            assert seven[method]["kvquant_bytes"] == pytest.approx(7 * one[method]["kvquant_bytes"])


def share_of_gpu(config, gpus, context):
    """What hand_counted() says of the kv heads that one GPU holds."""
    heads = max(1, config["num_key_value_heads"] // gpus)
    dim = head_dim(config)
    alone = {"num_key_value_heads": heads, "num_attention_heads": heads, "hidden_size": heads * dim}
    return hand_counted(config | alone, context)


def test_eight_gpus_share_out_heads_and_weights(llama):
    memory = 80 * GIB
    report = plan(llama, "--gpus", 8, "--context", "1M", "--gpu-memory", "80GB")
    share, whole = share_of_gpu(LLAMA, 8, M), hand_counted(LLAMA, M)
    assert report["gpus"] == 8 and report["gpu_memory_bytes"] == memory
    assert not any("GPUs" in warning for warning in report["warnings"])
    for name, method in by_name(report).items():
        assert method["cache_bytes"] == whole[name]
        tables = method["cache_bytes_per_gpu"] - share[name]
        if name in ("fp", "fp8"):
            assert tables == 0 and method["cache_bytes_per_gpu"] == whole[name] // 8
        else:
            assert method["static_bytes"] // 8 <= tables <= method["static_bytes"]
        assert method["total_bytes_per_gpu"] == method["cache_bytes_per_gpu"] + math.ceil(2 * PARAMETERS["Llama-2-7B"] / 8)
        assert method["margin_bytes"] == memory - method["total_bytes_per_gpu"]
        assert method["fits"] == (method["margin_bytes"] >= 0)


def test_more_gpus_than_kv_heads_hold_them_twice(models):
    model = models["Llama-3-70B"]
    eight, sixteen = (plan(model, "--gpus", gpus, "--gpu-memory", "80GB") for gpus in (8, 16))
    assert not any("GPUs" in warning for warning in eight["warnings"])
    assert [warning for warning in sixteen["warnings"] if "GPUs" in warning] == [
        "16 GPUs share out 8 kv heads: some hold the same ones"]
    share, whole = share_of_gpu(LLAMA_70B, 16, 128 * K), hand_counted(LLAMA_70B, 128 * K)
    for name, method in by_name(sixteen).items():
        assert method["cache_bytes"] == whole[name]
        assert method["cache_bytes_per_gpu"] == by_name(eight)[name]["cache_bytes_per_gpu"] >= share[name]
        assert 16 * method["cache_bytes_per_gpu"] >= 2 * whole[name]
        assert method["total_bytes_per_gpu"] == method["cache_bytes_per_gpu"] + 2 * PARAMETERS["Llama-3-70B"] // 16
    fp = by_name(sixteen)["fp"]
    assert 16 * fp["cache_bytes_per_gpu"] == 2 * whole["fp"]
    assert "some hold the same ones" in kvcal("plan", "--model", model, "--gpus", 16).stderr


def test_heads_that_do_not_divide_among_the_gpus(llama):
    fp = by_name(plan(llama, "--gpus", 3, "--context", 10, "--methods", "fp"))["fp"]
    assert fp["cache_bytes_per_gpu"] == 2 * 2 * 32 * 11 * 128 * 10  # 32 heads: 11, 11 and 10


@pytest.mark.parametrize("name, more", [
    ("Llama-2-7B", ["--gpu-memory", "80GB"]),
    ("Llama-2-7B", ["--gpu-memory", "24GB", "--weights", "3.9GB", "--batch", "3"]),
    ("Llama-2-7B", ["--gpu-memory", "80GB", "--gpus", "8"]),
    ("Llama-3-70B", ["--gpu-memory", "80GB", "--gpus", "16", "--batch", "2"]),
    ("Mistral-7B-v0.1", ["--gpu-memory", "13.6GB"]),
])
def test_the_largest_context_is_the_largest(models, name, more):
    def ask(context, methods):
        return by_name(plan(models[name], *more, "--methods", methods, "--context", context))

    for method, size in ask(1000, "fp,nuq2-1%,nuq3-1%-paged,kivi2").items():
        largest = size["largest_context"]
        if largest is None:  # the window's tokens fit
            assert name == "Mistral-7B-v0.1" and size["any_context"] and ask(2**31 - 1, method)[method]["fits"]
            continue
        assert largest > 100
        at, beyond = ask(largest, method)[method], ask(largest + 1, method)[method]
        assert at["fits"] and at["margin_bytes"] >= 0 and at["largest_context"] == largest
        assert not beyond["fits"] and beyond["margin_bytes"] < 0 and beyond["largest_context"] == largest
        if method.endswith("-paged"):
            assert largest % PAGE == 0


def test_nothing_fits_beside_weights_that_do_not(models):
    report = plan(models["Llama-3-70B"], "--gpu-memory", "80GB")
    for method in report["methods"]:
        assert (method["fits"], method["largest_context"], method["any_context"]) == (False, 0, False)
        assert method["margin_bytes"] == 80 * GIB - 2 * PARAMETERS["Llama-3-70B"] - method["cache_bytes_per_gpu"]


def test_windows_bound_the_cache(models, tmp_path):
    report = plan(models["Mistral-7B-v0.1"], "--context", "1M", "--gpu-memory", "24GB")
    for method in report["methods"]:
        assert (method["any_context"], method["largest_context"], method["fits"]) == (True, None, True)
    assert by_name(report)["fp"]["cache_bytes"] == 512 * 2**20  # 2 x 2 bytes x 32 layers x 8 heads x 128 x 4,096
    sizes = [by_name(plan(models["Mistral-7B-v0.1"], "--context", context))["fp"]["cache_bytes"]
             for context in (4095, 4096, 4097)]
    assert sizes[0] < sizes[1] == sizes[2]
    unbounded = write_config(tmp_path / "unbounded", MISTRAL | {"sliding_window": None})
    report = plan(unbounded, "--context", "1M", "--gpu-memory", "24GB")
    assert report["window"] == 0
    assert by_name(report)["fp"]["cache_bytes"] == 256 * 512 * 2**20
    assert not any(method["any_context"] for method in report["methods"])


def test_tied_embeddings_count_once(tmp_path, llama):
    tied = plan(write_config(tmp_path / "tied", LLAMA | {"tie_word_embeddings": True}))
    assert tied["parameters"] == parameters_of(LLAMA | {"tie_word_embeddings": True})
    assert plan(llama)["parameters"] - tied["parameters"] == 32000 * 4096


def test_float32_weights_are_served_in_float16(tmp_path):
    report = plan(write_config(tmp_path / "model", LLAMA | {"torch_dtype": "float32"}))
    assert (report["weights_dtype"], report["weights_bytes"]) == ("float16", 2 * PARAMETERS["Llama-2-7B"])


def test_weights_of_an_option(llama):
    report = plan(llama, "--weights", "3.9GB", "--gpu-memory", "80GB", "--gpus", "2")
    weights = int(3.9 * GIB)
    assert (report["weights_bytes"], report["weights_from"], report["weights_dtype"]) == (weights, "option", "")
    assert report["parameters"] == PARAMETERS["Llama-2-7B"]
    for method in report["methods"]:
        assert method["margin_bytes"] == 80 * GIB - math.ceil(weights / 2) - method["cache_bytes_per_gpu"]


def test_quantised_weights_are_of_unknown_size(tmp_path):
    model = write_config(tmp_path / "gptq", LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    report = plan(model, "--gpu-memory", "80GB")
    assert (report["weights_bytes"], report["weights_from"]) == (None, "unknown")
    assert any("--weights" in warning for warning in report["warnings"])
    for method in report["methods"]:
        for key in ("total_bytes_per_gpu", "fits", "margin_bytes", "largest_context"):
            assert method[key] is None
        assert method["cache_bytes"] == hand_counted(LLAMA, 128 * K)[method["name"]]
    text = kvcal("plan", "--model", model, "--gpu-memory", "80GB").stdout
    assert "of unknown size" in text and "total" not in text and "largest" not in text
    report = plan(model, "--gpu-memory", "80GB", "--weights", "3.9GB")
    assert (report["weights_bytes"], report["weights_from"]) == (int(3.9 * GIB), "option")
    assert by_name(report)["nuq3"]["fits"] is True


def rows_of(text):
    """The table's head, and its rows' cells by method."""
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("method "))
    end = lines.index("", begin)
    return re.split(r"  +", lines[begin].strip()), {line.split()[0]: line.split() for line in lines[begin + 1:end]}


def says(cell, size):
    """A cell in GiB of as many digits as it has, and three of them at least where they tell something."""
    digits = len(cell.partition(".")[2])
    assert abs(float(cell) - size / GIB) <= 0.5001 * 10**-digits, (cell, size / GIB)
    assert abs(float(cell)) >= 100 or len(cell.lstrip("-0.").replace(".", "")) >= 3, cell


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("more", [[], ["--gpu-memory", "80GB"], ["--gpu-memory", "80GB", "--gpus", "8", "--context", "1M"],
                                  ["--context", "10M", "--gpus", "16", "--gpu-memory", "141GB", "--batch", "3"]])
def test_the_table_says_what_the_json_says(models, tmp_path, name, more):
    file = tmp_path / "plan.json"
    result = kvcal("plan", "--model", models[name], "--json", file, *more)
    assert result.returncode == 0, result.stderr
    report = json.loads(file.read_text())
    assert report == plan(models[name], *more)
    for line in result.stdout.splitlines():
        assert len(line) <= WIDTH, line
    assert f"Model    {name} (" in result.stdout
    assert f"{PARAMETERS[name] / 1e9:.2f} billion parameters" in result.stdout
    assert f"{report['context']:,} tokens" in result.stdout
    head, rows = rows_of(result.stdout)
    several, fit = "--gpus" in more, "--gpu-memory" in more
    assert head == ["method", "bits/value", "cache", "per GPU" if several else "total"] + ["left", "largest"] * fit
    assert list(rows) == [method["name"] for method in report["methods"]] == DEFAULTS
    for method in report["methods"]:
        cells = rows[method["name"]][1:]
        assert cells[0] == f"{method['bits_per_value']:.2f}"
        says(cells[1], method["cache_bytes"])
        says(cells[2], method["total_bytes_per_gpu"])
        if not fit:
            assert len(cells) == 3
            continue
        says(cells[3], method["margin_bytes"])
        largest = method["largest_context"]
        assert cells[4] == ("any" if method["any_context"] else f"{largest:,}" if largest else "none")
        assert len(cells) == 5


def test_json_on_stdout_is_alone(llama):
    result = kvcal("plan", "--model", llama, "--json", "-", "--context", "4K")
    assert result.returncode == 0 and result.stderr == ""
    json.loads(result.stdout)


def test_methods_without_a_place_for_the_model(tmp_path):
    """Heads of 20 and of 96: no blocks of 32 or 8, no pages."""
    small = write_config(tmp_path / "small", LLAMA | {"hidden_size": 80, "num_attention_heads": 4, "num_key_value_heads": 1})
    refused(kvcal("plan", "--model", small, "--methods", "q8_0"), 1, "q8_0", "20", "32")
    refused(kvcal("plan", "--model", small, "--methods", "turbo3"), 1, "turbo3", "20", "8")
    refused(kvcal("plan", "--model", small, "--methods", "nuq3-paged"), 1, "nuq3-paged", "20", "64, 128 or 256")
    odd = write_config(tmp_path / "odd", LLAMA | {"hidden_size": 32 * 96})
    refused(kvcal("plan", "--model", odd, "--methods", "nuq4-1%-paged"), 1, "96", "64, 128 or 256")
    assert [method["name"] for method in plan(odd)["methods"]] == [name for name in DEFAULTS if not name.endswith("-paged")]
    # 20 channels: codes of 3 bits take 8 bytes a token, not 7.5.
    assert cache_bytes(small, "--context", 1000, methods=["nuq3"])["nuq3"] == 32 * (2 * (999 * 8 + 40) + 999 * 4)


@pytest.mark.parametrize("arguments, parts", [
    (["--context", "0"], ["--context is 0", "the least is 1"]),
    (["--context", "many"], ["--context is 'many'"]),
    (["--context", "2G"], ["--context is 2G", "2147483647"]),
    (["--batch", "0"], ["--batch is 0"]),
    (["--gpus", "0"], ["--gpus is 0"]),
    (["--gpu-memory", "5"], ["--gpu-memory is 5", "did you mean 5GB?"]),
    (["--gpu-memory", "8Q"], ["--gpu-memory is '8Q'"]),
    (["--weights", "5"], ["--weights is 5", "did you mean 5GB?"]),
    (["--methods", "nuq3,none"], ["--methods has 'none'"]),
    (["--methods", "nuq3,,fp"], ["--methods"]),
    (["--gpu-memroy", "80GB"], ["--gpu-memroy", "did you mean --gpu-memory?"]),
    (["stray"], ["'stray'"]),
])
def test_wrong_usage(llama, arguments, parts):
    refused(kvcal("plan", "--model", llama, *arguments), 2, *parts)


def test_json_does_not_replace_the_config(llama):
    config = llama / "config.json"
    before = config.read_bytes()
    for model in (llama, config):
        refused(kvcal("plan", "--model", model, "--json", config), 2, "--json", "config.json")
    assert config.read_bytes() == before


def test_models_that_are_none(llama, tmp_path):
    refused(kvcal("plan"), 2, "--model is missing")
    refused(kvcal("plan", "--model", tmp_path / "none"), 1, "none")
    (tmp_path / "empty").mkdir()
    refused(kvcal("plan", "--model", tmp_path / "empty"), 1, "config.json")
    broken = write_config(tmp_path / "broken", {})
    (broken / "config.json").write_text(json.dumps(LLAMA)[:-20])
    for model in (broken, broken / "config.json"):
        refused(kvcal("plan", "--model", model), 1, "config.json")
    foreign = write_config(tmp_path / "foreign", LLAMA | {"architectures": ["NoSuchLM"], "model_type": "none"})
    refused(kvcal("plan", "--model", foreign), 1, "NoSuchLM", "LlamaForCausalLM")
    halved = dict(LLAMA)
    del halved["num_hidden_layers"]
    refused(kvcal("plan", "--model", write_config(tmp_path / "halved", halved)), 1, "num_hidden_layers")
    refused(kvcal("plan", "--model", llama, "--json", tmp_path / "no" / "p.json"), 1, "--json")


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """What `validate` measures on a real model, a window of 2048 tokens and a small calibration."""
    folder = tmp_path_factory.mktemp("validated")
    codebook, file = folder / "a.h5", folder / "v.json"
    result = kvcal("calibrate", "-m", MODEL, "-f", CALIBRATED, "-o", codebook, "--samples", 2, "--seqlen", 512, "--quiet")
    assert result.returncode == 0, result.stderr
    methods = ["int4", "q8_0", "kivi2", "turbo3", "fp8", "nuq3", "nuq3-paged", "nuq3-1%-paged", "nuq3-1%", "nuq4-1%"]
    result = kvcal("validate", "-m", MODEL, "-f", OTHER, "-c", codebook, "--seqlen", 2048, "--windows", 1, "--methods",
                   ",".join(methods), "--json", file, "--quiet")
    assert result.returncode == 0, result.stderr
    return by_name(json.loads(file.read_text()))


@needs_data
def test_what_validate_measures_is_what_was_planned(validated):
    methods = ["int4", "q8_0", "kivi2", "turbo3", "fp8", "nuq3", "nuq3-paged", "nuq3-1%-paged"]
    planned = by_name(plan(MODEL, "--context", 2048, "--methods", ",".join(methods)))
    for name in methods:
        assert planned[name]["bits_per_value"] == validated[name]["bits_per_value"], name
        assert planned[name]["static_bytes"] == validated[name]["static_bytes"], name


@needs_data
def test_outliers_are_all_that_differs_from_what_was_planned(validated):
    """By token, the bytes hang on the outliers that a text has: 32 bits each."""
    rows, channels, layers = 2047, 128, 5
    planned = by_name(plan(MODEL, "--context", 2048, "--methods", "nuq3-1%,nuq4-1%"))
    foreseen = layers * (round(0.01 * rows * channels) + rows * values_beyond(channels, 0.01))
    for name in ("nuq3-1%", "nuq4-1%"):
        method = validated[name]
        met = round(sum(layer[tensor]["outliers_observed"] for layer in method["layers"] for tensor in ("key", "value"))
                    * rows * channels)
        more = 32 * (met - foreseen) / (layers * 2 * 2048 * channels)
        assert method["bits_per_value"] == pytest.approx(planned[name]["bits_per_value"] + more, abs=1e-9)
        assert planned[name]["static_bytes"] == method["static_bytes"]
