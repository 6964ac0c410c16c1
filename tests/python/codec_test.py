"""The codec by rows in torch, against one written anew in numpy from docs/codebook-format.md: the same bits."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvcal.cache import codec  # noqa: E402
from kvcal.cache.layout import Layout  # noqa: E402
from kvcal.cache.packed_tensor import PackedTensor, describe_fault  # noqa: E402

torch.set_num_threads(1)
f16, f32 = np.float16, np.float32
BITS = (2, 3, 4)


@pytest.fixture(params=["torch", "native"])
def coder(request):
    """Makes a codec of tables."""
    if request.param == "torch":
        return lambda tables: codec.TorchRowCodec()
    return pytest.importorskip("kvcal.cache.native_codec", reason="the package was built without its extension").NativeRowCodec


def centroids_of(bits, seed=0):
    return np.sort(np.random.default_rng(seed).uniform(-1, 1, 2**bits)).astype(f32)


def key_bounds(channels, seed=1):
    """Thresholds by channel; channel 0 has a range of 0, channel 1 one that rounds to 0 in fp16."""
    rng = np.random.default_rng(seed)
    lower, upper = -rng.uniform(0.5, 3, channels).astype(f32), rng.uniform(0.2, 2, channels).astype(f32)
    lower[0] = upper[0] = f32(0.25)
    lower[1], upper[1] = f32(0.5), f32(0.5) + f32(2**-24)
    return lower, upper


def make_tables(bits, channels, fraction, groups=0, qnorm=(1.0, 0.0), narrowed=1.0):
    """narrowed: by what keys' ranges are multiplied, as fitted ones are narrower than those of their thresholds."""
    centroids = torch.from_numpy(centroids_of(bits))
    levels = centroids * torch.tensor(qnorm[0], dtype=torch.float32) + torch.tensor(qnorm[1], dtype=torch.float32)
    midpoints = (centroids[:-1] + centroids[1:]) * 0.5
    if groups:
        return codec.TensorTables(bits, channels, fraction, groups, midpoints, levels)
    lower, upper = map(torch.from_numpy, key_bounds(channels))
    scale, zero = codec.affine_of(lower, upper)
    scale = (scale.float() * narrowed).half()
    return codec.TensorTables(bits, channels, fraction, 0, midpoints, levels, zero, scale, *((lower, upper) if fraction else ()))


def quantile(row, q):
    row = np.sort(row)
    position = q * (len(row) - 1)
    below = int(position)
    if position == below:
        return row[below]
    low, high = float(row[below]), float(row[below + 1])
    return f32(low + (position - below) * (high - low))


def pack(codes, bits):
    stream = "".join(format(code, f"0{bits}b")[::-1] for code in codes)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[at : at + 8][::-1], 2) for at in range(0, len(stream), 8)]


class Reference:
    """docs/codebook-format.md, one number after the other."""

    def __init__(self, x, bits, fraction, groups, qnorm=(1.0, 0.0), narrowed=1.0):
        centroids = centroids_of(bits)
        midpoints = [f32(f32(a + b) * f32(0.5)) for a, b in zip(centroids[:-1], centroids[1:])]
        channels = x.shape[1]
        self.codes, self.affines, self.outliers = [], [], []
        self.decoded = np.empty_like(x)
        for token, row in enumerate(x):
            if groups:
                parts = row.reshape(groups, -1)
                bounds = [(quantile(p, fraction / 2), quantile(p, 1 - fraction / 2)) for p in parts]
                lower, upper = (np.repeat(np.array(b, f32), channels // groups) for b in zip(*bounds))
            else:
                lower, upper = key_bounds(channels)
            with np.errstate(over="ignore"):
                zero = (f32(upper + lower) * f32(0.5)).astype(f16)
                scale = (f32(upper - lower) * f32(0.5)).astype(f16)
            if not groups:
                scale = (scale.astype(f32) * f32(narrowed)).astype(f16)
            if groups:
                self.affines.append([[scale[g * channels // groups], zero[g * channels // groups]] for g in range(groups)])
            found, codes = [], []
            for c, number in enumerate(row):
                s, z = f32(scale[c]), f32(zero[c])
                u = f32(f32(number - z) * f32(f32(1) / s)) if s > 0 else f32(0)
                code = sum(bool(m < u) for m in midpoints)
                codes.append(code)
                level = f32(f32(centroids[code] * f32(qnorm[0])) + f32(qnorm[1]))
                self.decoded[token, c] = f32(f32(level * s) + z)
                if fraction > 0 and (number < lower[c] or number > upper[c]):
                    found.append((c, f16(number)))
                    self.decoded[token, c] = f32(f16(number))
            self.codes.append(pack(codes, bits))
            self.outliers.append(found)


def numbers(rows, channels, seed=2):
    """Gaussians with a heavy tail; a row of one number throughout, one of two numbers, and one of zeros."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, channels)) * rng.choice([1, 1, 1, 6], (rows, channels))).astype(f32)
    x[0], x[1], x[2] = 0.375, np.where(np.arange(channels) % 2, 1, -1), 0
    return x


CASES = [(groups, fraction, channels) for groups in (0, 1, 3) for fraction in (0.0, 0.01, 0.05) for channels in (3, 33, 192)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("groups,fraction,channels", CASES)
def test_the_same_bits_as_numpy(bits, groups, fraction, channels, coder):
    x = numbers(11, channels)
    changes = {"qnorm": (1.03, -0.004)} if bits == 3 else {"narrowed": 0.75} if bits == 2 else {}
    expected = Reference(x, bits, fraction, groups, **changes)
    tables = make_tables(bits, channels, fraction, groups, **changes)
    rows, faults = coder(tables).encode_rows(torch.from_numpy(x), tables)
    assert faults.tolist() == [-1, -1, -1]
    assert rows.codes.tolist() == expected.codes
    if groups:
        assert np.array_equal(rows.affines.numpy().view(np.uint16), np.array(expected.affines, f16).view(np.uint16))
    if fraction:
        assert rows.wide_counts().tolist() == [len(found) for found in expected.outliers]
        assert codec.unsigned(rows.indices).tolist() == [c for found in expected.outliers for c, _ in found]
        assert rows.values.tolist() == [float(v) for found in expected.outliers for _, v in found]
    decoded = coder(tables).decode_rows(rows, tables).numpy()
    assert np.array_equal(decoded.view(np.uint32), expected.decoded.view(np.uint32))


@pytest.mark.parametrize("bits", BITS)
def test_a_tie_takes_the_lower_code_and_its_neighbour_the_higher(bits, coder):
    centroids = torch.linspace(-1, 1, 2**bits)
    midpoints = (centroids[:-1] + centroids[1:]) * 0.5
    one = torch.ones(len(midpoints), dtype=torch.float16)
    tables = codec.TensorTables(bits, len(midpoints), 0.0, 0, midpoints, centroids, one * 0, one)
    above = torch.nextafter(midpoints, torch.tensor(2.0))
    rows, _ = coder(tables).encode_rows(torch.stack([midpoints, above]), tables)
    codes = codec.unpack_codes(rows.codes, len(midpoints), bits)
    assert codes[0].tolist() == list(range(2**bits - 1))
    assert codes[1].tolist() == list(range(1, 2**bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 129])
def test_packing(bits, count):
    codes = torch.from_numpy(np.random.default_rng(count).integers(0, 2**bits, (5, count), dtype=np.int32))
    packed = codec.pack_codes(codes, bits)
    assert packed.tolist() == [pack(row, bits) for row in codes.tolist()]
    assert torch.equal(codec.unpack_codes(packed, count, bits), codes)


def test_the_golden_bytes_of_bit_pack_h():
    assert codec.pack_codes(torch.tensor([[1, 2, 3]], dtype=torch.int32), 3).tolist() == [[0xD1, 0x00]]


def test_blocks_give_the_same_as_one_pass(monkeypatch):
    x, tables = torch.from_numpy(numbers(50, 24)), make_tables(3, 24, 0.05, 3)
    x[41, 5] = float("nan")
    whole, _ = codec.TorchRowCodec().encode_rows(x, tables)
    monkeypatch.setattr(codec, "_BLOCK", 24 * 7)
    cut, faults = codec.TorchRowCodec().encode_rows(x, tables)
    assert all(torch.equal(a, b) for a, b in zip(whole.parts(), cut.parts(), strict=True) if a.dtype != torch.float16)
    assert faults[0] == 41 * 24 + 5


def test_wide_rows_have_wide_counts_and_indices(coder):
    channels = 65537
    tables = make_tables(2, channels, 0.001, 1)
    x = torch.zeros(1, channels)
    x[0, -1] = 9.0
    rows, _ = coder(tables).encode_rows(x, tables)
    assert rows.indices.dtype == rows.counts.dtype == torch.int32 and rows.indices.tolist() == [channels - 1]
    narrow = make_tables(2, 65535, 0.001, 1)
    rows, _ = coder(narrow).encode_rows(x[:, 2:], narrow)
    assert rows.indices.dtype == torch.int16 and codec.unsigned(rows.indices).tolist() == [65534]


@pytest.mark.parametrize("pads", [(0, 0, 0), (2, 2, 2), (0, 3, 5)])
@pytest.mark.parametrize("groups,fraction", [(0, 0.05), (1, 0.0), (3, 0.05)])
def test_a_stored_tensor_appends_crops_and_selects_as_rows_do(pads, groups, fraction):
    """Each token of each sequence comes back as it does alone, whatever was done to the batch in between."""
    channels, sinks, times = 24, 2, 17
    tables, layout = make_tables(3, channels, fraction, groups), Layout(pads, sinks)
    x = torch.from_numpy(numbers(times * 3, channels)).view(times, 3, channels)
    plain = codec.TorchRowCodec()
    expected = plain.decode_rows(plain.encode_rows(x.view(-1, channels), tables)[0], tables).view(x.shape).clone()
    for sequence, pad in enumerate(pads):
        expected[pad : pad + sinks, sequence] = x[pad : pad + sinks, sequence].half().float()

    stored = PackedTensor(tables)
    for start, stop in ((0, 1), (1, 4), (4, 12), (12, times)):
        stored.append(x[start:stop], layout)
    assert torch.equal(stored.decode(0, times, layout), expected)
    assert torch.equal(stored.decode(3, 9, layout), expected[3:9])

    order = [2, 0, 0, 1]
    stored.select(torch.tensor(order) if layout.is_even else order, layout)
    layout, expected = layout.select(order), expected[:, order]
    assert torch.equal(stored.decode(0, times, layout), expected)
    stored.keep(0, 13, layout)
    assert torch.equal(stored.decode(0, 13, layout), expected[:13])
    stored.keep(4, 13, layout)
    assert torch.equal(stored.decode(4, 13, layout), expected[4:13])
    assert torch.equal(stored.decode(6, 7, layout), expected[6:7])
    stored.select(torch.tensor([1]) if layout.is_even else [1], layout)
    assert torch.equal(stored.decode(4, 13, layout.select([1])), expected[4:13, 1:2])


@pytest.mark.parametrize("number,place,groups,what", [
    (float("nan"), (3, 1, 5), 0, "sequence 1, token 2, channel 5: the number to quantise is not finite"),
    (float("-inf"), (1, 1, 4), 0, "sequence 1, token 0, channel 4: the number to keep is not finite"),
    (65520.0, (2, 0, 7), 0, "sequence 0, token 2, channel 7: the outlier overflows fp16"),
    (-65520.0, (0, 0, 2), 3, "sequence 0, token 0, channel 2: the sink overflows fp16"),
    (3e5, (4, 0, 17), 3, "sequence 0, token 4, channel 16: the range or zero of its thresholds overflows fp16"),
])
def test_faults_say_where(number, place, groups, what):
    tables, layout = make_tables(2, 24, 0.05 if groups == 0 else 0.0, groups), Layout((0, 1), 1)
    x = torch.zeros(6, 2, 24)
    x[place] = number
    faults = PackedTensor(tables).append(x, layout).tolist()
    found = describe_fault(faults, 24, groups, layout, 0, 6)
    assert found is not None and found.startswith(what)
    x[place] = 65504.0 if groups == 0 else 1000.0
    assert describe_fault(PackedTensor(tables).append(x, layout).tolist(), 24, groups, layout, 0, 6) is None


@pytest.mark.parametrize("block", [1, 2, 8, 64])
def test_a_hadamard_turn_is_the_matrix_of_each_block_and_its_own_inverse(block):
    hadamard = pytest.importorskip("scipy.linalg").hadamard
    x = torch.randn(5, 3 * block, generator=torch.Generator().manual_seed(1))
    turned = codec.turn_hadamard(x, block)
    expected = x.double().unflatten(1, (3, block)) @ torch.from_numpy(hadamard(block) / np.sqrt(block))
    assert turned.dtype == torch.float32 and turned.shape == x.shape
    torch.testing.assert_close(turned.double(), expected.flatten(1), rtol=0, atol=3e-6)
    torch.testing.assert_close(codec.turn_hadamard(turned, block), x, rtol=0, atol=3e-6)
