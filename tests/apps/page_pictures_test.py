"""What stands on the page of `--html FILE`: every number of its pictures and tables beside --json, and its controls."""
import collections
import functools
import itertools
import json
import re

import pytest

np = pytest.importorskip("numpy")
pytest.register_assert_rewrite("page_runs", "page_browser")
from page_runs import METHODS, codebook, data_of, expanded, floats, folder, runs  # noqa: E402, F401
from page_browser import PICTURES, PLOTS, browser, cells  # noqa: E402, F401
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

# What the page computes, by table and column; TABLES_OF_PICTURES says how. Every other number stands in the JSON as it is.
DERIVED = {
    ("estimated-cost", "share of all"),
    ("decoding", "Token"),
    *(("codebook", head) for head in ("code", "with Q-Norm", "uniform level", "upper cell border",
                                      "share of the weight (by bins)")),
    ("key-ranges", "channels"),
    *(("key-ranges", f"{head} {when}") for when in ("before", "after")
      for head in ("median range", "widest", "widest / median", "above 3 medians")),
    *(("outlier-channels", head) for head in ("head", "channel in head", "width / median", "share of Fisher information")),
}
PERCENT = {"Same top-1 %", "Attention %"}  # columns whose numbers are written times 100
# Selectors that show the same numbers in another way: words and table stay.
SAME_NUMBERS = {("plan", "scale"), ("key-ranges", "unit")}

Seen = collections.namedtuple("Seen", "figures plots tables headline notes text")


@pytest.fixture(scope="module")
def seen(runs, browser):
    """seen(kind): what stands on a page at first, read once."""
    @functools.cache
    def seen(kind):
        browser.open(runs[kind].page)
        texts = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        headline = browser.run("return [...document.querySelectorAll('.figures [data-value]')].map((one) => one.dataset.value)")
        return Seen(browser.figures(), browser.run(PLOTS), browser.tables(), headline, browser.run(texts, "#methods tbody th"),
                    browser.run("return document.body.textContent"))
    return seen


# Numbers ---------------------------------------------------------------------------------------------------------------


def numbers_in(value):
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def shown(text, scale):
    """A number as the page writes it, and half of its last digit."""
    match = re.fullmatch(r"([+-]?)([\d,]+(?:\.\d+)?)(e-?\d+)?(?:\xa0?(%|K|M|[KMGTP]?i?B))?", text.replace("\u2212", "-"))
    assert match, text
    sign, digits, power, unit = match.groups()
    scale *= {None: 1, "%": 0.01, "B": 1}.get(unit) or 1024 ** (" KMGTP".index(unit[0]))
    scale *= float("1" + (power or ""))
    digits = digits.replace(",", "")
    return float(sign + digits) * scale, 0.5 * scale * 10.0 ** -len(digits.partition(".")[2])


@pytest.mark.parametrize("kind", PICTURES)
def test_every_number_stands_in_the_json_and_reads_as_it_is(kind, runs, seen):
    data = data_of(runs[kind].page)
    known = set(numbers_in(expanded([data["report"], data["codebook"], data["plans"]])))
    count = 0
    for table in seen(kind).tables:
        for head, (value, text) in ((head, cell) for row in table["rows"] for head, cell in zip(table["head"], row, strict=True)):
            if value is None:
                assert text in ("", "\u2013") or not re.fullmatch(r"[\d.,]+", text), (table["place"], head, text)
                continue
            count += 1
            number = json.loads(value)
            assert number in known or (table["place"], head) in DERIVED, (table["place"], head, value)
            if text:  # nothing is written where it says nothing, such as fp's divergence from itself
                read, half = shown(text, 0.01 if head in PERCENT else 1)
                assert read == pytest.approx(number, rel=1e-9, abs=1.001 * half), (table["place"], head, value, text)
    assert count >= {"validate": 500, "plan": 200, "bare": 30}.get(kind, 400)
    headline = seen(kind).headline
    assert len(headline) >= 2 and all(json.loads(value) in known for value in headline)


METHOD_COLUMNS = {"Bits/value": "bits_per_value", "Perplexity": "ppl", "Change": "ppl_delta", "KL mean": "kld_mean",
                  "KL p99": "kld_p99", "Same top-1 %": "top1_agreement", "Attention %": "attention_agreement"}


def method_row(head, method):
    """± is the standard error of the column before it."""
    row = [method["name"]]
    for before, column in itertools.pairwise(head):
        key = METHOD_COLUMNS.get(column) or METHOD_COLUMNS[before].replace("_mean", "") + "_stderr"
        exact = method["name"] == "fp" and column not in ("Bits/value", "Perplexity")
        row.append(None if exact else method[key])
    return row


@pytest.mark.parametrize("kind", ["validate", "bare"])
def test_methods_table_row_by_row(kind, runs, seen):
    report = runs[kind].json
    table = next(table for table in seen(kind).tables if table["place"] == "methods")
    assert table["head"][0] == "Method" and set(METHOD_COLUMNS) < set(table["head"]) and table["head"].count("\u00b1") == 2
    rows = [[cell or None for cell in row] if row[0] == "fp" else row for row in cells(table)]
    assert rows == [method_row(table["head"], method) for method in report["methods"]]
    assert [row[0] for row in rows[1:]] == ("int4,fp8" if kind == "bare" else METHODS).split(",")
    noise = [method["name"] for method in report["methods"][1:]
             if abs(method["ppl_delta"]) < 2 * method["ppl_delta_stderr"]]
    assert [name for name in seen(kind).notes if "within noise" in name] == [f"{name}change within noise" for name in noise]


def yes_no(value):
    return None if value is None else "yes" if value else "no"


def pareto(data, choice):
    methods, cost = data["report"]["methods"][1:], choice["measure"]
    front = [one for one in methods if all(other is one or other["bits_per_value"] > one["bits_per_value"]
                                           or other[cost] > one[cost] for other in methods)]
    error = {"kld_mean": "kld_stderr", "ppl_delta": "ppl_delta_stderr"}[cost]
    return [[one["name"], one["bits_per_value"], one[cost], one[error], yes_no(one in front)] for one in methods]


def by_layer(*keys):
    def rows(data, choice):
        method = next(method for method in data["report"]["methods"] if method["name"] == choice["method"])
        read = [choice["measure"]] if not keys else keys
        return [[layer["layer"], *(layer[name][key] for name in ("key", "value") for key in read)] for layer in method["layers"]]
    return rows


def estimated_cost(data, choice):
    method = next(one for one in data["codebook"]["summary"]["methods"] if one["name"] == choice["method"])
    return [[layer["layer"], name, layer[name], layer[name] / method["estimated_kld"]]
            for layer in method["layers"] for name in ("key", "value")]


def decoding(data, choice):
    series = [method["generate"]["by_position"][choice["measure"]] for method in data["report"]["methods"][1:]
              if choice["method"] in ("", method["name"])]
    return [[at + 1, *step] for at, step in enumerate(zip(*series, strict=True))]


def passkey(data, choice):
    return [[method["name"], *(f"{one['retrieved']}/{one['prompts']}" for one in method["passkey"])]
            for method in data["report"]["methods"]]


def plan_rows(data, choice):
    family = lambda name: re.sub(r"^([a-z]+)\d+", r"\1", name)  # noqa: E731
    return [[plan["context"], one["name"], one["bits_per_value"], one["cache_bytes"], one["cache_bytes_per_gpu"],
             one["total_bytes_per_gpu"], yes_no(one["fits"]), one["largest_context"]]
            for plan in data["plans"] for one in plan["methods"] if choice["methods"] in ("all", family(one["name"]))]


def with_fraction(sets, choice):
    return next((one for one in sets if one["fraction"] == float(choice["fraction"])), None)


def datatype(data, choice):
    layer = next(layer for layer in data["codebook"]["layers"] if str(layer["layer"]) == choice["layer"])
    chosen = with_fraction(layer[choice["tensor"]]["outliers"], choice)
    one = next(one for one in chosen["datatypes"] if str(one["bits"]) == choice["bits"])
    centroids, histogram = np.array(one["centroids"]), np.array(one.get("histogram", chosen["histogram"]))
    borders = [-np.inf, *(centroids[:-1] + centroids[1:]) / 2, np.inf]
    middles = -1 + (2 * np.arange(len(histogram)) + 1) / len(histogram)
    return [[code, value, value * one["qnorm_scale"] + one["qnorm_offset"], -1 + 2 * code / (len(centroids) - 1),
             borders[code + 1] if code + 1 < len(centroids) else None,
             histogram[(middles > borders[code]) & (middles <= borders[code + 1])].sum()] for code, value in enumerate(centroids)]


def widths(one):
    return np.array(one["upper"]) - np.array(one["lower"])


def key_ranges(data, choice):
    def figures(one):
        median = np.median(widths(one))
        return [median, widths(one).max(), widths(one).max() / median, (widths(one) > 3 * median).sum()]
    return [[layer["layer"], layer["kv_heads"] * layer["key_dim"], *figures(with_fraction(layer["key"]["outliers"], choice)),
             *figures(with_fraction(layer["key"]["rope"], choice))] for layer in data["codebook"]["layers"]]


def outlier_channels(data, choice):
    layer = next(layer for layer in data["codebook"]["layers"] if str(layer["layer"]) == choice["layer"])
    one, fisher = with_fraction(layer["key"]["outliers"], choice), np.array(layer["key"]["fisher_channel"])
    lower, upper, width = np.array(one["lower"]), np.array(one["upper"]), widths(one)
    wide, off = width > 3 * np.median(width), (lower > 0) | (upper < 0)
    return [[i // layer["key_dim"], i % layer["key_dim"], lower[i], upper[i], width[i] / np.median(width),
             fisher[i] / fisher.sum(), ", ".join(["wide"] * int(wide[i]) + ["does not reach zero"] * int(off[i]))]
            for i in np.argsort(-width, kind="stable") if wide[i] or off[i]]


TABLES_OF_PICTURES = {
    "pareto": pareto, "layer-errors": by_layer(), "layer-alone": by_layer("kld_mean", "kld_stderr", "kld_p99"),
    "outliers-met": by_layer("outliers_observed", "outliers_nominal", "outliers_dropped"), "estimated-cost": estimated_cost,
    "decoding": decoding, "passkey": passkey, "plan": plan_rows, "codebook": datatype, "key-ranges": key_ranges,
    "outlier-channels": outlier_channels,
}


def right_table(data, name, choice, table):
    """The table behind a picture is what the JSON gives for the choice: derived numbers closely, others exactly."""
    expected, found = TABLES_OF_PICTURES[name](data, choice), cells(table)
    assert len(found) == len(expected), (name, choice)
    for row, want in zip(found, expected, strict=True):
        for head, one, other in zip(table["head"], row, want, strict=True):
            derived = (name, head) in DERIVED and other is not None and not isinstance(other, str)
            assert one == (pytest.approx(other, rel=1e-9, abs=1e-12) if derived else other), (name, choice, head, row)


def plotted(name, data, choice):
    """What the traces of a picture hold, by their names: (coordinate, numbers)."""
    rows = TABLES_OF_PICTURES[name](data, choice)
    if name == "pareto":
        return {row[0]: ("y", [row[2]]) for row in rows}
    if name in ("layer-alone", "layer-errors", "outliers-met"):
        half, scale = (len(rows[0]) + 1) // 2, 100 if name == "outliers-met" else 1
        shift = 2 if choice.get("measure") == "dropped" else 0
        return {title: ("y", [scale * row[at + shift] for row in rows]) for title, at in (("Keys", 1), ("Values", half))}
    if name == "estimated-cost":
        return {f"{tensor}s": ("y", [row[2] for row in rows if row[1] == tensor]) for tensor in ("key", "value")}
    if name == "plan":
        methods = {row[1] for row in rows}
        return {method: ("y", [row[3] for row in rows if row[1] == method]) for method in methods}
    if name == "codebook":
        found = {"centroids": ("x", [row[1] for row in rows])}
        if choice["qnorm"] == "on":
            stems = [x for row in rows for x in (row[2], row[2], None)]
            found |= {"Q-Norm": ("x", [row[2] for row in rows]), "with Q-Norm": ("x", stems)}
        return found
    layers = data["codebook"]["layers"]
    if name == "outlier-channels":
        key = next(layer["key"] for layer in layers if str(layer["layer"]) == choice["layer"])
        return {f"{when} RoPE": ("y", with_fraction(key[of], choice)["upper"])
                for when, of in (("before", "outliers"), ("after", "rope"))}
    if name == "key-ranges":
        of = [[widths(with_fraction(layer["key"][sets], choice)) for layer in layers] for sets in ("outliers", "rope")]
        if choice["unit"] == "relative":
            of = [[row / np.median(row) for row in rows] for rows in of]
        return {when: ("z", np.log10(rows)) for when, rows in zip(("before", "after"), of, strict=True)}
    return {}


def right_plot(data, name, choice, traces):
    """The traces hold what the JSON gives for the choice; how many were looked at."""
    by_name = {trace["name"]: trace for trace in traces}
    if name == "key-ranges":
        by_name = dict(zip(("before", "after"), traces, strict=True))
    expected = plotted(name, data, choice)
    for trace, (coordinate, numbers) in expected.items():
        found = np.array(by_name[trace][coordinate], dtype=float)
        assert found == pytest.approx(np.array(numbers, dtype=float), rel=1e-9, nan_ok=True), (name, choice, trace)
    return len(expected)


def test_pictures_hold_the_numbers_of_the_json(runs, seen):
    data = expanded(data_of(runs["validate"].page))
    checked = sum(right_plot(data, name, figure["choice"], seen("validate").plots[name])
                  for name, figure in seen("validate").figures.items())
    assert checked > 30
    found = [[100 * one["retrieved"] / one["prompts"] for one in method["passkey"]] for method in data["report"]["methods"]]
    assert seen("validate").plots["passkey"][0]["z"] == found


def test_tables_behind_pictures_and_in_sections(runs, seen):
    run = runs["validate"]
    data = expanded(data_of(run.page))
    by_place = collections.defaultdict(list)
    for table in seen("validate").tables:
        by_place[table["place"]].append(table)
    for name, figure in seen("validate").figures.items():
        assert len(by_place[name]) == 1
        right_table(data, name, figure["choice"], by_place[name][0])
    worst = []
    for method in run.json["methods"][1:]:
        tensors = [(layer["layer"], name, layer[name]) for layer in method["layers"] for name in ("key", "value")]
        layer, name, tensor = max(tensors, key=lambda one: one[2]["kld_mean"])
        worst.append([method["name"], layer, f"{name}s", tensor["kld_mean"], tensor["outliers_dropped"]])
    assert cells(by_place["layers"][0]) == worst
    memory, more = by_place["memory"]
    plans = data["plans"]
    of_names = list(zip(*(plan["methods"] for plan in plans), strict=True))
    assert memory["head"][2:] == ["8K", "32K", "128K", "1M"]
    assert cells(memory) == [[of[-1]["name"], of[-1]["bits_per_value"], *(one["cache_bytes"] for one in of)] for of in of_names]
    keys = ("cache_bytes_per_gpu", "static_bytes", "kvquant_bytes", "total_bytes_per_gpu", "fits", "margin_bytes",
            "largest_context")
    assert cells(more) == [[one["name"], *(yes_no(one[key]) if key == "fits" else one[key] for key in keys)]
                           for one in plans[-1]["methods"]]
    sample = data["codebook"]["summary"]["sample"]
    shifts = [[sample[key], sample[f"{key}_limit"], yes_no(sample[key] <= sample[f"{key}_limit"])]
              for key in ("threshold_shift", "datatype_excess")]
    assert [row[1:] for row in cells(by_place["sample"][0])] == shifts
    texts = data["codebook"]["calibration"]["texts"]
    assert cells(by_place["provenance"][0]) == [[text["name"], text["sha256"]] for text in texts]
    hashes = [data["codebook"]["content_sha256"], data["codebook"]["model"]["weights_sha256"]]
    facts = [sample["advice"], *run.json["warnings"], *hashes]
    assert all(fact in seen("validate").text for fact in facts)


# Controls --------------------------------------------------------------------------------------------------------------


def choose(browser, figure, control, at):
    """Chooses an option; the figure drawn anew and its table."""
    Select(browser.driver.find_element(By.ID, f"picture-{figure['id']}-{control}")).select_by_index(at)
    browser.redrawn([figure])
    after = browser.figures()[figure["id"]]
    table = next((table for table in browser.tables() if table["place"] == figure["id"]))
    return after, table


def test_each_selector_changes_its_picture(runs, browser):
    data = expanded(data_of(runs["validate"].page))
    browser.open(runs["validate"].page)
    tried = []
    for name, start in browser.figures().items():
        for control in start["choice"]:
            before = browser.figures()[name]
            select = Select(browser.driver.find_element(By.ID, f"picture-{name}-{control}"))
            options = [option.get_attribute("value") for option in select.options]
            assert len(set(options)) == len(options)
            initial = options.index(before["choice"][control])
            if len(options) < 2:
                continue
            first = next(table for table in browser.tables() if table["place"] == name)
            now, changed = before, False
            for at in [at for at in range(len(options)) if at != initial][-3:]:
                now, table = choose(browser, now, control, at)
                assert now["choice"] == before["choice"] | {control: options[at]}
                assert "could not be" not in now["summary"] and now["label"] == f"{now['title']}. {now['summary']}"
                right_table(data, name, now["choice"], table)
                right_plot(data, name, now["choice"], browser.run(PLOTS, f"#picture-{name} .plot")[name])
                words = now["summary"] != before["summary"] or table["rows"] != first["rows"]
                assert not (words and (name, control) in SAME_NUMBERS)
                if now["content"] != before["content"] and (words or (name, control) in SAME_NUMBERS):
                    changed = True
                    break
            assert changed, (name, control)
            again, table = choose(browser, now, control, initial)
            assert (again["content"], again["summary"], table["rows"]) == (before["content"], before["summary"], first["rows"])
            tried.append((name, control))
    assert len(tried) == 20, tried
    assert browser.complaints() == []


def test_keyboard_alone_reaches_everything_in_order(runs, browser):
    browser.open(runs["validate"].page)
    browser.run("""window.visited = [];
        document.addEventListener('focusin', (event) => window.visited.push(event.target));
        window.wanted = [...document.querySelectorAll('select, button, summary, a[href]')].filter((one) => one.checkVisibility());
    """)
    count = browser.run("return wanted.length")
    assert count > 80
    for kind in ("select", "button", "summary", "a"):
        assert browser.run("return wanted.some((one) => one.matches(arguments[0]))", kind)
    browser.press(*[Keys.TAB] * (count + 60))
    assert browser.run("return wanted.filter((one) => !visited.includes(one)).map((one) => one.outerHTML.slice(0, 120))") == []
    assert browser.run("""const once = visited.slice(0, visited.indexOf(visited[0], 1) >>> 0);
        return once.slice(1).filter((one, at) => !(once[at].compareDocumentPosition(one) & Node.DOCUMENT_POSITION_FOLLOWING))
          .map((one) => one.outerHTML.slice(0, 120))""") == []
    # The skip link comes first and leads past the navigation.
    browser.run("window.visited[0].focus()")
    assert browser.run("return document.activeElement.getAttribute('href')") == "#main"
    browser.press(Keys.ENTER)
    assert browser.run("return location.hash") == "#main"
    browser.press(Keys.TAB)
    assert browser.run("return document.activeElement.closest('nav') === null && document.activeElement !== document.body")
    # A selector by an arrow key.
    figure = browser.figures()["pareto"]
    browser.run("document.getElementById('picture-pareto-measure').focus()")
    browser.press(Keys.ARROW_DOWN)
    browser.redrawn([figure])
    assert browser.figures()["pareto"]["choice"] == {"measure": "ppl_delta"}
    # And a summary by Enter.
    opened = "return document.activeElement.parentNode.open"
    browser.run("document.querySelector('#picture-pareto summary').focus()")
    assert not browser.run(opened)
    browser.press(Keys.ENTER)
    assert browser.run(opened)
    assert browser.complaints() == []


def test_a_table_is_sorted_by_enter_on_its_head(runs, browser):
    browser.open(runs["validate"].page)
    column = """const heads = [...document.querySelectorAll('#methods thead th')];
        const at = heads.findIndex((one) => one.textContent === 'KL mean');"""
    read = column + """const sorted = (head) => head.getAttribute('aria-sort');
        return [heads.map(sorted).filter(Boolean), sorted(heads[at]),
        [...document.querySelector('#methods table').tBodies[0].rows].map((row) => [row.cells[0].getAttribute('data-sort'),
          row.cells[at].getAttribute('data-value')])]"""
    assert browser.run(read)[:2] == [[], None]
    browser.run(column + "heads[at].querySelector('button').focus()")
    cost = {method["name"]: method["kld_mean"] for method in runs["validate"].json["methods"] if method["name"] != "fp"}
    for direction in ("ascending", "descending", "ascending"):
        browser.press(Keys.ENTER)
        told, own, rows = browser.run(read)
        assert told == [direction] and own == direction
        names = sorted(cost, key=cost.get, reverse=direction == "descending")
        assert [name for name, _ in rows] == [*names, "fp"]  # fp has no divergence, and what is missing is last
        assert [json.loads(value) for _, value in rows[:-1]] == [cost[name] for name in names]


@pytest.mark.parametrize("kind", PICTURES)
def test_download_is_the_data_with_plain_numbers(kind, runs, browser):
    browser.open(runs[kind].page, drawn=False)
    text = browser.wait("""const done = arguments[0], original = URL.createObjectURL;
        URL.createObjectURL = (blob) => { blob.text().then(done); return original(blob); };
        document.getElementById('download').click();""")
    assert '"f4"' not in text
    data = data_of(runs[kind].page)

    def compare(ours, theirs):
        if isinstance(theirs, dict) and set(theirs) == {"f4"}:
            assert np.array_equal(np.array(ours, "f4"), floats(theirs))
        elif isinstance(theirs, dict):
            assert isinstance(ours, dict) and list(ours) == list(theirs)
            for key in theirs:
                compare(ours[key], theirs[key])
        elif isinstance(theirs, list):
            assert len(ours) == len(theirs)
            for one, other in zip(ours, theirs, strict=True):
                compare(one, other)
        else:
            assert ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool)

    compare(json.loads(text), data)
    assert browser.complaints() == []


def test_without_decompression_words_and_tables_remain(runs, browser):
    browser.open(runs["plan"].page, first="delete window.DecompressionStream")
    assert "newer browser" in browser.run("return document.getElementById('no-pictures').textContent")
    assert len(browser.figures()["plan"]["summary"]) > 20
    data = data_of(runs["plan"].page)
    right_table(data, "plan", {"methods": "all"}, next(one for one in browser.tables() if one["place"] == "plan"))
    assert browser.complaints() == []
