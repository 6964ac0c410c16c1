"""The PyTorch operators: what they store and read back is what a few lines of numpy make of it; torch.compile sees them whole."""
import os
import shutil
import struct
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch", reason="no torch")

SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).resolve().parents[2]))
LIBRARY = Path(os.environ.get("KVCAL_BUILD", SOURCE / "build/release")) / "cuda/kernels/libkvcal_torch.so"
if not LIBRARY.exists():
    pytest.skip(f"{LIBRARY} was not built: it needs KVCAL_PROGRAM, or KVCAL_TORCH", allow_module_level=True)
torch.ops.load_library(str(LIBRARY))
ops = torch.ops.kvcal

HEADS, DIM, PAGE, COUNTERS = 2, 64, 16, 7
NOT_FINITE, REFUSED = 4, 6
LEVELS = np.sign(np.linspace(-1, 1, 16)) * np.abs(np.linspace(-1, 1, 16)) ** 1.3
LEVELS = LEVELS.astype(np.float32)
MIDPOINTS = ((LEVELS[:-1] + LEVELS[1:]) / np.float32(2)).astype(np.float32)
VALUE_LEVELS = np.linspace(-0.95, 0.97, 16).astype(np.float32)
VALUE_MIDPOINTS = ((VALUE_LEVELS[:-1] + VALUE_LEVELS[1:]) / np.float32(2)).astype(np.float32)


# ---- An independent writer of cuda/kernels/flat_format.h.

def fnv1a(block):
    value = 0xcbf29ce484222325
    for byte in block:
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return value


def thresholds():
    """Of every channel; they differ in width and place."""
    channel = np.arange(HEADS * DIM, dtype=np.float32)
    return -3 - channel % 7 * np.float32(0.2), 3.5 + channel % 5 * np.float32(0.3)


def affines(lower, upper):
    """fp16 scale and zero."""
    with np.errstate(over="ignore"):
        return (((upper - lower) * np.float32(0.5)).astype(np.float16), ((upper + lower) * np.float32(0.5)).astype(np.float16))


def flat_codebook(fraction=0.0, sinks=1, dim=DIM, version=1):
    lower, upper = thresholds()
    if dim != DIM:
        lower, upper = np.full(HEADS * dim, -1, np.float32), np.full(HEADS * dim, 1, np.float32)
    header_bytes, layer_bytes, block, offsets = 256, 80, b"", []
    at = header_bytes + 128  # the layer, to a multiple of 64
    arrays = [np.stack(affines(lower, upper), axis=1), *([lower, upper] if fraction else [None, None]),
              MIDPOINTS, LEVELS, VALUE_MIDPOINTS, VALUE_LEVELS]
    for array in arrays:
        offsets.append(0 if array is None else at + len(block))
        block += b"" if array is None else array.tobytes().ljust(-(-array.nbytes // 64) * 64, b"\0")
    layer = struct.pack("<4Iq7Q", 3, HEADS, dim, dim, 0, *offsets).ljust(128, b"\0")
    body = layer + block
    header = struct.pack("<8s2I3Q5If64s64s64s", b"KVCALFLT", version, header_bytes, header_bytes + len(body), fnv1a(body),
                         header_bytes, 1, layer_bytes, 4, sinks, 1, fraction, b"c" * 64, b"m" * 64, b"w" * 64)
    assert len(header) == header_bytes
    return torch.from_numpy(np.frombuffer(header + body, dtype=np.uint8).copy())


# ---- What a record keeps, in numpy.

def nearest(x, scale, zero, midpoints, levels):
    """x as it reads back, float32 rounded to fp16."""
    scale, zero = scale.astype(np.float32), zero.astype(np.float32)
    u = (x - zero) * np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    codes = (u[..., None] > midpoints).sum(-1)
    return (levels[codes] * scale + zero).astype(np.float16)


def mended(x, read, lower, upper):
    """Outliers carry an fp16 delta."""
    delta = (x - read.astype(np.float32)).astype(np.float16)
    repaired = (read.astype(np.float32) + delta.astype(np.float32)).astype(np.float16)
    return np.where((x < lower) | (x > upper), repaired, read)


def expected(keys, values, fraction, sinks):
    """keys, values: float32 [tokens, HEADS, DIM] of one sequence from its first token. fp16, the same shape."""
    lower, upper = (x.reshape(HEADS, DIM) for x in thresholds())
    k = nearest(keys, *affines(lower, upper), MIDPOINTS, LEVELS)
    low, high = (np.quantile(values.astype(np.float64), q, axis=-1, keepdims=True).astype(np.float32)
                 for q in (fraction / 2, 1 - fraction / 2))
    v = nearest(values, *affines(low, high), VALUE_MIDPOINTS, VALUE_LEVELS)
    if fraction:
        k, v = mended(keys, k, lower, upper), mended(values, v, low, high)
    k[:sinks], v[:sinks] = keys[:sinks].astype(np.float16), values[:sinks].astype(np.float16)
    return k, v


def numbers(rows, seed):
    random = np.random.default_rng(seed)
    return tuple(random.standard_t(4, (rows, HEADS, DIM)).astype(np.float32) for _ in range(2))


# ---- A cache and its batch.

class Cache:
    """Sequences whose pages lie in no order; records hold rubbish before they are used."""

    def __init__(self, sequences=2, max_pages=4, fraction=0.0, sinks=1):
        self.codebook = ops.open_codebook(flat_codebook(fraction, sinks), torch.device("cpu"))
        self.layout = ops.record_layout(self.codebook, 0, PAGE, 64 if fraction else None, 64 if fraction else None)
        torch.manual_seed(5)
        count = sequences * max_pages
        self.records = torch.randint(0, 256, (count, HEADS, self.layout[-1]), dtype=torch.uint8)
        self.key_sinks = torch.full((sequences, HEADS, sinks, DIM), 77, dtype=torch.float16)
        self.value_sinks = self.key_sinks.clone()
        self.counters = torch.zeros(COUNTERS, dtype=torch.int64)
        self.pages = torch.randperm(count).to(torch.int32).reshape(sequences, max_pages)
        self.lengths = torch.zeros(sequences, dtype=torch.int32)
        self.sink_slots = torch.arange(sequences - 1, -1, -1, dtype=torch.int32)

    def state(self):
        return self.records, self.key_sinks, self.value_sinks, self.counters

    def where(self):
        return self.codebook, 0, self.layout

    def append(self, keys, values, starts, most=None, **others):
        starts = torch.tensor(starts, dtype=torch.int32)
        most = int((starts[1:] - starts[:-1]).max()) if most is None else most
        arguments = dict(zip(("records", "key_sinks", "value_sinks", "counters"), self.state()), keys=keys, values=values,
                         pages=self.pages, starts=starts, lengths=self.lengths, max_new_tokens=most, sink_slots=self.sink_slots)
        ops.append(*self.where(), **{**arguments, **others})
        self.lengths += starts[1:] - starts[:-1]

    def read(self, first=0, count=None, dtype=torch.float16, **others):
        arguments = dict(zip(("records", "key_sinks", "value_sinks", "counters"), self.state()), pages=self.pages,
                         lengths=self.lengths, first_page=first, page_count=self.pages.shape[1] if count is None else count,
                         dtype=dtype, sink_slots=self.sink_slots)
        return ops.dequantise(*self.where(), **{**arguments, **others})


@pytest.fixture
def cache():
    return Cache()


def filled(lengths=(21, 3), **shape):
    """A cache with a prompt for each sequence, and what was put there."""
    made = Cache(sequences=len(lengths), **shape)
    keys, values = numbers(sum(lengths), 1)
    starts = [0, *np.cumsum(lengths).tolist()]
    made.append(torch.from_numpy(keys), torch.from_numpy(values), starts)
    return made, keys, values, starts


def test_the_operators_are_there_and_say_what_they_write():
    names = {"open_codebook", "close_codebook", "codebook_info", "layer_info", "record_layout", "append", "dequantise",
             "dequantise_into"}
    assert names <= {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "kvcal::" in name}
    for name, written in (("append", ["records", "key_sinks", "value_sinks", "counters"]), ("dequantise", ["counters"]),
                          ("dequantise_into", ["counters", "keys", "values"])):
        arguments = getattr(ops, name).default._schema.arguments
        assert [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write] == written


def test_a_codebook_says_what_it_is(cache):
    assert ops.codebook_info(cache.codebook) == [1, 4, 1]
    assert ops.layer_info(cache.codebook, 0) == [3, HEADS, DIM, DIM, 0]
    codes = PAGE * DIM // 2
    assert ops.record_layout(cache.codebook, 0, PAGE) == [3, 4, 4, DIM, DIM, PAGE, 0, 0, 0, codes, 2 * codes, 2 * codes + 64,
                                                          2 * codes + 64, 1152]
    assert ops.record_layout(cache.codebook, 0, 64, 8, 12)[5:8] == [64, 8, 12]


@pytest.mark.parametrize("fraction,sinks", [(0.0, 1), (0.0, 0), (0.02, 2)])
def test_what_is_read_is_what_numpy_makes_of_it(fraction, sinks):
    made, keys, values, starts = filled((37, 16, 0, 1), fraction=fraction, sinks=sinks)
    read = made.read()
    for i in range(4):
        part = slice(starts[i], starts[i + 1])
        for got, wanted in zip(read, expected(keys[part], values[part], fraction, sinks)):
            length = len(wanted)
            np.testing.assert_array_equal(got[i, :length].numpy(), wanted)
            assert not got[i, length:].any()
    met, dropped = made.counters[:2].tolist(), made.counters[2:].tolist()
    assert dropped == [0] * 5 and all((count > 0) == (fraction > 0) for count in met)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_type_goes_in_and_comes_out(dtype):
    made, (keys, values) = Cache(), numbers(20, 2)
    given = [torch.from_numpy(x).to(dtype) for x in (keys, values)]
    made.append(*given, [0, 20, 20])
    rounded = expected(*(x.float().numpy() for x in given), 0.0, 1)
    for got, wanted in zip(made.read(dtype=dtype), rounded):
        assert got.dtype == dtype
        assert torch.equal(got[0, :20], torch.from_numpy(wanted).to(dtype))


def test_token_by_token_is_the_prompt_at_once():
    whole, keys, values, starts = filled((21, 18))
    steps = Cache()
    for token in range(21):
        here = [i for i in range(2) if token < starts[i + 1] - starts[i]]
        rows = [starts[i] + token for i in here]
        steps.append(torch.from_numpy(keys[rows]), torch.from_numpy(values[rows]), [0, 1, len(here)], most=1)
    for a, b in zip(whole.read(), steps.read()):
        assert torch.equal(a, b)
    assert torch.equal(whole.counters, steps.counters) and torch.equal(whole.key_sinks, steps.key_sinks)


def test_rows_are_taken_from_a_larger_tensor_as_they_lie(cache):
    keys, values = numbers(20, 3)
    fused = torch.empty(20, 3 * HEADS * DIM)
    fused[:, HEADS * DIM:2 * HEADS * DIM] = torch.from_numpy(keys).flatten(1)
    by_head = torch.from_numpy(values).transpose(0, 1).contiguous().transpose(0, 1)
    cache.append(fused[:, HEADS * DIM:2 * HEADS * DIM].unflatten(1, (HEADS, DIM)), by_head, [0, 20, 20])
    for got, wanted in zip(cache.read(), expected(keys, values, 0.0, 1)):
        np.testing.assert_array_equal(got[0, :20].numpy(), wanted)


def test_on_the_cpu_records_lie_wherever_pytorch_puts_them(cache):
    block = torch.zeros(cache.records.numel() + 128, dtype=torch.uint8)
    shift = (16 - block.data_ptr()) % 128
    cache.records = block[shift:shift + cache.records.numel()].view_as(cache.records)
    assert cache.records.data_ptr() % 128 == 16
    keys, values = numbers(20, 3)
    cache.append(torch.from_numpy(keys), torch.from_numpy(values), [0, 20, 20])
    np.testing.assert_array_equal(cache.read()[0][0, :20].numpy(), expected(keys, values, 0.0, 1)[0])


def test_pages_are_written_where_the_targets_say():
    made, *_ = filled((37, 3))
    keys, values = made.read(0, 3)
    # Heads before tokens, keys and values in one tensor, as engines have them; one page more than is needed.
    own = torch.full((7, 2, HEADS, PAGE, DIM), 7, dtype=torch.float16)
    targets = torch.tensor([[6, 2, 4], [1, 0, 5]], dtype=torch.int32)
    into = own[:, 0].transpose(1, 2), own[:, 1].transpose(1, 2)
    ops.dequantise_into(*made.where(), *made.state(), *into, made.pages, made.lengths, targets, 0, made.sink_slots)
    for read, pages in zip((keys, values), into):
        for page in range(3):
            assert torch.equal(pages[targets[0, page]], read[0, page * PAGE:(page + 1) * PAGE])
        assert torch.equal(pages[1], read[1, :PAGE])
        assert (pages[[0, 3, 5]] == 7).all()
    assert torch.equal(made.read(1, 2)[0], keys[:, PAGE:])


def test_what_is_not_finite_is_counted_and_reads_as_nearest_to_zero(cache):
    keys, values = numbers(5, 4)
    keys[2, 1, 3], keys[0, 0, 0], values[4, 0, 1] = np.nan, np.inf, np.nan
    cache.append(torch.from_numpy(keys), torch.from_numpy(values), [0, 5, 5])
    assert cache.counters[NOT_FINITE] == 3 and cache.counters[REFUSED] == 0
    zeroed = np.nan_to_num(keys, posinf=0), np.nan_to_num(values)
    for got, wanted in zip(cache.read(), expected(*zeroed, 0.0, 1)):
        np.testing.assert_array_equal(got[0, :5].numpy(), wanted)


# ---- What does not fit.

def wide(x):
    return torch.cat([x, x], -1)[..., ::2]


@pytest.mark.parametrize("name,change,message", [
    ("records", lambda x: x[:0], r"table.pages\[0\]\[0\] is \d; the cache has 0 pages"),
    ("records", lambda x: x.to(torch.int8), "records is of Char; expected Byte"),
    ("records", lambda x: x[..., :-1], r"records is of shape .* expected \[pages, kv_heads, record_bytes\]: \[any, 2, 1152\]"),
    ("records", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), "records is not contiguous"),
    ("records", lambda x: torch.cat([x.flatten(), x.flatten()[:8]])[8:].view_as(x), "records begins at an address"),
    ("key_sinks", lambda x: x.float(), "key_sinks is of Float; expected Half"),
    ("value_sinks", lambda x: x[:1], "as many slots as key_sinks"),
    ("counters", lambda x: x[:6], r"counters is of shape \[6\]; expected \[counters\]: \[7\]"),
    ("counters", lambda x: x.int(), "counters is of Int"),
    ("keys", lambda x: x.double(), "keys is of Double; expected float16, bfloat16 or float32"),
    ("keys", lambda x: x[:, :1], r"keys is of shape"), ("keys", lambda x: x.flatten(1), r"keys is of shape"),
    ("keys", wide, r"keys does not have its channels next to each other: pass it with .contiguous\(\)"),
    ("keys", lambda x: torch.nn.functional.pad(x, (0, 4))[..., :DIM], r"keys has stride 68 .* pass it with .contiguous\(\)"),
    ("values", lambda x: torch.cat([x.flatten(), x.flatten()[:1]])[1:].view_as(x), r"values begins .* 16 bytes.*clone"),
    ("values", lambda x: x[:-1], "as many rows as keys"),
    ("pages", lambda x: x.long(), "pages is of Long; expected Int"), ("pages", lambda x: x[0], r"pages is of shape"),
    ("starts", lambda x: x[:-1], r"starts is of shape \[2\]; expected \[sequences \+ 1\]: \[3\]"),
    ("lengths", lambda x: x[:-1], r"lengths is of shape"), ("lengths", lambda x: x.float(), "lengths is of Float"),
    ("sink_slots", lambda x: x[:1], r"sink_slots is of shape"),
    ("sink_slots", lambda x: x + 5, r"table.sink_slots\[0\] is 6; the cache has 2 sink slots"),
    ("max_new_tokens", lambda x: -1, "max_new_tokens is -1"),
    ("max_new_tokens", lambda x: 2**32 + 20, "max_new_tokens is 4294967316"),
    ("max_new_tokens", lambda x: 21, "max_new_tokens is 21 of 20 rows"),
    ("max_new_tokens", lambda x: 5, "sequence 0 brings 20 tokens; tokens.max_new_tokens is 5"),
    ("starts", lambda x: x + 1, r"tokens.starts\[1\] is 21; tokens.rows is 20"),
    ("starts", lambda x: -x, r"tokens.starts\[1\] is -20, less than tokens.starts\[0\], 0"),
    ("lengths", lambda x: x - 1, r"tokens.lengths\[0\] is -1; at least 0"),
    ("lengths", lambda x: x + 60, "sequence 0 needs page 4; max_pages is 4"),
    ("pages", lambda x: x + 1000, r"table.pages\[0\]\[0\] is 100\d; the cache has 8 pages"),
    ("pages", lambda x: -1 - x, r"table.pages\[0\]\[0\] is -\d; the cache has 8 pages"),
])
def test_an_append_that_does_not_fit_names_the_argument(cache, name, change, message):
    keys, values = map(torch.from_numpy, numbers(20, 5))
    given = dict(zip(("records", "key_sinks", "value_sinks", "counters"), cache.state()), keys=keys, values=values,
                 pages=cache.pages, starts=torch.tensor([0, 20, 20], dtype=torch.int32), lengths=cache.lengths,
                 max_new_tokens=20, sink_slots=cache.sink_slots)
    with pytest.raises(ValueError, match=message):
        ops.append(*cache.where(), **{**given, name: change(given[name])})
    ops.append(*cache.where(), **given)


@pytest.mark.parametrize("change,message", [
    ({"first_page": -1}, "first_page is -1"),
    ({"first_page": 2}, r"first_page \+ page_count is 6; expected at most max_pages, 4"),
    ({"page_count": 2**40}, "page_count is 1099511627776"),
    ({"dtype": torch.float64}, "dtype is of Double"),
    ({"lengths": torch.tensor([70, 0], dtype=torch.int32)}, None),
    ({"pages": torch.full((2, 4), 8, dtype=torch.int32)}, r"table.pages\[0\]\[0\] is 8; the cache has 8 pages"),
    ({"sink_slots": torch.tensor([-1, 0], dtype=torch.int32)}, r"table.sink_slots\[0\] is -1; the cache has 2"),
])
def test_a_dequantise_that_does_not_fit_names_the_argument(change, message):
    made, *_ = filled()
    if message is None:  # beyond the pages that were asked for
        assert made.read(**change)[0].shape == (2, 4 * PAGE, HEADS, DIM)
        return
    with pytest.raises(ValueError, match=message):
        made.read(**change)


def test_targets_that_do_not_fit():
    made, *_ = filled()
    own, targets = torch.zeros(2, PAGE, HEADS, DIM), torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)

    def read(keys=own, values=own.clone(), targets=targets):
        ops.dequantise_into(*made.where(), *made.state(), keys, values, made.pages, made.lengths, targets, 0, made.sink_slots)

    with pytest.raises(ValueError, match=r"range.targets\[1\]\[0\] is 2; there is room for 2 pages in keys"):
        read()
    assert made.counters[REFUSED] > 0
    for change, message in (
            ({"keys": own[:, :8]}, "keys is of shape"), ({"values": own.double()}, "values is of Double"),
            ({"keys": own[:1].expand(2, -1, -1, -1)}, "keys is expanded in dimension 0|keys has stride"),
            ({"targets": targets.long()}, "targets is of Long"), ({"targets": targets[:1]}, "targets is of shape")):
        with pytest.raises(ValueError, match=message):
            read(**change)


def test_a_meta_tensor_among_others_is_refused():
    """Nothing would be done, and nobody told."""
    for op, arguments in calls():
        tensors = [i for i, x in enumerate(arguments) if isinstance(x, torch.Tensor)]
        for alone in tensors:  # records comes first; of it the others tell
            name = "counters|key_sinks" if alone == tensors[0] else "records"
            with pytest.raises(ValueError, match=f"kvcal: ({name}) is on cpu, and another argument is a meta tensor"):
                op(*(x.to("meta") if i == alone else x for i, x in enumerate(arguments)))
        op(*(x.to("meta") if i in tensors else x for i, x in enumerate(arguments)))  # shapes alone


def test_a_block_that_is_no_codebook_is_refused():
    good, damaged, cpu = flat_codebook(), flat_codebook(), torch.device("cpu")
    damaged[-70] ^= 1
    for flat, message in (
            (good[:0], "flat is null"), (good[:100], "is no flat codebook"), (flat_codebook(version=4), "version 4; expected 1 to 3"),
            (damaged, "checksum"), (good[:-1], "is not whole"), (good.int(), "flat is of Int"), (good[None], "flat is of shape"),
            (good[::2], "flat is not contiguous")):
        with pytest.raises(ValueError, match=message):
            ops.open_codebook(flat, cpu)
    with pytest.raises(ValueError, match="device is meta"):
        ops.open_codebook(good, torch.device("meta"))
    opened = ops.open_codebook(flat_codebook(dim=96), cpu)
    with pytest.raises(ValueError, match="head_dim 96; there are kernels for 64, 128 and 256"):
        ops.record_layout(opened, 0, PAGE)
    ops.close_codebook(opened)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_codebook_for_one_is_refused():
    with pytest.raises(RuntimeError, match="kvcal_device_status"):
        ops.open_codebook(flat_codebook(), torch.device("cuda"))


@pytest.mark.parametrize("arguments,message", [
    ((1, PAGE), "layer 1; the codebook has 1"), ((-1, PAGE), "layer is -1"), ((0, 32), "page_tokens is 32"),
    ((0, PAGE, 3), "key_slots is 3"), ((0, PAGE, 4, 68), "value_slots is 68"), ((0, 2**32 + 16), "page_tokens is 4294967312")])
def test_a_layout_that_there_is_not(cache, arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.record_layout(cache.codebook, *arguments)


@pytest.mark.parametrize("change,message", [(lambda x: x[:-1], "layout has 13 numbers; expected the 14"),
                                            (lambda x: [1, *x[1:]], "not what record_layout"),
                                            (lambda x: [*x[:5], 1 << 30, *x[6:]], "page_tokens is 1073741824"),
                                            (lambda x: [*x[:-1], 1280], "not what record_layout")])
def test_a_layout_that_nobody_made(cache, change, message):
    cache.layout = change(cache.layout)
    with pytest.raises(ValueError, match=message):
        cache.read()


def test_a_closed_codebook_is_gone_and_its_handle_is_not_used_again(cache):
    ops.close_codebook(cache.codebook)
    for call in (lambda: cache.read(), lambda: ops.codebook_info(cache.codebook), lambda: ops.close_codebook(cache.codebook)):
        with pytest.raises(ValueError, match=f"codebook {cache.codebook} is not open"):
            call()
    assert ops.open_codebook(flat_codebook(), torch.device("cpu")) > cache.codebook


def test_what_requires_a_gradient_is_refused_unless_gradients_are_off(cache):
    keys, values = (torch.from_numpy(x).requires_grad_() for x in numbers(3, 6))
    with pytest.raises(RuntimeError, match=r"kvcal::append: keys requires a gradient.*torch.no_grad\(\).*keys.detach\(\)"):
        cache.append(keys, values, [0, 3, 3])
    with torch.no_grad():
        version = cache.records._version
        cache.append(keys, values, [0, 3, 3])
        assert cache.records._version > version
    with torch.inference_mode():
        cache.append(keys[:1], values[:1], [0, 1, 1])
    assert not any(x.requires_grad for x in cache.read())


# ---- torch.compile.

def calls():
    """Each operator with arguments for it; sink_slots, which may be left out, last."""
    made, *_ = filled((5, 3))
    keys, values = (torch.from_numpy(x).half() for x in numbers(20, 7))
    starts, targets = torch.tensor([0, 20, 20], dtype=torch.int32), torch.arange(6, dtype=torch.int32).reshape(2, 3)
    own = torch.zeros(2, 8, PAGE, HEADS, DIM, dtype=torch.float16)
    rest = ((ops.append, (keys, values, made.pages, starts, made.lengths, 20)),
            (ops.dequantise, (made.pages, made.lengths, 0, 3, torch.bfloat16)),
            (ops.dequantise_into, (own[0], own[1], made.pages, made.lengths, targets, 0)))
    return [(op, (*made.where(), *made.state(), *given, made.sink_slots)) for op, given in rest]


def test_opcheck():
    for op, arguments in calls():
        torch.library.opcheck(op.default, arguments)
        torch.library.opcheck(op.default, arguments[:-1])


def test_the_fake_shapes_are_the_real_ones():
    made, *_ = filled()
    for dtype, count in ((torch.float16, 4), (torch.float32, 0), (torch.bfloat16, 1)):
        real = made.read(count=count, dtype=dtype)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(x) for x in (*made.state(), made.pages, made.lengths)]
            shapes = ops.dequantise(*made.where(), *fake, 0, count, dtype)
        for a, b in zip(real, shapes):
            assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


# Inductor needs a C++ compiler and takes its time with it: once.
BACKENDS = [("aot_eager", False), ("aot_eager", True), ("aot_eager", None)]
if shutil.which(os.environ.get("CXX", "g++")):
    BACKENDS.append(("inductor", True))


@pytest.mark.parametrize("backend,dynamic", BACKENDS)
def test_compiled_is_eager(backend, dynamic):
    eager, compiled = Cache(max_pages=6), Cache(max_pages=6)

    def step(where, state, pages, sink_slots, hidden, starts, lengths, most, count):
        keys, values = (hidden * 1.5).unflatten(1, (2, HEADS, DIM)).unbind(1)
        ops.append(*where, *state, keys, values, pages, starts, lengths, most, sink_slots)
        lengths = lengths + (starts[1:] - starts[:-1])
        keys, values = ops.dequantise(*where, *state, pages, lengths, 0, count, torch.float16, sink_slots)
        return keys.float().sum(1), values * 2, lengths

    torch._dynamo.reset()
    fast = torch.compile(step, fullgraph=True, backend=backend, dynamic=dynamic)
    # A prompt, tokens one by one, a part of a prompt.
    for i, (first, second) in enumerate([(20, 4), (1, 1), (1, 1), (7, 30)]):
        rows = torch.cat([torch.from_numpy(x) for x in numbers(first + second, 10 + i)], 1).flatten(1)
        starts = torch.tensor([0, first, first + second], dtype=torch.int32)
        count = 2 + i
        results = []
        for made, run in ((eager, step), (compiled, fast)):
            results.append(run(made.where(), made.state(), made.pages, made.sink_slots, rows, starts, made.lengths,
                               max(first, second), count))
            made.lengths = results[-1][-1]
        for a, b in zip(*results):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-4)
        for a, b in zip(eager.read(), compiled.read()):
            assert torch.equal(a, b)
        for a, b in zip(eager.state()[1:], compiled.state()[1:]):
            assert torch.equal(a, b)


def test_lengths_that_change_do_not_compile_again():
    made, graphs = Cache(max_pages=6), []

    def count_graphs(graph, _):
        graphs.append(graph)
        return graph.forward

    def step(where, state, pages, keys, values, starts, lengths, most, count):
        ops.append(*where, *state, keys, values, pages, starts, lengths, most)
        return ops.dequantise(*where, *state, pages, lengths, 0, count, torch.float16)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=count_graphs, dynamic=True)
    for tokens in (20, 9, 31, 5):
        keys, values = map(torch.from_numpy, numbers(tokens, tokens))
        starts = torch.tensor([0, tokens, tokens], dtype=torch.int32)
        compiled(made.where(), made.state(), made.pages, keys, values, starts, made.lengths, tokens, 2 + tokens % 4)
    assert len(graphs) == 1
