#!/usr/bin/env python3
"""What `kvcal calibrate` says it needs beside what it takes: memory (peak resident) and time.

    .deps/venv/bin/python tests/bench/memory_trial.py [--kvcal build/release/bin/kvcal] [--stages] [CASE ...]

A case is MODEL:SAMPLESxSEQLEN:DTYPE:THREADS, MODEL a folder, `bundled`, or `7b` (two random layers of Llama-2-7B's shape, made
beside the output). Each run may use just the memory that its dry run asks for, so no activations are cached. `--stages` adds the
peak of each stage. Prints one row a case: need, peak and their ratio; the time said and taken.
"""

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).resolve().parents[2]
CASES = ("bundled:16x2048:float32:2", "bundled:16x2048:bfloat16:2", "7b:2x2048:bfloat16:2", "7b:2x2048:bfloat16:1")


def make_7b(folder):
    import torch
    from safetensors.torch import save_file

    hidden, inner, vocab, layers = 4096, 11008, 32000, 2
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocab,
              "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 4096}
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
        for name in "qkvo":
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = shape
    generator = torch.Generator().manual_seed(0)
    tensors = {name: (torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)).to(torch.bfloat16)
               for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def model_folder(name):
    if name == "bundled":
        return SOURCE / "data" / "model"
    if name != "7b":
        return Path(name)
    folder = SOURCE / "build" / "models" / "7b-shaped"
    if not (folder / "config.json").exists():
        make_7b(folder)
    return folder


def resident_mib(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    except (OSError, IndexError):
        return 0


class StagePeaks:
    """Samples the resident size; progress lines on standard error say which stage it is."""

    def __init__(self, process):
        self.stage, self.peaks = "start", {}
        self.process = process
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self.poll, self.read)]
        for thread in self.threads:
            thread.start()

    def poll(self):
        while self.process.poll() is None:
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), resident_mib(self.process.pid))
            time.sleep(0.005)

    def read(self):
        for line in self.process.stderr:
            name = line.split(":")[0]
            if name in ("forward", "loss", "backward"):
                ended = " tokens in " in line
                self.stage = {"forward": "loss", "loss": "backward"}.get(name, "end") if ended else name


def run_case(kvcal, case, stages):
    name, size, dtype, threads = case.rsplit(":", 3)
    samples, seqlen = map(int, size.split("x"))
    model = model_folder(name)
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        tokens, out = Path(folder) / "tokens.npy", Path(folder) / "out.h5"
        np.save(tokens, np.random.default_rng(0).integers(3, vocab, size=(samples, seqlen)).astype(np.int32))
        command = [str(part) for part in (kvcal, "calibrate", "--model", model, "--tokens", tokens, "--out", out, "--dtype", dtype,
                                          "--threads", threads)]
        plan = json.loads(subprocess.run([*command, "--dry-run", "--json", "-"], capture_output=True, check=True).stdout)["plan"]
        begin = time.monotonic()
        process = subprocess.Popen([*command, "--memory", str(plan["memory_bytes"])], stderr=subprocess.PIPE,
                                   stdout=subprocess.DEVNULL, text=True)
        peaks = StagePeaks(process)
        process.wait()
        seconds = time.monotonic() - begin
    # Sampled, not the system's own maximum: that of a child begins with what its parent had.
    need, peak = plan["memory_bytes"] / 2**20, max(peaks.peaks.values())
    print(f"| {Path(name).name} | {size} | {dtype} | {threads} | {plan['lanes']} | {need:,.0f} | {peak:,.0f} | {need / peak:.2f} | "
          f"{plan['seconds_low']:.0f} to {plan['seconds_high']:.0f} | {seconds:.0f} |", flush=True)
    if process.returncode != 0:
        print(f"  exit code {process.returncode}")
    if stages:
        print("  ", plan["memory"], {stage: round(value) for stage, value in peaks.peaks.items()}, flush=True)


def main():
    parser = argparse.ArgumentParser(description="need and peak of kvcal calibrate")
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--kvcal", type=Path, default=SOURCE / "build" / "release" / "bin" / "kvcal")
    parser.add_argument("--stages", action="store_true")
    options = parser.parse_args()
    print("| model | sample | dtype | threads | lanes | need, MiB | peak, MiB | need / peak | said, s | taken, s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in options.cases:
        run_case(options.kvcal, case, options.stages)


if __name__ == "__main__":
    main()
