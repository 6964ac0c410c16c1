"""What methods cost `kvcal validate` in time beside full precision alone, and its peak memory beside what it promised.

    .deps/venv/bin/python tests/bench/validate_trial.py --kvcal build/release/bin/kvcal --codebook build/results/smollm2.h5 \
        --model build/models/SmolLM2-135M-Instruct --text wiki.test.raw [--windows 2] [--methods LIST]

Prints one Markdown table. Full precision runs before and after; the faster one counts.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

METHODS = "int2,int3,int4,nuq2,nuq3,nuq4,nuq2-1%,nuq3-1%,nuq4-1%"


def run(options: argparse.Namespace, methods: str) -> tuple[float, float, float]:
    """Seconds, promised MiB, peak MiB (resident, of the whole process)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        process = subprocess.Popen([options.kvcal, "validate", "--model", options.model, "--codebook", options.codebook, "--text",
                                    options.text, "--dtype", "float32", "--windows", str(options.windows), "--methods", methods,
                                    "--json", out, "--quiet"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"validate_trial.py: kvcal ended with {os.waitstatus_to_exitcode(status)}")
        report = json.loads(out.read_text())
    return report["seconds"], report["memory_bytes"] / 2**20, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="time and memory of kvcal validate")
    parser.add_argument("--kvcal", type=Path, default=Path("build/release/bin/kvcal"))
    for name in ("--model", "--codebook", "--text"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--methods", default=METHODS)
    options = parser.parse_args()
    before, some, after = run(options, "fp"), run(options, options.methods), run(options, "fp")
    exact, count = min(before, after), len(options.methods.split(","))
    print("| methods | s | of n times fp | promised, MiB | peak, MiB |\n|---|---|---|---|---|")
    print(f"| fp | {exact[0]:.1f} | | {exact[1]:,.0f} | {exact[2]:,.0f} |")
    print(f"| {count} | {some[0]:.1f} | {some[0] / (count * exact[0]):.2f} | {some[1]:,.0f} | {some[2]:,.0f} |")


if __name__ == "__main__":
    main()
