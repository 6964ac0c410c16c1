"""fuzz.py BUILD [TARGET...]: runs the fuzzers fuzz_TARGET of a build folder, all by default, and prints a table of what each did.

Begins with the seeds (seeds.py), the past findings (corpus/) and what earlier runs found, which stays in BUILD/fuzz/found/TARGET. An input
that crashed, hung or took too much memory lies in BUILD/fuzz/findings; the exit code is then 1.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent
# What an input may cost.
MOST_SECONDS, MOST_MEBIBYTES = 10, 1024
# Freed blocks that the sanitizer holds back count as memory: few of them. What libtorch and OpenMP leak is not ours.
SANITIZERS = {"ASAN_OPTIONS": "quarantine_size_mb=16:detect_leaks=0:malloc_context_size=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
# Longer inputs are slower, not stranger: each is a few times the longest seed that is not text.
MOST_BYTES = {"config": 8192, "index": 8192, "text": 16384, "tokenizer": 16384, "npy": 4096, "safetensors": 65536}

# Weighing inputs by how rare their features are takes longer than such an input itself, which touches thousands.
BY_TURNS = ("codebook_values", "tokenizer")


class Run:
    """One fuzzer, until it has made `runs` runs or `seconds` are over."""

    def __init__(self, build, target, runs, seconds, timeout):
        self.target = target
        place = build / "fuzz"
        found = place / "found" / target
        found.mkdir(parents=True, exist_ok=True)
        self.findings = place / "findings"
        self.findings.mkdir(exist_ok=True)
        self.log = place / f"{target}.log"
        dictionary = TESTS / "dictionaries" / f"{target}.dict"
        self.command = [build / "bin" / f"fuzz_{target}", f"-runs={runs}", f"-max_total_time={seconds}", f"-timeout={timeout}",
                        f"-rss_limit_mb={MOST_MEBIBYTES}", "-print_final_stats=1", f"-artifact_prefix={self.findings}/{target}-",
                        *(["-entropic=0"] if target in BY_TURNS else []),
                        *([f"-max_len={MOST_BYTES[target]}"] if target in MOST_BYTES else []),
                        *([f"-dict={dictionary}"] if dictionary.exists() else []),
                        found, *[folder for folder in (place / "seeds" / target, TESTS / "corpus" / target) if folder.exists()]]

    def go(self):
        with open(self.log, "w") as log:
            done = subprocess.run(self.command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | SANITIZERS)
        text = self.log.read_text(errors="replace")
        stats = {name: int(number) for name, number in re.findall(r"^stat::(\w+): +(\d+)", text, re.M)}
        self.runs, self.peak = stats.get("number_of_executed_units", 0), stats.get("peak_rss_mb", 0)
        rate = stats.get("average_exec_per_sec", 0)
        covered = re.findall(r"cov: (\d+)", text)
        self.failed = done.returncode != 0
        outcome = re.findall(r"SUMMARY: (.*)", text)[-1:] or [f"ended with {done.returncode}, see {self.log}"]
        self.row = [self.target, f"{self.runs:,}", f"{rate:,}", covered[-1] if covered else "0", f"{self.peak:,}",
                    outcome[0] if self.failed else "none"]
        return self


def write_seeds(build):
    subprocess.run([sys.executable, TESTS / "seeds.py", build / "fuzz" / "seeds", "--bin", build / "bin"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--runs", type=int, default=-1, help="of each target; without a limit unless given")
    parser.add_argument("--seconds", type=int, default=0, help="for each target; without a limit unless given")
    parser.add_argument("--jobs", type=int, default=1, help="fuzzers side by side")
    parser.add_argument("--timeout", type=int, default=MOST_SECONDS, metavar="SECONDS",
                        help="that an input may take, by the clock; more on a busy machine: replay_TARGET then tells its CPU time")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    targets = arguments.targets or sorted(path.name.removeprefix("fuzz_") for path in (build / "bin").glob("fuzz_*"))
    if not targets:
        sys.exit(f"fuzz.py: no fuzzers in {build}/bin: build the preset 'asan'")
    if arguments.runs < 0 and arguments.seconds <= 0:
        sys.exit("fuzz.py: without --runs or --seconds it would never end")
    write_seeds(build)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(lambda target: Run(build, target, arguments.runs, arguments.seconds, arguments.timeout).go(), targets))
    print("| target | runs | runs/s | edges | peak MiB | findings |\n|---|---|---|---|---|---|")
    for run in done:
        print("| " + " | ".join(run.row) + " |")
    if any(run.failed for run in done):
        sys.exit(1)


main()
