"""Places that a file cannot be written to, symbolic links where one is written, and two runs at once on one place."""
import errno
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

BIN = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")).resolve() / "bin"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).parents[2])).resolve()
KVCAL, MODEL = BIN / "kvcal", SOURCE / "data" / "model"
TIMEOUT = 120  # seconds; a small run takes less than one
TEXT = " ".join(f"It was number {n} of {n * n} letters that she had read, and none of them was from home." for n in range(900))

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def run(arguments, before=(), **options):
    return subprocess.run([*before, KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT, **options)


def refused(result, *parts):
    """Exit code 1, and one line on standard error, warnings aside, that has all the parts."""
    assert result.returncode == 1, result
    errors = [line for line in result.stderr.splitlines() if not line.startswith("kvcal: warning: ")]
    assert len(errors) == 1 and errors[0].startswith("kvcal: error: "), result.stderr
    for part in parts:
        assert str(part) in errors[0]


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def calibration(inputs, out, *more, samples=2, seqlen=64, bits="2"):
    return ["calibrate", "-q", "-m", MODEL, "-f", inputs / "text.txt", "-o", out, "--samples", samples, "--seqlen", seqlen, "--bits",
            bits, "--outliers", 0, *more]


def commands(inputs, folder):
    """Each command that writes files, all of them into one folder."""
    book = inputs / "a.h5"
    reports = ["--json", folder / "r.json", "--html", folder / "r.html"]
    return {
        "calibrate": calibration(inputs, folder / "new.h5"),
        "calibrate --json": calibration(inputs, inputs / "a.h5", "--json", folder / "r.json"),
        "validate": ["validate", "-q", "-m", MODEL, "-c", book, "-f", inputs / "text.txt", "--seqlen", 64, "--windows", 2, *reports],
        "inspect": ["inspect", book, *reports],
        "export of a file": ["export", book, "--format", "safetensors", "-o", folder / "new.safetensors"],
        "export of a folder": ["export", book, "--format", "compressed-tensors", "-m", MODEL, "-o", folder / "served"],
    }


def on_file_system(folder, options, then='exec "$@"'):
    """What to put before a command so that it sees a file system of its own mounted on the folder, which goes with it."""
    mount = ["unshare", "-m" if os.geteuid() == 0 else "-Urm", "sh", "-c", f'mount -t tmpfs -o {options} none "$0" && {{ {then}; }}',
             str(folder)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    return mount


COMMANDS = list(commands(pathlib.Path(), pathlib.Path()))


@pytest.fixture(scope="module")
def inputs():
    """Readable by all: a text and its codebook."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvcal-places-"))
    folder.chmod(0o755)
    (folder / "text.txt").write_text(TEXT)
    result = run(calibration(folder, folder / "a.h5"))
    assert result.returncode == 0, result.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def place(inputs):
    """An empty folder below one that all may enter, as pytest's are not."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="place-", dir=inputs))
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_to(inputs, place, name):
    options = {}
    if os.geteuid() == 0:
        options = {"user": 65534, "group": 65534, "extra_groups": []}  # modes do not hold root back
        try:
            usable = run(["--version"], **options).returncode == 0
        except OSError:
            usable = False
        if not usable:
            pytest.skip("runs as root, and no other user may run the program")
    place.chmod(0o555)
    refused(run(commands(inputs, place)[name], **options), place, os.strerror(errno.EACCES))
    assert tree(place) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_system_that_cannot_be_written_to(inputs, place, name):
    before = on_file_system(place, "ro")
    refused(run(commands(inputs, place)[name], before=before), place, os.strerror(errno.EROFS))


def test_a_work_folder_on_a_file_system_that_cannot_be_written_to(inputs, place):
    (place / "disk").mkdir()
    before = on_file_system(place / "disk", "ro")
    refused(run(calibration(inputs, place / "a.h5", "--work", place / "disk" / "work"), before=before), place / "disk",
            os.strerror(errno.EROFS))
    refused(run(calibration(inputs, place / "a.h5", "--work", place / "disk"), before=before), place / "disk",
            os.strerror(errno.EROFS))
    assert tree(place) == ["disk"]


def test_a_disk_that_is_too_small(inputs, place):
    """Here it is the codebook that does not fit; its work lies elsewhere."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="work-", dir=inputs))
    before = on_file_system(place, "size=128k", 'code=0; "$@" || code=$?; [ -z "$(ls -A "$0")" ] || exit 98; exit $code')
    refused(run(calibration(inputs, place / "a.h5", "--work", work / "w"), before=before), place / "a.h5",
            os.strerror(errno.ENOSPC), "run the same command again")
    assert run(calibration(inputs, work / "a.h5", "--work", work / "w")).returncode == 0
    assert tree(work) == ["a.h5"] and (work / "a.h5").read_bytes() == (inputs / "a.h5").read_bytes()


# A link is followed, as the shell's > and cp do: what it points to gets the content, and the link stays.
def link_to(place, target, name):
    (place / "far").mkdir(exist_ok=True)
    (place / name).symlink_to(target)
    return place / name


@pytest.mark.parametrize("target", ["far/real.h5", "far/../far/real.h5"])
def test_out_as_a_link_to_nothing_yet(inputs, place, target):
    link = link_to(place, target, "a.h5")
    assert run(calibration(inputs, link)).returncode == 0
    assert link.is_symlink() and (place / "far" / "real.h5").read_bytes() == (inputs / "a.h5").read_bytes()
    assert tree(place) == ["a.h5", "far", "far/real.h5"]
    again = run([one for one in calibration(inputs, link) if one != "-q"])
    assert again.returncode == 0 and "nothing was done" in again.stdout


def test_out_as_a_link_to_a_file(inputs, place):
    link = link_to(place, "far/real.h5", "a.h5")
    (place / "far" / "real.h5").write_text("somebody's")
    refused(run(calibration(inputs, link)), link, "--overwrite")
    assert (place / "far" / "real.h5").read_text() == "somebody's"
    assert run(calibration(inputs, link, "--overwrite")).returncode == 0
    assert link.is_symlink() and (place / "far" / "real.h5").read_bytes() == (inputs / "a.h5").read_bytes()
    assert tree(place) == ["a.h5", "far", "far/real.h5"]


def test_out_as_a_link_into_a_folder_that_is_not_there(inputs, place):
    link = link_to(place, "nowhere/real.h5", "a.h5")
    refused(run(calibration(inputs, link)), "does not exist")
    assert link.is_symlink() and tree(place) == ["a.h5", "far"]


def test_out_as_a_link_to_itself(inputs, place):
    link = link_to(place, "a.h5", "a.h5")
    refused(run(calibration(inputs, link)), link)
    assert link.is_symlink() and tree(place) == ["a.h5", "far"]


def test_out_as_a_link_to_an_input(inputs, place):
    link = link_to(place, inputs / "text.txt", "a.h5")
    result = run(calibration(inputs, link, "--overwrite"))
    assert result.returncode in (1, 2) and "calibration text" in result.stderr
    assert (inputs / "text.txt").read_text() == TEXT


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_as_a_link(inputs, place, option, there):
    link = link_to(place, "far/report", "r")
    if there:
        (place / "far" / "report").write_text("of another run")
    assert run(["inspect", inputs / "a.h5", option, link]).returncode == 0
    assert link.is_symlink() and tree(place) == ["far", "far/report", "r"]
    text = (place / "far" / "report").read_text()
    assert json.loads(text) if option == "--json" else text.rstrip().endswith("</html>")


@pytest.mark.parametrize("form", ["safetensors", "compressed-tensors"])
@pytest.mark.parametrize("there", [False, True])
def test_an_export_makes_a_name_and_refuses_a_link(inputs, place, form, there):
    link = link_to(place, "far/real", "e")
    if there:
        (place / "far" / "real").write_text("somebody's")
    refused(run(["export", inputs / "a.h5", "--format", form, "-m", MODEL, "-o", link]), link, "exists")
    assert link.is_symlink() and tree(place) == (["e", "far", "far/real"] if there else ["e", "far"])


class Long:
    """A calibration that takes some seconds, from the moment its work folder is there."""

    def __init__(self, inputs, out, work, *more):
        self.arguments = [KVCAL, *map(str, calibration(inputs, out, "--work", work, *more, samples=16, seqlen=512))]
        self.process = subprocess.Popen(self.arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + TIMEOUT
        while not (work / "run.json").exists() and self.process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        assert (work / "run.json").exists(), "the run ended, or did not begin"

    def end(self):
        _, errors = self.process.communicate(timeout=TIMEOUT * 3)
        return self.process.returncode, errors


@pytest.mark.parametrize("other_out", [False, True])
def test_two_runs_on_one_work_folder(inputs, place, other_out):
    first = Long(inputs, place / "a.h5", place / "work")
    second = run(calibration(inputs, place / ("b.h5" if other_out else "a.h5"), "--work", place / "work", samples=16, seqlen=512))
    still_running = first.process.poll() is None
    code, errors = first.end()
    assert code == 0, errors
    if not still_running:
        pytest.skip("the first run had ended before the second was refused")
    refused(second, place / "work", "in use by another run")
    assert tree(place) == ["a.h5"] and run(["inspect", place / "a.h5"]).returncode == 0


def test_two_runs_of_other_options_on_one_work_folder(inputs, place):
    first = Long(inputs, place / "a.h5", place / "work")
    second = run(calibration(inputs, place / "b.h5", "--work", place / "work"))
    still_running = first.process.poll() is None
    code, errors = first.end()
    assert code == 0, errors
    if still_running:
        refused(second, place / "work", "in use by another run")
        assert tree(place) == ["a.h5"]


def test_two_runs_on_one_out(inputs, place):
    """Which of two that began when there was none comes second does not replace what the first has made."""
    first = Long(inputs, place / "a.h5", place / "work1")
    second = run(calibration(inputs, place / "a.h5", "--work", place / "work2"))  # much shorter
    made_first = first.process.poll() is None
    assert second.returncode == 0, second.stderr
    content = (place / "a.h5").read_bytes()
    code, errors = first.end()
    if not made_first:
        pytest.skip("the longer run had ended before the short one")
    assert (place / "a.h5").read_bytes() == content
    assert code == 1 and "result of another run" in errors and "--out" in errors, errors
    # Nothing of it is lost: it ends at once under another name.
    assert tree(place)[:2] == ["a.h5", "work1"]
    assert run(calibration(inputs, place / "b.h5", "--work", place / "work1", samples=16, seqlen=512)).returncode == 0
    assert tree(place) == ["a.h5", "b.h5"]


def test_two_equal_runs_on_one_out(inputs, place):
    first = Long(inputs, place / "a.h5", place / "work1")
    second = Long(inputs, place / "a.h5", place / "work2")
    for one in (first, second):
        code, errors = one.end()
        assert code == 0, errors
    assert tree(place) == ["a.h5"] and run(["inspect", place / "a.h5"]).returncode == 0
