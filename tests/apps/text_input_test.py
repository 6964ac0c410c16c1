"""Texts as people have them: the same tokens from each form of one text, and a way out for what is none."""
import gzip
import json
import os
import pathlib
import pty
import subprocess

import pytest

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", "."))
SHARED = pathlib.Path(os.environ.get("KVCAL_SHARED_DATA", "../shared/data"))
MODEL = SOURCE / "data" / "model"
SMALL = ("--samples", "2", "--seqlen", "64", "--bits", "2", "--outliers", "0", "--quiet")

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)

DOCUMENTS = [line for line in (SOURCE / "data" / "demo" / "calibrate.txt").read_text(encoding="utf-8").split("\n\n")
             if line][:40]
PLAIN = "\n\n".join(DOCUMENTS).encode()


def json_lines(field="text"):
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(DOCUMENTS)).encode()


def calibrate(out, *arguments, **options):
    return subprocess.run([KVCAL, "calibrate", "--model", MODEL, "--out", out, *SMALL, *map(str, arguments)],
                          capture_output=True, timeout=600, **options)


def calibration(codebook):
    result = subprocess.run([KVCAL, "inspect", codebook, "--json", "-"], capture_output=True, timeout=600, check=True)
    return json.loads(result.stdout)["calibration"]


def calibrated(out, *arguments, **options):
    result = calibrate(out, *arguments, **options)
    assert result.returncode == 0, result.stderr
    return calibration(out), result.stderr.decode()


def refused(result, code, *parts):
    error = result.stderr.decode()
    assert result.returncode == code, error
    assert error.startswith("kvcal: error: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error


@pytest.fixture(scope="module")
def tokens_of_plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.txt").write_bytes(PLAIN)
    found, warnings = calibrated(folder / "out.h5", "--text", folder / "plain.txt")
    assert [text["name"] for text in found["texts"]] == ["plain.txt"]
    return found["tokens_sha256"]


@pytest.mark.parametrize("name, content", [
    ("text.gz", gzip.compress(PLAIN)),
    ("members.txt", gzip.compress(PLAIN[:1000]) + gzip.compress(PLAIN[1000:])),
    ("lines.jsonl", json_lines()),
    ("lines.json.gz", gzip.compress(json_lines())),
    ("array.json", json.dumps([{"text": text} for text in DOCUMENTS], indent=1).encode()),
])
def test_every_form_gives_the_same_tokens(name, content, tokens_of_plain, tmp_path):
    (tmp_path / name).write_bytes(content)
    found, warnings = calibrated(tmp_path / "out.h5", "--text", tmp_path / name)
    assert found["tokens_sha256"] == tokens_of_plain
    assert found["texts"][0]["name"] == name
    assert "UTF-8" not in warnings


@pytest.mark.parametrize("content", [PLAIN, gzip.compress(json_lines())], ids=["plain", "jsonl.gz"])
def test_standard_input(content, tokens_of_plain, tmp_path):
    found, _ = calibrated(tmp_path / "out.h5", "--text", "-", input=content)
    assert found["tokens_sha256"] == tokens_of_plain
    assert found["texts"][0]["name"] == "-"


def test_the_text_may_stand_in_another_member(tokens_of_plain, tmp_path):
    (tmp_path / "lines.jsonl").write_bytes(json_lines("content"))
    found, _ = calibrated(tmp_path / "out.h5", "--text", tmp_path / "lines.jsonl", "--text-field", "content")
    assert found["tokens_sha256"] == tokens_of_plain
    refused(calibrate(tmp_path / "no.h5", "--text", tmp_path / "lines.jsonl"), 1,
            "lines.jsonl: line 1: no member 'text'", "'content', 'id'", "--text-field content")


def test_several_texts_of_several_forms(tmp_path):
    (tmp_path / "a.txt").write_bytes(PLAIN)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines()))
    both, _ = calibrated(tmp_path / "both.h5", "--text", tmp_path / "a.txt", tmp_path / "b.jsonl.gz")
    plain, _ = calibrated(tmp_path / "plain.h5", "--text", tmp_path / "a.txt", "-", input=PLAIN)
    assert both["tokens_sha256"] == plain["tokens_sha256"]
    assert [text["name"] for text in plain["texts"]] == ["a.txt", "-"]


def test_a_config_file_names_the_member(tokens_of_plain, tmp_path):
    (tmp_path / "lines.jsonl").write_bytes(json_lines("content"))
    (tmp_path / "run.toml").write_text(f'[calibrate]\ntext = ["{tmp_path}/lines.jsonl"]\ntext-field = "content"\n')
    found, _ = calibrated(tmp_path / "out.h5", "--config", tmp_path / "run.toml")
    assert found["tokens_sha256"] == tokens_of_plain


def test_validate_reads_the_same_forms(tmp_path):
    reports = []
    for content in (PLAIN, gzip.compress(json_lines("content"))):
        result = subprocess.run([KVCAL, "validate", "--model", MODEL, "--text", "-", "--text-field", "content",
                                 "--methods", "int4", "--windows", "1", "--seqlen", "64", "--json", "-"],
                                input=content, capture_output=True, timeout=600)
        assert result.returncode == 0, result.stderr
        reports.append(json.loads(result.stdout))
        assert any("--text-field does nothing" in warning for warning in reports[-1]["warnings"]) == (content == PLAIN)
    assert reports[0]["methods"] == reports[1]["methods"]


@pytest.mark.parametrize("content, parts", [
    (b"PAR1\x15\x04\x15\x10", ["Parquet", "to_json"]),
    (b"%PDF-1.7\n", ["PDF", "pdftotext"]),
    (b"PK\x03\x04\x14\x00", ["zip", "pandoc"]),
    ("text".encode("utf-16"), ["UTF-16", "iconv -f UTF-16 -t UTF-8"]),
    (b"\x93NUMPY\x01\x00", ["NumPy", "--tokens"]),
    (b"some\x00thing", ["NUL byte at offset 4"]),
    (gzip.compress(PLAIN)[:-9], ["ends too early"]),
    (gzip.compress(PLAIN) + b"more", ["not gzip"]),
    (b'{"messages": []}\n', ["apply_chat_template"]),
    (b'{"text": "a"}\n{"text": 1}\n', ["line 2", "of type number"]),
    (b"", ["the text is empty"]),
])
def test_what_is_no_text_is_refused_with_a_way_out(content, parts, tmp_path):
    (tmp_path / "file").write_bytes(content)
    refused(calibrate(tmp_path / "out.h5", "--text", tmp_path / "file"), 1, str(tmp_path / "file"), *parts)
    refused(calibrate(tmp_path / "out.h5", "--text", "-", input=content), 1, "standard input", *parts)
    assert not (tmp_path / "out.h5").exists()


def test_standard_input_is_named_once_and_is_no_terminal(tmp_path):
    refused(calibrate(tmp_path / "out.h5", "--text", "-", "-", input=PLAIN), 2, "more than once")
    ours, theirs = pty.openpty()
    try:
        refused(calibrate(tmp_path / "out.h5", "--text", "-", stdin=theirs), 2, "terminal")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_crawl_as_it_is_downloaded(tmp_path):
    file = SHARED / "text" / "c4-sample.00000-of-00001.json.gz"
    if not file.exists():
        pytest.skip(f"no {file}")
    documents = [json.loads(line)["text"] for line in gzip.decompress(file.read_bytes()).splitlines()]
    found, warnings = calibrated(tmp_path / "out.h5", "--text", file)
    joined, _ = calibrated(tmp_path / "joined.h5", "--text", "-", input="\n\n".join(documents).encode())
    assert found["tokens_sha256"] == joined["tokens_sha256"]
    assert "UTF-8" not in warnings
