"""`kvcal validate` as a user meets it: its table and JSON, what it refuses, limits, memory, signals."""
import json
import os
import pathlib
import re
import signal
import subprocess

import numpy as np
import pytest

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
CALIBRATED = SOURCE / "data" / "demo" / "calibrate.txt"
OTHER = SOURCE / "data" / "demo" / "validate.txt"
LAYERS, CHANNELS = 5, 128
DEFAULTS = ["fp", "int2", "int3", "int4", "nf2", "nf3", "nf4", "nuq2", "nuq3", "nuq4", "nuq2-1%", "nuq3-1%", "nuq4-1%"]

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def kvcal(*arguments, **options):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options)


def refused(result, code, *parts):
    """Exit code `code`, nothing on standard output, and a last line on standard error that has all the parts."""
    assert result.returncode == code, result
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("kvcal: error: ")
    for part in parts:
        assert part in last
    assert result.stderr.count("kvcal: error: ") == 1, result.stderr


def small_run(*more, model=MODEL, text=OTHER, seqlen=128, windows=2):
    return ["validate", "-m", model, "-f", text, "--seqlen", seqlen, "--windows", windows, "--dtype", "float32", *more]


def report_of(*more, **where):
    result = kvcal(*small_run("--json", "-", *more, **where))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def by_name(report):
    return {method["name"]: method for method in report["methods"]}


def tensors(method):
    return [layer[name] for layer in method["layers"] for name in ("key", "value")]


def changed_model(folder, tensor=None, at=0, number=None, **config):
    """A copy of MODEL with `config` and, at index `at` of the bfloat16 `tensor`, the two bytes `number`."""
    folder.mkdir()
    for path in MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    fields = json.loads((MODEL / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(fields))
    if tensor:
        weights = folder / "model.safetensors"
        data = bytearray(weights.read_bytes())
        begin = 8 + int.from_bytes(data[:8], "little")
        entry = json.loads(data[8:begin])[tensor]
        assert entry["dtype"] == "BF16"
        first = begin + entry["data_offsets"][0] + 2 * at
        data[first:first + 2] = number
        weights.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    out = tmp_path_factory.mktemp("codebook") / "a.h5"
    result = kvcal("calibrate", "-m", MODEL, "-f", CALIBRATED, "-o", out, "--samples", 8, "--seqlen", 256, "--dtype",
                   "float32", "--quiet")
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def report(codebook):
    """All default methods on 4 windows of 512 tokens that the codebook was not calibrated on."""
    return report_of("-c", codebook, seqlen=512, windows=4)


def test_json_has_the_keys_and_types_of_the_contract(codebook, report):
    assert (report["model"], report["codebook"]) == ("model", str(codebook))
    assert (report["windows"], report["seqlen"], report["tokens"]) == (4, 512, 2048)
    assert (report["protocol"], report["bos"], report["dtype"]) == ("kvcal", "each", "float32")
    assert report["scored"] == 4 * 511 and report["warnings"] == []
    assert report["seconds"] > 0 and isinstance(report["memory_bytes"], int)
    assert "smallest_within_limits" not in report
    for method in report["methods"]:
        for key in ("ppl", "ppl_stderr", "ppl_delta", "kld_mean", "kld_stderr", "kld_p99", "top1_agreement",
                    "bits_per_value"):
            assert isinstance(method[key], (int, float)), (method["name"], key)
        assert 0 <= method["top1_agreement"] <= 1 and method["ppl"] > 1
        if method["name"] == "fp":
            continue
        assert [layer["layer"] for layer in method["layers"]] == list(range(LAYERS))
        assert 0 < method["kld_mean"] < method["kld_p99"] and method["kld_stderr"] > 0
        for layer in method["layers"]:
            assert set(layer) == {"layer", "key", "value"}
            assert 0.3 < layer["key"]["attention_agreement"] < 1
        agreements = [layer["key"].pop("attention_agreement") for layer in method["layers"]]
        assert method["attention_agreement"] == pytest.approx(np.mean(agreements))
        for tensor in tensors(method):
            assert set(tensor) == {"mse", "relative", "weighted", "outliers_observed", "outliers_nominal", "outliers_dropped"}
            assert tensor["mse"] > 0 and 0 < tensor["relative"] < 1 and 0 < tensor["weighted"] < 1
            nominal = 0.01 if method["name"].endswith("%") else 0
            assert tensor["outliers_nominal"] == nominal
            assert (tensor["outliers_observed"] > 0) == (nominal > 0)


def test_the_default_methods_and_fp_first(report):
    assert [method["name"] for method in report["methods"]] == DEFAULTS
    fp = report["methods"][0]
    assert (fp["ppl_delta"], fp["kld_mean"], fp["top1_agreement"]) == (0, 0, 1)
    assert fp["bits_per_value"] == 32
    for method in report["methods"]:
        assert method["ppl_delta"] == pytest.approx(method["ppl"] - fp["ppl"], abs=1e-9)


def test_fp_is_first_even_where_it_is_named_later():
    assert [method["name"] for method in report_of("--methods", "int3")["methods"]] == ["fp", "int3"]
    assert [method["name"] for method in report_of("--methods", "int3,fp")["methods"]] == ["fp", "int3"]


def test_better_methods_and_more_bits_cost_less(report):
    cost = {name: method["kld_mean"] for name, method in by_name(report).items()}
    assert cost["int3"] > cost["nuq3"] > cost["nuq3-1%"]
    for family in ("int{}", "nf{}", "nuq{}", "nuq{}-1%"):
        two, three, four = (cost[family.format(bits)] for bits in (2, 3, 4))
        assert two > three > four > 0


def test_bits_per_value(report):
    bits = {name: method["bits_per_value"] for name, method in by_name(report).items()}
    for count in (2, 3, 4):
        assert bits[f"int{count}"] == count + 32 / CHANNELS
        assert bits[f"nf{count}"] == count + 32 / CHANNELS
        assert count < bits[f"nuq{count}"] < bits[f"nuq{count}-1%"] < count + 1
    assert by_name(report_of("--methods", "q8_0"))["q8_0"]["bits_per_value"] == 8.5


def test_the_table(codebook, report, tmp_path):
    file = tmp_path / "r.json"
    result = kvcal(*small_run("-c", codebook, "--methods", "int3,nuq3", "--json", file))
    assert result.returncode == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert "Validating model in float32: 2 windows of 128 tokens" in told
    assert "Methods: fp, int3, nuq3." in told
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"model, 2 windows of 128 tokens, .*s", lines[0])
    head = next(i for i, line in enumerate(lines) if line.startswith("method "))
    more = next(i for i, line in enumerate(lines) if i > head and line.startswith("method "))
    for word in ("bits/value", "perplexity", "change", "+-", "KL mean"):
        assert word in lines[head]
        assert any(line.startswith(word + " ") for line in lines[head + 5:])  # explained where it stands
    for word in ("KL p99", "same top-1 %", "attention %"):
        assert word in lines[more]
        assert any(line.startswith(word + " ") for line in lines[more + 4:])
    assert max(map(len, lines)) <= 60
    written = by_name(json.loads(file.read_text()))
    rows = {line.split()[0]: line.split() for line in lines[head + 1:head + 4]}
    agreement = {line.split()[0]: line.split() for line in lines[more + 1:more + 3]}
    assert list(rows) == ["fp", "int3", "nuq3"] and list(agreement) == ["int3", "nuq3"]
    assert rows["fp"][1:] == ["32.00", f"{written['fp']['ppl']:.3f}"]
    for name in ("int3", "nuq3"):
        method = written[name]
        noise = abs(method["ppl_delta"]) < 2 * method["ppl_delta_stderr"]
        assert rows[name][1:] == [
            f"{method['bits_per_value']:.2f}", f"{method['ppl']:.3f}", f"{method['ppl_delta']:+.3f}" + ("*" if noise else ""),
            f"{method['ppl_delta_stderr']:.3f}", f"{method['kld_mean']:.5f}"]
        assert ("within noise" in result.stdout) or not noise
        assert agreement[name][1:] == [f"{method['kld_p99']:.4f}", f"{100 * method['top1_agreement']:.2f}",
                                       f"{100 * method['attention_agreement']:.2f}"]
        assert any(line.startswith(f"  {name}: layer ") for line in lines)
    quiet = kvcal(*small_run("--methods", "int3", "--quiet"))
    assert quiet.returncode == 0 and quiet.stderr == "" and "int3" in quiet.stdout


def needed_mib(result):
    refused(result, 1, "--memory", "this run needs")
    return int(re.search(r"this run needs (?:at least )?(\d+) MiB", result.stderr)[1])


def test_threads_and_memory_do_not_change_the_numbers(codebook, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["-c", codebook, "--methods", "int3,nuq3,nuq3-1%,q8_0", "--work", work]
    one, two = (report_of(*arguments, "--threads", threads, seqlen=256, windows=8) for threads in (1, 2))
    assert one["methods"] == two["methods"]
    mib = 0
    for _ in range(4):  # one error may name one pass's need, and the next another's
        spilled = kvcal(*small_run(*arguments, "--memory", f"{mib + 1}MiB", "--threads", 1, "--json", "-", seqlen=256,
                                   windows=8))
        if spilled.returncode == 0:
            break
        assert needed_mib(spilled) > mib
        mib = needed_mib(spilled)
    assert spilled.returncode == 0, spilled.stderr
    assert "of disk for hidden states" in spilled.stderr
    assert json.loads(spilled.stdout)["methods"] == one["methods"]
    assert list(work.iterdir()) == []


def test_the_memory_that_the_error_asks_for_is_enough(codebook):
    arguments = ["-c", codebook, "--methods", "nuq3", "--threads", 1]
    least = kvcal(*small_run(*arguments, "--memory", "1MB", seqlen=256, windows=8))
    assert "needs at least" in least.stderr  # no block was tried: it would not fit
    exact = kvcal(*small_run(*arguments, "--memory", f"{needed_mib(least) + 1}MiB", seqlen=256, windows=8))
    assert "at least" not in exact.stderr
    result = kvcal(*small_run(*arguments, "--memory", f"{needed_mib(exact) + 1}MiB", seqlen=256, windows=8))
    assert result.returncode == 0, result.stderr


def test_what_each_layer_alone_costs(codebook):
    report = report_of("-c", codebook, "--methods", "int2,nuq3", "--per-layer-kl", seqlen=256)
    for method in report["methods"][1:]:
        assert len(method["layers"]) == LAYERS
        for tensor in tensors(method):
            assert 0 < tensor["kld_mean"] < method["kld_mean"]
            assert tensor["kld_p99"] > tensor["kld_mean"] and tensor["kld_stderr"] >= 0


def test_methods_without_a_codebook():
    report = report_of("--methods", "int3,q8_0")
    assert report["codebook"] is None
    assert [method["name"] for method in report["methods"]] == ["fp", "int3", "q8_0"]
    assert all(tensor["weighted"] is None for tensor in tensors(report["methods"][1]))
    refused(kvcal(*small_run("--methods", "nuq3")), 1, "nuq3", "--codebook")


def test_methods_that_there_are_not(codebook):
    refused(kvcal(*small_run("-c", codebook, "--methods", "nuq3-5%")), 1, "nuq3-5%", "nuq3-1%", "nuq4-qn")
    refused(kvcal(*small_run("-c", codebook, "--methods", "nuq9000")), 2, "'nuq9000'", "kivi2", "nuq3-1%")
    refused(kvcal(*small_run("--methods", "int3,int3")), 2, "int3 twice")


@pytest.mark.parametrize("name", ["int3-channel", "nuq3-nosink", "nuq3-1%-nosink"])
def test_methods_that_need_an_ablation_codebook(codebook, name):
    refused(kvcal(*small_run("-c", codebook, "--methods", name)), 1, name, "--ablation")


def test_inspect_shows_what_the_ablation_added(codebook, tmp_path):
    out = tmp_path / "ablation.h5"
    result = kvcal("calibrate", "-m", MODEL, "-f", CALIBRATED, "-o", out, "--samples", 2, "--seqlen", 64, "--ablation",
                   "--quiet")
    assert result.returncode == 0, result.stderr

    def first_layer(file):
        return json.loads(kvcal("inspect", file, "--json", "-").stdout)["layers"][0]
    layer, plain = first_layer(out), first_layer(codebook)
    for kind in ("key", "value"):
        fits = {"outliers": layer[kind]["outliers"], "with_sinks": layer[kind]["with_sinks"]}
        for name, sets in fits.items():
            assert [one["fraction"] for one in sets] == [0, 0.01], name
            for one in sets:
                assert len(one["histogram"]) == 128 and sum(one["histogram"]) == pytest.approx(1, abs=1e-5)
                assert [len(datatype["centroids"]) for datatype in one["datatypes"]] == [4, 8, 16]
                assert ("lower" in one, "upper" in one) == ((True, True) if kind == "key" else (False, False))
        assert fits["outliers"] != fits["with_sinks"]
        assert "with_sinks" not in plain[kind] and "histogram" in plain[kind]["outliers"][0]
    assert "rope" not in layer["value"]
    assert [one["fraction"] for one in layer["key"]["rope"]] == [0, 0.01]
    for one in layer["key"]["rope"]:
        assert set(one) == {"fraction", "lower", "upper"} and len(one["lower"]) == len(one["upper"]) == CHANNELS


def test_wrong_usage(codebook):
    refused(kvcal("validate"), 2, "--model is missing")
    refused(kvcal("validate", "-m", MODEL), 2, "--text is missing")
    refused(kvcal(*small_run("--protocol", "ours")), 2, "--protocol is 'ours'", "llama.cpp")
    refused(kvcal(*small_run("--max-kld", "-1")), 2, "--max-kld is -1")
    refused(kvcal(*small_run(windows="0")), 2, "--windows is 0")
    refused(kvcal(*small_run("-c", OTHER)), 1, OTHER.name)


def test_the_codebook_of_another_model(codebook, tmp_path):
    arguments = ["-c", codebook, "--methods", "nuq3"]
    ours = by_name(report_of(*arguments))["nuq3"]
    tuned = changed_model(tmp_path / "tuned", "model.norm.weight", 9, np.array([0x3f80], "<u2").tobytes())
    differs = kvcal(*small_run(*arguments, model=tuned))
    refused(differs, 1, "another model", "weights differ", "--force")
    assert "configuration" not in differs.stderr
    theirs = by_name(report_of(*arguments, "--force", model=tuned))["nuq3"]
    assert theirs["ppl"] != ours["ppl"] and theirs["kld_mean"] == pytest.approx(ours["kld_mean"], rel=0.5)
    other = changed_model(tmp_path / "other", rms_norm_eps=2e-5)
    differs = kvcal(*small_run(*arguments, model=other))
    refused(differs, 1, "configuration differs", "--force")
    assert "weights" not in differs.stderr
    both = changed_model(tmp_path / "both", "model.norm.weight", 9, b"\x80\x3f", rms_norm_eps=2e-5)
    refused(kvcal(*small_run(*arguments, model=both)), 1, "configuration and weights differ", "--force")


def test_force_does_not_take_other_shapes(codebook, tmp_path):
    deeper = changed_model(tmp_path / "deeper", num_hidden_layers=LAYERS + 1)
    data = (deeper / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    for name, entry in list(header.items()):
        if name.startswith("model.layers.4."):
            copy = name.replace("layers.4.", "layers.5.")
            size = len(data) - begin
            first, end = entry["data_offsets"]
            data += data[begin + first:begin + end]
            header[copy] = entry | {"data_offsets": [size, size + end - first]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (deeper / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])
    assert kvcal(*small_run("--methods", "int3", model=deeper)).returncode == 0
    refused(kvcal(*small_run("-c", codebook, "--methods", "nuq3", "--force", model=deeper)), 1, "layer")


def test_the_calibration_text_gives_a_warning(codebook):
    result = kvcal(*small_run("-c", codebook, "--methods", "int3", "--json", "-", text=CALIBRATED))
    assert result.returncode == 0
    warning, = json.loads(result.stdout)["warnings"]
    assert CALIBRATED.name in warning and "calibrated on" in warning
    assert f"kvcal: warning: {warning}\n" in result.stderr


def test_limits(codebook):
    arguments = ["-c", codebook, "--methods", "nuq3"]
    never = kvcal(*small_run(*arguments, "--max-kld", 0))
    assert never.returncode == 3 and never.stdout.splitlines()[-1].startswith("None of these methods is within")
    always = kvcal(*small_run(*arguments, "--max-kld", 100, "--json", "-"))
    assert always.returncode == 0 and json.loads(always.stdout)["smallest_within_limits"] == "nuq3"
    three = ["-c", codebook, "--methods", "int4,nuq2,nuq3"]
    most = by_name(report_of(*three))
    between = (most["nuq2"]["kld_mean"] + most["nuq3"]["kld_mean"]) / 2
    large = kvcal(*small_run(*three, "--max-kld", 100, "--max-ppl-delta", 1000))
    assert large.returncode == 0 and ": nuq2, " in large.stdout.splitlines()[-1]
    part = kvcal(*small_run(*three, "--max-kld", between))
    assert part.returncode == 3 and ": nuq3, " in part.stdout.splitlines()[-1]
    by_default = kvcal(*small_run("-c", codebook, "--max-kld", between, windows=1))
    assert by_default.returncode == 0 and ": nuq" in by_default.stdout.splitlines()[-1]


@pytest.mark.parametrize("protocol, bos, scored", [("kvquant", "first", 127), ("llama.cpp", "each", 63)])
def test_protocols(protocol, bos, scored):
    report = report_of("--methods", "int3", "--protocol", protocol)
    assert (report["protocol"], report["bos"], report["tokens"]) == (protocol, bos, 256)
    assert report["scored"] == 2 * scored
    none = report_of("--methods", "int3", "--protocol", protocol, "--bos", "none", windows=1)
    assert none["bos"] == "none" and none["methods"][0]["ppl"] != report["methods"][0]["ppl"]


def test_how_many_windows_there_are(tmp_path):
    text = tmp_path / "short.txt"
    text.write_bytes(OTHER.read_bytes()[:8000])
    short = kvcal(*small_run("--methods", "int3", text=text, windows=1000))
    refused(short, 1, "short.txt: too short", "1000 are needed", "--windows all")
    tokens, windows = map(int, re.search(r"it gave (\d+) tokens, (\d+) windows", short.stderr).groups())
    assert windows == tokens // 127
    assert report_of("--methods", "int3", text=text, windows="all")["windows"] == windows
    refused(kvcal(*small_run("--methods", "int3", text=text, windows="all", seqlen=8192)), 1, "not one whole window")


def test_a_signal_leaves_nothing(codebook, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    command = small_run("-c", codebook, "--per-layer-kl", "--json", tmp_path / "r.json", "--work", work, seqlen=512,
                        windows=16)
    process = subprocess.Popen([KVCAL, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("Needs "):
            break
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert output == "" and errors.splitlines()[-1] == "kvcal: interrupted by SIGINT; nothing was written"
    assert list(work.iterdir()) == [] and [path.name for path in tmp_path.iterdir()] == ["work"]


def test_a_weight_that_is_not_a_number(tmp_path):
    broken = changed_model(tmp_path / "broken", "model.layers.3.self_attn.v_proj.weight", 700, b"\xc0\x7f")
    result = kvcal(*small_run("--methods", "int3", "--json", tmp_path / "r.json", model=broken))
    refused(result, 1)
    assert re.search(r"layer 3|layers\.3\.self_attn\.v_proj", result.stderr), result.stderr
    assert not (tmp_path / "r.json").exists()
