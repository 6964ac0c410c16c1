"""kvcal.calibrate, validate, allocate, merge and export: the program's options as keywords, its errors as exceptions, its progress as calls."""
import inspect
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

kvcal = pytest.importorskip("kvcal")
pytest.importorskip("kvcal._core", reason="the package was built without its extension")
from kvcal import commands, program  # noqa: E402

SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL, DEMO = SOURCE / "data" / "model", SOURCE / "data" / "demo"
SMALL = dict(samples=2, seqlen=64, bits=3, outliers=0)
# Of the program alone: what it says, and where.
LEFT_OUT = {"help", "json", "quiet", "verbose", "progress", "all"}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def help_of(command):
    return subprocess.run([program.path(), command, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", ["calibrate", "validate", "allocate", "merge"])
def test_every_option_of_the_program_is_a_keyword_and_nothing_else(command):
    help_text = help_of(command)
    options = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]+)", help_text)}
    listed = {name for line in help_text.splitlines() if re.match(r"  -", line) for name in re.findall(r"--([a-z][a-z-]+)", line)}
    positional = {"allocate": {"codebook"}, "merge": {"codebooks"}}.get(command, set())
    keywords = set(inspect.signature(getattr(commands, command)).parameters) - {"progress", "measured"} - positional
    if command == "allocate":  # hands on those of validate
        keywords |= set(inspect.signature(commands.validate).parameters) & options
    assert keywords <= options, keywords - options
    aliases = {"num-calibration-samples", "max-seq-length", "no-parse-special"}
    assert {name.replace("-", "_") for name in listed - aliases} - LEFT_OUT <= keywords


def test_options_become_words():
    words = program.arguments(dict(text=["a b", pathlib.Path("c")], bits=[2, 3], seqlen="8K", overwrite=True, ablation=False,
                                   parse_special=False, seed=None, value_scope="head"))
    assert words == ["--text", "a b", "c", "--bits=2,3", "--seqlen=8K", "--overwrite", "--no-parse-special", "--value-scope=head"]


def test_an_option_that_allocate_does_not_know_is_refused(tmp_path):
    with pytest.raises(kvcal.UsageError, match="--windws"):
        kvcal.allocate(tmp_path / "a.h5", bits_per_value=3, windws=2)


def test_progress_is_told_and_options_arrive(tmp_path):
    seen = []
    codebook = kvcal.calibrate(MODEL, [DEMO / "calibrate.txt", DEMO / "validate.txt"], out=tmp_path / "a.h5", progress=seen.append, **SMALL)
    assert {"forward", "backward"} <= {event.stage for event in seen}
    assert all(event.unit == "tokens" and 0 <= event.done <= event.total for event in seen if event.stage == "forward")
    assert (codebook.calibration.samples, codebook.calibration.seqlen, len(codebook.calibration.texts)) == (2, 64, 2)
    assert [datatype.bits for datatype in codebook[0].key.outliers[0].datatypes] == [3]
    report = kvcal.validate(MODEL, tmp_path / "a.h5", DEMO / "validate.txt", methods=["nuq3", "int3"], windows=1, seqlen=64)
    assert [method["name"] for method in report["methods"]] == ["fp", "nuq3", "int3"]
    exported = kvcal.export(tmp_path / "a.h5", "safetensors", out=tmp_path / "a.safetensors")
    assert exported["files"] == [str(tmp_path / "a.safetensors")] and (tmp_path / "a.safetensors").exists()


def test_codebooks_are_merged_and_bits_allocated(tmp_path):
    """For Python callers as for the program: what comes back is what --json is, and warnings are Python's."""
    for name, seed in (("a", 0), ("b", 3)):
        kvcal.calibrate(MODEL, DEMO / "calibrate.txt", out=tmp_path / f"{name}.h5", samples=2, seqlen=64, bits=[2, 3], seed=seed)
    merged = kvcal.merge([tmp_path / "a.h5", tmp_path / "b.h5"], out=tmp_path / "ab.h5")
    codebook = kvcal.Codebook(tmp_path / "ab.h5")
    assert merged["content_sha256"] == codebook.content_sha256 and codebook.calibration.samples == 4
    with pytest.raises(kvcal.UsageError, match="a list of codebooks"):
        kvcal.merge(tmp_path / "a.h5", out=tmp_path / "ab.h5")
    with pytest.raises(kvcal.Error, match="--overwrite"):
        kvcal.merge([tmp_path / "a.h5", tmp_path / "b.h5"], out=tmp_path / "ab.h5")
    (tmp_path / "copy.h5").write_bytes((tmp_path / "a.h5").read_bytes())
    with pytest.warns(UserWarning, match="same tokens"):
        kvcal.merge([tmp_path / "a.h5", tmp_path / "copy.h5"], out=tmp_path / "ab.h5", overwrite=True)
    chosen = kvcal.allocate(tmp_path / "a.h5", bits_per_value=2.75, out=tmp_path / "r.h5")
    assert chosen["bits_per_value"] <= 2.75 and chosen["source"] == "estimated"
    seen = []
    measured = kvcal.allocate(tmp_path / "a.h5", bytes_at=("4K", "2MB"), model=MODEL, text=DEMO / "validate.txt", windows=1, seqlen=64,
                              progress=seen.append)
    assert measured["source"] == "measured" and measured["bytes"] <= 2 * 2**20 and seen
    report = kvcal.validate(MODEL, tmp_path / "r.h5", DEMO / "validate.txt", methods="recipe", windows=1, seqlen=64)
    assert [method["name"] for method in report["methods"]] == ["fp", "recipe"]


def test_a_dry_run_gives_the_plan_and_writes_nothing(tmp_path):
    plan = kvcal.calibrate(MODEL, DEMO / "calibrate.txt", out=tmp_path / "a.h5", dry_run=True, **SMALL)
    assert plan["model"] == "model" and not list(tmp_path.iterdir())


def test_limits_that_are_not_met_are_said_and_not_raised(tmp_path):
    kvcal.calibrate(MODEL, DEMO / "calibrate.txt", out=tmp_path / "a.h5", **SMALL)
    report = kvcal.validate(MODEL, tmp_path / "a.h5", DEMO / "validate.txt", methods="nuq3", windows=1, seqlen=64, max_kld=0)
    assert "nuq3" in {method["name"] for method in report["methods"]}


def test_the_warning_of_a_small_sample_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="the sample is small"):
        kvcal.calibrate(MODEL, DEMO / "calibrate.txt", out=tmp_path / "a.h5", **SMALL)


@pytest.mark.parametrize("options,kind,reason", [
    (dict(model=MODEL), kvcal.UsageError, "--text is missing"),
    (dict(model=MODEL, text="none.txt"), kvcal.Error, "none.txt"),
    (dict(model=MODEL, text=DEMO / "calibrate.txt", bits=9), kvcal.UsageError, "--bits has 9"),
    (dict(model="no/such", text=DEMO / "calibrate.txt"), kvcal.Error, "no/such"),
])
def test_errors_are_of_one_family_with_the_programs_reason(options, kind, reason, tmp_path):
    with pytest.raises(kind, match=reason) as caught:
        kvcal.calibrate(**options, out=tmp_path / "a.h5")
    assert isinstance(caught.value, kvcal.Error) and not str(caught.value).startswith("kvcal: error")


class Stopped(Exception):
    pass


def test_a_callback_that_raises_ends_the_run_and_the_same_call_goes_on(tmp_path):
    options = dict(model=MODEL, text=DEMO / "calibrate.txt", out=tmp_path / "a.h5", samples=8, seqlen=256)

    def stop(event):
        if event.stage == "backward" and event.done > 0:
            raise Stopped

    with pytest.raises(Stopped):
        kvcal.calibrate(**options, progress=stop)
    assert not (tmp_path / "a.h5").exists() and (tmp_path / "a.h5.work").is_dir()
    continued = kvcal.calibrate(**options)
    assert not (tmp_path / "a.h5.work").exists()
    options["out"] = tmp_path / "b.h5"
    assert kvcal.calibrate(**options).content_sha256 == continued.content_sha256


def test_ctrl_c_is_a_keyboard_interrupt_and_leaves_no_process(tmp_path):
    script = textwrap.dedent(f"""
        import sys, kvcal
        try:
            kvcal.calibrate({str(MODEL)!r}, {str(DEMO / "calibrate.txt")!r}, out={str(tmp_path / "a.h5")!r},
                            progress=lambda event: print(event.stage, flush=True))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sys.exit(7)
    """)
    package = str(pathlib.Path(kvcal.__file__).parents[1])
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": package})
    assert process.stdout.readline().strip() == "forward"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 7 and out.splitlines()[-1] == "interrupted"
    time.sleep(0.2)
    running = subprocess.run(["pgrep", "-f", str(tmp_path / "a.h5")], capture_output=True, text=True).stdout
    assert not running
    assert (tmp_path / "a.h5.work").is_dir()
