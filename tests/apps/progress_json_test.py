"""--progress json: what a program that runs kvcal reads of its standard error."""
import json
import os
import pathlib
import subprocess

import pytest

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")).resolve() / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).parents[2])).resolve()
MODEL, DEMO = SOURCE / "data" / "model", SOURCE / "data" / "demo"

if not KVCAL.exists():
    pytest.skip(f"no program {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)


def calibrate(folder, *more):
    """The result, and the lines of standard error."""
    command = [KVCAL, "calibrate", "--model", MODEL, "--text", DEMO / "calibrate.txt", "--samples", "2", "--seqlen", "128",
               "--out", folder / "a.h5", "--progress", "json", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done, done.stderr.splitlines()


def test_each_line_is_an_event_and_stages_begin_count_and_end(tmp_path):
    done, lines = calibrate(tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in lines]
    stage, counts, names = None, [], []
    for event in events:
        if event["event"] == "stage":
            assert stage is None, "a stage begins within another"
            stage, counts = event, []
            names.append(event["name"])
        elif event["event"] == "advance":
            counts.append(event["done"])
            assert counts == sorted(counts) and counts[-1] <= stage["total"], (stage, counts)
        elif event["event"] == "end":
            assert stage is not None
            stage = None
    assert stage is None
    assert {"forward", "backward"} <= set(names), names


def test_quiet_leaves_out_what_is_said_but_not_where_it_stands(tmp_path):
    _, lines = calibrate(tmp_path, "--quiet")
    events = [json.loads(line)["event"] for line in lines]
    assert "info" not in events and "stage" in events


def test_an_error_is_the_line_that_it_always_is(tmp_path):
    done, lines = calibrate(tmp_path, "--bits", "99")
    assert done.returncode != 0
    assert lines[-1].startswith("kvcal: error: ")


def test_other_forms_are_refused_with_those_that_there_are(tmp_path):
    done = subprocess.run([KVCAL, "validate", "--progress", "xml"], capture_output=True, text=True)
    assert done.returncode == 2 and "text or json" in done.stderr
