"""`kvcal export --format onnx-genai`, executed: onnxruntime-genai's own builder makes TinyStories-656K with a quantised
cache of our scales, onnxruntime runs it beside the float build, and the package's own calibrator finds the same scales."""
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
for package in ("torch", "transformers", "onnx_ir", "onnxruntime_genai"):  # what the builder imports
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"could not import {package!r}", allow_module_level=True)

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
MODEL = pathlib.Path(os.environ.get("KVCAL_SHARED_DATA", "../shared/data")) / "weights" / "TinyStories-656K"
TEXT = MODEL.parents[1] / "text" / "tinyshakespeare.txt"
LAYERS, KV_HEADS, DIM, VOCABULARY = 2, 4, 16, 2048
BOS, EOS, PADDING = 1, 2, -1
CALIBRATION, JUDGED, SEQLEN = 64, 32, 320  # stories to calibrate on, others to judge by, and their longest
CPU = ["CPUExecutionProvider"]
EMPTY = {"tensor(float)": (np.float32, DIM), "tensor(int8)": (np.int8, DIM), "tensor(uint8)": (np.uint8, DIM // 2)}
# Scheme: (clip, the largest mean KL divergence to the float cache, in nats per token). Scales of 1.0 come to 0.14 with any
# scheme: the values, which are small, are lost.
SCHEMES = {"int8_per_channel": ("max", 0.001), "int4_per_channel": ("best", 0.06), "int4_per_tensor": ("best", 0.1)}

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)
if not (MODEL / "model.safetensors").exists():
    pytest.skip(f"no model at {MODEL}: set KVCAL_SHARED_DATA", allow_module_level=True)


def run(*command):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result


def calibrated(folder, tokens):
    np.save(folder / "tokens.npy", tokens.astype(np.int32))
    run(KVCAL, "calibrate", "-m", MODEL, "--tokens", folder / "tokens.npy", "-o", folder / "a.h5", "--dtype", "float32",
        "--quiet")
    return folder / "a.h5"


def export(codebook, out, scheme, clip, *more):
    kind, scope = scheme.split("_per_")
    return run(KVCAL, "export", codebook, "--format", "onnx-genai", "--type", kind, "--per", scope, "--clip", clip,
               "--out", out, *more)


def build(out, *options):
    """As docs/exports/onnx-genai.md says."""
    extra = ["--extra_options", *options] if options else []
    run(sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", MODEL, "-o", out, "-p", "fp32", "-e", "cpu",
        "-c", out.parent / "cache", *extra)
    return out


def quantised(folder, scheme, scales):
    return build(folder / scheme, f"kv_cache_quant_scheme={scheme}", f"kv_cache_scale_file={scales}")


def session(folder):
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=CPU)


def step(model, ids, past=None):
    """Logits [batch, tokens, vocabulary], and the cache with the tokens added."""
    feed = past or {i.name: np.zeros((len(ids), KV_HEADS, 0, EMPTY[i.type][1]), EMPTY[i.type][0])
                    for i in model.get_inputs() if i.name.startswith("past_key_values.")}
    seen = next(iter(feed.values())).shape[2]
    feed = feed | {"input_ids": ids, "attention_mask": np.ones((len(ids), seen + ids.shape[1]), np.int64)}
    outputs = dict(zip([output.name for output in model.get_outputs()], model.run(None, feed)))
    logits = outputs.pop("logits")
    return logits, {name.replace("present", "past_key_values"): cache for name, cache in outputs.items()}


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return build(tmp_path_factory.mktemp("float") / "model")


@pytest.fixture(scope="module")
def stories(plain):
    """Stories that the model itself tells: [stories, SEQLEN], padded behind their end."""
    model, random = session(plain), np.random.default_rng(0)
    told = np.full((CALIBRATION + JUDGED, 1), BOS, np.int64)
    past = None
    while told.shape[1] < SEQLEN:
        logits, past = step(model, told[:, -1:], past)
        noise = random.gumbel(size=(len(told), VOCABULARY))
        told = np.concatenate([told, (logits[:, -1] + noise).argmax(-1)[:, None]], axis=1)
    after = np.cumsum(told == EOS, axis=1) - (told == EOS) > 0
    assert after[:, -1].mean() > 0.5  # most come to an end
    return np.where(after, PADDING, told)


@pytest.fixture(scope="module")
def codebook(stories, tmp_path_factory):
    return calibrated(tmp_path_factory.mktemp("codebook"), stories[:CALIBRATION])


@pytest.fixture(scope="module")
def divergence(plain, stories):
    """A function: the mean over all positions of the judged stories of KL(float cache || that of the model at `folder`)."""
    judged = [story[story != PADDING][None] for story in stories[CALIBRATION:]]
    reference = session(plain)
    expected = [log_softmax(step(reference, ids)[0][0]) for ids in judged]

    def of(folder):
        model = session(folder)
        actual = [log_softmax(step(model, ids)[0][0]) for ids in judged]
        return np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in zip(expected, actual)]).mean()

    return of


def test_the_float_build_is_the_model(plain, stories):
    """The builder can take a wrong matrix for the model's head, which would make every comparison below void."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ids = stories[:1][stories[:1] != PADDING][None]
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(step(session(plain), ids)[0] - expected).max() < 1e-3


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_the_session_with_our_scales_is_near_the_float_one(codebook, divergence, tmp_path, scheme):
    clip, limit = SCHEMES[scheme]
    scales = tmp_path / "scales.json"
    export(codebook, scales, scheme, clip)
    ours = quantised(tmp_path / "ours", scheme, scales)
    check_scales_reach_the_graph(ours, scheme, scales)

    file = json.loads(scales.read_text())
    for name, rows in file["scales"].items():
        file["scales"][name] = [[1.0] * len(row) for row in rows]
    (tmp_path / "ones.json").write_text(json.dumps(file))
    near, far = divergence(ours), divergence(quantised(tmp_path / "ones", scheme, tmp_path / "ones.json"))
    print(f"{scheme}, --clip {clip}: KL {near:.5f}, with scales of 1.0 {far:.5f}")
    assert 0 < near <= limit < far
    if scheme.startswith("int8"):
        assert far > 100 * limit


def test_genai_itself_goes_on_as_the_session_does(codebook, stories, tmp_path):
    """onnxruntime-genai's generator adds token by token to the quantised cache; the session sees all of them at once."""
    genai = pytest.importorskip("onnxruntime_genai")
    export(codebook, tmp_path / "scales.json", "int8_per_channel", "max")
    folder = quantised(tmp_path, "int8_per_channel", tmp_path / "scales.json")
    start, count = stories[0, :32], 64
    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=count, min_length=count, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(start.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    ids = np.array(generator.get_sequence(0), np.int64)
    assert len(ids) == count and (ids[:32] == start).all()
    logits = step(session(folder), ids[None])[0][0, 31:-1]
    logits[:, EOS] = -np.inf  # what min_length does
    assert (logits.argmax(-1) == ids[32:]).all()


def check_scales_reach_the_graph(folder, scheme, scales):
    """The cache's type and bits are the scheme's, and the graph's scales are the file's, digit by digit."""
    bits = 8 if scheme.startswith("int8") else 4
    inputs = {i.name: i.type for i in session(folder).get_inputs() if i.name.startswith("past_key_values.")}
    assert len(inputs) == 2 * LAYERS and set(inputs.values()) == {"tensor(int8)" if bits == 8 else "tensor(uint8)"}
    graph = onnx.load(folder / "model.onnx").graph
    attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                  for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert [held["kv_cache_bit_width"] for held in attributes] == [bits] * LAYERS
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if "_scale" in tensor.name}
    file = json.loads(scales.read_text())["scales"]
    for layer in range(LAYERS):
        for name in ("k_scale", "v_scale"):
            expected = np.array(file[name + "s"][layer], np.float32)
            assert expected.size == (KV_HEADS * DIM if scheme.endswith("channel") else 1)
            assert (held[f"model.layers.{layer}.attn.{name}"].ravel() == expected).all()


@pytest.fixture(scope="module")
def windows():
    """What the package's calibrator makes of the text: it takes no ids, so it is asked for them."""
    if not TEXT.exists():
        pytest.skip(f"no text at {TEXT}")
    code = f"""if True:
        import json, transformers
        from onnxruntime_genai.models.quantization.kv_cache_calibration import _load_corpus_file, _tokenize_corpus
        tokenizer = transformers.AutoTokenizer.from_pretrained({str(MODEL)!r})
        windows = _tokenize_corpus(tokenizer, 16, 256, _load_corpus_file({str(TEXT)!r}))
        print("ids", json.dumps([ids[0].tolist() for ids in windows]))"""
    return np.array(json.loads(re.search(r"^ids (.*)$", run(sys.executable, "-c", code).stdout, re.M)[1]))


@pytest.fixture(scope="module")
def codebook_of_windows(windows, tmp_path_factory):
    assert windows.shape == (16, 256)
    return calibrated(tmp_path_factory.mktemp("windows"), windows)


@pytest.mark.parametrize("scheme", ["int8_per_channel", "int4_per_tensor"])
@pytest.mark.parametrize("keys", ["envelope", "measured"])
def test_scales_are_those_of_the_packages_calibrator(plain, codebook_of_windows, tmp_path, scheme, keys):
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    export(codebook_of_windows, ours, scheme, "max", *(["--measured-keys"] if keys == "measured" else []))
    run(sys.executable, "-m", "onnxruntime_genai.models.quantization.kv_cache_calibration", "--model", plain,
        "--tokenizer", MODEL, "--out", theirs, "--quant-type", scheme, "--method", "minmax", "--num-seqs", 16,
        "--target-seq", 256, "--corpus-file", TEXT, *(["--no-k-rotary-envelope"] if keys == "measured" else []))
    ours, theirs = json.loads(ours.read_text()), json.loads(theirs.read_text())
    assert ours["qmax"] == theirs["qmax"] and ours["layer_ids"] == theirs["layer_ids"]
    for name in ("k_scales", "v_scales"):
        print(name, np.max(np.abs(np.array(ours["scales"][name]) / theirs["scales"][name] - 1)))
        np.testing.assert_allclose(ours["scales"][name], theirs["scales"][name], rtol=1e-5)
