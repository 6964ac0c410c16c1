"""What the methods of `kvcal validate` make of keys and values, in torch, from their definitions and papers, not from the C++.
For validate_reference_test.py. x is one sequence of one layer, float32 [tokens, channels], channels = kv_heads x head_dim."""

import math
import re
from dataclasses import dataclass
from typing import Callable

import torch
from scipy.linalg import hadamard
from scipy.stats import norm


@dataclass
class Method:
    """What is read back of a layer's keys and values; both functions take (layer, x) and give what x comes back as."""

    rotated: bool  # whether keys are taken after RoPE
    key: Callable
    value: Callable


def half(x):
    """As stored: rounded to fp16."""
    return x.to(torch.float16).float()


def away_from_zero(x):
    """C's roundf. torch.round takes ties to even."""
    return torch.trunc(x + torch.copysign(torch.tensor(0.5), x))


def on_levels(x, low, high, levels, read=None):
    """x normalised from [low, high] to [-1, 1], rounded to the nearest of the ascending levels, and back; read: what a code is
    read back as, where it is not the level itself (Q-Norm). A tie takes the lower level, what lies outside the end one."""
    return on_ranges(x, (high + low) / 2, (high - low) / 2, levels, read)


def on_ranges(x, zero, span, levels, read=None):
    """The same by the middle of the range and half its width."""
    zero, span = half(zero), half(span)
    u = torch.where(span > 0, (x - zero) / span, 0.0)
    code = torch.bucketize(u.contiguous(), (levels[1:] + levels[:-1]) / 2)
    return (levels if read is None else read)[code] * span + zero


def uniform_levels(bits):
    return torch.linspace(-1, 1, 2**bits)


def normal_float_levels(bits):
    """QLoRA's NormalFloat with bitsandbytes' offset: quantiles of a normal distribution, one more above zero than below it."""
    offset = 0.9677083
    above = norm.ppf(torch.linspace(offset, 0.5, 2 ** (bits - 1) + 1, dtype=torch.float64).numpy())[:-1]
    below = norm.ppf(torch.linspace(offset, 0.5, 2 ** (bits - 1), dtype=torch.float64).numpy())[:-1]
    levels = torch.tensor(sorted([*above, 0.0, *-below]))
    return (levels / levels.max()).float()


def by_token(levels):
    """int and nf: each token's range over all its channels, no outliers, no sinks, keys as attention uses them."""
    def store(_layer, x):
        return on_levels(x, x.amin(1, keepdim=True), x.amax(1, keepdim=True), levels)
    return Method(rotated=True, key=store, value=store)


def stored_thresholds(group):
    return (torch.from_numpy(group[name][:]) for name in ("lower", "upper"))


def by_channel(book, levels, rotated):
    """int-channel: keys on the range that their channel had in calibration, before or after RoPE, sinks counted; what lies
    beyond takes the end level. Values as in int."""
    def key(layer, x):
        group = book[f"layers/{layer:04d}/{'key_rope' if rotated else 'key/with_sinks'}/outliers_0"]
        return on_levels(x, *stored_thresholds(group), levels)
    return Method(rotated=rotated, key=key, value=by_token(levels).value)


def stored_levels(group, bits, qnorm):
    """The centroids that codes are chosen by, and what they are read back as (None: themselves)."""
    stored = group[f"nuq{bits}/centroids"]
    centroids = torch.from_numpy(stored[:])
    return centroids, centroids * float(stored.attrs["qnorm_scale"]) + float(stored.attrs["qnorm_offset"]) if qnorm else None


# In layer 0 a key hangs on its token alone, so a threshold often is the key of a frequent one, which is then inside: without
# slack, of the channel's range, the last bit of a sum would put each of its occurrences outside.
KEY_SLACK = 1e-5


def rotation(tensor):
    """What turns a tensor's channels, and turns them back: its matrix is its own inverse."""
    if "rotation" not in tensor.attrs:
        return lambda x: x
    block = int(tensor.attrs["rotation_block"])
    matrix = torch.from_numpy(hadamard(block) / math.sqrt(block)).float()
    return lambda x: (x.unflatten(1, (-1, block)) @ matrix).flatten(1)


def from_codebook(book, bits, fraction, qnorm, no_sinks):
    """nuq: keys by channel with the file's thresholds, values by token (or token and kv head) with thresholds found here.
    no_sinks: from the statistics that count sinks, and none is kept exact."""
    calibration = book["calibration"].attrs
    sinks = 0 if no_sinks else int(calibration["sinks"])
    fit = f"{'/with_sinks' if no_sinks else ''}/outliers_{fraction:g}"
    scope = calibration["value_scope"]
    by_head = (scope.decode() if isinstance(scope, bytes) else scope) == "head"

    def store(group, x, low, high, slack=0.0):
        datatype = group[f"nuq{bits}"]
        zero, span = (low + high) / 2, (high - low) / 2
        if "scale" in datatype:
            zero, span = (torch.from_numpy(datatype[name][:]) for name in ("zero", "scale"))
        result = on_ranges(x, zero, span, *stored_levels(group, bits, qnorm))
        if fraction > 0:
            result = torch.where((x < low - slack) | (x > high + slack), half(x), result)
        result[:sinks] = half(x[:sinks])
        return result

    def key(layer, x):
        group = book[f"layers/{layer:04d}/key{fit}"]
        low, high = stored_thresholds(group)
        return store(group, x, low, high, slack=KEY_SLACK * (high - low))

    def value(layer, x):
        heads = int(book[f"layers/{layer:04d}"].attrs["kv_heads"]) if by_head else 1
        turn = rotation(book[f"layers/{layer:04d}/value"])
        x = turn(x).unflatten(1, (heads, -1))
        low, high = (torch.quantile(x, p, dim=2, keepdim=True) for p in (fraction / 2, 1 - fraction / 2))
        return turn(store(book[f"layers/{layer:04d}/value{fit}"], x, low, high).flatten(1))

    return Method(rotated=False, key=key, value=value)


PAGE_TOKENS, TILE_TOKENS, STRIP_CHANNELS, MOST_SLOTS = 64, 16, 16, 64


def slots_for(mean, step):
    """Slots where so many outliers are expected: a standard deviation more, as if they were independent."""
    return min(math.ceil((mean + math.sqrt(mean)) / step) * step, MOST_SLOTS)


def outliers_of_value(fraction, dim):
    """How many of a head's numbers, all different, lie beyond their own quantiles."""
    x = torch.arange(dim, dtype=torch.float64)
    return ((x < torch.quantile(x, fraction / 2)) | (x > torch.quantile(x, 1 - fraction / 2))).sum().item()


def largest(x, tokens, channels, count):
    """x, but 0 where it is not among the `count` largest magnitudes of its block of so many tokens by so many channels of a head;
    of equal ones the first token and channel win. Blocks are counted from the sequence's start; x: [tokens, kv_heads, head_dim]."""
    whole = torch.cat([x, x.new_zeros(-len(x) % tokens, *x.shape[1:])])
    blocks = whole.unflatten(0, (-1, tokens)).unflatten(3, (-1, channels)).permute(0, 2, 3, 1, 4)
    flat = blocks.flatten(3)
    order = flat.abs().argsort(dim=3, descending=True, stable=True)
    kept = flat * torch.zeros_like(flat).scatter(3, order[..., :count], 1.0)
    return kept.unflatten(3, (tokens, channels)).permute(0, 3, 1, 2, 4).reshape(whole.shape)[: len(x)]


def paged(book, bits, fraction, qnorm):
    """nuq in an engine's pages (cuda/kernels/record_format.h): numbers come back in fp16; values' thresholds by token and kv head;
    an outlier is its code and an fp16 difference to that, as long as there are slots: of a tile of 16 tokens for keys, of a
    strip of 16 channels of a page for values."""
    sinks = int(book["calibration"].attrs["sinks"])

    def store(group, x, low, high, block, slots, slack=0.0, ranges=None):
        """x: [tokens, kv_heads, head_dim]; block: of which outliers share slots, in tokens and channels; ranges: zero and span, where
        they are not those of low and high."""
        levels = stored_levels(group, bits, qnorm)
        coded = half(on_ranges(x, *ranges, *levels) if ranges else on_levels(x, low, high, *levels))
        delta = torch.where((x < low - slack) | (x > high + slack), half(x - coded), 0.0)
        delta[:sinks] = 0
        result = half(coded + largest(delta, *block, slots))
        result[:sinks] = half(x[:sinks])
        return result.flatten(1)

    def by_head(layer, x):
        return x.unflatten(1, (int(book[f"layers/{layer:04d}"].attrs["kv_heads"]), -1))

    def key(layer, x):
        group = book[f"layers/{layer:04d}/key/outliers_{fraction:g}"]
        x = by_head(layer, x)
        dim = x.shape[2]
        low, high = (by_head(layer, thresholds[None])[0] for thresholds in stored_thresholds(group))
        datatype = group[f"nuq{bits}"]
        fitted = [by_head(layer, torch.from_numpy(datatype[name][:])[None])[0] for name in ("zero", "scale") if name in datatype]
        return store(group, x, low, high, (TILE_TOKENS, dim), slots_for(TILE_TOKENS * dim * fraction, 8),
                     slack=KEY_SLACK * (high - low), ranges=fitted)

    def value(layer, x):
        x = by_head(layer, x)
        dim = x.shape[2]
        low, high = (torch.quantile(x, p, dim=2, keepdim=True) for p in (fraction / 2, 1 - fraction / 2))
        expected = outliers_of_value(fraction, dim) / dim * PAGE_TOKENS * STRIP_CHANNELS
        return store(book[f"layers/{layer:04d}/value/outliers_{fraction:g}"], x, low, high, (PAGE_TOKENS, STRIP_CHANNELS),
                     slots_for(expected, 4))

    return Method(rotated=False, key=key, value=value)


def float8(_layer, x):
    """e4m3 at scale 1."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def q8_0(_layer, x):
    """llama.cpp's block of 32: codes by the scale before it is rounded to fp16."""
    x = x.unflatten(1, (-1, 32))
    scale = x.abs().amax(2, keepdim=True) / 127
    return (torch.where(scale > 0, away_from_zero(x / scale), 0.0) * half(scale)).flatten(1)


def q4_0(_layer, x):
    """llama.cpp's block of 32: the number of the largest magnitude, with its sign, is code 0, which reads as -8."""
    x = x.unflatten(1, (-1, 32))
    scale = x.gather(2, x.abs().argmax(2, keepdim=True)) / -8
    code = torch.where(scale != 0, torch.floor(x / scale + 8.5), 8.0).clamp(0, 15)
    return ((code - 8) * half(scale)).flatten(1)


KIVI_GROUP, KIVI_RECENT = 32, 128


def kivi(bits):
    def groups(x):
        """Minimum and step of each row of the last axis."""
        low, steps = half(x.amin(-1, keepdim=True)), 2**bits - 1
        step = half((x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / steps)
        return torch.where(step > 0, torch.round((x - low) / step), 0.0).clamp(0, steps) * step + low

    def key(_layer, x):
        """By channel, as many whole blocks of recent tokens as there are; the rest waits in fp16."""
        full = len(x) - len(x) % KIVI_RECENT
        stored = groups(x[:full].T.unflatten(1, (-1, KIVI_GROUP))).flatten(1).T
        return torch.cat([stored, half(x[full:])])

    def value(_layer, x):
        old = max(len(x) - KIVI_RECENT, 0)
        return torch.cat([groups(x[:old].unflatten(1, (-1, KIVI_GROUP))).flatten(1), half(x[old:])])

    return Method(rotated=True, key=key, value=value)


def random_signs(dim, seed):
    """The top bits of SplitMix64's first numbers (Steele et al. 2014): set is -1."""
    signs = []
    for i in range(1, dim + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        signs.append(-1.0 if (z ^ (z >> 31)) >> 63 else 1.0)
    return torch.tensor(signs)


# The levels that give a normal number the least squared error, those above 0 (Max 1960, table I).
MAX_LEVELS = {2: [0.4528, 1.510], 3: [0.2451, 0.7560, 1.344, 2.152],
              4: [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]}


def turbo(bits, dim):
    """Each head's vector over its norm, turned (docs/methods.md), on the levels of a normal number."""
    block = dim & -dim
    mix = torch.block_diag(*[torch.tensor(hadamard(block), dtype=torch.float32) / block**0.5] * (dim // block))
    turn = mix @ torch.diag(random_signs(dim, 2)) @ mix @ torch.diag(random_signs(dim, 1))
    levels = torch.tensor(sorted(MAX_LEVELS[bits] + [-level for level in MAX_LEVELS[bits]]))

    def store(_layer, x):
        x = x.unflatten(1, (-1, dim))
        length = half(x.norm(dim=2, keepdim=True))
        unit = torch.where(length > 0, x / length, 0.0)
        code = torch.bucketize((unit @ turn.T * dim**0.5).contiguous(), (levels[1:] + levels[:-1]) / 2)
        return (levels[code] / dim**0.5 @ turn * length).flatten(1)

    return Method(rotated=True, key=store, value=store)


def method(name, book):
    """A method by its name; None for fp. book: the codebook, an open h5py.File."""
    if name == "fp":
        return None
    blocks = {"fp8": float8, "q8_0": q8_0, "q4_0": q4_0}
    if name in blocks:
        return Method(rotated=True, key=blocks[name], value=blocks[name])
    if name.startswith("turbo"):
        layer = book["layers/0000"].attrs
        assert layer["key_dim"] == layer["value_dim"]
        return turbo(int(name[-1]), int(layer["key_dim"]))
    kind, bits, percent, way, pages = re.fullmatch(
        r"(int|nf|nuq|kivi)(\d)(?:-([\d.]+)%)?(?:-(qn|nosink|channel|channel-rope))?(-paged)?", name).groups()
    bits = int(bits)
    if pages:
        return paged(book, bits, float(percent or 0) / 100, qnorm=way == "qn")
    if kind == "nuq":
        return from_codebook(book, bits, float(percent or 0) / 100, qnorm=way == "qn", no_sinks=way == "nosink")
    if way is not None:
        return by_channel(book, uniform_levels(bits), rotated=way == "channel-rope")
    return {"int": lambda: by_token(uniform_levels(bits)), "nf": lambda: by_token(normal_float_levels(bits)),
            "kivi": lambda: kivi(bits)}[kind]()
