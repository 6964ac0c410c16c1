"""The whole of `kvcal calibrate` from outside: thresholds against numpy, kill -9 and resume, a full disk, bad input."""

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

BUILD = Path(os.environ["KVCAL_BUILD"])
SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).parents[2]))
KVCAL = BUILD / "bin" / "kvcal"
BUNDLED = SOURCE / "data" / "model"
VOCAB = 4096


def tokens_file(folder, samples=3, seqlen=96, seed=0):
    path = folder / f"tokens_{seed}.npy"
    np.save(path, np.random.default_rng(seed).integers(3, VOCAB, size=(samples, seqlen)).astype(np.int32))
    return path


def command(model, tokens, out, *more):
    dtype = () if "--dtype" in more else ("--dtype", "float32")
    return [str(part) for part in
            (KVCAL, "calibrate", "--model", model, "--tokens", tokens, "--out", out, "--threads", 2, *dtype, *more)]


def run(*arguments, **keywords):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, **keywords)


def expect_error(result, code, *parts):
    """One line on standard error that holds every part, case aside."""
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert str(part).lower() in lines[0].lower(), f"{part!r} is not in {lines[0]!r}"


@pytest.fixture
def model(tmp_path):
    """A copy of the bundled model that a test may damage."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "model"))


def test_thresholds_and_sensitivities_are_those_of_the_captured_tensors(tmp_path):
    tokens = tokens_file(tmp_path)
    out = tmp_path / "codebook.h5"
    result = run(BUNDLED, tokens, out, "--sinks", 0, "--outliers", "0,0.01,0.05")
    assert result.returncode == 0, result.stderr
    subprocess.run([BUILD / "bin" / "model_dump", BUNDLED, tokens, tmp_path / "dump.safetensors"], check=True)
    dump = load_file(tmp_path / "dump.safetensors")
    with h5py.File(out) as file:
        for name, layer in file["layers"].items():
            index = int(name)
            keys = np.concatenate([dump[f"keys.{s}.{index}"] for s in range(3)]).astype(np.float64)
            span = np.ptp(keys, axis=0)
            for fraction in (0, 0.01, 0.05):
                group = layer[f"key/outliers_{fraction:g}"]
                low, high = np.quantile(keys, [fraction / 2, 1 - fraction / 2], axis=0)
                assert np.all(np.abs(group["lower"][:] - low) <= 1e-6 * span)
                assert np.all(np.abs(group["upper"][:] - high) <= 1e-6 * span)
            for kind in ("key", "value"):
                np.testing.assert_allclose(layer[f"{kind}/fisher_channel"][:], dump[f"{kind}_fisher.{index}"], rtol=1e-4)
        np.testing.assert_allclose(file["calibration"].attrs["loss"], dump["loss"].mean(), rtol=1e-5)


def test_padding_and_sinks_are_left_out(tmp_path):
    """A padded row gives what the same row cut short gives."""
    full = np.load(tokens_file(tmp_path, samples=1, seqlen=60))
    padded = np.concatenate([full, np.full((1, 20), -1, np.int32)], axis=1)
    books = []
    for name, array in (("full", full), ("padded", padded)):
        np.save(tmp_path / f"{name}.npy", array)
        assert run(BUNDLED, tmp_path / f"{name}.npy", tmp_path / f"{name}.h5").returncode == 0
        with h5py.File(tmp_path / f"{name}.h5") as file:
            books.append(file["layers/0002/key/outliers_0.01/nuq3/centroids"][:])
    np.testing.assert_array_equal(*books)


def test_kill_at_any_moment_and_the_same_command_gives_the_same_bytes(tmp_path):
    tokens = tokens_file(tmp_path, samples=6, seqlen=256)
    undisturbed = tmp_path / "undisturbed.h5"
    begin = time.monotonic()
    assert run(BUNDLED, tokens, undisturbed).returncode == 0
    seconds = time.monotonic() - begin
    out = tmp_path / "out.h5"
    rng = np.random.default_rng(1)
    kills = 0
    for _ in range(60):
        process = subprocess.Popen(command(BUNDLED, tokens, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=0.2 + rng.uniform(0, 0.5) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        break
    assert run(BUNDLED, tokens, out).returncode == 0
    assert out.read_bytes() == undisturbed.read_bytes()
    assert kills > 0
    assert not (tmp_path / "out.h5.work").exists()


def test_a_work_folder_of_another_run_is_refused(tmp_path):
    tokens = tokens_file(tmp_path, samples=6, seqlen=256)
    out = tmp_path / "out.h5"
    process = subprocess.Popen(command(BUNDLED, tokens, out), stderr=subprocess.DEVNULL)
    while not (tmp_path / "out.h5.work" / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    expect_error(run(BUNDLED, tokens, out, "--sinks", 3), 1, "out.h5.work", "--sinks", "--work")
    expect_error(run(BUNDLED, tokens, out, "--sinks", 3, "--dry-run"), 1, "out.h5.work", "--sinks", "--work")
    expect_error(run(BUNDLED, tokens_file(tmp_path, 6, 256, seed=2), out), 1, "tokens")


def test_a_folder_that_is_not_ours_is_refused_and_left_as_it_was(tmp_path):
    work = tmp_path / "photos"
    work.mkdir()
    (work / "one.jpg").write_text("x")
    expect_error(run(BUNDLED, tokens_file(tmp_path), tmp_path / "out.h5", "--work", work), 1, "photos", "one.jpg")
    assert [path.name for path in work.iterdir()] == ["one.jpg"]


def test_a_folder_that_another_run_holds_is_left_alone(tmp_path):
    tokens, out = tokens_file(tmp_path), tmp_path / "out.h5"
    work = tmp_path / "out.h5.work"
    work.mkdir()
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in ((), ("--dry-run",)):
            expect_error(run(BUNDLED, tokens, out, *more), 1, str(work), "another run", "choose another folder")
    assert [path.name for path in work.iterdir()] == ["lock"]
    assert run(BUNDLED, tokens, out).returncode == 0


def test_what_a_killed_run_left_is_removed(tmp_path):
    tokens, out = tokens_file(tmp_path), tmp_path / "out.h5"
    unfinished = {name: tmp_path / f".{name}.h5.0123456789abcdef.tmp" for name in ("out", "living", "other")}
    for path in unfinished.values():
        path.write_text("half a codebook")
    with open(unfinished["out"]) as living:
        # Whoever writes it holds its lock, on whichever host and whatever its process id.
        fcntl.flock(living, fcntl.LOCK_EX)
        assert run(BUNDLED, tokens, out).returncode == 0
        assert unfinished["out"].exists()
    assert run(BUNDLED, tokens, out, "--seed", 0, "--overwrite", "--sinks", 2).returncode == 0
    assert not unfinished["out"].exists() and unfinished["other"].exists()
    assert run(BUNDLED, tokens, out, "--overwrite").returncode == 0
    # Killed after the result was written, before the work folder was removed.
    (tmp_path / "out.h5.work").mkdir()
    (tmp_path / "out.h5.work" / "lock").write_text("kvcal made this folder and removes it when it is done\n")
    result = run(BUNDLED, tokens, out, "--dry-run")
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert (tmp_path / "out.h5.work").exists()
    assert run(BUNDLED, tokens, out).returncode == 0
    assert not (tmp_path / "out.h5.work").exists()


def test_too_little_disk_is_refused_before_any_work(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
    try:
        tokens = tokens_file(tmp_path, samples=6, seqlen=256)
        work = mount / "work"
        # The run needs more than there is; a dry run says the same, with the same exit code.
        for more in ((), ("--dry-run",)):
            expect_error(run(BUNDLED, tokens, tmp_path / "out.h5", "--work", work, *more), 1, "disk", "--work")
        assert not work.exists()
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def rewrite(model, change):
    """Applies change(header, body) -> (header, body) to the checkpoint's one file."""
    data = bytearray((model / "model.safetensors").read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    body = data[8 + size :]
    header, body = change(header, body)
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


def name_of(header, part):
    return next(name for name in header if part in name)


class TestBadWeights:
    def check(self, model, tmp_path, *parts):
        out = tmp_path / "out.h5"
        expect_error(run(model, tokens_file(tmp_path), out), 1, *parts)
        assert not out.exists()

    def test_truncated(self, model, tmp_path):
        data = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(data[: len(data) // 2])
        self.check(model, tmp_path, "model.safetensors")

    def test_header_longer_than_the_file(self, model, tmp_path):
        data = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + data[8:])
        self.check(model, tmp_path, "model.safetensors", "header")

    def test_overlapping(self, model, tmp_path):
        def change(header, body):
            first, second = (name for name in header if "mlp.up_proj" in name and (".0." in name or ".1." in name))
            header[first]["data_offsets"] = header[second]["data_offsets"]
            return header, body
        rewrite(model, change)
        self.check(model, tmp_path, "model.safetensors")

    def test_missing_tensor(self, model, tmp_path):
        def change(header, body):
            header["renamed"] = header.pop(name_of(header, "layers.2.self_attn.v_proj"))
            return header, body
        rewrite(model, change)
        self.check(model, tmp_path, "layers.2.self_attn.v_proj")
        # Found by the headers, before any work.
        assert not (tmp_path / "out.h5.work").exists()
        expect_error(run(model, tokens_file(tmp_path), tmp_path / "out.h5", "--dry-run"), 1, "layers.2.self_attn.v_proj")

    def test_wrong_shape(self, model, tmp_path):
        def change(header, body):
            entry = header[name_of(header, "layers.1.self_attn.k_proj")]
            entry["shape"] = entry["shape"][::-1]
            return header, body
        rewrite(model, change)
        self.check(model, tmp_path, "layers.1.self_attn.k_proj", "shape")

    @pytest.mark.parametrize("bits", [0x7FC0, 0x7F80], ids=["nan", "infinity"])
    # Row 0 of the embedding is of a token that the sample does not hold.
    @pytest.mark.parametrize("tensor", ["layers.3.mlp.gate_proj", "embed_tokens"])
    def test_not_finite(self, model, tmp_path, bits, tensor):
        def change(header, body):
            begin = header[name_of(header, tensor)]["data_offsets"][0]
            body[begin : begin + 2] = struct.pack("<H", bits)
            return header, body
        rewrite(model, change)
        self.check(model, tmp_path, tensor, "NaN or infinity")

    def test_infinite_activations(self, model, tmp_path):
        def change(header, body):
            begin, end = header[name_of(header, "layers.1.mlp.down_proj")]["data_offsets"]
            body[begin:end] = struct.pack("<H", 0x7F7F) * ((end - begin) // 2)
            return header, body
        rewrite(model, change)
        self.check(model, tmp_path, "layer 1", "sample 0")

    def test_missing_shard(self, model, tmp_path):
        (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
        weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        self.check(model, tmp_path, "model-00002-of-00002.safetensors")


class TestBadText:
    def text(self, tmp_path, content):
        path = tmp_path / "text.txt"
        path.write_bytes(content)
        return path

    def run(self, tmp_path, content, *more):
        arguments = [KVCAL, "calibrate", "-m", BUNDLED, "-f", self.text(tmp_path, content), "-o", tmp_path / "out.h5", *more]
        return subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=300)

    def test_empty(self, tmp_path):
        expect_error(self.run(tmp_path, b""), 1, "text.txt", "empty")

    def test_too_short(self, tmp_path):
        expect_error(self.run(tmp_path, b"Once upon a time."), 1, "text.txt", "tokens")

    def test_invalid_utf8_is_one_warning(self, tmp_path):
        result = self.run(tmp_path, b"word \xff\xfe " * 300, "--samples", "2", "--seqlen", "64")
        assert result.returncode == 0, result.stderr
        assert sum("UTF-8" in line for line in result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_nested_without_end_is_refused(model, tmp_path, name):
    """One of these once ended the program by SIGSEGV."""
    nested = "[" * 200_000 + "]" * 200_000
    content = json.loads((model / name).read_text())
    text = json.dumps(content)[:-1] + ', "more": ' + nested + "}"
    (model / name).write_text(text)
    prose = SOURCE / "data" / "demo" / "calibrate.txt"
    result = subprocess.run([str(a) for a in (KVCAL, "calibrate", "-m", model, "-f", prose, "-o", tmp_path / "out.h5", "--samples",
                                              2, "--seqlen", 64)], capture_output=True, text=True, timeout=300)
    expect_error(result, 1, name, "nested")


def test_outputs_in_the_work_folder_are_refused_before_any_work(tmp_path):
    tokens, work = tokens_file(tmp_path), tmp_path / "w"
    work.mkdir()
    expect_error(run(BUNDLED, tokens, work / "a.h5", "--work", work), 2, "--out", "work folder")
    expect_error(run(BUNDLED, tokens, tmp_path / "a.h5", "--work", work, "--json", work / "r.json"), 2, "--json", "work folder")
    expect_error(run(BUNDLED, tokens, tmp_path / "a.h5", "--json", tmp_path / "a.h5.work" / "r.json"), 2, "--json")
    expect_error(run(BUNDLED, tokens, tmp_path / "a.h5", "--json", tokens, "--overwrite"), 2, "--json", "input")
    expect_error(run(BUNDLED, tokens, tokens, "--overwrite"), 2, "--out")
    assert not list(work.iterdir()) and np.load(tokens).shape == (3, 96)


def test_a_foreign_file_in_the_work_folder_survives(tmp_path):
    tokens, work = tokens_file(tmp_path), tmp_path / "w"
    work.mkdir()
    (work / "thesis.tmp").write_text("years of work")
    expect_error(run(BUNDLED, tokens, tmp_path / "a.h5", "--work", work), 1, "thesis.tmp")
    assert run(BUNDLED, tokens, tmp_path / "b.h5").returncode == 0
    # On the path of a run that is done already, too.
    assert run(BUNDLED, tokens, tmp_path / "b.h5", "--work", work).returncode == 0
    assert (work / "thesis.tmp").read_text() == "years of work"


def test_tokens_out_of_the_vocabulary(tmp_path):
    np.save(tmp_path / "bad.npy", np.full((2, 40), VOCAB, np.int64))
    expect_error(run(BUNDLED, tmp_path / "bad.npy", tmp_path / "out.h5"), 1, "bad.npy", VOCAB, "vocabulary")


def test_tokens_decide_samples_and_seqlen(tmp_path):
    tokens = tokens_file(tmp_path)
    expect_error(run(BUNDLED, tokens, tmp_path / "out.h5", "--seqlen", 64), 2, "--seqlen", "96")
    expect_error(run(BUNDLED, tokens, tmp_path / "out.h5", "--sinks", 95), 2, "sinks")


def test_an_unwritable_output(tmp_path):
    expect_error(run(BUNDLED, tokens_file(tmp_path), tmp_path / "no" / "out.h5"), 1, "out.h5")


def test_too_little_memory_says_how_much_is_needed(tmp_path):
    for more in ((), ("--dry-run",)):
        expect_error(run(BUNDLED, tokens_file(tmp_path), tmp_path / "out.h5", "--memory", "64M", *more), 1, "memory", "MiB")
    expect_error(run(BUNDLED, tokens_file(tmp_path), tmp_path / "out.h5", "--memory", "8"), 2, "did you mean 8GB?")
    expect_error(run(BUNDLED, tokens_file(tmp_path), tmp_path / "out.h5", "--memory", "800TB"), 2, "this machine has")


def test_one_warning_with_one_number_says_how_many_samples(tmp_path):
    result = run(BUNDLED, tokens_file(tmp_path), tmp_path / "out.h5", "--json", tmp_path / "r.json")
    assert result.returncode == 0
    warnings = [w for w in json.loads((tmp_path / "r.json").read_text())["warnings"] if "--samples" in w]
    assert len(warnings) == 1 and warnings[0].count("--samples") == 1, warnings


def test_progress_counts_tokens(tmp_path):
    result = run(BUNDLED, tokens_file(tmp_path), tmp_path / "out.h5")
    for stage in ("forward", "loss", "backward"):
        assert f"{stage}: 288 tokens in" in result.stderr, result.stderr


def test_value_scope_and_sensitivity_change_the_result(tmp_path):
    tokens = tokens_file(tmp_path)
    books = {}
    for name, more in {"token": (), "head": ("--value-scope", "head"), "none": ("--sensitivity", "none"),
                       "plain": ("--fisher-scale", "none"), "bfloat16": ("--dtype", "bfloat16")}.items():
        assert run(BUNDLED, tokens, tmp_path / f"{name}.h5", *more).returncode == 0
        with h5py.File(tmp_path / f"{name}.h5") as file:
            books[name] = file["layers/0001/value/outliers_0/nuq3/centroids"][:]
    for name in ("head", "none", "plain", "bfloat16"):
        assert not np.array_equal(books["token"], books[name]), name
    np.testing.assert_allclose(books["bfloat16"], books["token"], atol=0.05)


def test_the_default_dtype_is_what_the_cpu_multiplies(tmp_path):
    tokens = tokens_file(tmp_path)
    assert run(BUNDLED, tokens, tmp_path / "auto.h5", "--dtype", "auto").returncode == 0
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "").split()
    expected = b"bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else b"float32"
    with h5py.File(tmp_path / "auto.h5") as file:
        assert file["calibration"].attrs["dtype"] == expected


def test_bfloat16_changes_little(tmp_path):
    """Sensitivities by some 0.5 %, objectives by under 1 %: less than another sample would."""
    tokens = tokens_file(tmp_path, samples=4, seqlen=256)
    books = {}
    for dtype in ("float32", "bfloat16"):
        assert run(BUNDLED, tokens, tmp_path / f"{dtype}.h5", "--dtype", dtype).returncode == 0
        with h5py.File(tmp_path / f"{dtype}.h5") as file:
            books[dtype] = {(layer, kind): (file[f"layers/{layer}/{kind}/fisher_channel"][:].sum(),
                                            file[f"layers/{layer}/{kind}/outliers_0.01/nuq3/centroids"].attrs["objective"])
                            for layer in file["layers"] for kind in ("key", "value")}
    for place, (fisher, objective) in books["float32"].items():
        assert books["bfloat16"][place][0] == pytest.approx(fisher, rel=0.03), place
        assert books["bfloat16"][place][1] == pytest.approx(objective, rel=0.03), place


def test_many_shards_have_the_fingerprint_of_one(tmp_path, model):
    pytest.importorskip("torch")
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    for folder in (single, sharded):
        folder.mkdir()
        shutil.copy(model / "config.json", folder)
    save_file({name: tensor.numpy() for name, tensor in tensors.items()}, single / "model.safetensors")
    weight_map = {}
    for index, name in enumerate(tensors):
        shard = f"model-{index % 3 + 1:05d}-of-00003.safetensors"
        weight_map[name] = shard
    for shard in set(weight_map.values()):
        save_file({n: tensors[n].numpy() for n, s in weight_map.items() if s == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    files = {}
    for folder in (single, sharded):
        out = tmp_path / f"{folder.name}.h5"
        assert run(folder, tokens_file(tmp_path), out).returncode == 0
        with h5py.File(out) as file:
            files[folder.name] = (bytes(file["model"].attrs["weights_sha256"]), file["layers/0000/key/fisher_channel"][:])
    assert files["single"][0] == files["sharded"][0]
    np.testing.assert_array_equal(files["single"][1], files["sharded"][1])

