"""tests/cuda/device_check.py where there is no GPU: what it would run is there, and without a device it says why."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).resolve().parents[2]))
BUILD = Path(os.environ.get("KVCAL_BUILD", SOURCE / "build/release"))
if not (BUILD / "bin/test_cuda").is_file():
    pytest.skip(f"{BUILD}/bin/test_cuda was not built", allow_module_level=True)


def device_check(*arguments, build=BUILD, path=None):
    environment = {name: value for name, value in os.environ.items() if name != "KVCAL_TEST_DEVICE"}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run([sys.executable, SOURCE / "tests/cuda/device_check.py", "--build", build, *arguments], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, timeout=300)


def is_cuda_build():
    return "KVCAL_CUDA:BOOL=ON" in (BUILD / "CMakeCache.txt").read_text(encoding="utf-8")


def test_a_dry_run_finds_all_that_it_would_run():
    done = device_check("--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for step in ("device", "tests", "memcheck", "racecheck", "synccheck", "torch", "benchmark"):
        assert f"\n{step}: " in "\n" + done.stdout
    assert "--tool racecheck --error-exitcode 9" in done.stdout
    assert "--require-append 0.60 --require-dequantise 0.80" in done.stdout
    if not is_cuda_build():
        assert "not built: needs KVCAL_CUDA" in done.stdout


def test_a_dry_run_says_that_there_is_no_sanitizer(tmp_path):
    done = device_check("--dry-run", path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("there is no compute-sanitizer on PATH or beside nvcc") == 3  # memcheck, racecheck, synccheck


def test_a_dry_run_of_a_build_that_is_not_there_fails(tmp_path):
    done = device_check("--dry-run", build=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path.resolve()}/bin/test_cuda was not built" in done.stderr


def test_where_nothing_was_built_no_device_is_missed(tmp_path):
    done = device_check("--out", tmp_path / "page.md", build=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == f"device_check.py: {tmp_path.resolve()}/bin/test_cuda was not built\n"
    assert not list(tmp_path.iterdir())


def test_without_a_device_it_says_why_and_writes_no_page(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides one that is there
    done = device_check("--out", tmp_path / "page.md", "--json", tmp_path / "page.json")
    assert done.returncode == 4, done.stdout + done.stderr
    reason = "no CUDA device can be used" if is_cuda_build() else "this build has no CUDA kernels"
    assert f"no device: kvcal_device_status: {reason}" in done.stderr
    assert not list(tmp_path.iterdir())


PROGRAM = """#!/bin/sh
for word in "$@"; do
  case "$word" in *TheDeviceThatTestsAskForIsThere) echo '[  PASSED  ] 1 test.'; exit 0;; esac
done
{body}
"""


@pytest.mark.parametrize("tests,bench,status,says", [
    ("echo '[  PASSED  ] 57 tests.'", "echo '| append | 61 % |'", 1, "not done: left out by --skip-sanitizer"),
    ("echo '[  FAILED  ] a test'; exit 1", "exit 3", 1, "| tests | failed | 1 |"),
    ("echo '[  PASSED  ] 0 tests.'", "exit 0", 1, "failed: no test was run"),
    ("echo '[  PASSED  ] 57 tests.'", "echo below; exit 3", 1, "| benchmark | below what is required | 3 |"),
])
def test_the_page_tells_of_every_step(tmp_path, tests, bench, status, says):
    """With programs that stand in for those of a machine with a GPU."""
    write_programs(tmp_path, tests, bench)
    done = device_check("--skip-sanitizer", "--out", tmp_path / "page.md", "--json", tmp_path / "page.json", build=tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert says in page and "| torch | left out: " in page
    assert '"steps"' in (tmp_path / "page.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("bench,summary,status", [("exit 0", "0 errors", 0), ("echo below; exit 3", "0 errors", 3), ("exit 1", "0 errors", 1),
                                                  ("exit 0", "2 errors", 1)])
def test_the_exit_status_is_0_where_all_was_done_and_passed(tmp_path, bench, summary, status):
    write_programs(tmp_path, "echo '[  PASSED  ] 57 tests.'", bench)
    tools = tmp_path / "tools"
    tools.mkdir()
    sanitizer = tools / "compute-sanitizer"
    sanitizer.write_text(f"""#!/bin/sh
echo '========= ERROR SUMMARY: {summary}'
echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'
shift 4
exec "$@"
""", encoding="utf-8")
    sanitizer.chmod(0o755)
    done = device_check("--out", tmp_path / "page.md", build=tmp_path, path=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == status, done.stdout + done.stderr


def write_programs(folder, tests, bench):
    (folder / "bin").mkdir()
    for name, body in (("test_cuda", tests), ("kernels_bench", bench)):
        program = folder / "bin" / name
        program.write_text(PROGRAM.format(body=body), encoding="utf-8")
        program.chmod(0o755)
