"""Times `kvcal calibrate` beside calibrate_baseline.py on the same tokens, in turn, and writes the table of docs/benchmarks.md.

    python compare_calibrate.py --kvcal build/release/bin/kvcal --shared ../shared/data --docs docs/benchmarks.md
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tokenizers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BEGIN = "<!-- calibrate: begin -->"
END = "<!-- calibrate: end -->"


def run(command):
    """Seconds and peak resident MiB of a command."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"{command[0]} failed:\n{errors}")
    return time.monotonic() - begin, usage.ru_maxrss / 1024


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def first_tokens(folder, text, shape):
    """The first samples x seqlen tokens of a text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return np.array(ids[: shape[0] * shape[1]], np.int32).reshape(shape)


def compare(name, folder, tokens, kvcal, repeats, scratch):
    np.save(scratch / "tokens.npy", tokens)
    ours = [str(kvcal), "calibrate", "--model", str(folder), "--tokens", str(scratch / "tokens.npy"), "--out",
            str(scratch / "out.h5"), "--overwrite", "--quiet"]
    theirs = [sys.executable, str(HERE / "calibrate_baseline.py"), str(folder), str(scratch / "tokens.npy"),
              str(scratch / "out.npz")]
    times = {"kvcal": [], "Python": []}
    for _ in range(repeats):
        (scratch / "out.h5").unlink(missing_ok=True)
        times["kvcal"].append(run(ours))
        times["Python"].append(run(theirs))
    best = {who: (min(t for t, _ in runs), min(m for _, m in runs)) for who, runs in times.items()}
    ratio_time = best["Python"][0] / best["kvcal"][0]
    ratio_memory = best["Python"][1] / best["kvcal"][1]
    shape = f"{tokens.shape[0]} x {tokens.shape[1]}"
    return (f"| {name} | {shape} | {best['kvcal'][0]:.2f} s | {best['Python'][0]:.2f} s | {ratio_time:.1f} | "
            f"{best['kvcal'][1]:.0f} MiB | {best['Python'][1]:.0f} MiB | {ratio_memory:.1f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kvcal", type=Path, required=True)
    parser.add_argument("--shared", type=Path, help="holds weights/TinyStories-656K and text/; without it that row is left out")
    parser.add_argument("--docs", type=Path, help="the page whose table is replaced; default: print only")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    models = [("bundled model", ROOT / "data" / "model", ROOT / "data" / "demo" / "calibrate.txt", (8, 512))]
    if arguments.shared:
        models.insert(0, ("TinyStories-656K", arguments.shared / "weights" / "TinyStories-656K",
                          arguments.shared / "text" / "wiki.valid.raw", (16, 512)))
    load = os.getloadavg()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder, text, shape in models:
            rows.append(compare(name, folder, first_tokens(folder, text, shape), arguments.kvcal, arguments.repeats,
                                Path(scratch)))
    text = "\n".join([
        BEGIN,
        f"Best of {arguments.repeats} interleaved repetitions; {os.cpu_count()} CPUs ({cpu_name()}), load average before the run "
        f"{load[0]:.2f}; both started as a user would, start of Python and imports included; keys and values, 2, 3 and 4 bits, outlier fractions 0 and 0.01, the same tokens.",
        "",
        "| model | tokens | kvcal | Python | times faster | kvcal, peak | Python, peak | times smaller |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        END,
    ])
    print(text)
    if arguments.docs:
        page = arguments.docs.read_text()
        before, rest = page.split(BEGIN)
        arguments.docs.write_text(before + text + rest.split(END)[1])


if __name__ == "__main__":
    main()
