"""cuda/kernels/kvcal_cuda.h from C99: a program of a hundred lines, linked to the shared library alone, keeps a KV cache in the form of a
codebook that `kvcal export --format flat` wrote."""
import os
import pathlib
import subprocess

import pytest

from tables_test import LAYERS, SOURCE, codebook, export  # noqa: F401

LIBRARY = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")).resolve() / "cuda" / "kernels"
PROGRAM = SOURCE / "tests" / "cuda" / "c_program" / "append_and_read.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out = tmp_path_factory.mktemp("program") / "append_and_read"
    subprocess.run(["gcc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{SOURCE}", PROGRAM, "-o", out,
                    f"-L{LIBRARY}", "-lkvcal_cuda", f"-Wl,-rpath,{LIBRARY}"], check=True)
    return out


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def printed(program, codebook, tmp_path_factory):  # noqa: F811
    """What the program prints for a method: a name and a number on each line."""
    folder = tmp_path_factory.mktemp("flat")

    def of(method):
        if not (folder / method).exists():
            export(codebook, folder / method, "flat", "--method", method)
        result = run(program, folder / method)
        assert result.returncode == 0, result
        return {name: float(number) for name, number in (line.split() for line in result.stdout.splitlines())}

    return of


def test_sizes_are_those_of_the_record_format(printed):
    # 64 channels, pages of 16 tokens: codes of keys and values, an affine for each token, no slots; up to a multiple of 128.
    for bits in (2, 3, 4):
        got = printed(f"nuq{bits}")
        assert (got["layers"], got["bits"]) == (LAYERS, bits)
        bytes_ = 16 * 64 * bits / 8 * 2 + 16 * 4
        assert got["record_bytes"] == -(-bytes_ // 128) * 128
        assert got["bits_per_value"] == pytest.approx(8 * got["record_bytes"] / (16 * 128), abs=5e-4)
    assert printed("nuq4-1%")["record_bytes"] > got["record_bytes"]


def test_more_bits_read_back_closer(printed):
    # The prompt's values are no model's: theirs are cut to fit, a value's thresholds are its own; keys' are the codebook's.
    errors = [printed(f"nuq{bits}-1%")["value_error"] for bits in (2, 3, 4)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert errors[2] < 0.02


def test_a_damaged_codebook_is_told(program, codebook, tmp_path):  # noqa: F811
    out = tmp_path / "codebook.flat"
    export(codebook, out, "flat", "--method", "nuq3")
    block = bytearray(out.read_bytes())
    block[len(block) // 2] ^= 1
    out.write_bytes(block)
    result = run(program, out)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("append_and_read: kvcal_codebook_open: the block was changed or damaged")
    result = run(program, tmp_path / "none")
    assert (result.returncode, result.stdout) == (1, "")
