"""A full disk at each kind of write of `kvcal calibrate`: one line that says which file, nothing half made left, and the same
command goes on once there is space.

Disks are tmpfs that a test mounts, which takes root. A run is stopped (SIGSTOP) while it is early, the disk is filled by a
ballast but for what the files up to the one in question take, and the run goes on: so which write fails is no matter of time."""

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

BUILD = Path(os.environ["KVCAL_BUILD"])
SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).parents[2]))
KVCAL = BUILD / "bin" / "kvcal"
BUNDLED = SOURCE / "data" / "model"
VOCAB, LAYERS, HIDDEN = 4096, 5, 256
PAGE = os.sysconf("SC_PAGESIZE")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")


def pages(size):
    """What a file of so many bytes takes of a tmpfs."""
    return (size + PAGE - 1) // PAGE * PAGE


class Sample:
    """Tokens, the options of a run on them, and the codebook that an undisturbed run gives."""

    def __init__(self, folder, samples, seqlen, *more):
        folder.mkdir()
        self.tokens = folder / "tokens.npy"
        np.save(self.tokens, np.random.default_rng(2).integers(3, VOCAB, size=(samples, seqlen)).astype(np.int32))
        self.more = more
        self.activation = pages(samples * seqlen * HIDDEN * 4 + samples * 8)
        out = folder / "undisturbed.h5"
        expect_done(self.run(out))
        self.codebook = out.read_bytes()

    def command(self, out, *more):
        return [str(part) for part in (KVCAL, "calibrate", "--model", BUNDLED, "--tokens", self.tokens, "--out", out,
                                       "--threads", 2, "--dtype", "float32", *self.more, *more)]

    def run(self, out, *more):
        return subprocess.run(self.command(out, *more), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return Sample(tmp_path_factory.mktemp("full_disk") / "sample", 4, 128)


@pytest.fixture(scope="module")
def small_sample(tmp_path_factory):
    """One whose layer files are larger than its hidden states, and that takes no gradients."""
    fractions = ",".join(f"{i / 100:g}" for i in range(12))
    return Sample(tmp_path_factory.mktemp("full_disk") / "small", 2, 12, "--sensitivity", "none", "--outliers", fractions)


class Disk:
    """A tmpfs."""

    def __init__(self, folder, **options):
        self.path = folder
        folder.mkdir()
        text = ",".join(f"{name}={value}" for name, value in options.items())
        result = subprocess.run(["mount", "-t", "tmpfs", "-o", text, "tmpfs", folder], capture_output=True, text=True)
        assert result.returncode == 0, f"as root, a tmpfs can be mounted: {result.stderr}"

    def unmount(self):
        subprocess.run(["umount", "-l", self.path], check=True)

    def used(self):
        status = os.statvfs(self.path)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def free(self):
        status = os.statvfs(self.path)
        return status.f_bfree * status.f_frsize

    def fill(self, leave=0):
        """Takes all but so many bytes."""
        with open(self.path / "ballast", "wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, self.free() - leave)
        assert self.free() == leave

    def empty(self):
        (self.path / "ballast").unlink()

    def allow_files(self, count):
        subprocess.run(["mount", "-o", f"remount,nr_inodes={count}", self.path], check=True)


@contextlib.contextmanager
def disk(folder, **options):
    made = Disk(folder, **options)
    try:
        yield made
    finally:
        made.unmount()


def expect_done(result):
    assert result.returncode == 0, result.stderr


def expect_full(code, errors, name):
    """Exit 1 and one line, which names a file (a regular expression) and says that there is no space."""
    assert code == 1, errors
    lines = [line for line in errors.splitlines() if "error" in line]
    assert len(lines) == 1, errors
    assert re.search(name, lines[0]), f"{name} is not in {lines[0]!r}"
    assert "space" in lines[0].lower(), lines[0]
    assert "run the same command again" in lines[0], lines[0]


def expect_no_half_files(*folders):
    left = [path for folder in folders for path in folder.rglob("*.tmp")]
    assert left == []


def stop(process):
    """Returns once the process is stopped, or has ended."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)


def run_on_a_disk_with_room(run, disk, out, room):
    """Runs with the work folder on the disk, where after run.json there is room for so many bytes in all. Returns the exit code
    and what it said."""
    work = disk.path / "work"
    # A run that gets beyond that before it is stopped is made again from its beginning.
    for _ in range(50):
        process = subprocess.Popen(run.command(out, "--work", work), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   text=True)
        try:
            while not (work / "run.json").exists() and process.poll() is None:
                time.sleep(0.0002)
            stop(process)
            if process.poll() is None:
                wanted = pages((work / "lock").stat().st_size) + pages((work / "run.json").stat().st_size) + room
                if disk.used() <= wanted:
                    disk.fill(leave=wanted - disk.used())
                    process.send_signal(signal.SIGCONT)
                    _, errors = process.communicate(timeout=120)
                    return process.returncode, errors
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stderr.close()
        for path in [*work.iterdir()] if work.exists() else []:
            path.unlink()
        out.unlink(missing_ok=True)
    raise AssertionError("the run was too quick to be stopped, 50 times")


def check_work_folder(run, tmp_path, room, name):
    """A run whose work folder has room for `room` bytes after run.json fails at the file `name`, and goes on later."""
    out = tmp_path / "out.h5"
    with disk(tmp_path / "disk", size="256m") as small:
        code, errors = run_on_a_disk_with_room(run, small, out, room)
        expect_full(code, errors, f"{re.escape(str(small.path / 'work'))}/{name}:")
        assert not out.exists()
        expect_no_half_files(tmp_path)
        before = {path.name for path in (small.path / "work").iterdir()}
        assert "run.json" in before and name not in before
        small.empty()
        expect_done(run.run(out, "--work", small.path / "work"))
        assert out.read_bytes() == run.codebook
        expect_no_half_files(tmp_path)
        assert not (small.path / "work").exists()


def test_hidden_states(sample, tmp_path):
    # The fourth file is half written when the disk is full.
    check_work_folder(sample, tmp_path, 3 * sample.activation + pages(sample.activation // 2), "hidden_0003.bin")


def test_hidden_states_of_which_not_one_byte_fits(sample, tmp_path):
    check_work_folder(sample, tmp_path, 4 * sample.activation, "hidden_0004.bin")


def test_gradient(sample, tmp_path):
    # All hidden states are kept until the losses are written.
    room = (LAYERS + 1) * sample.activation + pages(sample.activation // 2)
    check_work_folder(sample, tmp_path, room, "gradient_0005.bin")


def test_losses(sample, tmp_path):
    check_work_folder(sample, tmp_path, (LAYERS + 2) * sample.activation, "head.json")


def test_layer(small_sample, tmp_path):
    # The losses take a page; then the head's hidden states go, and what they took is not enough for a layer.
    check_work_folder(small_sample, tmp_path, (LAYERS + 1) * small_sample.activation + PAGE, "layer_0004.h5")


# How many files the disk may hold, its root among them: the folder, the lock and the identity are the first.
@pytest.mark.parametrize("files,name", [(1, "work"), (2, "work/lock"), (3, "work/run.json")], ids=["folder", "lock", "run.json"])
def test_the_first_files_of_the_work_folder(sample, tmp_path, files, name):
    out = tmp_path / "out.h5"
    with disk(tmp_path / "disk", size="256m", nr_inodes=files) as small:
        work = small.path / "work"
        result = sample.run(out, "--work", work)
        expect_full(result.returncode, result.stderr, f"{re.escape(str(small.path / name))}:")
        assert not out.exists()
        expect_no_half_files(tmp_path)
        small.allow_files(1000)
        expect_done(sample.run(out, "--work", work))
        assert out.read_bytes() == sample.codebook
        expect_no_half_files(tmp_path)
        assert not work.exists()


def test_codebook(sample, tmp_path):
    with disk(tmp_path / "disk", size="1m") as full:
        out, work = full.path / "out.h5", tmp_path / "work"
        full.fill()
        result = sample.run(out, "--work", work)
        expect_full(result.returncode, result.stderr, f"{re.escape(str(out))}:")
        assert [path.name for path in full.path.iterdir()] == ["ballast"]
        # Nothing but the writing is left to do.
        assert len(list(work.glob("layer_*.h5"))) == LAYERS
        expect_no_half_files(tmp_path)
        full.empty()
        expect_done(sample.run(out, "--work", work))
        assert out.read_bytes() == sample.codebook
        assert not work.exists()
        expect_no_half_files(tmp_path)


def test_a_page_less_than_the_codebook(sample, tmp_path):
    with disk(tmp_path / "disk", size="1m") as full:
        out, work = full.path / "out.h5", tmp_path / "work"
        full.fill(leave=pages(len(sample.codebook)) - PAGE)
        result = sample.run(out, "--work", work)
        expect_full(result.returncode, result.stderr, f"{re.escape(str(out))}:")
        assert [path.name for path in full.path.iterdir()] == ["ballast"]
        full.empty()
        expect_done(sample.run(out, "--work", work))
        assert out.read_bytes() == sample.codebook


def test_report(sample, tmp_path):
    with disk(tmp_path / "disk", size="1m") as full:
        out, report = tmp_path / "out.h5", full.path / "report.json"
        full.fill()
        result = sample.run(out, "--json", report)
        expect_full(result.returncode, result.stderr, f"{re.escape(str(report))}:")
        assert [path.name for path in full.path.iterdir()] == ["ballast"]
        # What took the time is there.
        assert out.read_bytes() == sample.codebook
        expect_no_half_files(tmp_path)
        full.empty()
        expect_done(sample.run(out, "--json", report))
        assert report.stat().st_size > 0
        assert out.read_bytes() == sample.codebook
