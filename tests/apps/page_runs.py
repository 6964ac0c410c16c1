"""The commands whose pages the tests beside this file look at, each with its --json, and how a page's data is read."""
import base64
import json
import os
import pathlib
import re
import subprocess

import pytest

np = pytest.importorskip("numpy")

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
CALIBRATED = SOURCE / "data" / "demo" / "calibrate.txt"
OTHER = SOURCE / "data" / "demo" / "validate.txt"
METHODS = "int3,int4,nf3,nuq3,nuq4,nuq2-1%,nuq3-1%,nuq4-1%,nuq3-2%,nuq3-1%-paged"

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def kvcal(*arguments, **options):
    return subprocess.run([KVCAL, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options)


def made(*arguments):
    result = kvcal(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(arguments, code, *parts):
    result = kvcal(*arguments)
    assert result.returncode == code, (arguments, result)
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("kvcal: error: ") and all(part in last for part in parts), result.stderr


def data_of(page):
    """The page's data as any program reads it from the source."""
    element = r'<script type="application/json" id="kvcal-data">(.*?)</script>'
    return json.loads(re.search(element, page.read_text(encoding="utf-8"), re.S)[1])


def floats(packed):
    return np.frombuffer(base64.b64decode(packed["f4"], validate=True), "<f4")


def expanded(value):
    if isinstance(value, dict):
        return floats(value).astype(float).tolist() if set(value) == {"f4"} else {k: expanded(v) for k, v in value.items()}
    return [expanded(part) for part in value] if isinstance(value, list) else value


def drawn(book):
    """inspect's JSON without what a page leaves out: it draws histograms, not ranges."""
    def less(value):
        if isinstance(value, dict):
            fitted = value.get("ranges") == "fitted"
            return {k: less(v) for k, v in value.items() if not (fitted and k in ("scale", "zero"))}
        return [less(part) for part in value] if isinstance(value, list) else value
    return less(book)


def same_json(ours, theirs):
    """Equal, and 1 is neither 1.0 nor true."""
    assert ours == theirs
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


class Run:
    """A command's page, and what its --json says."""

    def __init__(self, folder, name, *arguments):
        self.page, self.file = folder / f"{name}.html", folder / f"{name}.json"
        self.said = made(*arguments, "--html", self.page, "--json", self.file)
        self.json = json.loads(self.file.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def codebook(folder):
    return folder / "a.h5"


@pytest.fixture(scope="module")
def runs(folder, codebook):
    validate = ["validate", "-m", MODEL, "-f", OTHER, "--quiet"]
    runs = {
        "calibrate": Run(folder, "calibrate", "calibrate", "-m", MODEL, "-f", CALIBRATED, "-o", codebook, "--samples", 4,
                         "--seqlen", 512, "--outliers", "0,0.01,0.02"),
        "validate": Run(folder, "validate", *validate, "-c", codebook, "--windows", 2, "--seqlen", 256, "--per-layer-kl",
                        "--generate", 16, "--passkey", "96,128", "--methods", METHODS),
        "bare": Run(folder, "bare", *validate, "--windows", 2, "--seqlen", 128, "--methods", "int4,fp8"),
        "plan": Run(folder, "plan", "plan", "--model", MODEL, "--gpu-memory", "24GB"),
        "inspect": Run(folder, "inspect", "inspect", codebook),
    }
    return runs
