"""`--html FILE` as a reader meets it: the page in Chromium without a network and its data beside --json, for large models,
old files, hostile names and bad input too. page_pictures_test.py looks at its pictures, tables and controls."""
import json
import re

import pytest

np = pytest.importorskip("numpy")
h5py = pytest.importorskip("h5py")
pytest.register_assert_rewrite("page_runs", "page_browser")
from page_runs import (CALIBRATED, MODEL, OTHER, Run, codebook, data_of, drawn, expanded, floats, folder, made,  # noqa: E402, F401
                       refused, runs, same_json)
from page_browser import PICTURES, browser, cells, named, whole  # noqa: E402, F401
from page_codebooks import changed, write_codebook  # noqa: E402

MOST_BYTES = 8_000_000
FIRST_PICTURE_MS, ALLOWANCE = 2000, 3  # the promise, and by how much a busy machine may miss it


@pytest.mark.parametrize("kind", PICTURES)
def test_page_draws_all_without_a_complaint_or_a_network(kind, runs, browser):
    page = runs[kind].page
    for width, dark in ((1400, False), (400, True)):
        browser.open(page, width, dark)
        whole(browser, kind, width)
        figures = browser.figures()
        browser.look(width, not dark)
        browser.redrawn(figures.values())
        whole(browser, kind, width)
        named(browser)
        assert browser.requests() == [page.as_uri()]
    assert f"Page: {page}" in runs[kind].said


# Data ------------------------------------------------------------------------------------------------------------------


def test_data_is_what_the_same_run_gives_as_json(runs):
    for name, run in runs.items():
        data = data_of(run.page)
        assert set(data) == {"kind", "created_by", "report", "codebook", "plans"}
        assert data["kind"] == {"bare": "validate"}.get(name, name) and re.fullmatch(r"kvcal \d+\.\d+.*", data["created_by"])
        if name in ("validate", "bare", "calibrate"):
            same_json(data["report"], run.json)
        else:
            assert data["report"] is None
        if name in ("bare", "plan"):
            assert data["codebook"] is None
            continue
        book = expanded(data["codebook"])
        assert book.pop("channels_per_column") == 1
        same_json(book, drawn(runs["inspect"].json))


def test_arrays_of_an_ablation_are_left_out(folder):
    out = folder / "ablation.h5"
    made("calibrate", "-m", MODEL, "-f", CALIBRATED, "-o", out, "--samples", 2, "--seqlen", 64, "--ablation", "--quiet")
    run = Run(folder, "ablation", "inspect", out)
    sets = [one for layer in run.json["layers"] for name in ("key", "value") for one in layer[name]["with_sinks"]]
    assert sets and all(one.pop("histogram") and one["datatypes"] for one in sets)
    for one in sets:
        one.pop("lower", None), one.pop("upper", None)
        assert all(datatype.pop("centroids") for datatype in one["datatypes"])
    book = expanded(data_of(run.page)["codebook"])
    book.pop("channels_per_column")
    same_json(book, run.json)


def planned(plan, *options):
    names = ",".join(method["name"] for method in plan["methods"])
    return json.loads(made("plan", "-m", MODEL, "--context", plan["context"], "--json", "-", "--methods", names, *options))


def test_plans_are_those_of_the_plan_command(runs, folder):
    other = Run(folder, "other-plan", "plan", "-m", MODEL, "--context", 20000, "--batch", 3, "--gpus", 2)
    for name, contexts in (("plan", [8, 32, 128, 1024]), ("other", [8, 20000 / 1024, 32, 128, 1024])):
        run = other if name == "other" else runs[name]
        options = ["--batch", 3, "--gpus", 2] if name == "other" else ["--gpu-memory", "24GB"]
        plans = data_of(run.page)["plans"]
        assert [plan["context"] for plan in plans] == [1024 * context for context in contexts]
        assert sum(plan == run.json for plan in plans) == 1
        for plan in plans:
            same_json(plan, json.loads(made("plan", "-m", MODEL, "--context", plan["context"], "--json", "-", *options)))
    for name in ("validate", "calibrate"):
        for plan in data_of(runs[name].page)["plans"][::3]:
            same_json(plan, planned(plan, "--gpu-memory", "80GB"))
    # A codebook alone says nothing of weights.
    for plan in data_of(runs["inspect"].page)["plans"][::3]:
        assert plan["weights_bytes"] is None and plan["gpu_memory_bytes"] is None
        sizes = ("name", "bits_per_value", "cache_bytes", "static_bytes", "kvquant_bytes", "cache_bytes_per_gpu")
        assert [[method[key] for key in sizes] for method in plan["methods"]] == \
            [[method[key] for key in sizes] for method in planned(plan)["methods"]]


# Large models and old files --------------------------------------------------------------------------------------------


FIRST_DRAWN = """
new MutationObserver((_, observer) => {
  if (!document.querySelector('.plot[data-drawn]:not([data-drawn="0"])')) return;
  window.firstDrawn = performance.now();
  observer.disconnect();
}).observe(document, {subtree: true, attributeFilter: ['data-drawn']});
"""


def drawn_at_once(browser, page):
    """Below the promised size, the first picture within the promised time, and all of them drawn."""
    browser.open(page, first=FIRST_DRAWN)
    first = browser.run("return window.firstDrawn")
    print(f"{page.name}: {page.stat().st_size} bytes, first picture after {first:.0f} ms")
    assert 0 < first < ALLOWANCE * FIRST_PICTURE_MS
    whole(browser, "inspect", 1400)
    assert page.stat().st_size < MOST_BYTES


def test_a_large_model_is_small_and_quick(folder, browser):
    run = Run(folder, "large", "inspect", write_codebook(folder / "large.h5", 80, 8, 128, (0, 0.01)))
    data = data_of(run.page)
    assert data["codebook"]["channels_per_column"] == 1 and len(data["codebook"]["layers"]) == 80
    layer = data["codebook"]["layers"][79]
    assert [len(one["datatypes"]) for one in layer["key"]["outliers"]] == [3, 3]
    same_json(expanded(layer), run.json["layers"][79])
    drawn_at_once(browser, run.page)


@pytest.mark.parametrize("heads", [8, 64])
def test_channels_share_columns_where_there_are_very_many_numbers(heads, folder, browser):
    path = write_codebook(folder / f"larger{heads}.h5", 80, heads, 128, (0, 0.005, 0.01))
    page = folder / f"larger{heads}.html"
    made("inspect", path, "--html", page)
    book = data_of(page)["codebook"]
    share = book["channels_per_column"]
    assert share > 1 and 128 % share == 0
    with h5py.File(path) as file:
        for number in (0, 79):
            stored, layer = file[f"layers/{number:04}"], book["layers"][number]
            pairs = [(stored[f"key/outliers_{one['fraction']:g}"], one) for one in layer["key"]["outliers"]]
            pairs += [(stored[f"key_rope/outliers_{one['fraction']:g}"], one) for one in layer["key"]["rope"]]
            assert len(pairs) == 6
            for of_file, one in pairs:
                assert np.array_equal(floats(one["lower"]), of_file["lower"][:].reshape(-1, share).min(1))
                assert np.array_equal(floats(one["upper"]), of_file["upper"][:].reshape(-1, share).max(1))
            for name in ("key", "value"):
                fisher = stored[f"{name}/fisher_channel"][:]
                assert floats(layer[name]["fisher_channel"]) == pytest.approx(fisher.reshape(-1, share).sum(1), rel=1e-5)
                assert layer[name]["fisher_sum"] == pytest.approx(fisher.sum(dtype="f8"), rel=1e-9)
    drawn_at_once(browser, page)
    assert f"columns of {share} channels" in browser.figures()["key-ranges"]["summary"]


def test_a_recipe_is_drawn_with_the_curve_that_it_lies_on(codebook, folder, browser):
    book = folder / "recipe.h5"
    made("allocate", codebook, "--bits-per-value", 3.1, "--out", book, "--quiet")
    run = Run(folder, "recipe", "inspect", book)
    recipe = data_of(run.page)["codebook"]["recipe"]
    same_json(recipe, run.json["recipe"])
    for width, dark in ((1400, True), (400, False)):
        browser.open(run.page, width, dark)
        figures = browser.figures()
        assert {"recipe-curve", "recipe-layers"} <= set(figures)
        assert f"{recipe['bits_per_value']:.2f} bits a value" in figures["recipe-curve"]["summary"]
    tables = {table["place"]: cells(table) for table in browser.tables()}
    assert [row[:2] for row in tables["recipe-curve"]] == [[pytest.approx(point["bits_per_value"]), pytest.approx(point["kl"])]
                                                           for point in recipe["curve"]]
    assert [row[0:4:2] for row in tables["recipe-layers"]] == [[one["layer"], one["bits"]] for one in recipe["tensors"]]
    assert browser.complaints() == []


def test_an_old_file_says_what_it_lacks(runs, codebook, folder, browser):
    def make_old(file):
        file.attrs["schema_minor"] = np.int64(0)
        file.attrs["created_by"] = np.bytes_(b"kvcal 0.0.1")
        del file["calibration"].attrs["revision"]
        for layer in file["layers"].values():
            del layer["key_rope"], layer["key_envelope"]
            for tensor in layer.values():
                del tensor["magnitudes"]
                for name in [name for name in tensor if name.startswith("outliers_")]:
                    del tensor[name]["histogram"]
                    for datatype in tensor[name].values():
                        for part in ("scale", "zero", "histogram") if isinstance(datatype, h5py.Group) else ():
                            datatype.pop(part, None)

    run = Run(folder, "old", "inspect", changed(codebook, folder / "old.h5", make_old))
    data = data_of(run.page)
    assert data["codebook"]["schema"] == [1, 0] and "rope" not in data["codebook"]["layers"][0]["key"]
    book = expanded(data["codebook"])
    book.pop("channels_per_column")
    same_json(book, run.json)
    for width in (1400, 400):
        browser.open(run.page, width)
        whole(browser, "inspect", width)
    figures = browser.figures()
    why = {"key-ranges": "There are no ranges after RoPE here", "outlier-channels": "no ranges after RoPE",
           "codebook": "How the weight lies is not in this file"}
    for name, words in why.items():
        assert words in figures[name]["summary"] and "older version of kvcal" in figures[name]["summary"], figures[name]
    rows = cells(next(table for table in browser.tables() if table["place"] == "key-ranges"))
    assert all(row[6:] == [None] * 4 and None not in row[:6] for row in rows)
    assert browser.complaints() == []


# Bad input and names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["calibrate", "validate", "inspect", "plan"])
def test_places_that_html_does_not_take(command, runs, codebook, folder, tmp_path):
    copy, text, out = tmp_path / "a.h5", tmp_path / "t.txt", tmp_path / "out.h5"
    copy.write_bytes(codebook.read_bytes())
    text.write_bytes(OTHER.read_bytes())
    link = tmp_path / "link.h5"
    link.symlink_to(copy)
    arguments = {
        "calibrate": ["calibrate", "-m", MODEL, "-f", text, "-o", out, "--samples", 2, "--seqlen", 64, "--quiet"],
        "validate": ["validate", "-m", MODEL, "-c", copy, "-f", text, "--windows", 1, "--seqlen", 64, "--quiet"],
        "inspect": ["inspect", copy], "plan": ["plan", "-m", MODEL],
    }[command]
    before = {path: path.read_bytes() for path in (copy, text, *MODEL.iterdir())}
    for file in ("", "-"):
        refused([*arguments, "--html", file], 2, "--html", "file")
    refused([*arguments, "--html", tmp_path], 1, "is a folder")
    refused([*arguments, "--html", tmp_path / "none" / "a.html"], 1, "--html", "none")
    if command != "plan":
        inputs = [text] if command == "calibrate" else [copy, link, tmp_path / ".." / tmp_path.name / "a.h5"]
        for file in inputs + ([text] if command == "validate" else []):
            refused([*arguments, "--html", file], 2, "--html", file.name)
    if command != "inspect":
        refused([*arguments, "--html", MODEL], 2, "--html", str(MODEL))
        refused([*arguments, "--html", MODEL / "page.html"], 2, "--html", "page.html")
    if command == "calibrate":
        refused([*arguments, "--html", out], 2, "--html and --out name the same file")
    same = tmp_path / "same"
    refused([*arguments, "--json", same, "--html", same], 2, "--json and --html name the same file")
    refused([*arguments, "--json", same, "--html", tmp_path / "." / "same"], 2, "--json and --html name the same file")
    assert {path: path.read_bytes() for path in before} == before
    assert not (out.exists() or same.exists() or (MODEL / "page.html").exists())


def test_a_page_replaces_the_old_one_and_is_the_same_each_time(codebook, runs, tmp_path):
    page = tmp_path / "a.html"
    page.write_text("old")
    printed = made("inspect", codebook, "--html", page, "--json", "-")
    assert json.loads(printed) == runs["inspect"].json  # and nothing else on standard output
    assert page.read_bytes() == runs["inspect"].page.read_bytes()
    assert list(tmp_path.iterdir()) == [page]


BROKEN = "window.broken = true"


@pytest.mark.parametrize("name", [
    f"</script><script>{BROKEN}</script>",
    f"<!-- <script> A & B < C &amp; <img src=x onerror='{BROKEN}'> \"quoted\" 'q'",
    "@SCRIPT@ @DATA@ @TITLE@ $& \\u003c \\ \u2028 \u00e9\U0001f600 %{x} <b>bold</b>",
])
def test_names_are_text_and_nothing_else(name, codebook, runs, folder, browser):
    def rename(file):
        file["model"].attrs["name"] = np.bytes_(name.encode())
        file["calibration"].attrs["texts"] = np.bytes_(json.dumps([{"name": name, "sha256": "0" * 64}]).encode())
        file["calibration"].attrs["options"] = np.bytes_(json.dumps({"bits": [2], "note": name}).encode())

    run = Run(folder, "named", "inspect", changed(codebook, folder / "named.h5", rename))
    assert data_of(run.page)["codebook"]["model"]["name"] == run.json["model"]["name"] == name
    browser.open(run.page)
    assert browser.run("return typeof window.broken") == "undefined"
    assert browser.run("return document.querySelectorAll('script[src], img, link:not([href=\"data:,\"])').length") == 0
    texts = browser.run("""return [document.querySelector('title').textContent, document.querySelector('h1').textContent,
        kvcal.data().codebook.model.name, document.querySelector('#provenance tbody th').textContent]""")
    assert texts == [f"{name}: kvcal inspect", f"The KV-cache codebook of {name}", name, name]
    whole(browser, "inspect", 1400)
    assert browser.requests() == [run.page.as_uri()]
