"""Which tokens a calibration takes from texts, against the definition written out with PyPI's tokenizers."""

import hashlib
import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

tokenizers = pytest.importorskip("tokenizers")

KVCAL = Path(os.environ["KVCAL_BUILD"]) / "bin" / "kvcal"
SOURCE = Path(os.environ.get("KVCAL_SOURCE_DIR", Path(__file__).parents[2]))
MODEL = SOURCE / "data" / "model"
TEXTS = [SOURCE / "data" / "demo" / name for name in ("calibrate.txt", "validate.txt")]
SEQLEN = 48


def windows_of(ids, bos, bos_id):
    """All windows of a text, one after the other, none overlapping."""
    if bos == "each":
        body = SEQLEN - 1
        return [[bos_id, *ids[i : i + body]] for i in range(0, len(ids) - body + 1, body)]
    if bos == "first":
        ids = [bos_id, *ids]
    return [ids[i : i + SEQLEN] for i in range(0, len(ids) - SEQLEN + 1, SEQLEN)]


def expected_tokens(samples, bos, bos_id):
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    rows = []
    for index, file in enumerate(TEXTS):
        share = samples // len(TEXTS) + (index < samples % len(TEXTS))
        windows = windows_of(tokenizer.encode(file.read_text(), add_special_tokens=False).ids, bos, bos_id)
        rows += [windows[j * len(windows) // share] for j in range(share)]
    return np.array(rows, "<i4")


@pytest.mark.parametrize("bos", ["each", "first", "none"])
def test_windows_are_evenly_spaced_over_each_text(tmp_path, bos):
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    given = tokenizer.encode("a").ids  # with what the tokenizer itself adds
    bos_id = given[0]
    assert len(given) > len(tokenizer.encode("a", add_special_tokens=False).ids)
    out = tmp_path / "out.h5"
    subprocess.run([KVCAL, "calibrate", "--model", MODEL, "--text", *TEXTS, "--out", out, "--samples", "5", "--seqlen",
                    str(SEQLEN), "--bos", bos, "--bits", "2", "--outliers", "0"], check=True, capture_output=True)
    tokens = expected_tokens(5, bos, bos_id)
    with h5py.File(out) as file:
        attributes = file["calibration"].attrs
        assert attributes["tokens_sha256"].decode() == hashlib.sha256(tokens.tobytes()).hexdigest()
        assert attributes["tokens"] == tokens.size
        assert attributes["bos"].decode() == bos
