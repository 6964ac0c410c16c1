"""`--html FILE` as a reader meets it: the page in Chromium without a network, its numbers beside --json, its controls."""
import base64
import collections
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import subprocess

import pytest

np = pytest.importorskip("numpy")
h5py = pytest.importorskip("h5py")
webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: install tests/requirements.txt")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

KVCAL = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")) / "bin" / "kvcal"
SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MODEL = SOURCE / "data" / "model"
CALIBRATED = SOURCE / "data" / "demo" / "calibrate.txt"
OTHER = SOURCE / "data" / "demo" / "validate.txt"
CHROMIUM, CHROMEDRIVER = pathlib.Path("/usr/bin/chromium"), pathlib.Path("/usr/bin/chromedriver")
MOST_BYTES = 8_000_000
FIRST_PICTURE_MS, ALLOWANCE = 2000, 3  # the promise, and by how much a busy machine may miss it

if not KVCAL.exists():
    pytest.skip(f"no program at {KVCAL}: build it and set KVCAL_BUILD", allow_module_level=True)
if not (CHROMIUM.exists() and CHROMEDRIVER.exists()):
    pytest.skip(f"no {CHROMIUM} with {CHROMEDRIVER}: apt-get install chromium chromium-driver", allow_module_level=True)

OF_CODEBOOK = ["estimated-cost", "plan", "codebook", "key-ranges", "outlier-channels"]
NOT_MEASURED = ["layer-alone", "outliers-met", "estimated-cost", "decoding", "passkey"]
METHODS = "int3,int4,nf3,nuq3,nuq4,nuq2-1%,nuq3-1%,nuq4-1%,nuq3-2%,nuq3-1%-paged"
# By page: pictures that are drawn, and those whose place says why they are not.
PICTURES = {
    "validate": (["pareto", "layer-alone", "layer-errors", "outliers-met", "decoding", "passkey", *OF_CODEBOOK], []),
    "calibrate": (OF_CODEBOOK, []),
    "inspect": (OF_CODEBOOK, []),
    "plan": (["plan"], []),
    "bare": (["pareto", "layer-errors", "plan"], NOT_MEASURED),
}
# What the page computes, by table and column; tables_of() says how. Every other number stands in the JSON as it is.
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


DRAW_ALL = """
const done = arguments[0], from = performance.now();
(async () => {
  for (const plot of document.querySelectorAll('.plot')) {
    while (plot.dataset.drawn === '0' && !plot.hidden && performance.now() - from < 20000) {
      plot.scrollIntoView({block: 'center', behavior: 'instant'});
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
  scrollTo({top: 0, behavior: 'instant'});
  done(performance.now() - from);
})();
"""
# Until each plot of a list of ids has been drawn more often than the count beside it.
REDRAWN = """
const [counts, done] = arguments, from = performance.now();
(function look() {
  const drawn = (id) => Number(document.getElementById(id).querySelector('.plot').dataset.drawn);
  const late = Object.keys(counts).filter((id) => !(drawn(id) > counts[id]));
  if (late.length === 0 || performance.now() - from > 20000) done(late);
  else setTimeout(look, 5);
})();
"""
FIGURES = """
const text = (figure, of) => figure.querySelector(of)?.textContent;
return [...document.querySelectorAll('figure')].map((figure) => {
  const plot = figure.querySelector('.plot');
  const parts = plot && plot.data ? JSON.stringify([
    plot.data.map(({type, name, x, y, z, base, text}) => [type, name, x, y, z, base, text]),
    [plot.layout.xaxis, plot.layout.yaxis].map((axis) => [axis.title, axis.type, axis.tickvals]), plot.layout.shapes,
  ]) : '';
  let hash = 0;
  for (let i = 0; i < parts.length; ++i) hash = (Math.imul(hash, 31) + parts.charCodeAt(i)) | 0;
  return {
    id: figure.id.replace('picture-', ''), drawn: plot ? +plot.dataset.drawn : null, content: `${parts.length} ${hash}`,
    traces: plot?.data?.length, height: plot?.querySelector('.main-svg')?.getBoundingClientRect().height,
    paper: plot?._fullLayout?.paper_bgcolor, role: plot?.getAttribute('role'), label: plot?.getAttribute('aria-label'),
    title: text(figure, 'h3'), summary: text(figure, 'figcaption'), missing: text(figure, '.missing'),
    choice: Object.fromEntries([...figure.querySelectorAll('select')].map((one) => [one.name, one.value])),
  };
});
"""
# Every table: where it is, and its cells as [data-value, text], notes left out.
TABLES = """
for (const details of document.querySelectorAll('details')) details.open = true;
const done = arguments[0];
const own = (cell) => [...cell.childNodes].filter((node) => !node.classList?.contains('aside') &&
  !node.classList?.contains('mark') && !node.classList?.contains('arrow')).map((node) => node.textContent).join('');
const cells = (row) => [...row.cells].map((cell) => [cell.getAttribute('data-value'), own(cell)]);
setTimeout(() => done([...document.querySelectorAll('table')].map((table) => ({
  place: (table.closest('figure') || table.closest('section')).id.replace('picture-', ''), caption: table.caption?.textContent,
  head: [...table.tHead.rows[0].cells].map((cell) => cell.textContent), rows: [...table.tBodies[0].rows].map(cells)}))), 20);
"""
WIDE = """
const [width] = arguments;
return [...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > width + 1 &&
  one.checkVisibility() && !one.closest('.scroll, nav, pre, .skip')).map((one) => one.outerHTML.slice(0, 100)).slice(0, 5);
"""


class Browser:
    def __init__(self, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                         f"--user-data-dir={folder}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(CHROMEDRIVER)))
        self.driver.set_script_timeout(60)
        self.do("Browser.setDownloadBehavior", behavior="deny")

    def do(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, script, *arguments):
        return self.driver.execute_async_script(script, *arguments)

    def look(self, width, dark):
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page, width=1400, dark=False, first="", drawn=True):
        """The page, its pictures drawn or left. first: a script that runs before any of the page's own."""
        self.look(width, dark)
        self.driver.get("about:blank")
        self.complaints(), self.requests()
        script = self.do("Page.addScriptToEvaluateOnNewDocument", source=first)["identifier"] if first else None
        self.driver.get(page.as_uri())
        if drawn:
            self.wait(DRAW_ALL)
        if script:
            self.do("Page.removeScriptToEvaluateOnNewDocument", identifier=script)

    def figures(self):
        return {figure["id"]: figure for figure in self.run(FIGURES)}

    def tables(self):
        return self.wait(TABLES)

    def redrawn(self, figures):
        """Waits until each of the figures, as figures() gave them, is drawn again."""
        drawn = {f"picture-{one['id']}": one["drawn"] for one in figures if one["drawn"] is not None}
        assert self.wait(REDRAWN, drawn) == []

    def complaints(self):
        return [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self):
        sent = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def press(self, *keys):
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.driver.quit()


def whole(browser, kind, width):
    """Every picture is drawn, or says why not; nothing reaches out of the page to the right; nothing is complained of."""
    drawn, missing = PICTURES[kind]
    figures = browser.figures()
    assert sorted(figures) == sorted(drawn + missing)
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    for name, figure in figures.items():
        if name in missing:
            assert figure["drawn"] is None and re.search(r"kvcal \w+|--\w+|[Mm]ethods such as", figure["missing"]), figure
            continue
        assert figure["missing"] is None and figure["drawn"] >= 1 and figure["traces"] >= 1 and figure["height"] > 100, figure
        assert len(figure["summary"]) > 20 and "could not be" not in figure["summary"], figure
        assert rgb(figure["paper"]) == rgb(background), (name, figure["paper"], background)
    sizes = browser.run("return [document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
    assert max(sizes) <= width, (kind, sizes)
    assert browser.run(WIDE, width) == []
    assert browser.complaints() == []


def rgb(colour):
    if colour.startswith("#"):
        return [int(colour[at:at + 2], 16) for at in (1, 3, 5)]
    return [int(part) for part in re.findall(r"\d+", colour)][:3]


def named(browser):
    """Headings in order; pictures, selectors and sections have names; links lead somewhere in the page."""
    levels = browser.run("return [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map((one) => +one.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    figures = browser.figures()
    for figure in figures.values():
        if figure["drawn"] is not None:
            assert figure["role"] == "img" and figure["label"] == f"{figure['title']}. {figure['summary']}"
    assert browser.run("""return [...document.querySelectorAll('[aria-labelledby], select, label[for]')].filter((one) =>
        (one.matches('select') && (one.labels.length !== 1 || !one.labels[0].textContent)) ||
        (one.htmlFor && !document.getElementById(one.htmlFor)) ||
        (one.hasAttribute('aria-labelledby') && !document.getElementById(one.getAttribute('aria-labelledby'))?.textContent))
        .map((one) => one.outerHTML.slice(0, 120))""") == []
    ids = browser.run("return [...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(set(ids)) == len(ids)
    links = browser.run("return [...document.querySelectorAll('a[href]')].map((one) => one.getAttribute('href'))")
    assert links and all(link[:1] == "#" and link[1:] in ids for link in links)
    assert browser.run("return document.documentElement.lang") == "en"


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


PLOTS = """
const list = (one) => (one === undefined || typeof one === 'string' ? null
  : Array.from(one, (part) => (part?.length === undefined || typeof part === 'string' ? part : list(part))));
const plots = [...document.querySelectorAll(arguments[0] || '.plot')];
return Object.fromEntries(plots.map((plot) => [plot.parentNode.id.replace('picture-', ''),
  plot.data.map(({name, x, y, z}) => ({name, x: list(x), y: list(y), z: list(z)}))]));
"""
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
        same_json(book, runs["inspect"].json)


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


def cells(table):
    """Numbers as numbers, the en dash of what is missing as None, other text as it is."""
    return [[json.loads(value) if value is not None else None if text == "\u2013" else text for value, text in row]
            for row in table["rows"]]


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
    centroids, histogram = np.array(one["centroids"]), np.array(chosen["histogram"])
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


# Codebooks that are made for this test ---------------------------------------------------------------------------------


def content_sha256(file):
    """As docs/codebook-format.md defines it."""
    records = {f"/@{name}": value for name, value in file.attrs.items() if name != "content_sha256"}

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            records["/" + name] = item[()]
        records.update({f"/{name}@{key}": value for key, value in item.attrs.items()})

    file.visititems(add)
    digest = hashlib.sha256()
    for path, value in sorted(records.items(), key=lambda record: record[0].encode()):
        if isinstance(value, (str, bytes)):
            kind, shape, data = "string", (), value.encode() if isinstance(value, str) else value
        else:
            array = np.asarray(value)
            kind, shape, data = array.dtype.name, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes()
        for text in (path, kind, ",".join(map(str, shape))):
            digest.update(text.encode() + b"\0")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def reseal(file):
    file.attrs["content_sha256"] = np.bytes_(content_sha256(file))


def attributes(item, values):
    for name, value in values.items():
        item.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


def write_sets(parent, group, channels, fractions, bits, random):
    """outliers_...: thresholds where there are channels, and datatypes with a histogram where there are bits."""
    for fraction in fractions:
        one = parent.create_group(f"{group}/outliers_{fraction:g}")
        one.attrs["fraction"] = float(fraction)
        if channels:
            half = np.exp(random.normal(0, 0.5, channels)).astype("f4") * np.float32(1 - 20 * fraction)
            centre = random.normal(0, 0.3, channels).astype("f4")
            one.create_dataset("lower", data=centre - half, fletcher32=True, chunks=(channels,))
            one.create_dataset("upper", data=centre + half, fletcher32=True, chunks=(channels,))
        if bits:
            histogram = random.random(128).astype("f4")
            one.create_dataset("histogram", data=histogram / histogram.sum(), fletcher32=True, chunks=(128,))
        for b in bits:
            levels = np.sort(random.uniform(-1, 1, 2**b)).astype("f4")
            item = one.create_dataset(f"nuq{b}/centroids", data=levels, fletcher32=True, chunks=(2**b,))
            objective = random.random() * 4.0**-b
            attributes(item, {"objective": objective, "lower_bound": 0.999 * objective, "qnorm_scale": 1.01,
                              "qnorm_offset": -0.003, "weights": "fisher"})


def write_codebook(path, layers, heads, dim, fractions, bits=(2, 3, 4)):
    """A valid codebook of schema 1.2 with random content."""
    random, channels, rope = np.random.default_rng(7), heads * dim, '{"theta":10000.0,"type":"default"}'
    with h5py.File(path, "w") as file:
        attributes(file, {"format": "kvcal-codebook", "schema_major": 1, "schema_minor": 2, "created_by": "page_test",
                          "complete": np.uint8(1)})
        attributes(file.create_group("model"), {
            "name": "large", "architecture": "LlamaForCausalLM", "config_sha256": "0" * 64, "weights_sha256": "1" * 64,
            "num_layers": layers, "num_attention_heads": 64, "num_kv_heads": heads, "head_dim": dim, "rope": rope})
        options = json.dumps({"bits": list(bits), "outliers": list(fractions), "sinks": 1})
        attributes(file.create_group("calibration"), {
            "revision": 5, "options": options, "texts": json.dumps([{"name": "t.txt", "sha256": "2" * 64}]),
            "tokens_sha256": "3" * 64, "samples": 16, "seqlen": 2048, "tokens": 32768, "bos": "each", "sinks": 1, "seed": 0,
            "dtype": "bfloat16", "device": "cpu", "value_scope": "token", "sensitivity": "fisher", "fisher_scale": "range",
            "loss": 2.0})
        for number in range(layers):
            layer = file.create_group(f"layers/{number:04}")
            attributes(layer, {"kv_heads": heads, "key_dim": dim, "value_dim": dim, "rope": rope, "window": 0})
            for name in ("key", "value"):
                tensor = layer.create_group(name)
                attributes(tensor, {"threshold_shift": 0.02, "datatype_excess": 0.01})
                fisher = random.exponential(1e-6, channels).astype("f4")
                tensor.create_dataset("fisher_channel", data=fisher, fletcher32=True, chunks=(channels,))
                write_sets(layer, name, channels if name == "key" else 0, fractions, bits, random)
            write_sets(layer, "key_rope", channels, fractions, (), random)
        reseal(file)
    return path


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


def changed(codebook, path, *edits):
    path.write_bytes(codebook.read_bytes())
    with h5py.File(path, "r+") as file:
        for edit in edits:
            edit(file)
        reseal(file)
    return path


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


# Input that is bad -----------------------------------------------------------------------------------------------------


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
