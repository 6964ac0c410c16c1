"""How many samples are enough: codebooks from more and more samples, and what each costs on text that none of them saw. Writes
the table of docs/method.md from which the limits of calib/fit/sample_judgement.h were read.

    python tests/bench/sample_trial.py --kvcal build/release/bin/kvcal --shared ../shared/data --docs docs/method.md
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
import transformers

from calibrate_baseline import capture
from compare_calibrate import first_tokens

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- sample trial: begin -->", "<!-- sample trial: end -->"
COUNTS = (2, 4, 8, 16, 32, 64)
HELD_OUT = 32
SEQLEN = 256
FRACTION = 0.01


def quantised_error(x, fisher, lower, upper, centroids):
    """sum F (x - q(x))^2 of what lies within the thresholds."""
    zero, scale = (upper + lower) / 2, (upper - lower) / 2
    normal = np.divide(x - zero, scale, out=np.zeros_like(x), where=scale > 0)
    nearest = centroids[np.searchsorted((centroids[1:] + centroids[:-1]) / 2, normal)]
    inlier = (x >= lower) & (x <= upper)
    return np.sum(fisher * ((nearest * scale + zero) - x) ** 2, where=inlier)


def held_out(file, captured):
    """What the codebook's nuq3-1% leaves of captured keys and values, weighted, and the share of keys beyond thresholds."""
    total, beyond, keys = 0.0, 0, 0
    for (layer, name), (x, fisher) in captured.items():
        group = file[f"layers/{layer:04d}/{'key' if name == 'k_proj' else 'value'}/outliers_{FRACTION:g}"]
        if name == "k_proj":
            lower, upper = group["lower"][:].astype(np.float64), group["upper"][:].astype(np.float64)
            beyond += np.count_nonzero((x < lower) | (x > upper))
            keys += x.size
        else:
            lower, upper = np.quantile(x, [FRACTION / 2, 1 - FRACTION / 2], axis=1, keepdims=True)
        total += quantised_error(x.astype(np.float64), fisher, lower, upper, group["nuq3/centroids"][:].astype(np.float64))
    return total, beyond / keys


def differences(file):
    """threshold shift and datatype excess of the halves, weighted as calib::sample_difference does."""
    shift, excess = [], []
    for layer in file["layers"].values():
        for kind in ("key", "value"):
            weight = layer[f"{kind}/outliers_{FRACTION:g}/nuq3/centroids"].attrs["objective"]
            if kind == "key":
                shift.append((weight, layer[kind].attrs["threshold_shift"]))
            excess.append((weight, layer[kind].attrs["datatype_excess"]))
    return [np.average([v for _, v in pairs], weights=[w for w, _ in pairs]) for pairs in (shift, excess)]


def trial(name, folder, text, kvcal, scratch):
    tokens = first_tokens(folder, text, (max(COUNTS) + HELD_OUT, SEQLEN))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    captured = capture(model, tokens[-HELD_OUT:])
    measured = []
    # The samples of each count are spread over those of the largest, as kvcal spreads windows over a text.
    for count in COUNTS:
        np.save(scratch / "tokens.npy", tokens[: max(COUNTS)][:: max(COUNTS) // count])
        out = scratch / "out.h5"
        subprocess.run([kvcal, "calibrate", "--model", folder, "--tokens", scratch / "tokens.npy", "--out", out, "--overwrite",
                        "--bits", "3", "--outliers", str(FRACTION), "--quiet"], check=True, capture_output=True)
        with h5py.File(out) as file:
            measured.append((count, *differences(file), *held_out(file, captured)))
    best = measured[-1][3]
    return [f"| {name} | {count} | {count * SEQLEN} | {shift:.1%} | {excess:.1%} | {error / best - 1:+.1%} | {beyond:.2%} |"
            for count, shift, excess, error, beyond in measured]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kvcal", type=Path, required=True)
    parser.add_argument("--shared", type=Path, required=True, help="holds weights/ and text/")
    parser.add_argument("--docs", type=Path, help="the page whose table is replaced; default: print only")
    arguments = parser.parse_args()
    wiki = arguments.shared / "text" / "wiki.valid.raw"
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in (("TinyStories-656K", arguments.shared / "weights" / "TinyStories-656K"),
                             ("bundled", ROOT / "data" / "model")):
            rows += trial(name, folder, wiki, arguments.kvcal, Path(scratch))
    text = "\n".join([BEGIN, "| model | samples | tokens | thresholds differ | datatypes cost | error on other text | outliers there |",
                      "|---|---|---|---|---|---|---|", *rows, END])
    print(text)
    if arguments.docs:
        page = arguments.docs.read_text()
        arguments.docs.write_text(page.split(BEGIN)[0] + text + page.split(END)[1])


if __name__ == "__main__":
    main()
