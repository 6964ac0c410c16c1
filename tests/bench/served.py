"""What kvcal's exports cost in the loaders that they are made for, beside the same loader's float model. A part of results.py;
alone it prints the table:

    .deps/venv/bin/python tests/bench/served.py --kvcal build/release/bin/kvcal --shared ../shared/data
                                                [--codebook FILE] [--windows 8] [--fresh]

onnx-genai: onnxruntime-genai's builder makes an ONNX model with the exported scales in it, and onnxruntime runs it on the CPU
with its own int8 or int4 cache. compressed-tensors: transformers loads the exported folder and rounds what it caches to FP8. What
attention reads has been quantised by the loader, not by kvcal. What was measured lies beside the codebook (build/results/) and is
used again unless --fresh is given. Takes 4 GB of disk while it runs (the float model's logits, one ONNX folder at a time).
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compare_calibrate import first_tokens
from trial import RESULTS, ROOT, Trial, calibrated, digits, measured, paragraph, percent, run, table, trials

ONNX_SCHEMES = ("int8_per_channel", "int4_per_channel", "int8_per_tensor", "int4_per_tensor")
FP8_STRATEGIES = {"tensor": "tensor", "attn_head": "head"}  # compressed-tensors' names, and those of kvcal export --per
FLOAT = "float32"
CACHE_NUMBERS = {"float": (np.float32, 1), "int8": (np.int8, 1), "uint8": (np.uint8, 2)}  # uint8: two codes of int4
CHUNK = 256  # positions that are scored at a time: 100 MB for each tensor of float64 over SmolLM2's vocabulary

# Token ids of a window [tokens] to logits [tokens, vocabulary], float32.
LogitsOf = Callable[[np.ndarray], np.ndarray]


@dataclass
class Loader:
    """What runs exports: the packages it needs, and its models one at a time with their schemes, the float one first."""
    name: str
    packages: dict[str, str]  # by the name that Python imports: the name that pip installs
    models: Callable[[Path, Path, Path, Path], Iterator[tuple[str, LogitsOf]]]


def session_logits(folder: Path, cache_type: str) -> LogitsOf:
    """Of a builder's folder. The builder makes a float cache where it overlooks an option, so the cache's type is checked."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    caches = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    if not caches or {i.type for i in caches} != {f"tensor({cache_type})"}:
        sys.exit(f"served.py: {folder} has caches of {sorted({i.type for i in caches})}, expected {cache_type}")
    sizes = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    number, codes_per_item = CACHE_NUMBERS[cache_type]
    shape = (1, sizes["num_key_value_heads"], 0, sizes["head_size"] // codes_per_item)  # batch, heads, tokens, items
    empty = {i.name: np.zeros(shape, number) for i in caches}

    def logits_of(ids: np.ndarray) -> np.ndarray:
        feed = empty | {"input_ids": ids[None].astype(np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        return session.run(["logits"], feed)[0][0]

    return logits_of


def onnx_models(kvcal: Path, model: Path, codebook: Path, scratch: Path) -> Iterator[tuple[str, LogitsOf]]:
    """As docs/exports/onnx-genai.md says, one folder at a time."""
    for scheme in (FLOAT, *ONNX_SCHEMES):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            out, scales, options, cache_type = Path(folder) / "model", Path(folder) / "scales.json", [], "float"
            if scheme != FLOAT:
                number, scope = scheme.split("_per_")
                cache_type = {"int8": "int8", "int4": "uint8"}[number]
                run([kvcal, "export", codebook, "--format", "onnx-genai", "--type", number, "--per", scope, "--out", scales])
                options = ["--extra_options", f"kv_cache_quant_scheme={scheme}", f"kv_cache_scale_file={scales}"]
            run(["env", "TQDM_DISABLE=1", sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", model, "-o", out, "-p",
                 "fp32", "-e", "cpu", "-c", Path(folder) / "cache", *options])
            yield scheme, session_logits(out, cache_type)


def transformers_logits(folder: Path) -> LogitsOf:
    """Of a model's folder or an overlay. transformers runs on where scales are missing, so its load report is checked."""
    import torch
    import transformers
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[what]:
            sys.exit(f"served.py: transformers reports {what} of {folder}: {sorted(map(str, report[what]))[:3]}")
    model.eval()

    def logits_of(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=True).logits[0].numpy()

    return logits_of


def transformers_models(kvcal: Path, model: Path, codebook: Path, scratch: Path) -> Iterator[tuple[str, LogitsOf]]:
    """As docs/exports/compressed-tensors.md says."""
    yield FLOAT, transformers_logits(model)
    for strategy, scope in FP8_STRATEGIES.items():
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            overlay = Path(folder) / "overlay"
            run([kvcal, "export", codebook, "--format", "compressed-tensors", "--type", "fp8", "--per", scope, "--model", model,
                 "--out", overlay])
            yield f"fp8, strategy {strategy}", transformers_logits(overlay)


LOADERS = (
    Loader("onnx-genai", {"onnxruntime_genai": "onnxruntime-genai", "onnxruntime": "onnxruntime", "onnx_ir": "onnx-ir",
                          "torch": "torch", "transformers": "transformers"}, onnx_models),
    Loader("compressed-tensors", {"compressed_tensors": "compressed-tensors", "transformers": "transformers",
                                  "torch": "torch"}, transformers_models),
)


def require_packages() -> None:
    """Ends the program where a package is missing, before anything is measured."""
    needed = {module: package for loader in LOADERS for module, package in loader.packages.items()}
    if missing := [package for module, package in needed.items() if importlib.util.find_spec(module) is None]:
        sys.exit(f"served.py: no Python package {', '.join(missing)} in {sys.executable}: install tests/requirements.txt "
                 "(./setup.sh --tests does)")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def score(ids: np.ndarray, exact: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Sums over the tokens of a window but the first: -log p by `stored`, KL(exact || stored) in nats, same likeliest token."""
    sums = np.zeros(3)
    for begin in range(0, len(ids) - 1, CHUNK):
        end = min(begin + CHUNK, len(ids) - 1)
        p, q = log_softmax(exact[begin:end]), log_softmax(stored[begin:end])
        sums += (-q[np.arange(end - begin), ids[begin + 1:end + 1]].sum(), (np.exp(p) * (p - q)).sum(),
                 (p.argmax(-1) == q.argmax(-1)).sum())
    return sums


def compare(models: Iterator[tuple[str, LogitsOf]], windows: np.ndarray, scratch: Path) -> list[dict]:
    """A row for each model, in units of kvcal's JSON; the first one's logits lie in files and are what all are compared with."""
    rows = []
    for scheme, logits_of in models:
        sums = np.zeros(3)
        for i, ids in enumerate(windows):
            stored, file = logits_of(ids), scratch / f"{i}.npy"
            if not rows:
                np.save(file, stored)
            sums += score(ids, np.load(file, mmap_mode="r"), stored)
        nll, kld, same = sums / (len(windows) * (windows.shape[1] - 1))
        rows.append({"scheme": scheme, "ppl": math.exp(nll), "kld_mean": kld, "top1_agreement": same})
        print(f"served.py: {scheme}: perplexity {rows[-1]['ppl']:.3f}", file=sys.stderr)
    return rows


def serve(kvcal: Path, trial: Trial, codebook: Path, fresh: bool, count: int | None = None) -> dict[str, dict]:
    """By the loader's name: its rows, its packages with versions, windows and seqlen. count: of windows; None: the trial's."""
    windows, reports = first_tokens(trial.model, trial.validation, (count or trial.served[0], trial.served[1])), {}
    for loader in LOADERS:
        out = codebook.with_name(f"{codebook.stem}-served-{loader.name}.json")
        if fresh:
            out.unlink(missing_ok=True)
        versions = {package: importlib.metadata.version(package) for package in loader.packages.values()}
        about = {"windows": windows.shape[0], "seqlen": windows.shape[1], "versions": versions}

        def measure() -> None:
            with tempfile.TemporaryDirectory(dir=codebook.parent) as scratch:
                models = loader.models(kvcal, trial.model.resolve(), codebook, Path(scratch))
                out.write_text(json.dumps(about | {"rows": compare(models, windows, Path(scratch))}, indent=2))

        reports[loader.name] = measured(out, f"{trial.model} {trial.validation} {json.dumps(about)}", codebook, measure)
    return reports


def served_table(reports: dict[str, dict]) -> str:
    rows = []
    for name, report in reports.items():
        exact = report["rows"][0]
        for row in report["rows"]:
            cells = ["-"] * 3 if row is exact else [digits(row["ppl"] - exact["ppl"], 3, "+"), digits(row["kld_mean"], 5),
                                                    percent(row["top1_agreement"])]
            rows.append([name, row["scheme"], digits(row["ppl"], 3), *cells])
    return table(["loader", "scheme", "perplexity", "change", "KL mean", "same top-1 %"], rows)


def served_section(reports: dict[str, dict], perplexity: float) -> str:
    """perplexity: of kvcal's own full precision on the same windows."""
    onnx, tensors = reports["onnx-genai"], reports["compressed-tensors"]
    packages = [f"{package} {version}" for package, version in (onnx["versions"] | tensors["versions"]).items()]
    return "\n\n".join(["### Served by others: exports in the loaders they are made for", paragraph(
        f"""The same codebook through [`kvcal export`](exports/README.md), each threshold by the default, `--clip best`; the same
        {onnx['windows']} windows of {onnx['seqlen']} tokens, no BOS, every token but the first of a window scored, as above. Here
        the loaders quantise the cache and attend to it, not kvcal. [onnx-genai](exports/onnx-genai.md): onnxruntime-genai's
        builder puts the scales into an ONNX model (fp32, CPU), which onnxruntime runs with a cache of int8 or int4.
        [compressed-tensors](exports/compressed-tensors.md): transformers in float32 rounds what it caches to FP8 with the scales
        of the exported folder. {FLOAT} is the loader's own model without scales, and what its change, KL and same top-1 refer to;
        kvcal's `fp` has {digits(perplexity, 3)}."""), served_table(reports), paragraph(f"Measured with {', '.join(packages)}.")])


def main() -> None:
    parser = argparse.ArgumentParser(description="perplexity of exports in the loaders that they are made for")
    parser.add_argument("--kvcal", type=Path, default=ROOT / "build" / "release" / "bin" / "kvcal")
    parser.add_argument("--shared", type=Path, required=True, help="holds text/wiki.valid.raw and text/wiki.test.raw")
    parser.add_argument("--codebook", type=Path, help=f"default: that of results.py in {RESULTS}, made where it is missing")
    parser.add_argument("--windows", type=int, help="default: as many as in docs/results.md")
    parser.add_argument("--fresh", action="store_true", help="measure anew; a codebook that lies there stays")
    options = parser.parse_args()
    require_packages()
    trial = trials(options.shared)["smollm2"]
    codebook = options.codebook or calibrated(options.kvcal, trial)
    print(served_table(serve(options.kvcal, trial, codebook, options.fresh, options.windows)))


if __name__ == "__main__":
    main()
