"""The README's first screen: three commands on one model, with their time and peak memory, and what its codebook costs. Writes
it between the marks in README.md, and the page's picture beside it:

    .deps/venv/bin/python tests/bench/readme.py --kvcal build/release/bin/kvcal --shared ../shared/data [--check]

--shared holds text/wiki.valid.raw and text/wiki.test.raw, WikiText-2's raw texts. Takes about ten minutes on two CPUs. The model,
SmolLM2-135M-Instruct, is made where it is missing (tests/models/smollm2.py). --check prints the section and writes nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from compare_calibrate import cpu_name
from page_picture import write_picture
from trial import RESULTS, ROOT, digits, paragraph, run, table

NAME, MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct", ROOT / "build" / "models" / "SmolLM2-135M-Instruct"
METHODS = ["nuq4-1%", "nuq4", "nuq3-1%", "nuq3", "nuq2-1%", "nuq2"]
OPTIONS = ["--bos", "none"]
BEGIN, END = "<!-- tests/bench/readme.py -->\n", "<!-- end -->\n"
CONTEXT = 131072


@dataclass
class Taken:
    seconds: float
    peak_bytes: int

    def text(self) -> str:
        return f"{self.seconds / 60:.1f} min, {self.peak_bytes / 2**30:.2f} GiB"


def timed(command: list) -> Taken:
    """Runs a command, its progress on standard error; ends the program where it fails."""
    words, start = [str(word) for word in command], time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"readme.py: exit code {os.waitstatus_to_exitcode(status)}: {' '.join(words)}")
    return Taken(time.monotonic() - start, usage.ru_maxrss * 1024)


def gibibytes(size: int) -> str:
    return f"{size / 2**30:.2f}"


def results_table(report: dict, plan: dict) -> str:
    sizes = {method["name"]: method for method in plan["methods"]}
    rows = []
    for method in report["methods"]:
        size, exact = sizes[method["name"]], method["name"] == "fp"
        rows.append(["fp16" if exact else method["name"], digits(size["bits_per_value"], 2), gibibytes(size["cache_bytes"]),
                     digits(method["ppl"], 2), "" if exact else digits(method["kld_mean"], 4)])
    return table(["method", "bits/value", "cache at 128K, GiB", "perplexity", "KL mean"], rows)


def section(kvcal: Path, shared: Path, page: Path) -> str:
    text, codebook, report_file, plan_file = (shared / "text", RESULTS / "readme.h5", RESULTS / "readme.json",
                                              RESULTS / "readme-plan.json")
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not (MODEL / "model.safetensors").exists():
        run([sys.executable, ROOT / "tests" / "models" / "smollm2.py", "--out", MODEL])
    calibrated = timed([kvcal, "calibrate", "--model", MODEL, "--text", text / "wiki.valid.raw", "--out", codebook, "--overwrite",
                        *OPTIONS])
    validated = timed([kvcal, "validate", "--model", MODEL, "--codebook", codebook, "--text", text / "wiki.test.raw", "--windows",
                       8, "--methods", ",".join(METHODS), "--json", report_file, "--html", page, *OPTIONS])
    run([kvcal, "plan", "--model", MODEL, "--context", CONTEXT, "--methods", ",".join(["fp", *METHODS]), "--json", plan_file])
    download = (MODEL / "model.safetensors").stat().st_size
    report, plan = json.loads(report_file.read_text()), json.loads(plan_file.read_text())
    commands = f"""\
    hf download {NAME}
    kvcal calibrate --model {NAME} \\
        --text wiki.valid.raw --out smollm2.h5
    kvcal validate --model {NAME} --codebook smollm2.h5 \\
        --text wiki.test.raw --windows 8 --html smollm2.html
"""
    told = paragraph(f"""The download is {download / 1e6:.0f} MB; calibrating took {calibrated.text()} at its peak, validating
        {validated.text()}, on {len(os.sched_getaffinity(0))} threads of a CPU ({cpu_name()}). The last line names the page. 8
        windows of 2048 tokens of WikiText-2, one sequence of 131,072 tokens:""")
    return f"{commands}\n{told}\n\n{results_table(report, plan)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvcal", type=Path, required=True)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    page = RESULTS / "readme.html"
    text = section(arguments.kvcal, arguments.shared, page)
    if arguments.check:
        print(text)
        return
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + text + END + rest.split(END)[1])
    write_picture(page, ROOT / "docs" / "page.png")


if __name__ == "__main__":
    main()
