"""Whether it pays to fit a value's scale and zero when it is quantised: none, one or two least-squares steps of each token's range
against its own codes. Prints the table of docs/method.md ("Ranges of values").

    .deps/venv/bin/python tests/bench/value_ranges_trial.py --model DIR --codebook FILE.h5 --text FILE [--windows 8] [--seqlen 2048]
                                                            [--bos none]

In PyTorch alone (transformers' model, tests/calib/reference_methods.py), so that what doesn't pay is no part of the codec. A fit in
the calibration of one shrink factor for all tokens would change nothing: the levels take it up.
"""

import argparse
import sys
from pathlib import Path
from unittest import mock

import h5py
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "calib"))
import reference_methods  # noqa: E402
from reference_methods import from_codebook, half, on_ranges  # noqa: E402

METHODS = [(bits, fraction) for bits in (2, 3, 4) for fraction in (0.0, 0.01)]
STEPS = (0, 1, 2)


def fitted_ranges(x, inlier, zero, span, levels, steps):
    """Scale and zero by least squares against the codes that they give, so many times; [tokens, groups, 1] as they come."""
    for _ in range(steps):
        u = torch.where(half(span) > 0, (x - half(zero)) / half(span), 0.0)
        level = levels[torch.bucketize(u.contiguous(), (levels[1:] + levels[:-1]) / 2)]
        count = inlier.sum(2, keepdim=True)
        mean_x = torch.where(inlier, x, 0.0).sum(2, keepdim=True) / count
        mean_level = torch.where(inlier, level, 0.0).sum(2, keepdim=True) / count
        about = torch.where(inlier, level - mean_level, 0.0)
        squares = about.pow(2).sum(2, keepdim=True)
        slope = (about * torch.where(inlier, x - mean_x, 0.0)).sum(2, keepdim=True) / squares
        better = (squares > 0) & (slope > 0)
        span = torch.where(better, slope, span)
        zero = torch.where(better, mean_x - slope * mean_level, zero)
    return zero, span


def with_steps(steps):
    """on_ranges() of values, whose ranges [tokens, groups, 1] are a token's own."""
    def stored(x, zero, span, levels, read=None):
        if zero.dim() == 3 and steps:
            # Beyond the thresholds lies what is kept apart.
            inlier = (x >= zero - span) & (x <= zero + span)
            zero, span = fitted_ranges(x, inlier, zero, span, levels, steps)
        return on_ranges(x, zero, span, levels, read)
    return stored


@torch.no_grad()
def logits(model, row, method):
    hooks = []
    for index, layer in enumerate(model.model.layers):
        for point, store in (("k_proj", method and method.key), ("v_proj", method and method.value)):
            if store:
                hooks.append(getattr(layer.self_attn, point).register_forward_hook(
                    lambda _module, _inputs, output, index=index, store=store: store(index, output[0])[None]))
    try:
        return model(row[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    finally:
        for hook in hooks:
            hook.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--codebook", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--bos", choices=("each", "none"), default="none")
    arguments = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    ids = tokenizer(arguments.text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    length = arguments.seqlen - (arguments.bos == "each")
    first = [tokenizer.bos_token_id] * (arguments.bos == "each")
    rows = [torch.tensor(first + ids[i * length:(i + 1) * length]) for i in range(arguments.windows)]
    exact = [logits(model, row, None) for row in rows]
    print("| method | KL as it is | one step, % | two steps, % |\n| --- | --- | --- | --- |")
    with h5py.File(arguments.codebook) as book:
        for bits, fraction in METHODS:
            costs = []
            for steps in STEPS:
                with mock.patch.object(reference_methods, "on_ranges", with_steps(steps)):
                    method = from_codebook(book, bits, fraction, False, False)
                    divergences = []
                    for row, full in zip(rows, exact, strict=True):
                        divergences.append((full.exp() * (full - logits(model, row, method))).sum(-1).mean().item())
                costs.append(sum(divergences) / len(divergences))
            name = f"nuq{bits}{'-1%' if fraction else ''}"
            print(f"| {name} | {costs[0]:.5f} | {100 * (costs[1] / costs[0] - 1):+.1f} | {100 * (costs[2] / costs[0] - 1):+.1f} |", flush=True)


if __name__ == "__main__":
    main()
