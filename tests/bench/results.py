"""What codebooks cost on two models, beside other ways of storing a cache and the paper's figures: writes docs/results.md whole.

    .deps/venv/bin/python tests/bench/results.py --kvcal build/release/bin/kvcal --shared ../shared/data
                                                 [--models bundled,smollm2] [--docs docs/results.md] [--fresh]

--shared holds text/wiki.valid.raw and text/wiki.test.raw, WikiText-2's raw texts. Codebooks and JSON lie in build/results/ and are
used again unless --fresh is given.
"""

import argparse
import json
import math
import os
from pathlib import Path

from compare_calibrate import cpu_name
from served import require_packages, serve, served_section
from trial import RESULTS, ROOT, Trial, calibrated, digits, measured, paragraph, percent, run, table, trials

METHODS = ("int4 int3 int2 nf4 nf3 nf2 nuq4 nuq3 nuq2 nuq4-1% nuq3-1% nuq2-1% kivi4 kivi2 fp8 q8_0 q4_0 turbo4 turbo3 "
           "turbo2").split()
PER_LAYER = "nuq3-1%"
# What is decoded, too: one of each kind.
DECODED = "int3 nuq3 nuq3-1% nuq4 kivi2 turbo3 fp8".split()
GENERATE = 64

# Perplexity of LLaMA-7B on WikiText-2: Hooper et al. 2024, table 1 (table 18 has the same figures).
PAPER = {"fp": "5.68", "int4": "5.98", "int3": "10.87", "int2": "11779", "nf4": "5.87", "nf3": "7.33", "nf2": "3210",
         "nuq4": "5.72", "nuq3": "5.87", "nuq2": "7.23", "nuq4-1%": "5.69", "nuq3-1%": "5.75", "nuq2-1%": "6.01"}

# The chain of 3 bits, each step with what it adds to the one before.
STEPS = {"int3": "per token, after RoPE, uniform levels", "int3-channel-rope": "keys by channel",
         "int3-channel": "keys before RoPE", "nuq3-nosink": "levels fitted to each layer",
         "nuq3-1%-nosink": "1 % outliers apart", "nuq3-1%": "first token exact"}

# What a step takes from the perplexity of LLaMA-7B: Hooper et al. 2024, sections 3.1 to 3.4.
PAPER_STEPS = {"int3-channel-rope": "-3.82", "int3-channel": "-0.82", "nuq3-nosink": "-0.29", "nuq3-1%-nosink": "-0.19"}

# Why a step may raise the divergence; printed where it does.
WHY = {
    "int3-channel-rope": "RoPE mixes pairs of channels by angles that turn with position, so a range is no channel's own.",
    "int3-channel": "ranges come from the calibration text and are set by its extremes, so most values share few levels.",
    "nuq3-nosink": "levels go where values that weigh much are dense, and leave more error at the ends of the range.",
    "nuq3-1%-nosink": "thresholds come from the calibration text; where it has few outliers, ranges hardly shrink without them.",
    "nuq3-1%": "where no BOS starts a window, its first token is plain text, and need not be one that attention rests on.",
}


def validate(kvcal: Path, trial: Trial, codebook: Path, methods: list[str], out: Path, options: list[str]) -> dict:
    """The JSON of `kvcal validate`."""
    command = ["validate", "--model", trial.model, "--codebook", codebook, "--text", trial.validation, "--methods",
               ",".join(methods), "--json", out, *options]
    return measured(out, " ".join(map(str, command)), codebook, lambda: run([kvcal, *command]))


def measure(kvcal: Path, trial: Trial, fresh: bool) -> tuple[dict, dict, dict, dict | None]:
    """Reports of all methods, of one layer by layer, of some while they decode, and of exports in their loaders."""
    whole, layers, decoding = (RESULTS / f"{trial.name}{end}.json" for end in ("", "-layers", "-decoding"))
    for file in (whole, layers, decoding) if fresh else ():
        file.unlink(missing_ok=True)
    codebook = calibrated(kvcal, trial, fresh)
    methods = METHODS + [step for step in STEPS if step not in METHODS]
    return (validate(kvcal, trial, codebook, methods, whole, trial.validate),
            validate(kvcal, trial, codebook, [PER_LAYER], layers, ["--per-layer-kl", *trial.layers]),
            validate(kvcal, trial, codebook, DECODED, decoding, ["--generate", str(GENERATE), *trial.decode]),
            serve(kvcal, trial, codebook, fresh) if trial.served else None)


def methods_table(methods: dict[str, dict], paper: bool) -> str:
    rows = []
    for name in ["fp", *METHODS]:
        m, exact = methods[name], name == "fp"
        cells = [] if exact else [f"{digits(m['ppl_delta'], 3, '+')} +- {digits(m['ppl_delta_stderr'], 3)}",
                                  digits(m["kld_mean"], 5), digits(m["kld_p99"], 4), percent(m["top1_agreement"]),
                                  percent(m["attention_agreement"])]
        rows.append([name, digits(m["bits_per_value"], 2), digits(m["ppl"], 3), *(cells or ["-"] * 5)]
                    + ([PAPER.get(name, "-")] if paper else []))
    return table(["method", "bits/value", "perplexity", "change +- stderr", "KL mean", "KL p99", "same top-1 %",
                  "attention %"] + (["LLaMA-7B, paper"] if paper else []), rows)


def ablation(methods: dict[str, dict], paper: bool) -> str:
    """The chain's table, and a sentence for each step that raises the divergence."""
    rows, sentences, before = [], [], None
    for name, adds in STEPS.items():
        m, change, helps = methods[name], None, "-"
        if before and None not in (m["kld_mean"], before["kld_mean"]):
            change = m["kld_mean"] - before["kld_mean"]
            errors = 2 * math.hypot(m["kld_stderr"] or 0, before["kld_stderr"] or 0)
            helps = ("yes" if change < 0 else "no") + (", within the errors" if abs(change) < errors else "")
            if change >= 0:
                sentences.append(paragraph(
                    f"Step {name} ({adds}) does not help here: KL {before['kld_mean']:.5f} before it, {m['kld_mean']:.5f} after; "
                    f"perplexity {digits(before['ppl'], 3)} and {digits(m['ppl'], 3)}. A likely reason: {WHY[name]}"))
        rows.append([name, adds, digits(m["ppl"], 3), f"{digits(m['kld_mean'], 5)} +- {digits(m['kld_stderr'], 5)}",
                     digits(change, 5, "+"), helps] + ([PAPER_STEPS.get(name, "-")] if paper else []))
        before = m
    head = ["step", "adds", "perplexity", "KL mean +- stderr", "change of KL", "helps"]
    return "\n\n".join([table(head + (["LLaMA-7B, paper: change of perplexity"] if paper else []), rows), *sentences])


def layers_section(report: dict) -> str:
    """What each tensor costs when it alone is stored, and the sum beside the whole."""
    method = next(m for m in report["methods"] if m["name"] == PER_LAYER)
    kinds = [kind for kind in method["layers"][0] if kind != "layer"]
    rows = [[str(layer["layer"]), *(digits(layer[kind]["kld_mean"], 5) for kind in kinds)] for layer in method["layers"]]
    total = sum(layer[kind]["kld_mean"] for layer in method["layers"] for kind in kinds)
    return "\n\n".join([
        f"### {PER_LAYER}, one tensor at a time, {report['windows']} windows",
        table(["layer", *(f"{kind}s alone, KL mean" for kind in kinds)], rows),
        paragraph(f"Their sum is {total:.5f}, {total / method['kld_mean']:.0%} of the {method['kld_mean']:.5f} that all of them "
                  "cost at once.")])


def decoding_section(report: dict) -> str:
    """The model's own continuation, each token read from the stored past; passkeys where they were asked for."""
    rows, quarter = [], GENERATE // 4
    for method in report["methods"][1:]:
        means = method["generate"]["by_position"]["kld_mean"]
        rows.append([method["name"], f"{digits(method['kld_mean'], 5)}",
                     f"{digits(method['generate']['kld_mean'], 5)} +- {digits(method['generate']['kld_stderr'], 5)}",
                     digits(sum(means[:quarter]) / quarter, 5), digits(sum(means[-quarter:]) / quarter, 5),
                     percent(method["generate"]["top1_agreement"])])
    parts = [f"### Decoding {GENERATE} tokens after each window's beginning", table(
        ["method", "KL mean of the text", "KL mean +- stderr", f"first {quarter}", f"last {quarter}", "same top-1 %"], rows),
        paragraph("KIVI keeps its newest 128 tokens exact, which move along while a model decodes; a text that is read as a whole "
                  "hardly rewards that.")]
    if report["passkey"]:
        parts += ["Passkeys found again of five, by the prompt's length in tokens:", table(
            ["method", *map(str, report["passkey"])],
            [[method["name"], *(str(p["retrieved"]) for p in method["passkey"])] for method in report["methods"]])]
    return "\n\n".join(parts)


def smaller_model(trial: Trial, perplexity: float) -> str:
    """Why the figures of a small model are not those of LLaMA-7B."""
    config = json.loads((trial.model / "config.json").read_text())
    heads, dim = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    return paragraph(f"""The last column is LLaMA-7B's perplexity on WikiText-2 (Hooper et al. 2024, table 1). Likely reasons why a
        135M model loses more: errors average over fewer heads and channels ({heads} KV heads of {dim}, so {heads * dim} key
        channels a token against 4096); a small model trained for long uses its weights and activations more fully, so the same
        relative error costs more; and its perplexity is {perplexity / float(PAPER['fp']):.1f} times as high to begin with. The
        protocols differ, too: the paper's windows have 2048 tokens as well, but its text is joined otherwise and starts with a BOS
        ([validation.md](validation.md)).""")


def section(trial: Trial, report: dict, layers: dict, decoding: dict, served: dict | None) -> str:
    methods = {method["name"]: method for method in report["methods"]}
    return "\n\n".join([f"## {trial.title}", paragraph(
        f"Calibrated on `{trial.calibration.name}` with {' '.join(trial.calibrate) or 'the defaults'}; validated on "
        f"`{trial.validation.name}`: {report['windows']} windows of {report['seqlen']} tokens, {report['scored']} scored, "
        f"protocol {report['protocol']}, BOS {report['bos']}, arithmetic {report['dtype']}."),
        methods_table(methods, trial.paper), *([smaller_model(trial, methods["fp"]["ppl"])] if trial.paper else []),
        "### What each part adds, at 3 bits", ablation(methods, trial.paper),
        layers_section(layers), decoding_section(decoding),
        *([served_section(served, methods["fp"]["ppl"])] if served else [])])


def page(sections: list[str], names: list[str]) -> str:
    measured = """What a cache costs when it is stored by each [method](methods.md), on text that the codebook was not calibrated
        on: perplexity and its change from `fp`; KL(fp || method) of the next token's distribution, in nats, its mean and 99th
        percentile; how often both choose the same token; and bits per value, which count all that a sequence stores: codes,
        scales, outliers with their places, and sinks; `attention %` is the share of `fp`'s attention that falls on the same
        tokens. [validation.md](validation.md) says how each is measured. A step of an
        ablation helps where it lowers the mean KL; `within the errors` says that the change is below twice the standard error of a
        difference of independent runs. These read the same windows, so that is on the careful side."""
    made = f"""`--shared` names a folder with WikiText-2's raw texts, `text/wiki.valid.raw` and `text/wiki.test.raw`. What was
        measured stays in `build/results/` and is used again; `--fresh` measures anew. {os.cpu_count()} CPUs ({cpu_name()})."""
    command = ".deps/venv/bin/python tests/bench/results.py --kvcal build/release/bin/kvcal --shared ../shared/data"
    command += "" if names == ["bundled", "smollm2"] else f" --models {','.join(names)}"
    return "\n\n".join(["# Results", paragraph(measured), *sections, "## How to make this page", "    " + command,
                        paragraph(made)]) + "\n"


def main():
    parser = argparse.ArgumentParser(description="measure, and write docs/results.md")
    parser.add_argument("--kvcal", type=Path, default=ROOT / "build" / "release" / "bin" / "kvcal")
    parser.add_argument("--shared", type=Path, help="holds text/wiki.valid.raw and text/wiki.test.raw; smollm2 needs it")
    parser.add_argument("--models", default="bundled,smollm2", help="which, with commas; the page holds these alone")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--fresh", action="store_true", help="measure anew")
    options = parser.parse_args()
    known, names = trials(options.shared), options.models.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--models: {unknown[0]} is none of {', '.join(known)}")
    if "smollm2" in names and not options.shared:
        parser.error("--models smollm2 needs --shared")
    if any(known[name].served for name in names):
        require_packages()
    sections = [section(known[name], *measure(options.kvcal, known[name], options.fresh)) for name in names]
    options.docs.write_text(page(sections, names), encoding="utf-8")


if __name__ == "__main__":
    main()
