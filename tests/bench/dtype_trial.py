#!/usr/bin/env python3
"""What bfloat16 arithmetic saves and changes: the same calibration in float32 and in bfloat16, one after the other.

    .deps/venv/bin/python tests/bench/dtype_trial.py --model build/models/SmolLM2-135M-Instruct --text wiki.valid.raw
                                                     [--kvcal build/release/bin/kvcal] [--samples 16] [--seqlen 2048]

Prints the times and their ratio, and how far sensitivities (a layer's sum over channels) and objectives (each datatype's) lie apart:
the mean of the absolute relative differences over layers, keys and values, and the largest.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

SOURCE = Path(__file__).resolve().parents[2]


def calibrate(options, dtype, out):
    command = [options.kvcal, "calibrate", "--model", options.model, "--text", options.text, "--out", out, "--dtype", dtype,
               "--samples", options.samples, "--seqlen", options.seqlen, "--quiet"]
    begin = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begin


def numbers(path):
    sensitivities, objectives = [], []
    with h5py.File(path) as file:
        for layer in file["layers"].values():
            for kind in ("key", "value"):
                sensitivities.append(layer[f"{kind}/fisher_channel"][:].astype(np.float64).sum())
        file.visititems(lambda name, item: objectives.append(item.attrs["objective"]) if name.endswith("/centroids") else None)
    return np.array(sensitivities), np.array(objectives)


def main():
    parser = argparse.ArgumentParser(description="float32 and bfloat16 side by side")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--kvcal", type=Path, default=SOURCE / "build" / "release" / "bin" / "kvcal")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=2048)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {dtype: Path(folder) / f"{dtype}.h5" for dtype in ("float32", "bfloat16")}
        seconds = {dtype: calibrate(options, dtype, file) for dtype, file in files.items()}
        wide, narrow = (numbers(file) for file in files.values())
    apart = [np.abs(n / w - 1) for w, n in zip(wide, narrow)]
    print("| model | sample | float32, s | bfloat16, s | ratio | sensitivities differ, mean (most) | objectives differ, mean (most) |")
    print("|---|---|---|---|---|---|---|")
    print(f"| {options.model.name} | {options.samples} x {options.seqlen} | {seconds['float32']:.0f} | {seconds['bfloat16']:.0f} | "
          f"{seconds['bfloat16'] / seconds['float32']:.2f} | "
          + " | ".join(f"{difference.mean():.2%} ({difference.max():.2%})" for difference in apart) + " |")


if __name__ == "__main__":
    main()
