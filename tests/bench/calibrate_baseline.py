"""What a user would do today to get KVQuant datatypes of a model, in plain Python: transformers for the gradients, scikit-learn's
KMeans as KVQuant calls it (float32, max_iter 50, random_state 0). Run by compare_calibrate.py, which times it.

    python calibrate_baseline.py MODEL TOKENS.npy OUT.npz
"""

import sys

import numpy as np
import torch
import transformers
from sklearn.cluster import KMeans

BITS = (2, 3, 4)
OUTLIER_FRACTIONS = (0.0, 0.01)
SINKS = 1


def capture(model, tokens):
    """Keys, values and their squared gradients of every layer, [rows, channels], sinks left out."""
    kept = {}
    for index, layer in enumerate(model.model.layers):
        for name in ("k_proj", "v_proj"):
            def keep(_module, _inputs, output, at=(index, name)):
                output.retain_grad()
                kept.setdefault(at, []).append(output)
            getattr(layer.self_attn, name).register_forward_hook(keep)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output.requires_grad_(True))
    captured = {}
    for row in tokens:
        ids = torch.tensor(row[None].astype(np.int64))
        logits = model(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).backward()
        for at, (output,) in kept.items():
            x = output.detach()[0, SINKS:].float().numpy()
            fisher = output.grad[0, SINKS:].float().square().numpy()
            captured.setdefault(at, []).append((x, fisher))
        kept.clear()
    return {at: tuple(np.concatenate(parts) for parts in zip(*pairs)) for at, pairs in captured.items()}


def fit(x, fisher, per_channel, fraction):
    """The datatypes of one layer's keys or values at all bits."""
    axis = 0 if per_channel else 1
    lower, upper = np.quantile(x, [fraction / 2, 1 - fraction / 2], axis=axis, keepdims=True)
    inlier = (x >= lower) & (x <= upper)
    zero, scale = (upper + lower) / 2, (upper - lower) / 2
    points = ((x - zero) / scale)[inlier].astype(np.float32).reshape(-1, 1)
    weights = (fisher * scale**2)[inlier].astype(np.float32)
    weights /= weights.max()
    tables = {}
    for bits in BITS:
        kmeans = KMeans(n_clusters=2**bits, random_state=0, n_init="auto", max_iter=50)
        tables[bits] = np.sort(kmeans.fit(points, sample_weight=weights).cluster_centers_.ravel())
    return tables


def main():
    folder, tokens_file, out = sys.argv[1:]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    result = {}
    for (layer, name), (x, fisher) in capture(model, np.load(tokens_file)).items():
        for fraction in OUTLIER_FRACTIONS:
            for bits, table in fit(x, fisher, name == "k_proj", fraction).items():
                result[f"{layer}.{name}.{fraction:g}.nuq{bits}"] = table
    np.savez(out, **result)


if __name__ == "__main__":
    main()
