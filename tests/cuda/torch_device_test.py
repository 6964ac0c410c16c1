"""The PyTorch operators on CUDA tensors: the bytes and numbers that they give on the CPU, which torch_ops_test.py holds to numpy's;
on the current stream, from a CUDA graph too. Without a GPU they are skipped, unless KVCAL_TEST_DEVICE=cuda asks for one."""
import os
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch", reason="no torch")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch_ops_test as on_cpu  # noqa: E402

if not torch.cuda.is_available() and os.environ.get("KVCAL_TEST_DEVICE") != "cuda":
    pytest.skip("no CUDA device", allow_module_level=True)
ops, HEADS, DIM, PAGE = on_cpu.ops, on_cpu.HEADS, on_cpu.DIM, on_cpu.PAGE


class DeviceCache(on_cpu.Cache):
    """The same cache with its tensors on the device."""

    def __init__(self, **shape):
        super().__init__(**shape)
        device = torch.device("cuda")
        self.codebook = ops.open_codebook(on_cpu.flat_codebook(shape.get("fraction", 0.0), shape.get("sinks", 1)), device)
        for name in ("records", "key_sinks", "value_sinks", "counters", "pages", "lengths", "sink_slots"):
            setattr(self, name, getattr(self, name).to(device))

    def append(self, keys, values, starts, most=None):
        starts = torch.tensor(starts, dtype=torch.int32)
        most = int((starts[1:] - starts[:-1]).max()) if most is None else most
        starts = starts.cuda()
        ops.append(*self.where(), *self.state(), keys.cuda(), values.cuda(), self.pages, starts, self.lengths, most,
                   self.sink_slots)
        self.lengths += starts[1:] - starts[:-1]


def both(**shape):
    return on_cpu.Cache(**shape), DeviceCache(**shape)


def expect_the_same(a, b):
    for x, y in zip((*a.state()[1:], *a.read(), *a.read(dtype=torch.bfloat16)), (*b.state()[1:], *b.read(), *b.read(dtype=torch.bfloat16))):
        assert y.is_cuda and torch.equal(x, y.cpu())
    used = a.layout[12] + DIM // 16 * a.layout[7] * 4  # behind value_outliers nothing is written
    pages = torch.cat([a.pages[i, :-(-int(a.lengths[i]) // PAGE)] for i in range(len(a.lengths))]).long()
    assert torch.equal(a.records[pages, :, :used], b.records.cpu()[pages, :, :used])


@pytest.mark.parametrize("fraction,sinks", [(0.0, 1), (0.0, 0), (0.02, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_prompts_and_tokens_are_as_on_the_cpu(fraction, sinks, dtype):
    caches = both(sequences=3, fraction=fraction, sinks=sinks)
    for seed, lengths in enumerate([(37, 16, 0), (1, 1, 1), (0, 9, 33), (1, 0, 1)]):
        keys, values = (torch.from_numpy(x).to(dtype) for x in on_cpu.numbers(sum(lengths), seed))
        for cache in caches:
            cache.append(keys, values, [0, *np.cumsum(lengths).tolist()])
        expect_the_same(*caches)


def test_a_page_out_of_range_is_counted():
    _, cache = both()
    cache.pages[0, 0] = 1000
    cache.append(*map(torch.from_numpy, on_cpu.numbers(20, 1)), [0, 20, 20])
    assert cache.counters[on_cpu.REFUSED] == 1


def test_the_work_is_on_the_current_stream_and_in_a_graph():
    a, b = both()
    keys, values = (torch.from_numpy(x) for x in on_cpu.numbers(40, 3))
    a.append(keys, values, [0, 20, 40])
    given = keys.cuda(), values.cuda(), torch.tensor([0, 20, 40], dtype=torch.int32, device="cuda")

    def step():
        ops.append(*b.where(), *b.state(), *given[:2], b.pages, given[2], b.lengths, 20, b.sink_slots)

    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    assert not b.counters.any() and not (b.key_sinks != 77).any()  # captured, not done
    graph.replay()
    torch.cuda.synchronize()
    b.lengths += 20
    expect_the_same(a, b)


def test_tensors_of_two_devices_are_refused():
    a, b = both()
    keys, values = (torch.from_numpy(x) for x in on_cpu.numbers(5, 3))
    with pytest.raises((ValueError, RuntimeError)):
        ops.append(*b.where(), *b.state(), keys, values, b.pages, torch.tensor([0, 5, 5], dtype=torch.int32).cuda(), b.lengths, 5, b.sink_slots)
    with pytest.raises((ValueError, RuntimeError)):
        ops.append(*b.where(), *a.state(), keys, values, a.pages, torch.tensor([0, 5, 5], dtype=torch.int32), a.lengths, 5, a.sink_slots)
