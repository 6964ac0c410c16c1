"""What each step beyond the paper's recipe takes from the divergence, alone and together, on three models: writes docs/quality.md whole.

    .deps/venv/bin/python tests/bench/quality.py --kvcal build/release/bin/kvcal --shared ../shared/data
                                                 [--models bundled,tinystories,smollm2] [--steps fitted,both+allocated,...]
                                                 [--docs docs/quality.md] [--fresh]

All of it takes an hour and a half on two cores. --steps measures some of them beside the paper's recipe; what was measured before is
printed, too. --shared holds text/wiki.valid.raw and text/wiki.test.raw, and weights/TinyStories-656K. Codebooks and JSON lie in
build/results/quality/ and are used again unless --fresh is given.
"""

import argparse
import json
import math
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from compare_calibrate import cpu_name
from trial import RESULTS, ROOT, digits, measured, paragraph, percent, run, table

QUALITY = RESULTS / "quality"
METHODS = [f"nuq{bits}{outliers}" for bits in (2, 3, 4) for outliers in ("", "-1%")]
GENERATE = 32
# Options of calibrate that each step adds.
STEPS = {"paper": ["--ranges", "threshold"], "fitted": ["--ranges", "fitted"], "rotated": ["--ranges", "threshold", "--value-rotation", "hadamard"],
         "both": ["--ranges", "fitted", "--value-rotation", "hadamard"]}
WORDS = {"paper": "the paper's recipe, at its exact optimum", "fitted": "key ranges fitted", "rotated": "values rotated",
         "both": "fitted and rotated", "paper+allocated": "the paper's datatypes, bits allocated",
         "both+allocated": "fitted, rotated and allocated"}
BASE = "paper"


@dataclass
class Model:
    name: str
    title: str
    folder: Path
    calibration: Path
    validation: Path
    calibrate: list[str] = field(default_factory=list)
    validate: list[str] = field(default_factory=list)
    decode: list[str] = field(default_factory=list)


def models(shared: Path) -> dict[str, Model]:
    demo, text = ROOT / "data" / "demo", shared / "text"
    exact = ["--dtype", "float32"]
    stories = (demo / "calibrate.txt", demo / "validate.txt", [*exact, "--samples", "32", "--seqlen", "512"],
               [*exact, "--seqlen", "512", "--windows", "32"], [*exact, "--seqlen", "256", "--windows", "32"])
    return {
        "bundled": Model("bundled", "The bundled model", ROOT / "data" / "model", *stories),
        "tinystories": Model("tinystories", "TinyStories-656K", shared / "weights" / "TinyStories-656K", *stories),
        "smollm2": Model("smollm2", "SmolLM2-135M-Instruct", ROOT / "build" / "models" / "SmolLM2-135M-Instruct",
                         text / "wiki.valid.raw", text / "wiki.test.raw",
                         [*exact, "--bos", "none", "--seqlen", "2048", "--samples", "16"],
                         [*exact, "--bos", "none", "--seqlen", "2048", "--windows", "8"],
                         [*exact, "--bos", "none", "--seqlen", "512", "--windows", "8"]),
    }


def calibrated(kvcal: Path, model: Model, step: str) -> Path:
    codebook = QUALITY / f"{model.name}-{step}.h5"
    run([kvcal, "calibrate", "--model", model.folder, "--text", model.calibration, "--out", codebook, *model.calibrate, *STEPS[step]])
    return codebook


def validate(kvcal: Path, model: Model, codebook: Path, methods: list[str]) -> dict[str, dict]:
    """By method, the figures of the text; those of decoding under "decoded"."""
    found = {}
    for end, options in (("", model.validate), ("-decoded", [*model.decode, "--generate", str(GENERATE)])):
        out = QUALITY / f"{codebook.stem}{end}.json"
        command = ["validate", "--model", model.folder, "--codebook", codebook, "--text", model.validation, "--methods",
                   ",".join(methods), "--json", out, *options]
        report = measured(out, " ".join(map(str, command)), codebook, lambda command=command: run([kvcal, *command]))
        for method in report["methods"]:
            if end:
                found[method["name"]]["decoded"] = method["generate"]
            else:
                found[method["name"]] = method
    return found


def allocated(kvcal: Path, model: Model, codebook: Path, method: str, bits: float) -> dict:
    """What a recipe at so many bits per value costs, in the place of a method."""
    out = QUALITY / f"{codebook.stem}-{method.replace('%', '')}.h5"
    made_by, words = out.with_suffix(".made"), f"{bits} of {codebook.stat().st_mtime}"
    if not (out.exists() and made_by.exists() and made_by.read_text() == words):
        run([kvcal, "allocate", codebook, "--bits-per-value", repr(bits), "--out", out, "--quiet"])
        made_by.write_text(words)
    return validate(kvcal, model, out, ["recipe"])["recipe"]


def is_measured(model: Model, step: str) -> bool:
    base, _, recipe = step.partition("+")
    names = [f"{base}-{METHODS[-1].replace('%', '')}" if recipe else base]
    return all((QUALITY / f"{model.name}-{name}{end}.command").exists() for name in names for end in ("", "-decoded"))


def measure(kvcal: Path, model: Model, wanted: list[str]) -> dict[str, dict[str, dict]]:
    """Figures by step and method, of steps that are wanted or were measured before."""
    steps: dict[str, dict[str, dict]] = {}
    codebooks = {}
    chosen = [step for step in WORDS if step == BASE or step in wanted or is_measured(model, step)]
    for step in STEPS:
        if step not in chosen and f"{step}+allocated" not in chosen:
            continue
        codebooks[step] = calibrated(kvcal, model, step)
        steps[step] = validate(kvcal, model, codebooks[step], METHODS)
    for step in (BASE, "both"):
        if f"{step}+allocated" not in chosen:
            continue
        inspected = QUALITY / "inspected.json"
        run([kvcal, "inspect", codebooks[step], "--json", inspected])
        bits = {m["name"]: m["bits_per_value"] for m in json.loads(inspected.read_text())["summary"]["methods"]}
        steps[f"{step}+allocated"] = {method: allocated(kvcal, model, codebooks[step], method, bits[method]) for method in METHODS}
    return steps


def paired(figures: dict, base: dict) -> tuple[float, float]:
    """How much lower the divergence is, as a share of the base's; and how many standard errors of the paired windows that is."""
    differences = [b - a for a, b in zip(figures["by_window"]["kld_mean"], base["by_window"]["kld_mean"], strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    return mean / statistics.fmean(base["by_window"]["kld_mean"]), mean / error if error > 0 else math.inf


def plus_minus(value: float, error: float, places: int, sign: str = "") -> str:
    return f"{digits(value, places, sign)} +- {digits(error, places)}"


def step_rows(steps: dict[str, dict[str, dict]], method: str) -> list[list[str]]:
    base, rows = steps[BASE][method], []
    for step, words in WORDS.items():
        if step not in steps:
            continue
        m = steps[step][method]
        less, errors = paired(m, base) if step != BASE else (None, None)
        decoded = m["decoded"]
        rows.append([words, digits(m["bits_per_value"], 3), plus_minus(m["kld_mean"], m["kld_stderr"], 5),
                     "-" if less is None else f"{-100 * less:+.1f}", "-" if errors is None else f"{errors:.1f}",
                     plus_minus(m["ppl_delta"], m["ppl_delta_stderr"], 3, "+"), percent(m["top1_agreement"]),
                     plus_minus(decoded["kld_mean"], decoded["kld_stderr"], 5)])
    return rows


HEAD = ["step", "bits/value", "KL mean +- stderr", "change from the paper's, %", "in paired errors", "change of perplexity +- stderr",
        "same top-1 %", "decoded: KL mean +- stderr"]


def section(model: Model, steps: dict[str, dict[str, dict]]) -> str:
    fp = steps[BASE]["fp"]
    parts = [f"## {model.title}", paragraph(
        f"Calibrated on `{model.calibration.name}` with `{' '.join(model.calibrate)}`; judged on `{model.validation.name}`, "
        f"`{' '.join(model.validate)}`; decoded: {GENERATE} tokens after each window of `{' '.join(model.decode)}`. Perplexity "
        f"without quantising {fp['ppl']:.3f}.")]
    for method in METHODS:
        parts += [f"### At the bytes of {method}", table(HEAD, step_rows(steps, method))]
    return "\n\n".join(parts)


def summary(all_steps: dict[str, dict[str, dict[str, dict]]]) -> str:
    """By method and model: how much less the divergence is by each step."""
    rows = []
    for step, words in list(WORDS.items())[1:]:
        for model, steps in all_steps.items():
            if step not in steps:
                continue
            rows.append([words, model, *(f"{-100 * paired(steps[step][method], steps[BASE][method])[0]:+.1f}" for method in METHODS)])
    return table(["step", "model", *METHODS], rows)


def page(models_: dict[str, Model], all_steps: dict[str, dict[str, dict[str, dict]]]) -> str:
    return "\n\n".join([
        "# Less divergence at the same bytes",
        paragraph("What each step beyond KVQuant's recipe takes from the KL divergence of a quantised cache, alone and with others. "
                  "Written whole by `tests/bench/quality.py`. Bits count all that a sequence stores; recipes ([allocation.md]"
                  "(allocation.md)) are chosen by the codebook's own estimates for the bytes of the method that they stand beside, which differ "
                  "from those met by the outliers that a text has more or less than the calibration's. "
                  "Errors are standard errors over windows; those of differences are of the paired windows."),
        f"On {cpu_name()}, {os.cpu_count()} CPUs.",
        "## In short", "Change of the KL divergence from the paper's recipe of the same method, in per cent:", summary(all_steps),
        *(section(models_[name], steps) for name, steps in all_steps.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvcal", type=Path, default=ROOT / "build" / "release" / "bin" / "kvcal")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--models", default="bundled,tinystories,smollm2")
    parser.add_argument("--steps", default=",".join(WORDS))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "quality.md")
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args()
    known = models(arguments.shared.resolve())
    if arguments.fresh and QUALITY.exists():
        for file in QUALITY.iterdir():
            file.unlink()
    QUALITY.mkdir(parents=True, exist_ok=True)
    chosen = arguments.models.split(",")
    for name in chosen:
        if name not in known:
            parser.error(f"no model '{name}'; there are {', '.join(known)}")
    steps = arguments.steps.split(",")
    for step in steps:
        if step not in WORDS:
            parser.error(f"no step '{step}'; there are {', '.join(WORDS)}")
    all_steps = {name: measure(arguments.kvcal, known[name], steps) for name in chosen}
    arguments.docs.write_text(page(known, all_steps))
    print(f"wrote {arguments.docs}")


if __name__ == "__main__":
    main()
