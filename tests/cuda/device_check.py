#!/usr/bin/env python3
"""The whole test of the kernels on a machine with a GPU, and the page that tells of it.

    tests/cuda/device_check.py [--build build/cuda] [--out FILE.md] [--json FILE] [--skip-sanitizer] [--dry-run]

Needs test_cuda and kernels_bench of a build with KVCAL_CUDA, nothing else of Python's than 3.10, and no network:

    cmake --preset cuda -DKVCAL_PROGRAM=OFF && cmake --build --preset cuda --target test_cuda kernels_bench

Steps, each with its command, exit status and seconds in the page:
  device       there is one that the kernels can use
  tests        all tests of the kernels with KVCAL_TEST_DEVICE=cuda: bytes and numbers are the CPU codec's, bit by bit
  memcheck     compute-sanitizer: each kernel x bits x head_dim at least once, no access that is out of bounds
  racecheck    the same; no hazard in shared memory
  synccheck    the same; no barrier that is used wrongly
  torch        torch.ops.kvcal on CUDA tensors; optional: left out where there is no torch with CUDA, or the operators were not built
  benchmark    rates of append and dequantise, and the shares of the copy's bandwidth that the project requires

The page (--out, default device_check.md in the build folder) is written however the steps end, --json's file too; where there is
no device, or test_cuda was not built, neither. --dry-run runs nothing on a device: it checks that each program is there and that
its filters match tests, and prints the commands.

Exit status: 0 all was done and passed (--dry-run: could be done); 1 something failed or was not done; 2 usage; 3 only shares of
the copy's bandwidth are below what is required; 4 no device.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
DEVICE_TEST = "KernelsOf.TheDeviceThatTestsAskForIsThere"
TESTS = "*/Kernels.*:KernelsOf.*:*/KernelsFuzz.*:KernelsFuzzOf.*:CApiData.*"
# A prompt of a few pages is appended and read back in three types, whatever pages hold is read, numbers out of range are refused.
SANITIZED = ("*/Kernels.WhatIsReadIsWhatTheCpuCodecReads/?bits_?x*_10permille:*/Kernels.TokenByTokenIsThePromptAtOnce/3bits_2x64_page16_*"
             ":*/KernelsFuzz.RandomRecords*:CApiData.*")
KERNELS = {(bits, dim) for bits in (2, 3, 4) for dim in (64, 128, 256)}
LEAST_APPEND, LEAST_DEQUANTISE = "0.60", "0.80"
SUMMARIES = {"memcheck": r"ERROR SUMMARY: 0 errors", "racecheck": r"RACECHECK SUMMARY: 0 hazards",
             "synccheck": r"ERROR SUMMARY: 0 errors"}
PASSED, FAILED, NOT_DONE, LEFT_OUT, BELOW = "passed", "failed", "not done", "left out", "below what is required"
NO_DEVICE = 4


@dataclass
class Step:
    name: str
    command: list
    variables: dict
    optional: bool = False
    problem: str = ""  # why it cannot be run
    outcome: str = NOT_DONE
    status: "int | None" = None
    seconds: float = 0.0
    output: str = ""

    def text(self):
        return " ".join([f"{name}={value}" for name, value in self.variables.items()] + [quoted(word) for word in self.command])


def quoted(word):
    word = str(word)
    return word if re.fullmatch(r"[\w./=:+-]+", word) else "'" + word + "'"


def output_of(command, **options):
    """(exit status, stdout and stderr); a program that is not there has none."""
    try:
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", **options)
        return done.returncode, done.stdout
    except OSError as error:
        return None, str(error)
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return None, (said.decode(errors="replace") if isinstance(said, bytes) else said) + f"\nstopped after {error.timeout:g} s\n"


# ---- what there is


def machine():
    """What the machine says of itself, a line each."""
    status, said = output_of(["nvidia-smi", "--format=csv,noheader",
                              "--query-gpu=name,driver_version,memory.total,compute_cap,clocks.max.sm,clocks.max.memory"])
    lines = ["GPU (name, driver, memory, compute capability, clocks at most): " + " | ".join(said.strip().splitlines())
             if status == 0 else "GPU: nvidia-smi says nothing: " + (said.strip().splitlines() or ["no output"])[0]]
    lines.append(f"system: {platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}")
    status, said = output_of(["git", "-C", SOURCE, "describe", "--always", "--dirty", "--abbrev=12"])
    if status == 0:
        lines.append("kvcal: " + said.strip())
    return lines


def has_cuda(build):
    """Whether the build was configured with KVCAL_CUDA."""
    try:
        cache = (build / "CMakeCache.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"^KVCAL_CUDA:\w+=(ON|1|TRUE|YES)$", cache, re.M | re.I) is not None


def find_sanitizer():
    nvcc = shutil.which("nvcc")
    beside = []
    if nvcc:
        folder = Path(nvcc).resolve().parent
        beside = [folder / "compute-sanitizer", folder.parent / "compute-sanitizer" / "compute-sanitizer"]
    found = shutil.which("compute-sanitizer")
    return found or next((str(path) for path in beside if path.is_file() and os.access(path, os.X_OK)), None)


def torch_problem(python, library):
    if not library.is_file():
        return f"{library} was not built: it needs KVCAL_TORCH and a libtorch"
    asks = "import pytest, numpy, torch; print('yes' if torch.cuda.is_available() else 'no')"
    status, said = output_of([python, "-c", asks])
    last = (said.strip().splitlines() or [""])[-1]
    if status != 0:
        return f"{python} has no torch, numpy or pytest: {last}"
    return "" if last == "yes" else f"the torch of {python} finds no CUDA device"


def matching(program, gtest_filter):
    """Names of the tests that a filter takes."""
    status, said = output_of([program, "--gtest_list_tests", "--gtest_filter=" + gtest_filter], timeout=120)
    if status != 0:
        return []
    names, suite = [], ""
    for line in said.splitlines():
        name = line.split("#")[0].rstrip()
        if name.startswith("  "):
            names.append(suite + name.strip())
        elif name.endswith("."):
            suite = name
    return names


# ---- steps


def planned(options):
    build = options.build
    test, bench = build / "bin/test_cuda", build / "bin/kernels_bench"
    sanitizer = find_sanitizer()
    on_device = {"KVCAL_TEST_DEVICE": "cuda"}

    def tests(name, gtest_filter, before=(), **other):
        return Step(name, [*before, test, "--gtest_brief=1", "--gtest_filter=" + gtest_filter], on_device, **other)

    steps = [tests("device", DEVICE_TEST), tests("tests", TESTS)]
    for tool in SUMMARIES:
        found = sanitizer or "compute-sanitizer"
        problem = ("left out by --skip-sanitizer" if options.skip_sanitizer else
                   "" if sanitizer else "there is no compute-sanitizer on PATH or beside nvcc; it comes with the CUDA toolkit")
        # Two slots of one index, which only a record of random bytes has, are two writes to one place.
        chosen = SANITIZED + ("-*/KernelsFuzz.RandomRecords*" if tool == "racecheck" else "")
        steps.append(tests(tool, chosen, [found, "--tool", tool, "--error-exitcode", "9"], problem=problem))
    for step in steps:
        if not test.is_file():
            step.problem = f"{test} was not built"
    library = build / "cuda/kernels/libkvcal_torch.so"
    torch = Step("torch", [options.python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", SOURCE / "tests/cuda/torch_device_test.py"],
                 {**on_device, "KVCAL_BUILD": str(build)}, optional=True)
    torch.problem = torch_problem(options.python, library)
    benchmark = Step("benchmark", [bench, "--require-append", LEAST_APPEND, "--require-dequantise", LEAST_DEQUANTISE], {})
    if not bench.is_file():
        benchmark.problem = ("not built: cmake --build " + str(build) + " --target kernels_bench" if has_cuda(build)
                             else "not built: needs KVCAL_CUDA")
    return [*steps, torch, benchmark]


def perform(step, timeout):
    if step.problem:
        step.outcome = LEFT_OUT if step.optional else NOT_DONE
        return
    began = time.monotonic()
    step.status, step.output = output_of(step.command, env={**os.environ, **step.variables}, timeout=timeout)
    step.seconds = time.monotonic() - began
    step.outcome = PASSED if step.status == 0 else FAILED
    if step.name == "benchmark" and step.status == 3:
        step.outcome = BELOW
    if step.outcome != PASSED:
        return
    if step.name in SUMMARIES and not re.search(SUMMARIES[step.name], step.output):
        step.outcome, step.problem = FAILED, "it did not say: " + SUMMARIES[step.name]
    if "--gtest_brief=1" in step.command and not re.search(r"\[  PASSED  \] [1-9]\d* tests?\.", step.output):
        step.outcome, step.problem = FAILED, "no test was run"


def device_reason(step):
    """What the C API said, else the end of what the test printed."""
    found = re.search(r"^kvcal_device_status: .*$", step.output, re.M)
    return found[0] if found else "\n".join(step.output.strip().splitlines()[-5:])


def exit_status(steps):
    outcomes = {step.outcome for step in steps}
    if outcomes & {FAILED, NOT_DONE}:
        return 1
    return 3 if BELOW in outcomes else 0


# ---- the page


def page(steps, lines, rates):
    text = ["# The kernels on a device", "", "What `tests/cuda/device_check.py` did, " + time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()) + ".", ""]
    text += [f"- {line}" for line in lines] + ["", "| step | outcome | exit status | seconds | command |", "|---|---|---|---|---|"]
    for step in steps:
        status = "" if step.status is None else step.status
        outcome = step.outcome + (f": {step.problem}" if step.problem else "")
        command = step.text().replace("|", "\\|")
        text.append(f"| {step.name} | {outcome} | {status} | {step.seconds:.1f} | `{command}` |")
    for step in steps:
        if step.outcome in (FAILED, BELOW) and step.name != "benchmark":
            text += ["", f"## {step.name}: the end of its output", "", "```", *step.output.rstrip().splitlines()[-60:], "```"]
    text += ["", "## Rates", "", rates.strip() or "Not measured.", ""]
    return "\n".join(text)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def check(options):
    lines = machine()
    print("\n".join(lines), flush=True)
    steps = planned(options)
    perform(steps[0], options.timeout)
    if steps[0].outcome != PASSED:
        if steps[0].problem:  # the test itself is missing, which tells nothing of a device
            print("device_check.py: " + steps[0].problem, file=sys.stderr)
            return 1
        print("device_check.py: no device: " + device_reason(steps[0]), file=sys.stderr)
        return NO_DEVICE
    bench = steps[-1]
    numbers = options.build / "kernels_bench.json"
    bench.command += ["--json", numbers]
    numbers.unlink(missing_ok=True)
    for step in steps[1:]:
        print(f"\n{step.name}: {step.text()}", flush=True)
        perform(step, options.timeout)
        print(f"{step.outcome}{': ' if step.problem else ''}{step.problem} ({step.seconds:.1f} s)", flush=True)
        if step.outcome == FAILED:
            print("\n".join(step.output.rstrip().splitlines()[-40:]), flush=True)
    write(options.out, page(steps, lines, bench.output))
    if options.json:
        measured = json.loads(numbers.read_text(encoding="utf-8")) if numbers.is_file() else None
        told = [{**{name: value for name, value in asdict(step).items() if name not in ("output", "variables")}, "command": step.text()}
                for step in steps]
        write(options.json, json.dumps({"machine": lines, "steps": told, "benchmark": measured}, indent=1) + "\n")
    status = exit_status(steps)
    print(f"\n{bench.output}\n{options.out} is written; exit status {status}")
    return status


def dry_run(options):
    """Whether each step could be run, but for the device."""
    steps, wrong = planned(options), []
    cuda = has_cuda(options.build)
    for step in steps:
        print(f"{step.name}: {step.text()}")
        if step.problem:
            print(f"  {step.problem}")
            # These say what this machine or build lacks, which a run on a device would tell of.
            missing_here = step.optional or step.name in SUMMARIES and "was not built" not in step.problem
            if not missing_here and (cuda or step.name != "benchmark"):
                wrong.append(f"{step.name}: {step.problem}")
            if "was not built" in step.problem and step.name != "torch":
                continue
        gtest_filter = next((str(word).split("=", 1)[1] for word in step.command if str(word).startswith("--gtest_filter=")), None)
        if gtest_filter is None:
            continue
        test = options.build / "bin/test_cuda"
        for part in gtest_filter.split(":"):
            if not matching(test, part):
                wrong.append(f"{step.name}: no test matches {part}")
        names = matching(test, gtest_filter)
        print(f"  {len(names)} tests")
        covered = {(int(found[1]), int(found[2])) for name in names if (found := re.search(r"/(\d)bits_\d+x(\d+)_", name))}
        if step.name in ("tests", *SUMMARIES) and not KERNELS <= covered:
            wrong.append(f"{step.name}: no test of bits x head_dim {sorted(KERNELS - covered)}")
    if not (SOURCE / "tests/cuda/torch_device_test.py").is_file():
        wrong.append("torch: tests/cuda/torch_device_test.py is not there")
    for line in wrong:
        print(f"device_check.py: {line}", file=sys.stderr)
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description="The whole test of the kernels on a machine with a GPU")
    parser.add_argument("--build", type=Path, default=SOURCE / "build/cuda", help="default: build/cuda")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="the page; default: device_check.md in the build folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same, for programs")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch with CUDA, numpy and pytest; default: this one")
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS", help="of each step; default: 1800")
    parser.add_argument("--skip-sanitizer", action="store_true", help="compute-sanitizer is not run; the exit status says so")
    parser.add_argument("--dry-run", action="store_true", help="check that all could be run, print the commands")
    options = parser.parse_args()
    options.build = options.build.resolve()
    options.out = options.out or options.build / "device_check.md"
    return dry_run(options) if options.dry_run else check(options)


if __name__ == "__main__":
    sys.exit(main())
