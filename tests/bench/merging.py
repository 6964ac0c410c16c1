"""What merging costs: codebooks of two texts, merged, beside one calibrated on both, judged on what follows in either text. Prints the tables
of docs/merging.md.

    .deps/venv/bin/python tests/bench/merging.py --kvcal build/release/bin/kvcal --shared ../shared/data [--models bundled,smollm2]

Takes a quarter of an hour on two cores. Codebooks and JSON lie in build/results/merging/.
"""

import argparse
import json
from pathlib import Path

import h5py
import numpy as np
from tokenizers import Tokenizer

from trial import RESULTS, ROOT, digits, run, table

MERGING = RESULTS / "merging"
METHODS = ["nuq2", "nuq2-1%", "nuq3", "nuq3-1%", "nuq4", "nuq4-1%"]


def models(shared: Path) -> dict[str, tuple[str, Path, dict[str, str], int, int, int]]:
    """Title, folder, two texts by name, windows of each text to calibrate and to judge on, and their length."""
    demo, text = (ROOT / "data" / "demo" / "calibrate.txt").read_text(), shared / "text"
    half = len(demo) // 2
    return {
        "bundled": ("The bundled model, two halves of a text", ROOT / "data" / "model", {"first": demo[:half], "second": demo[half:]}, 16, 16, 512),
        "smollm2": ("SmolLM2-135M-Instruct, two kinds of text", ROOT / "build" / "models" / "SmolLM2-135M-Instruct",
                    {"wiki": (text / "wiki.valid.raw").read_text(), "plays": (text / "tinyshakespeare.txt").read_text()}, 8, 4, 1024),
    }


def windows(tokenizer: Tokenizer, text: str, count: int, length: int) -> np.ndarray:
    ids = tokenizer.encode(text[:12 * count * length], add_special_tokens=False).ids
    return np.array(ids[:count * length], dtype=np.int32).reshape(count, length)


def codebook(kvcal: Path, folder: Path, name: str, tokens: np.ndarray) -> Path:
    np.save(MERGING / f"{name}.npy", tokens)
    out = MERGING / f"{name}.h5"
    run([kvcal, "calibrate", "-m", folder, "--tokens", MERGING / f"{name}.npy", "-o", out, "--dtype", "float32", "--overwrite"])
    return out


def divergences(kvcal: Path, folder: Path, of: Path, name: str, tokens: Path) -> dict[str, dict]:
    out = MERGING / f"{of.stem}-on-{name}.json"
    run([kvcal, "validate", "-m", folder, "-c", of, "--tokens", tokens, "--dtype", "float32", "--methods", ",".join(METHODS), "--json", out])
    return {m["name"]: m for m in json.loads(out.read_text())["methods"]}


def objectives(file: h5py.File, method: str) -> np.ndarray:
    """By layer and tensor."""
    fraction = "0.01" if method.endswith("%") else "0"
    return np.array([layer[f"{name}/outliers_{fraction}/nuq{method[3]}/centroids"].attrs["objective"]
                     for layer in file["layers"].values() for name in ("key", "value")])


def threshold_errors(found: Path, exact: Path) -> np.ndarray:
    """Of a channel's range, by channel and end."""
    errors = []
    with h5py.File(found) as f, h5py.File(exact) as e:
        for number, layer in e["layers"].items():
            own, its = (file[f"layers/{number}/key/outliers_0.01"] for file in (f, e))
            half = (its["upper"][:] - its["lower"][:]) / 2
            errors += [np.abs(own[end][:] - its[end][:]) / half for end in ("lower", "upper")]
    return np.concatenate(errors)


def measure(kvcal: Path, key: str, model: tuple) -> str:
    title, folder, texts, calibrated, judged, length = model
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = {name: windows(tokenizer, text, calibrated + judged, length) for name, text in texts.items()}
    first, second = texts
    books = {name: codebook(kvcal, folder, f"{key}-{name}", tokens[name][:calibrated]) for name in texts}
    books["both"] = codebook(kvcal, folder, f"{key}-both", np.concatenate([tokens[name][:calibrated] for name in texts]))
    books["merged"] = MERGING / f"{key}-merged.h5"
    run([kvcal, "merge", books[first], books[second], "-o", books["merged"], "--overwrite"])
    rows = []
    for name in texts:
        path = MERGING / f"{key}-{name}-judged.npy"
        np.save(path, tokens[name][calibrated:])
        found = {book: divergences(kvcal, folder, at, name, path) for book, at in books.items()}
        for method in METHODS:
            kl = {book: found[book][method]["kld_mean"] for book in books}
            rows.append([name, method, *(digits(kl[book], 5) for book in (first, second, "both", "merged")),
                         f"{100 * (kl['merged'] / kl['both'] - 1):+.1f}"])
    with h5py.File(books["merged"]) as merged, h5py.File(books["both"]) as both:
        own, whole = (np.array([objectives(file, method) for method in METHODS]) for file in (merged, both))
    ratios = [f"{ratio:.3f}" for ratio in own.sum(1) / whole.sum(1)]
    errors = {book: threshold_errors(at, books["both"]) for book, at in books.items() if book != "both"}
    return "\n\n".join([
        f"**{title}** ({calibrated} windows of {length} tokens each, judged on {judged} more). KL in nats a token:",
        table(["judged on", "method", f"of {first}", f"of {second}", "of both", "merged", "merged beside both, %"], rows),
        f"Objectives in the merged file beside those of both: {', '.join(f'{m} {r}' for m, r in zip(METHODS, ratios, strict=True))}; "
        f"in single tensors {np.min(own / whole):.2f} to {np.max(own / whole):.2f}. "
        f"Thresholds of 1 % differ from those of both by {', '.join(f'{100 * e.mean():.1f} % ({b})' for b, e in errors.items())} of a "
        f"channel's range, the mean over channels; at most {', '.join(f'{100 * e.max():.0f} % ({b})' for b, e in errors.items())}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvcal", type=Path, default=ROOT / "build" / "release" / "bin" / "kvcal")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--models", default="bundled,smollm2")
    arguments = parser.parse_args()
    MERGING.mkdir(parents=True, exist_ok=True)
    known = models(arguments.shared)
    for name in arguments.models.split(","):
        if name not in known:
            parser.error(f"no model '{name}'; there are {', '.join(known)}")
        print(measure(arguments.kvcal, name, known[name]), end="\n\n")


if __name__ == "__main__":
    main()
