#!/usr/bin/env python3
"""The default number of threads beside one thread, on an idle machine and beside other busy processes.

    .deps/venv/bin/python tests/bench/busy_machine.py [--kvcal build/release/bin/kvcal] [--busy 0 2] [--repeats 3]

Calibrates the bundled model on its demo text. With other processes a thread may be put aside at any moment, and threads that
wait for each other at every operation then wait for the slowest of them all the time. Prints the best of the repeats, interleaved,
and the ratio.
"""

import argparse
import multiprocessing
import subprocess
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]


def spin():
    while True:
        pass


def seconds(kvcal, *more):
    with tempfile.TemporaryDirectory() as folder:
        command = [kvcal, "calibrate", "--model", SOURCE / "data" / "model", "--text", SOURCE / "data" / "demo" / "calibrate.txt",
                   "--out", Path(folder) / "out.h5", "--quiet", *more]
        begin = time.monotonic()
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description="default threads beside one, on a busy machine")
    parser.add_argument("--kvcal", type=Path, default=SOURCE / "build" / "release" / "bin" / "kvcal")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="busy processes beside the run")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| busy processes | default, s | one thread, s | ratio |")
    print("|---|---|---|---|")
    for busy in options.busy:
        others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
        for other in others:
            other.start()
        default, single = [], []
        for _ in range(options.repeats):
            default.append(seconds(options.kvcal))
            single.append(seconds(options.kvcal, "--threads", 1))
        for other in others:
            other.terminate()
        print(f"| {busy} | {min(default):.1f} | {min(single):.1f} | {min(default) / min(single):.2f} |", flush=True)


if __name__ == "__main__":
    main()
