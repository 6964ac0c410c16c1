"""`kvcal export --format kvquant`: the pickle as Python and torch load it, beside the codebook as h5py reads it."""

import io
import os
import pathlib
import pickle
import pickletools
import subprocess

import pytest

h5py = pytest.importorskip("h5py")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
GQA_MODEL = SOURCE / "data" / "model"
LAYERS, HEADS, HEAD_DIM, VOCAB = 2, 4, 16, 64
CHANNELS = HEADS * HEAD_DIM
# Dicts, lists, tuples, text and floats; GLOBAL and REDUCE make a tensor.
OPCODES = {"PROTO", "STOP", "MARK", "EMPTY_DICT", "SETITEMS", "EMPTY_LIST", "APPENDS", "TUPLE", "TUPLE1", "BINUNICODE",
           "BINFLOAT", "GLOBAL", "REDUCE"}

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def kvcal(*arguments):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def calibrate(model, vocab, out, *more):
    tokens = out.with_suffix(".npy")
    np.save(tokens, np.random.default_rng(7).integers(3, vocab, size=(4, 64)).astype(np.int32))
    result = kvcal("calibrate", "--model", model, "--tokens", tokens, "--out", out, "--dtype", "float32", "--threads", 2, "--ranges", "threshold",
                   "--quiet", *more)
    assert result.returncode == 0, result.stderr
    return out


def export(codebook, out, method):
    return kvcal("export", codebook, "--format", "kvquant", "--method", method, "--out", out)


def refused(codebook, out, method, *parts):
    """Exit code 1, one line that has all the parts, and no file more than before."""
    before = sorted(out.parent.iterdir())
    result = export(codebook, out, method)
    assert result.returncode == 1, result
    errors = [line for line in result.stderr.splitlines() if line.startswith("kvcal: error: ")]
    assert len(errors) == 1, result.stderr
    for part in parts:
        assert part in errors[0]
    assert sorted(out.parent.iterdir()) == before


@pytest.fixture(scope="module")
def mha_model(tmp_path_factory):
    """As many kv heads as attention heads."""
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=CHANNELS, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, head_dim=HEAD_DIM, vocab_size=VOCAB, max_position_embeddings=128,
        tie_word_embeddings=False, initializer_range=0.2)
    folder = tmp_path_factory.mktemp("mha") / "model"
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codebook(mha_model, tmp_path_factory):
    return calibrate(mha_model, VOCAB, tmp_path_factory.mktemp("codebook") / "mha.h5")


@pytest.fixture(scope="module", params=[("nuq3", "outliers_0", "nuq3", False),
                                        ("nuq3-1%-qn", "outliers_0.01", "nuq3", True),
                                        ("nuq2-1%", "outliers_0.01", "nuq2", False),
                                        ("nuq4-qn", "outliers_0", "nuq4", True)], ids=lambda param: param[0])
def exported(request, codebook, tmp_path_factory):
    method, group, datatype, qnorm = request.param
    out = tmp_path_factory.mktemp("out") / "quantizers.pickle"
    result = export(codebook, out, method)
    assert result.returncode == 0, result.stderr
    assert list(out.parent.iterdir()) == [out]
    return out.read_bytes(), group, datatype, qnorm


class OnlyFloatTensor(pickle.Unpickler):
    def find_class(self, module, name):
        assert (module, name) == ("torch", "FloatTensor")
        return super().find_class(module, name)


def is_tensor(value, numbers):
    """float32 on the CPU, of the shape and the very bits of `numbers`."""
    assert type(value) is torch.Tensor and value.dtype == torch.float32 and value.device.type == "cpu"
    expected = np.asarray(numbers, dtype=np.float32)
    assert tuple(value.shape) == expected.shape
    np.testing.assert_array_equal(value.numpy().view(np.uint32), expected.view(np.uint32))


def test_every_number_is_that_of_the_codebook(codebook, exported):
    data, group, datatype, qnorm = exported
    quantizers = pickle.loads(data)
    assert type(quantizers) is dict
    assert list(quantizers) == [f"model.layers.{layer}.self_attn.{name}" for layer in range(LAYERS)
                                for name in ("k_proj", "v_proj")]
    with h5py.File(codebook) as file:
        for layer in range(LAYERS):
            for name, tensor in (("k_proj", "key"), ("v_proj", "value")):
                entry = quantizers[f"model.layers.{layer}.self_attn.{name}"]
                held = file[f"layers/{layer:04}/{tensor}/{group}"]
                centroids = held[f"{datatype}/centroids"]
                assert type(entry) is tuple and len(entry) == (5 if qnorm else 3)
                if tensor == "key":
                    assert held["upper"].shape == (CHANNELS,)
                    is_tensor(entry[0], held["upper"][:][None])
                    is_tensor(entry[1], held["lower"][:][None])
                else:
                    is_tensor(entry[0], [[1]])
                    is_tensor(entry[1], [[-1]])
                assert type(entry[2]) is list and len(entry[2]) == 1
                assert centroids.shape == (2 ** int(datatype[-1]),)
                is_tensor(entry[2][0], centroids[:][:, None])
                if qnorm:
                    is_tensor(entry[3], [centroids.attrs["qnorm_scale"]])
                    is_tensor(entry[4], [centroids.attrs["qnorm_offset"]])


def test_protocol_2_and_no_other_opcode(exported):
    data = exported[0]
    operations = list(pickletools.genops(data))
    assert (operations[0][0].name, operations[0][1]) == ("PROTO", 2)
    assert {opcode.name for opcode, _, _ in operations} <= OPCODES
    assert all(opcode.proto <= 2 for opcode, _, _ in operations)
    assert {argument for opcode, argument, _ in operations if opcode.name == "GLOBAL"} == {"torch FloatTensor"}
    assert operations[-1][2] == len(data) - 1  # STOP is the last byte
    pickletools.dis(data, out=io.StringIO())  # checks the stack, too


def test_no_class_but_one_is_asked_for(exported):
    assert len(OnlyFloatTensor(io.BytesIO(exported[0])).load()) == 2 * LAYERS


def test_float32_whatever_torch_has_by_default(exported):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        entry = pickle.loads(exported[0])["model.layers.0.self_attn.k_proj"]
    finally:
        torch.set_default_dtype(before)
    assert entry[0].dtype == entry[2][0].dtype == torch.float32


def test_the_same_codebook_is_the_same_bytes(codebook, tmp_path):
    files = [tmp_path / name for name in ("a.pickle", "b.pickle")]
    for file in files:
        assert export(codebook, file, "nuq3-1%").returncode == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_the_deployment_code_cannot_run_is_said(codebook, tmp_path):
    result = export(codebook, tmp_path / "q.pickle", "nuq3-1%-qn")
    assert result.returncode == 0
    said = result.stdout + result.stderr
    for part in ("32 heads", "4096", "Q-Norm", "--quantizer-path", "--sparsity-threshold 0.99", "--norm", "--abits 3"):
        assert part in said, part


def test_gqa_is_refused(tmp_path):
    codebook = calibrate(GQA_MODEL, 4096, tmp_path / "gqa.h5")
    refused(codebook, tmp_path / "quantizers.pickle", "nuq3-1%", "layer 0", "GQA", "2 kv heads for 4 attention heads", "MHA")


def test_thresholds_by_head_are_refused(mha_model, tmp_path):
    codebook = calibrate(mha_model, VOCAB, tmp_path / "head.h5", "--value-scope", "head")
    refused(codebook, tmp_path / "quantizers.pickle", "nuq3-1%", "value", "--value-scope token")
