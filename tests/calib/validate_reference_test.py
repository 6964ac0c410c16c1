"""What `kvcal validate --protocol kvcal --dtype float32` measures, against transformers with keys and values replaced by
hooks (the methods anew in reference_methods.py): perplexity, divergence, agreement, errors by layer, standard errors."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("scipy")
import reference_methods  # noqa: E402

BUILD = Path(os.environ["KVCAL_BUILD"])
SHARED = Path(os.environ.get("KVCAL_SHARED_DATA", ""))
SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).parents[2]))
DEMO = SOURCE / "data" / "demo"
THREADS = 2
# SEQLEN is no multiple of 128, so that KIVI's keys end in a rest, and longer than 256, so that some of its values are old.
WINDOWS, SEQLEN = 4, 300
CALIBRATION_WINDOWS, CALIBRATION_SEQLEN = 8, 256

NUQ = [f"nuq{bits}{outliers}{qnorm}" for bits in (2, 3, 4) for outliers in ("", "-1%") for qnorm in ("", "-qn")]
ABLATION = ["int2-channel", "int3-channel-rope", "int3-channel", "int4-channel-rope", "nuq2-1%-nosink", "nuq3-nosink",
            "nuq3-1%-nosink", "nuq4-nosink"]
METHODS = ["fp", "int2", "int3", "int4", "nf2", "nf3", "nf4", *NUQ, *ABLATION, "q8_0", "q4_0", "fp8", "kivi2", "kivi4",
           "turbo2", "turbo3", "turbo4"]
# For heads of 64, 128 or 256 channels only.
PAGED = ["nuq4-paged", "nuq3-1%-paged", "nuq2-1%-paged", "nuq3-1%-qn-paged"]
# Where more numbers lie beyond the thresholds than there are slots for.
OVERFLOWING = ["nuq3-10%-paged"]
STORED = [*METHODS[1:], *PAGED, *OVERFLOWING]
# Of those with standard errors beside them; the rest would say the same again.
WITH_STDERR = ["fp", "int3", "nuq3", "nuq3-1%"]


@dataclass
class Case:
    """A model, how its values' thresholds are scoped, what is judged of it, and what is calibrated for that."""

    model: str
    scope: str
    methods: list
    fitted: tuple = ("--bits", "2,3,4", "--outliers", "0,0.01", "--ablation")


CASES = {"bundled": Case("bundled", "token", METHODS + PAGED), "TinyStories-656K": Case("TinyStories-656K", "token", METHODS),
         "stories260K-hf": Case("stories260K-hf", "token", ["fp"]),
         "bundled-head": Case("bundled", "head", ["fp", "nuq2", "nuq3", "nuq3-1%", "nuq3-1%-qn", "nuq3-1%-nosink",
                                                  "nuq3-1%-paged"]),
         "bundled-turned": Case("bundled", "token", ["fp", "nuq2", "nuq3", "nuq4", "nuq2-1%", "nuq3-1%", "nuq4-1%", "nuq3-1%-qn"],
                                fitted=("--bits", "2,3,4", "--outliers", "0,0.01", "--ranges", "fitted", "--value-rotation",
                                        "hadamard")),
         "bundled-slots": Case("bundled", "head", ["fp", *OVERFLOWING], fitted=("--bits", "3", "--outliers", "0.1"))}


def pairs(methods=None):
    """(case, method) of all cases."""
    return [(case, name) for case, what in CASES.items() for name in what.methods if methods is None or name in methods]


def folder_of(name):
    folder = SOURCE / "data" / "model" if name == "bundled" else SHARED / "weights" / name
    if not folder.exists():
        pytest.skip(f"{folder} is missing")
    return folder


def windows_of(folder, text, count, seqlen):
    """Consecutive windows of a text's ids, with a BOS before each: the token that a sink is for."""
    if (folder / "tokenizer.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        bos, ids = tokenizer.bos_token_id, tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        # transformers reads a tokenizer.model only with protobuf.
        sentencepiece = pytest.importorskip("sentencepiece")
        tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        bos, ids = tokenizer.bos_id(), tokenizer.encode(text)
    body = seqlen - 1
    rows = np.array(ids[: count * body], np.int32).reshape(count, body)
    return np.concatenate([np.full((count, 1), bos, np.int32), rows], axis=1)


def kvcal(*arguments):
    result = subprocess.run([str(a) for a in (BUILD / "bin" / "kvcal", *arguments)], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr


@dataclass
class Scores:
    """Of each window and each position but a window's last, which has nothing to predict: [windows, seqlen - 1], in double."""

    losses: torch.Tensor
    divergence: torch.Tensor
    agrees: torch.Tensor

    @property
    def perplexity(self):
        return math.exp(self.losses.mean())


def stderr_of_mean(x):
    """Of all positions' mean, where windows are independent and the positions of one are not. x: [windows, positions]."""
    windows = len(x)
    residuals = x.sum(1) - x.mean() * x.shape[1]
    return math.sqrt(windows / (windows - 1) * (residuals**2).sum()) / x.numel()


class Reference:
    """transformers over a case's windows. One run a method, kept."""

    def __init__(self, folder, tokens, book):
        self.book = book
        self.tokens = torch.from_numpy(tokens.astype(np.int64))
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.model.eval()
        self.layers = len(self.model.model.layers)
        self.shown = [{} for _ in self.tokens]
        exact = torch.stack([self.logits(row, None, shown) for row, shown in zip(self.tokens, self.shown)])
        self.exact = torch.log_softmax(exact.double(), -1)
        self.kept = {}

    @torch.no_grad()
    def logits(self, row, method, shown):
        """[seqlen - 1, vocabulary] of one window with keys and values as method (None: as they are) stores them. shown: takes
        (point, layer) -> [tokens, channels] as it was before that."""
        def stored(point, layer, x):
            shown[point, layer] = x.clone()
            if method is None or point == ("cached" if method.rotated else "rotated"):
                return x
            return (method.value if point == "value" else method.key)(layer, x)

        def projection_hook(point, layer):
            return lambda _module, _inputs, output: stored(point, layer, output[0])[None]

        modeling = sys.modules[type(self.model).__module__]
        rope, called = modeling.apply_rotary_pos_emb, itertools.count()

        def rope_and_store(*arguments, **named):
            """Called once for each layer, in their order; k: [1, kv_heads, tokens, head_dim]."""
            q, k = rope(*arguments, **named)
            flat = stored("rotated", next(called), k[0].transpose(0, 1).flatten(1))
            return q, flat.unflatten(1, (k.shape[1], k.shape[3])).transpose(0, 1)[None]

        hooks = []
        for index, layer in enumerate(self.model.model.layers):
            hooks.append(layer.self_attn.k_proj.register_forward_hook(projection_hook("cached", index)))
            hooks.append(layer.self_attn.v_proj.register_forward_hook(projection_hook("value", index)))
        try:
            with mock.patch.object(modeling, "apply_rotary_pos_emb", rope_and_store):
                return self.model(row[None], use_cache=False).logits[0, :-1]
        finally:
            for hook in hooks:
                hook.remove()

    def scores(self, name):
        if name not in self.kept:
            method = reference_methods.method(name, self.book)
            losses, divergence, agrees = [], [], []
            for row, exact in zip(self.tokens, self.exact):
                ours = exact if method is None else torch.log_softmax(self.logits(row, method, {}).double(), -1)
                losses.append(-ours.gather(1, row[1:, None])[:, 0])
                divergence.append((exact.exp() * (exact - ours)).sum(-1))
                agrees.append((exact.argmax(-1) == ours.argmax(-1)).double())
            self.kept[name] = Scores(*(torch.stack(rows) for rows in (losses, divergence, agrees)))
        return self.kept[name]

    def errors(self, name, layer, kind):
        """What storing does to the undisturbed model's own activations: no layer sees the error of those below it."""
        method = reference_methods.method(name, self.book)
        point = "value" if kind == "value" else "rotated" if method.rotated else "cached"
        error = energy = count = 0
        for shown in self.shown:
            x = shown[point, layer]
            read = (method.value if kind == "value" else method.key)(layer, x)
            error = error + (x.double() - read.double()).pow(2).sum(0)
            energy = energy + x.double().pow(2).sum(0)
            count += x.numel()
        fisher = torch.from_numpy(self.book[f"layers/{layer:04d}/{kind}/fisher_channel"][:]).double()
        return {"mse": (error.sum() / count).item(), "relative": (error.sum() / energy.sum()).item(),
                "weighted": ((fisher * error).sum() / (fisher * energy).sum()).item()}


@dataclass
class Both:
    ours: dict  # name -> the program's entry under "methods"
    theirs: Reference


@pytest.fixture(scope="module")
def made():
    """The cases made so far: pytest makes a parameter anew for each pair that it stands in."""
    return {}


@pytest.fixture
def case(request, made, tmp_path_factory):
    if request.param not in made:
        made[request.param] = make_case(CASES[request.param], tmp_path_factory.mktemp(request.param))
    return made[request.param]


def make_case(what, scratch):
    """One run of the program for all of a case's methods, and transformers to compare it with."""
    folder = folder_of(what.model)
    torch.set_num_threads(THREADS)
    tokens = windows_of(folder, (DEMO / "validate.txt").read_text(), WINDOWS, SEQLEN)
    np.save(scratch / "validate.npy", tokens)
    np.save(scratch / "calibrate.npy", windows_of(folder, (DEMO / "calibrate.txt").read_text(), CALIBRATION_WINDOWS,
                                                  CALIBRATION_SEQLEN))
    kvcal("calibrate", "--model", folder, "--tokens", scratch / "calibrate.npy", "--out", scratch / "codebook.h5", "--samples",
          CALIBRATION_WINDOWS, "--seqlen", CALIBRATION_SEQLEN, *what.fitted, "--dtype", "float32", "--value-scope", what.scope,
          "--threads", THREADS)
    kvcal("validate", "--model", folder, "--codebook", scratch / "codebook.h5", "--tokens", scratch / "validate.npy", "--seqlen",
          SEQLEN, "--windows", WINDOWS, "--protocol", "kvcal", "--methods", ",".join(what.methods), "--dtype", "float32",
          "--json", scratch / "report.json", "--threads", THREADS)
    report = json.loads((scratch / "report.json").read_text())
    assert (report["windows"], report["seqlen"], report["protocol"]) == (WINDOWS, SEQLEN, "kvcal")
    assert [method["name"] for method in report["methods"]] == what.methods
    return Both({method["name"]: method for method in report["methods"]},
                Reference(folder, tokens, h5py.File(scratch / "codebook.h5")))


def test_normal_float_of_four_bits_is_the_published_one():
    """The oracle itself: Appendix E of the QLoRA paper."""
    expected = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
    np.testing.assert_allclose(reference_methods.normal_float_levels(4), expected, atol=1e-6)


@pytest.mark.parametrize("case,name", pairs(["fp"]), indirect=["case"])
def test_perplexity_of_the_model_as_it_is(case, name):
    ours = case.ours[name]
    assert ours["ppl"] == pytest.approx(case.theirs.scores(name).perplexity, rel=1e-4)
    assert ours["kld_mean"] == pytest.approx(0, abs=1e-7)
    assert ours["top1_agreement"] == 1


@pytest.mark.parametrize("case,name", pairs(), indirect=["case"])
def test_scores(case, name):
    """A number at the middle of two centroids may go either way in another order of float32 sums: hence the tolerances."""
    ours, theirs = case.ours[name], case.theirs.scores(name)
    divergence = theirs.divergence.flatten()
    assert ours["ppl"] == pytest.approx(theirs.perplexity, rel=2e-3)
    assert ours["kld_mean"] == pytest.approx(divergence.mean().item(), rel=0.05, abs=1e-7)
    assert ours["kld_p99"] == pytest.approx(torch.quantile(divergence, 0.99).item(), rel=0.1, abs=1e-6)
    assert ours["top1_agreement"] == pytest.approx(theirs.agrees.mean().item(), abs=0.005)


@pytest.mark.parametrize("case,name", pairs(STORED), indirect=["case"])
def test_errors_by_layer(case, name):
    """Narrow, as a number at the middle of two centroids has the same error either way: this tells Q-Norm from none and
    thresholds by head from those by token, which the scores' tolerances do not."""
    layers = case.ours[name]["layers"]
    assert [layer["layer"] for layer in layers] == list(range(case.theirs.layers))
    for layer, kind in itertools.product(layers, ("key", "value")):
        ours = layer[kind]
        for measure, expected in case.theirs.errors(name, layer["layer"], kind).items():
            assert ours[measure] == pytest.approx(expected, rel=2e-3), (layer["layer"], kind, measure)


@pytest.mark.parametrize("case,name", pairs(OVERFLOWING), indirect=["case"])
def test_slots_run_out(case, name, monkeypatch):
    """The case itself: with room for all outliers each layer would have less error, by far more than the tolerance."""
    monkeypatch.setattr(reference_methods, "slots_for", lambda _mean, _step: 10**6)
    for layer, kind in itertools.product(case.ours[name]["layers"], ("key", "value")):
        assert case.theirs.errors(name, layer["layer"], kind)["mse"] < 0.95 * layer[kind]["mse"], (layer["layer"], kind)


@pytest.mark.parametrize("case,name", pairs(WITH_STDERR), indirect=["case"])
def test_standard_errors_are_over_windows(case, name):
    ours, theirs = case.ours[name], case.theirs.scores(name)
    assert ours["ppl_stderr"] == pytest.approx(theirs.perplexity * stderr_of_mean(theirs.losses), rel=0.02)
    assert ours["kld_stderr"] == pytest.approx(stderr_of_mean(theirs.divergence), rel=0.25, abs=1e-7)
    # Positions taken for independent of each other would give another number, outside the tolerance.
    plain = theirs.losses.std().item() / math.sqrt(theirs.losses.numel())
    assert abs(plain / stderr_of_mean(theirs.losses) - 1) > 0.05
