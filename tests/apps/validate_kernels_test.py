"""`kvcal validate` in an engine's pages as a user meets it: what --kernels adds, that the kernels do what the CPU codec does, how
large records are, and what is refused."""
import itertools
import json
import math
import os
import pathlib

import numpy as np
import pytest

from validate_test import CALIBRATED, LAYERS, MODEL, by_name, kvcal, refused, report_of, small_run

SMALL_HEADS = pathlib.Path(os.environ.get("KVCAL_SHARED_DATA", "")) / "weights" / "TinyStories-656K"
HEADS, DIM = 2, 64
# A window is longer than a page, and its second page ends within a tile.
SEQLEN, PAGE = 100, 64
FITTED = ["nuq3", "nuq4", "nuq3-1%", "nuq4-1%"]
PLAIN = ["fp", "int2", "int3", "int4", "nf2", "nf3", "nf4"]
IN_PAGES = [name + suffix for name in FITTED for suffix in ("", "-paged", "-kernels")]
# Of a tile of keys and of a strip of values where 1 % are outliers: 10.24 and 32 are to be expected, and their square root more.
SLOTS = {0: (0, 0), 0.01: (16, 40)}
PLACES = ["lane by lane on the CPU", "on the CUDA device"]


def calibrated(folder, *more, model=MODEL):
    out = folder / "a.h5"
    result = kvcal("calibrate", "-m", model, "-f", CALIBRATED, "-o", out, "--samples", 2, "--seqlen", 128, "--dtype", "float32",
                   "--quiet", *more)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    """Values' thresholds by kv head, as they are in pages."""
    return calibrated(tmp_path_factory.mktemp("codebook"), "--bits", "3,4", "--value-scope", "head")


@pytest.fixture(scope="module")
def report(codebook):
    return report_of("-c", codebook, "--kernels", seqlen=SEQLEN)


def nothing_ran(result, code, *parts):
    """Refused before any work: the plan was not told."""
    refused(result, code, *parts)
    assert "Validating" not in result.stderr


def test_each_of_the_codebooks_methods_is_followed_by_both(codebook, report):
    assert [method["name"] for method in report["methods"]] == PLAIN + IN_PAGES
    named = report_of("-c", codebook, "--kernels", "--methods", "int3,nuq4,nuq3-1%-qn", seqlen=SEQLEN, windows=1)
    assert [method["name"] for method in named["methods"]] == [
        "fp", "int3", "nuq4", "nuq4-paged", "nuq4-kernels", "nuq3-1%-qn", "nuq3-1%-qn-paged", "nuq3-1%-qn-kernels"]
    once = report_of("-c", codebook, "--kernels", "--methods", "nuq4-kernels,nuq4", windows=1)
    assert [method["name"] for method in once["methods"]] == ["fp", "nuq4-kernels", "nuq4-paged", "nuq4"]


def test_the_kernels_give_the_numbers_of_the_cpu_codec(codebook, report):
    qnorm = report_of("-c", codebook, "--kernels", "--methods", "nuq3-1%-qn", windows=1)
    for methods, name in [(by_name(report), name) for name in FITTED] + [(by_name(qnorm), "nuq3-1%-qn")]:
        paged, kernels = methods[name + "-paged"], methods[name + "-kernels"]
        assert paged | {"name": ""} == kernels | {"name": ""}
        assert paged["kld_mean"] > 0 and paged["kld_mean"] != methods[name]["kld_mean"]


def test_turned_values_are_the_same_of_both_and_nearly_those_of_rows(tmp_path):
    turned = calibrated(tmp_path, "--bits", "3,4", "--value-scope", "head", "--value-rotation", "hadamard")
    methods = by_name(report_of("-c", turned, "--kernels", "--methods", "nuq3,nuq4-1%", seqlen=SEQLEN))
    for name in ("nuq3", "nuq4-1%"):
        assert methods[name + "-paged"] | {"name": ""} == methods[name + "-kernels"] | {"name": ""}
    for layer in range(LAYERS):
        rows, pages = (methods[name]["layers"][layer]["value"] for name in ("nuq3", "nuq3-paged"))
        assert pages["mse"] == pytest.approx(rows["mse"], rel=1e-2) and pages["mse"] != rows["mse"]


@pytest.mark.parametrize("name", ["nuq3", "nuq4"])
def test_without_outliers_pages_differ_by_the_rounding_to_fp16(report, name):
    """Rounding is at most 2^-11 of what is read, so that is the most by which the error's root mean square changes, in units of
    the root mean square of what is read."""
    plain, paged = by_name(report)[name]["layers"], by_name(report)[name + "-paged"]["layers"]
    for layer, kind in itertools.product(range(LAYERS), ("key", "value")):
        ours, theirs = paged[layer][kind], plain[layer][kind]
        error, size = math.sqrt(theirs["mse"]), math.sqrt(theirs["mse"] / theirs["relative"])
        assert math.sqrt(ours["mse"]) == pytest.approx(error, rel=0, abs=2**-11 * (size + error)), (layer, kind)
        assert ours["mse"] != theirs["mse"]


def test_outliers_of_values_are_those_of_each_head(report):
    """Beyond the 0.5 % and 99.5 % quantiles of 64 numbers lies one at either end."""
    for layer in by_name(report)["nuq3-1%-paged"]["layers"]:
        assert layer["value"]["outliers_observed"] == pytest.approx(2 / DIM)
        assert 0 < layer["key"]["outliers_observed"] < 0.1


@pytest.mark.parametrize("bits, fraction", list(itertools.product((3, 4), SLOTS)))
def test_bits_per_value_are_those_of_the_record(report, bits, fraction):
    """record_format.h: codes, an affine for each token's value, slots; to 128 bytes. A sink is in fp16 and in its page."""
    key_slots, value_slots = SLOTS[fraction]
    parts = 2 * PAGE * DIM * bits / 8 + 4 * PAGE + 4 * (PAGE // 16 * key_slots + DIM // 16 * value_slots)
    record = math.ceil(parts / 128) * 128
    sink = 2 * 2 * DIM
    name = f"nuq{bits}{'-1%' if fraction else ''}"
    expected = 8 * (math.ceil(SEQLEN / PAGE) * record + sink) / (2 * DIM * SEQLEN)
    assert by_name(report)[name + "-paged"]["bits_per_value"] == pytest.approx(expected, rel=1e-12)
    assert by_name(report)[name + "-paged"]["static_bytes"] == by_name(report)[name]["static_bytes"]


def test_the_plan_says_where_kernels_run(codebook, report, tmp_path):
    place = report["kernels"]
    assert any(place.startswith(where) for where in PLACES)
    if place.startswith(PLACES[0]):
        assert place.startswith(f"{PLACES[0]}, which is slow: ") and not place.endswith(": ")
    told = kvcal(*small_run("-c", codebook, "--methods", "nuq4-kernels", "--json", tmp_path / "r.json", windows=1))
    assert told.returncode == 0 and f"Kernels run {place}." in " ".join(told.stderr.split())
    assert json.loads((tmp_path / "r.json").read_text())["kernels"] == place
    cpu = kvcal(*small_run("-c", codebook, "--methods", "nuq4-paged", "--json", tmp_path / "r.json", windows=1))
    assert cpu.returncode == 0 and "Kernels run" not in cpu.stderr
    assert json.loads((tmp_path / "r.json").read_text())["kernels"] is None


def test_decoding_from_pages(codebook):
    """The whole past is stored anew with each token; its thresholds do not hang on what follows, its slots do."""
    generated = report_of("-c", codebook, "--kernels", "--methods", "nuq3-1%", "--generate", 8, seqlen=70, windows=1)
    paged, kernels = (by_name(generated)["nuq3-1%" + suffix]["generate"] for suffix in ("-paged", "-kernels"))
    assert paged == kernels and len(paged["by_position"]["kld_mean"]) == 8
    assert 0 < paged["kld_mean"] < 0.2 and np.all(np.array(paged["by_position"]["kld_mean"]) > 0)


def test_pages_of_other_heads_are_refused(tmp_path):
    if not SMALL_HEADS.exists():
        pytest.skip(f"{SMALL_HEADS} is missing")
    book = calibrated(tmp_path, "--bits", 4, "--outliers", 0, model=SMALL_HEADS)
    for asked in (["--kernels"], ["--kernels", "--methods", "int3,nuq4"], ["--methods", "nuq4-paged"],
                  ["--methods", "nuq4-kernels"]):
        nothing_ran(kvcal(*small_run("-c", book, *asked, model=SMALL_HEADS)), 1, "layer 0, key", "is 16", "64, 128 or 256")
    assert "nuq4" in by_name(report_of("-c", book, windows=1, model=SMALL_HEADS))


def test_more_sinks_than_a_page_keeps_are_refused(tmp_path):
    (tmp_path / "most").mkdir()
    book = calibrated(tmp_path, "--bits", 4, "--outliers", 0, "--sinks", 17)
    for asked in (["--kernels"], ["--methods", "nuq4-paged"]):
        nothing_ran(kvcal(*small_run("-c", book, *asked)), 1, "layer 0, key: 17 sinks", "up to 16")
    most = calibrated(tmp_path / "most", "--bits", 4, "--outliers", 0, "--sinks", 16)
    methods = by_name(report_of("-c", most, "--kernels", "--methods", "nuq4", windows=1))
    assert methods["nuq4-paged"] | {"name": ""} == methods["nuq4-kernels"] | {"name": ""}


def test_kernels_without_what_they_write_are_refused(codebook):
    nothing_ran(kvcal(*small_run("--kernels")), 2, "--kernels", "--codebook")
    nothing_ran(kvcal(*small_run("-c", codebook, "--kernels", "--methods", "fp8")), 2, "--kernels", "--methods")
    # A name that is none, or not the codebook's, is told as without --kernels.
    nothing_ran(kvcal(*small_run("-c", codebook, "--kernels", "--methods", "nuq4x")), 2, "'nuq4x'")
    nothing_ran(kvcal(*small_run("-c", codebook, "--kernels", "--methods", "nuq3-5%")), 1, "nuq3-5%:", "nuq3-1%-paged")
    nothing_ran(kvcal(*small_run("--methods", "nuq4-paged")), 1, "nuq4-paged", "--codebook")
    nothing_ran(kvcal(*small_run("-c", codebook, "--methods", "nuq3-5%-paged")), 1, "nuq3-5%-paged", "nuq3-1%-paged")
    nothing_ran(kvcal(*small_run("-c", codebook, "--methods", "nuq4-nosink-paged")), 2, "'nuq4-nosink-paged'")
