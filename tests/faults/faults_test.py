"""Disks that fill up or die, folders that cannot be written to, links, and two runs at once.

As SQLite is tested: fail_nth.cpp, preloaded, lets the nth write, sync, rename, open, map, ... of a small run fail, for every n (of
many of a kind the first and last five and every 25th between; with KVCAL_EXHAUSTIVE=1 the first and last 40 and every 5th; of kinds
and commands beside, every third or fourth). A run may then end with 1 and one line that names the file
and the system's reason, or it survived. What is there under a final name is whole and right either way, nothing lies about, and
the same command without faults ends with 0 and the bytes of an undisturbed run. Never a signal, a hang or a wrong file.
"""
import concurrent.futures
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

BIN = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")).resolve() / "bin"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).parents[2])).resolve()
KVCAL, FAIL_NTH = BIN / "kvcal", BIN / "kvcal_fail_nth.so"
MODEL = SOURCE / "data" / "model"

if not (KVCAL.exists() and FAIL_NTH.exists()):
    pytest.skip(f"no program and no kvcal_fail_nth.so in {BIN}: build them and set KVCAL_BUILD", allow_module_level=True)

SIDE_BY_SIDE = 2
TIMEOUT = 60  # seconds: a run takes less than one
TEXT = " ".join(f"It was number {n} of {n * n} letters that she had read, and none of them was from home." for n in range(200))

# One system error for odd n and one for even n.
ERRORS = {
    "open": ("EMFILE", "EIO"), "read": ("EIO", "EIO"), "write": ("ENOSPC", "EIO"), "short_write": (None, None),
    "sync": ("EIO", "ENOSPC"), "truncate": ("ENOSPC", "EIO"), "rename": ("ENOSPC", "EIO"), "link": ("ENOSPC", "EIO"),
    "unlink": ("EIO", "EACCES"), "mkdir": ("ENOSPC", "EIO"), "map": ("ENOMEM", "EIO"), "lock": ("ENOLCK", "EIO"),
    "close": ("EIO", "ENOSPC"),
}
KINDS = list(ERRORS)


def run(arguments, **options):
    environment = {**os.environ, **options.pop("environment", {})}
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT, env=environment,
                          **options)


def run_with_fault(arguments, under, notes, fault=""):
    """The result, the faults (kind, path) that came to pass, and how often each kind was called."""
    notes.unlink(missing_ok=True)
    result = run(arguments, environment={"LD_PRELOAD": str(FAIL_NTH), "KVCAL_FAULT": fault, "KVCAL_FAULT_UNDER": str(under),
                                         "KVCAL_FAULT_COUNT": str(notes)})
    faults, counts = [], {}
    for line in notes.read_text().splitlines() if notes.exists() else []:
        first, rest = line.split(" ", 1)
        if first == "fault":
            faults.append(tuple(rest.split(" ", 1)))
        else:
            counts[first] = int(rest)
    return result, faults, counts


def chosen(count):
    """Which of 1 to count: the first and the last, and some of those between."""
    ends, between = (40, 5) if os.environ.get("KVCAL_EXHAUSTIVE") else (5, 25)
    return [n for n in range(1, count + 1) if n <= ends or n > count - ends or n % between == 0]


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def final_name(path):
    """What a file under a temporary name is to be called."""
    path = pathlib.Path(path)
    unfinished = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.tmp", path.name)
    return unfinished[1] if unfinished else path.name


def whole_json(path):
    json.loads(path.read_text())


def whole_page(path):
    assert path.read_text().rstrip().endswith("</html>")


class Job:
    """A command that writes below one folder, run anew with each fault in a folder of its own."""

    def __init__(self, place, arguments, outputs, template=None, old="", repeatable=True):
        """arguments(folder); outputs: name -> a check of its path, or None where its bytes are those of an undisturbed run.

        template: a folder that each run's starts as. old: what the outputs hold before. repeatable: the command takes it that its
        outputs are there already."""
        self.place, self.arguments, self.outputs, self.template, self.old = place, arguments, outputs, template, old
        self.repeatable = repeatable
        place.mkdir()
        folder = self.folder("count")
        result, _, self.counts = run_with_fault(arguments(folder), folder, place / "count.txt")
        assert result.returncode == 0, result.stderr
        self.counts["short_write"] = self.counts["write"]
        self.left = tree(folder)
        self.digests = {name: digest(folder / name) for name, check in outputs.items() if check is None}
        for name in outputs:
            self.check_whole(folder, name)

    def folder(self, name):
        folder = self.place / name
        if self.template:
            shutil.copytree(self.template, folder)
        else:
            folder.mkdir()
        if self.old:
            for output in self.outputs:
                (folder / output).write_text(self.old)
        return folder

    def check_whole(self, folder, name):
        if self.outputs[name] is None:
            assert digest(folder / name) == self.digests[name], f"{name} is another than without the fault"
        else:
            self.outputs[name](folder / name)

    def attempt(self, kind, fault, under=None):
        """Runs with the fault, then without. Throws AssertionError."""
        name = fault.replace(":", "-").replace("+", "-on")
        folder = self.folder(name)
        result, faults, _ = run_with_fault(self.arguments(folder), under or folder, self.place / (name + ".txt"), fault)
        survived = result.returncode == 0
        if not survived:
            assert result.returncode == 1, f"ended with {result.returncode}: {result.stderr[-500:]}"
            errors = [line for line in result.stderr.splitlines() if not line.startswith("kvcal: warning: ")]
            assert len(errors) == 1 and errors[0].startswith("kvcal: error: "), f"not one line: {result.stderr[-500:]!r}"
            assert faults, f"failed without a fault: {errors[0]}"
            expected = fault.rstrip("+").split(":")[2] if kind != "short_write" else None
            reason = os.strerror(getattr(errno, expected)) if expected else ""
            assert reason in errors[0], f"does not give the reason, {reason}, of {faults[0]}: {errors[0]}"
            assert any(final_name(path) in errors[0] for _, path in faults), f"does not name {faults[0][1]}: {errors[0]}"
        for output in self.outputs:
            path = folder / output
            if survived or (path.exists() and not (self.old and path.read_text(errors="replace") == self.old)):
                assert path.exists(), f"ended with 0 without {output}; the fault was {faults}"
                self.check_whole(folder, output)
        # What cannot be removed stays.
        if kind != "unlink":
            lying_about = [left for left in tree(folder) if left.endswith(".tmp")]
            assert not lying_about, f"left {lying_about} after {faults}"
            # Nor what cannot be listed.
            unlisted = any(call == "open" and pathlib.Path(path).is_dir() for call, path in faults)
            assert not survived or unlisted or tree(folder) == self.left, f"left {tree(folder)} after {faults}"
        if not self.repeatable and all((folder / output).exists() for output in self.outputs):
            shutil.rmtree(folder)
            return
        again = run(self.arguments(folder))
        assert again.returncode == 0, f"the same command again: {again.stderr[-500:]}; the fault was {faults}"
        for output in self.outputs:
            self.check_whole(folder, output)
        # An empty folder that could not be removed tells nobody whose it is.
        emptied = [pathlib.Path(path).name for call, path in faults if call == "unlink" and pathlib.Path(path).is_dir()]
        assert tree(folder) == sorted([*self.left, *emptied]), f"left {tree(folder)} after the same command again; the fault was {faults}"
        shutil.rmtree(folder)

    def attempt_all(self, kind, faults, under=None):
        def attempt(fault):
            try:
                self.attempt(kind, fault, under)
            except (AssertionError, subprocess.TimeoutExpired, OSError, ValueError) as error:
                return f"{fault}: {error}"
            return None
        with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            wrong = [one for one in pool.map(attempt, faults) if one]
        assert not wrong, f"{len(wrong)} of {len(faults)} faults:\n" + "\n".join(wrong)

    def try_kind(self, kind, every=1, under=None, count=None):
        """Each nth call of the kind, or every `every`th of those, and the last."""
        numbers = chosen(self.counts[kind] if count is None else count)
        numbers = sorted({*numbers[::every], *numbers[-1:]})
        if not numbers:
            pytest.skip(f"makes no call of the kind {kind}")
        errors = ERRORS[kind]
        self.attempt_all(kind, [f"{kind}:{n}" + (f":{errors[(n - 1) % 2]}" if errors[0] else "") for n in numbers], under)


def calibration(text, out, *more, samples=2, seqlen=64):
    return ["calibrate", "-q", "-m", MODEL, "-f", text, "-o", out, "--samples", samples, "--seqlen", seqlen, "--bits", 2,
            "--outliers", 0, *more]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with the text, the model as files of its own, and a codebook."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "text.txt").write_text(TEXT)
    shutil.copytree(MODEL, folder / "model")
    result = run(calibration(folder / "text.txt", folder / "a.h5"))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def calibrate(inputs, tmp_path_factory):
    return Job(tmp_path_factory.mktemp("calibrate") / "runs",
               lambda folder: calibration(inputs / "text.txt", folder / "a.h5", "--work", folder / "work", "--json",
                                          folder / "r.json"),
               {"a.h5": None, "r.json": whole_json})


@pytest.fixture(scope="module")
def resumed(inputs, calibrate, tmp_path_factory):
    """The same from what a run left whose disk filled up for good near the end of the backward pass."""
    place = tmp_path_factory.mktemp("resumed")
    template = place / "template"
    template.mkdir()
    # All but the last of the layers, the codebook and the report.
    nth = calibrate.counts["rename"] - 3
    result, _, _ = run_with_fault(calibrate.arguments(template), template, place / "notes.txt", f"rename:{nth}:ENOSPC+")
    assert result.returncode == 1 and list((template / "work").glob("layer_*.h5")), result
    return Job(place / "runs", calibrate.arguments, calibrate.outputs, template)


@pytest.fixture(scope="module")
def validate(inputs, tmp_path_factory):
    # Of which the text's hidden states do not fit, so that a scratch file is needed, too.
    return Job(tmp_path_factory.mktemp("validate") / "runs",
               lambda folder: ["validate", "-q", "-m", MODEL, "-c", inputs / "a.h5", "-f", inputs / "text.txt", "--seqlen", 64,
                               "--windows", 2, "--methods", "fp,nuq2", "--work", folder, "--json", folder / "r.json", "--html",
                               folder / "r.html"],
               {"r.json": whole_json, "r.html": whole_page}, old="of another run")


@pytest.fixture(scope="module")
def exports(inputs, tmp_path_factory):
    place = tmp_path_factory.mktemp("exports")
    return {
        "safetensors": Job(place / "safetensors",
                           lambda folder: ["export", inputs / "a.h5", "--format", "safetensors", "-o", folder / "a.safetensors"],
                           {"a.safetensors": None}, repeatable=False),
        # A folder; --copy: the model's files are written, too.
        "compressed-tensors": Job(place / "compressed-tensors",
                                  lambda folder: ["export", inputs / "a.h5", "--format", "compressed-tensors", "-m", MODEL, "--copy",
                                                  "-o", folder / "served"],
                                  {f"served/{name}": None for name in ("config.json", "kvcal-kv-scales.safetensors", "model-00001-of-00001.safetensors")},
                                  repeatable=False),
    }


@pytest.fixture(scope="module")
def inspect(inputs, tmp_path_factory):
    return Job(tmp_path_factory.mktemp("inspect") / "runs",
               lambda folder: ["inspect", inputs / "a.h5", "--json", folder / "r.json", "--html", folder / "r.html"],
               {"r.json": whole_json, "r.html": whole_page}, old="of another run")


@pytest.mark.parametrize("kind", KINDS)
def test_calibrate(calibrate, kind):
    calibrate.try_kind(kind, every=1 if kind in ("write", "sync", "rename", "open") else 3)


@pytest.mark.parametrize("fault", ["write:{}:ENOSPC+", "sync:{}:EIO+", "open:{}:EMFILE+", "rename:{}:EIO+"])
def test_calibrate_on_a_disk_that_stays_broken(calibrate, fault):
    kind = fault.split(":")[0]
    calibrate.attempt_all(kind, [fault.format(n) for n in range(1, calibrate.counts[kind] + 1, 7)])


@pytest.mark.parametrize("kind", ["open", "read", "write", "rename", "unlink"])
def test_a_run_that_goes_on(resumed, kind):
    resumed.try_kind(kind, every=4)


@pytest.mark.parametrize("kind", ["open", "read", "map"])
def test_inputs_that_cannot_be_read(inputs, tmp_path, kind):
    def arguments(folder):
        one = calibration(inputs / "text.txt", folder / "a.h5", "--work", folder / "work")
        one[one.index(MODEL)] = inputs / "model"
        return one
    job = Job(tmp_path / "runs", arguments, {"a.h5": None})
    _, _, counts = run_with_fault(arguments(job.folder("inputs")), inputs, tmp_path / "notes.txt")
    job.try_kind(kind, under=inputs, count=counts[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_validate(validate, kind):
    validate.try_kind(kind, every=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["safetensors", "compressed-tensors"])
def test_export(exports, form, kind):
    exports[form].try_kind(kind, every=4)


@pytest.mark.parametrize("kind", KINDS)
def test_inspect(inspect, kind):
    inspect.try_kind(kind, every=3)
