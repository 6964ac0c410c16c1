"""The built program as a user meets it: exit codes, one-line errors, help, JSON, signals."""
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import time

import numpy as np
import pytest

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
DATA = pathlib.Path(os.environ.get("KVCAL_SHARED_DATA", "../shared/data"))
MODEL = DATA / "weights" / "TinyStories-656K"
TEXT = DATA / "text" / "tinyshakespeare.txt"

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)
needs_model = pytest.mark.skipif(not (MODEL.exists() and TEXT.exists()), reason=f"no shared data at {DATA}")


WIDTH = 60  # of tables, summaries and help where there is no terminal


def kvcal(*arguments, **options):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options)


def unwrapped(text):
    """The text without the breaks of its lines."""
    return " ".join(text.split())


def refused(result, code, *parts):
    """Exit code `code`, and one line on standard error that has all the parts."""
    assert result.returncode == code, result
    assert result.stdout == ""
    assert result.stderr.startswith("kvcal: error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def small_run(out, *more):
    return ["calibrate", "-m", MODEL, "-f", TEXT, "-o", out, "--samples", 2, "--seqlen", 64, *more]


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    out = tmp_path_factory.mktemp("codebook") / "a.h5"
    result = kvcal(*small_run(out, "--json", "-"))
    assert result.returncode == 0, result.stderr
    return out, json.loads(result.stdout)


@pytest.mark.parametrize("command", ["calibrate", "validate", "export", "plan", "inspect", "diff", "kmeans"])
def test_help_goes_to_stdout_and_ends_with_an_example(command):
    for arguments in ([command, "--help"], [command, "-h"], ["help", command]):
        result = kvcal(*arguments)
        assert result.returncode == 0 and result.stderr == ""
        assert max(map(len, result.stdout.splitlines())) <= WIDTH
        tail = result.stdout.split("Example:\n")
        assert len(tail) == 2 and f"  kvcal {command} " in tail[1]


def test_without_a_subcommand():
    result = kvcal()
    assert result.returncode == 2 and result.stdout == "" and "Subcommands:" in result.stderr
    assert kvcal("--help").returncode == 0
    version = kvcal("--version")
    assert version.returncode == 0 and version.stdout.startswith("kvcal ")
    refused(kvcal("calibrat"), 2, "did you mean kvcal calibrate?")
    refused(kvcal("--json", "-"), 2, "the subcommand comes first")


@pytest.mark.parametrize("arguments, parts", [
    (["--sampels", "4"], ["--sampels", "did you mean --samples?"]),
    (["--sparsity-threshold", "0.99"], ["--outliers 0.01"]),
    (["--sparsity-threshold=0.99"], ["--outliers 0.01"]),
    (["--first_few_fp16", "1"], ["--sinks 1"]),
    (["--abits", "3"], ["--bits"]),
    (["--outliers", "1%"], ["--outliers is '1%'"]),
    (["--samples", "0"], ["--samples is 0", "the least is 1"]),
    (["--seqlen", "many"], ["--seqlen is 'many'", "8K"]),
    (["--memory", "8Q"], ["--memory is '8Q'", "80GB"]),
    (["--text", "a", "--tokens", "b"], ["--tokens", "--text"]),
    (["--quiet", "--verbose"], ["--verbose", "--quiet"]),
    ([], ["--model is missing"]),
    (["--model", "m"], ["--text is missing"]),
    (["--model", "m", "--text", "t"], ["--out is missing"]),
    (["stray"], ["'stray'"]),
])
def test_wrong_usage_of_calibrate(arguments, parts):
    refused(kvcal("calibrate", *arguments), 2, *parts)


@pytest.mark.parametrize("option, value, parts", [
    ("--bits", "2,5", ["--bits has 5", "2, 3 and 4"]),
    ("--bits", "2,2", ["--bits has 2 twice"]),
    ("--outliers", "0.5", ["--outliers has 0.5"]),
    ("--outliers", "-0.1", ["--outliers has -0.1"]),
    ("--outliers", "0.01,0.010", ["--outliers has 0.01 twice"]),
    ("--bos", "always", ["--bos is 'always'", "auto, each, first or none"]),
    ("--dtype", "int8", ["--dtype is 'int8'", "auto, float32 or bfloat16"]),
    ("--device", "gpu", ["--device is 'gpu'", "cpu"]),
    ("--value-scope", "row", ["--value-scope is 'row'", "token or head"]),
])
def test_values_that_calibrate_does_not_take(option, value, parts, tmp_path):
    paths = ("--model", tmp_path / "m", "--text", tmp_path / "t", "--out", tmp_path / "o.h5")
    refused(kvcal("calibrate", *paths, option, value), 2, *parts)


def test_wrong_usage_elsewhere(tmp_path):
    refused(kvcal("inspect"), 2, "FILE is missing")
    refused(kvcal("diff", "a"), 2, "A or B is missing")
    refused(kvcal("diff", "a", "b", "--tolerance", "-1"), 2, "--tolerance is -1")
    refused(kvcal("kmeans", "--x", "a.npy"), 2, "--k is missing")
    refused(kvcal("kmeans", "--x", "a.npy", "--k", "257"), 2, "the most is 256")


def test_errors_of_the_data_are_one_line(tmp_path):
    refused(kvcal("inspect", tmp_path / "none.h5"), 1, "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    refused(kvcal("inspect", tmp_path / "text.h5"), 1, "text.h5")
    refused(kvcal("kmeans", "--x", tmp_path / "none.npy", "--k", 2), 1, "none.npy")
    np.save(tmp_path / "x.npy", np.arange(4.0))
    np.save(tmp_path / "w.npy", np.ones(3))
    refused(kvcal("kmeans", "--x", tmp_path / "x.npy", "--weights", tmp_path / "w.npy", "--k", 2), 1, "3 weights")
    refused(kvcal("kmeans", "--x", tmp_path / "x.npy", "--k", 2, "--json", tmp_path / "no" / "x.json"), 1, "--json")


def test_config_file_gives_options_and_the_command_line_wins(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0))
    config = tmp_path / "kvcal.toml"
    config.write_text(f'x = "{tmp_path / "x.npy"}"\n[kmeans]\nk = 2\n[calibrate]\nsamples = 3\n')
    assert len(json.loads(kvcal("kmeans", "--config", config, "--json", "-").stdout)["centroids"]) == 2
    assert len(json.loads(kvcal("kmeans", "--config", config, "--k", 3, "--json", "-").stdout)["centroids"]) == 3
    config.write_text("modle = there\n")
    refused(kvcal("calibrate", "--config", config), 2, "'modle'", "did you mean --model?")
    config.write_text("bits = 2,5\nmodel = m\ntext = t\nout = o.h5\n")
    refused(kvcal("calibrate", "--config", config), 2, "--bits has 5")
    config.write_text("[other]\nbits = 2\n")
    refused(kvcal("calibrate", "--config", config), 2, "[other]")
    refused(kvcal("calibrate", "--config", tmp_path / "none"), 2, "none")


def best_by_force(points, weights, k):
    order = np.argsort(points)
    points, weights = points[order], weights[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(points)), k - 1):
        cost = 0.0
        for begin, end in itertools.pairwise((0, *cuts, len(points))):
            x, w = points[begin:end], weights[begin:end]
            mean = (w * x).sum() / w.sum()
            cost += (w * (x - mean) ** 2).sum()
        best = min(best, cost)
    return best


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kmeans_is_the_optimum_of_all_cuts(tmp_path, dtype):
    rng = np.random.default_rng(5)
    points, weights = rng.normal(size=(3, 4)).astype(dtype), rng.random((3, 4)).astype(dtype)
    np.save(tmp_path / "x.npy", points)
    np.save(tmp_path / "w.npy", weights)
    result = kvcal("kmeans", "--x", tmp_path / "x.npy", "--weights", tmp_path / "w.npy", "--k", 4, "--json", "-")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert list(answer) == ["n", "k", "centroids", "objective", "lower_bound", "seconds"]
    assert (answer["n"], answer["k"]) == (12, 4)
    x, w = points.ravel().astype(float), weights.ravel().astype(float)
    best = best_by_force(x, w, 4)
    assert answer["objective"] == pytest.approx(best, rel=1e-12)
    reached = (w * np.abs(x[:, None] - np.array(answer["centroids"])).min(1) ** 2).sum()
    assert reached == pytest.approx(best, rel=1e-12)


def test_json_to_a_file_and_to_a_device(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0))
    result = kvcal("kmeans", "--x", tmp_path / "x.npy", "--k", 6, "--json", tmp_path / "r.json")
    assert result.returncode == 0 and "objective" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["centroids"] == [0, 1, 2, 3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "x.npy"]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True)
    assert kvcal("kmeans", "--x", tmp_path / "x.npy", "--k", 2, "--json", fifo).returncode == 0
    assert json.loads(reader.communicate(timeout=60)[0])["k"] == 2


def test_a_closed_pipe_is_an_error_and_not_a_death(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0))
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run([KVCAL, "kmeans", "--x", tmp_path / "x.npy", "--k", "2"], stdout=write_end,
                            stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert result.returncode == 1 and "standard output" in result.stderr


@needs_model
def test_calibrate_reports(codebook):
    out, report = codebook
    assert (report["samples"], report["seqlen"], report["tokens"]) == (2, 64, 128)
    assert report["perplexity"] == pytest.approx(np.exp(report["loss"]))
    assert set(report["seconds"]) == {"total", "forward", "backward", "fit"}
    assert report["plan"]["memory_bytes"] > 0
    sets = report["layers"][0]["key"]["outliers"]
    assert [one["fraction"] for one in sets] == [0, 0.01]
    assert [datatype["bits"] for datatype in sets[1]["datatypes"]] == [2, 3, 4]
    assert not out.with_suffix(".h5.work").exists()


@needs_model
def test_a_finished_run_is_not_repeated_and_others_are_not_overwritten(codebook):
    out, _ = codebook
    before = out.read_bytes()
    again = kvcal(*small_run(out))
    assert again.returncode == 0 and "nothing was done" in again.stdout
    refused_run = kvcal(*small_run(out, "--sinks", 2))
    assert refused_run.returncode == 1 and "--overwrite" in refused_run.stderr
    assert out.read_bytes() == before


@needs_model
def test_dry_run_writes_nothing(tmp_path):
    result = kvcal(*small_run(tmp_path / "a.h5", "--dry-run"))
    assert result.returncode == 0, result.stderr
    for word in ("Model", "Memory", "Disk", "Time"):
        assert word in result.stdout
    assert list(tmp_path.iterdir()) == []
    pure = kvcal(*small_run(tmp_path / "a.h5", "--dry-run", "--json", "-"))
    assert json.loads(pure.stdout)["dry_run"] is True


@needs_model
def test_inspect_leads_with_what_matters(codebook):
    out, report = codebook
    text = kvcal("inspect", out).stdout
    assert text.startswith("TinyStories-656K (LlamaForCausalLM): 2 layers") and TEXT.name in text
    assert max(map(len, text.splitlines())) <= WIDTH and "layer  tensor" not in text
    words = unwrapped(text)
    for word in ("bits/value all that a sequence stores", "cache of one sequence of 131,072 tokens", "KL estimate",
                 "between its halves thresholds differ by", "Weakest layer ", report["content_sha256"][:12]):
        assert word in words, word
    assert text.index("Sample ") < text.index("sha256")
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("nuq")}
    summary = json.loads(kvcal("inspect", out, "--json", "-").stdout)["summary"]
    assert report["summary"] == summary and list(rows) == [method["name"] for method in summary["methods"]]
    for method in summary["methods"]:
        assert rows[method["name"]][1] == f"{method['bits_per_value']:.2f}"
        assert float(rows[method["name"]][-1]) == pytest.approx(method["estimated_kld"], rel=5e-3)
    whole = kvcal("inspect", out, "--all").stdout
    assert report["content_sha256"] in whole and whole.index("sha256") < whole.index("layer  tensor")
    one = kvcal("inspect", out, "--layer", 1).stdout
    assert "Layer 1:" in one and "centroids" in one and "Q-Normed" in one
    assert max(map(len, one.splitlines())) <= WIDTH


@needs_model
def test_no_measure_alarms_beside_a_sample_that_is_enough(tmp_path):
    """What tensors add to the differences between the sample's halves adds up to what the verdict says of the model."""
    out = tmp_path / "a.h5"
    assert kvcal("calibrate", "-m", MODEL, "-f", TEXT, "-o", out, "--samples", 8, "--seqlen", 256, "-q").returncode == 0
    sample = json.loads(kvcal("inspect", out, "--json", "-").stdout)["summary"]["sample"]
    table = kvcal("inspect", out, "--all").stdout.split("thresholds  datatypes\n")[1].split("\n\n")[0]
    cells = [[float(cell.rstrip("%")) / 100 if cell != "-" else 0 for cell in line.split()[3:]] for line in table.splitlines()]
    assert sum(row[0] for row in cells) == pytest.approx(sample["threshold_shift"], rel=0.02)
    assert sum(row[1] for row in cells) == pytest.approx(sample["datatype_excess"], rel=0.02)
    assert sample["enough"] == (not sample["advice"])


@needs_model
def test_the_estimated_divergence_is_half_of_the_curvature(codebook):
    """T / (2 N) sum F e^2: of a window's T targets, N windows; the sums are the objectives of the datatypes."""
    out, _ = codebook
    parsed = json.loads(kvcal("inspect", out, "--json", "-").stdout)
    calibration = parsed["calibration"]
    factor = (calibration["seqlen"] - 1) / (2 * calibration["samples"])
    for method in parsed["summary"]["methods"]:
        total = 0
        for layer, estimate in zip(parsed["layers"], method["layers"]):
            for tensor in ("key", "value"):
                (chosen,) = [datatype for outliers in layer[tensor]["outliers"] if outliers["fraction"] == method["fraction"]
                             for datatype in outliers["datatypes"] if datatype["bits"] == method["bits"]]
                assert estimate[tensor] == pytest.approx(factor * chosen["objective"], rel=1e-12)
                total += estimate[tensor]
        assert method["estimated_kld"] == pytest.approx(total, rel=1e-12)


@needs_model
def test_inspect_gives_single_layers_as_json(codebook):
    out, _ = codebook
    parsed = json.loads(kvcal("inspect", out, "--json", "-", "--layer", 1).stdout)
    assert [layer["layer"] for layer in parsed["layers"]] == [1]
    assert len(parsed["layers"][0]["key"]["outliers"][0]["datatypes"][2]["centroids"]) == 16
    refused(kvcal("inspect", out, "--layer", 99), 1, "no layer 99")


@needs_model
def test_diff_is_0_for_the_same_and_3_for_others(codebook, tmp_path):
    out, _ = codebook
    same = kvcal("diff", out, out)
    assert same.returncode == 0 and same.stdout == "the same\n"
    other = tmp_path / "b.h5"
    assert kvcal(*small_run(other, "--seed", 1, "--quiet")).returncode == 0
    different = kvcal("diff", out, other)
    assert different.returncode == 3 and different.stderr == ""
    lines = different.stdout.splitlines()
    assert lines[0].startswith("/calibration@") and "/calibration@seed: 0 -> 1 (1)" in lines
    assert not any(line.startswith("/layers") for line in lines)
    head = lines.index("layer  key thresholds  key centroids  value centroids")
    assert sorted(line.split()[0] for line in lines[head + 1:head + 3]) == ["0", "1"]
    assert re.fullmatch(r"\d+ differences, the largest \S+", lines[-1])
    assert re.search(r"largest in /layers/\S+", unwrapped(different.stdout))


@needs_model
def test_diff_gives_numbers_as_numbers(codebook, tmp_path):
    out, _ = codebook
    other = tmp_path / "b.h5"
    assert kvcal(*small_run(other, "--seed", 1, "--bits", "2,3", "--quiet")).returncode == 0
    result = kvcal("diff", out, other, "--json", "-")
    assert result.returncode == 3
    report = json.loads(result.stdout)
    assert (report["same"], report["same_model"]) == (False, True)
    assert report["summary"]["model"] == {"config": True, "weights": True}
    differences = {one["path"]: one for one in report["differences"]}
    seed = differences["/calibration@seed"]
    assert (seed["left"], seed["right"], seed["index"]) == (0, 1, None)
    upper = differences["/layers/0001/key/outliers_0.01/upper"]
    ours, theirs = (json.loads(kvcal("inspect", file, "--layer", 1, "--json", "-").stdout) for file in (out, other))
    for side, file in (("left", ours), ("right", theirs)):
        assert upper[side] == file["layers"][0]["key"]["outliers"][1]["upper"][upper["index"]]
    lost = differences["/layers/0000/key/outliers_0/nuq4"]
    assert lost == {"path": lost["path"], "index": None, "left": "present", "right": None, "magnitude": None}
    assert isinstance(differences["/calibration@tokens_sha256"]["left"], str)
    of_layers = [one["magnitude"] for one in report["differences"] if one["path"].startswith("/layers/")]
    assert report["summary"]["largest"] == max(value for value in of_layers if value is not None)
    thresholds = [differences.get(f"/layers/0001/key/outliers_{name}", {"magnitude": 0})["magnitude"]
                  for name in ("0/lower", "0/upper", "0.01/lower", "0.01/upper")]
    row = report["summary"]["layers"][1]
    assert (row["layer"], row["key_thresholds"]) == (1, max(thresholds))


def changed_model(folder, layers=2, scale=1.0, **config):
    """A copy of MODEL with `layers` layers (its own in turn), its layers' value weights times `scale`, and `config`."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((MODEL / name).read_bytes())
    fields = json.loads((MODEL / "config.json").read_text()) | {"num_hidden_layers": layers} | config
    (folder / "config.json").write_text(json.dumps(fields))
    data = (MODEL / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8:begin]), {}
    metadata = header.pop("__metadata__")
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        values = np.frombuffer(data[begin + first:begin + end], "<f4")
        own = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        factor = scale if name.endswith("v_proj.weight") else 1.0
        for copy in range(int(own[1]), layers, 2) if own else [None]:
            tensors[f"model.layers.{copy}.{own[2]}" if own else name] = entry["shape"], values * np.float32(factor)
    header, offset = {"__metadata__": metadata}, 0
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    payload = b"".join(values.tobytes() for _, values in tensors.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + payload)
    return folder


def calibrated(model, out, *more):
    result = kvcal("calibrate", "-m", model, "-f", TEXT, "-o", out, "--samples", 2, "--seqlen", 64, "--quiet", *more)
    assert result.returncode == 0, result.stderr
    return out


@needs_model
def test_diff_stops_after_one_line_at_another_model(codebook, tmp_path):
    out, _ = codebook
    other = calibrated(changed_model(tmp_path / "other", rms_norm_eps=1e-5), tmp_path / "other.h5")
    result = kvcal("diff", out, other, "--tolerance", 0.05)
    assert result.returncode == 3
    assert unwrapped(result.stdout) == "another model: TinyStories-656K and other differ in config"
    report = json.loads(kvcal("diff", out, other, "--json", "-").stdout)
    assert report["same_model"] is False and report["summary"]["model"]["config"] is False
    assert "/model@config_sha256" in [one["path"] for one in report["differences"]]
    assert len(kvcal("diff", out, other, "--all").stdout.splitlines()) == len(report["differences"]) + 1


@needs_model
def test_diff_tells_a_finetune(codebook, tmp_path):
    out, _ = codebook
    tuned = calibrated(changed_model(tmp_path / "tuned", scale=1.01), tmp_path / "tuned.h5")
    result = kvcal("diff", out, tuned, "--tolerance", 0.5)
    assert result.returncode == 3
    lines = result.stdout.splitlines()
    assert unwrapped(result.stdout).startswith("the same architecture, other weights: a finetune, or another checkpoint "
                                               "(TinyStories-656K -> tuned)")
    assert not any(line.startswith("/model@weights_sha256") for line in lines)
    assert "(tolerance 0.5)" in lines[-1]
    report = json.loads(kvcal("diff", out, tuned, "--json", "-").stdout)
    assert report["same_model"] is False
    assert report["summary"]["model"] == {"config": True, "weights": False}


@needs_model
def test_diff_shows_the_eight_layers_that_differ_most(tmp_path):
    model = changed_model(tmp_path / "deep", layers=10)
    left = calibrated(model, tmp_path / "a.h5", "--bits", 2)
    right = calibrated(model, tmp_path / "b.h5", "--bits", 2, "--seed", 1)
    lines = kvcal("diff", left, right).stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    rows = [line.split() for line in lines[head + 1:head + 9]]
    largest = [max(float(value) for value in row[1:] if value != "-") for row in rows]
    assert largest == sorted(largest, reverse=True)
    rest = re.fullmatch(r"and 2 more layers, none above (\S+)", lines[head + 9])
    assert rest and float(rest[1]) <= largest[-1]
    report = json.loads(kvcal("diff", left, right, "--json", "-").stdout)
    assert [layer["layer"] for layer in report["summary"]["layers"]] == list(range(10))
    everything = kvcal("diff", left, right, "--all").stdout.splitlines()
    assert [line.split(":")[0].split(" ")[0] for line in everything[:-1]] == [
        one["path"] for one in report["differences"]]
    assert everything[-1] == lines[-1] and lines[-1].startswith(f"{len(everything) - 1} differences")


@needs_model
@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_and_the_same_command_ends_it(tmp_path, sent, code):
    out = tmp_path / "a.h5"
    command = [KVCAL, *map(str, ["calibrate", "-m", MODEL, "-f", TEXT, "-o", out, "--samples", 16, "--seqlen", 512])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not (tmp_path / "a.h5.work").exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert errors.splitlines()[-1].startswith("kvcal: interrupted by ") and "goes on" in errors
    assert not out.exists()
    assert subprocess.run(command, capture_output=True, timeout=600).returncode == 0
    assert kvcal("inspect", out).returncode == 0
