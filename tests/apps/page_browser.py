"""Pages in Chromium without a network: what a reader sees of them, and what holds of each of them as a whole."""
import itertools
import json
import pathlib
import re

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: install tests/requirements.txt")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402

CHROMIUM, CHROMEDRIVER = pathlib.Path("/usr/bin/chromium"), pathlib.Path("/usr/bin/chromedriver")

if not (CHROMIUM.exists() and CHROMEDRIVER.exists()):
    pytest.skip(f"no {CHROMIUM} with {CHROMEDRIVER}: apt-get install chromium chromium-driver", allow_module_level=True)

OF_CODEBOOK = ["estimated-cost", "plan", "codebook", "key-ranges", "outlier-channels"]
NOT_MEASURED = ["layer-alone", "outliers-met", "estimated-cost", "decoding", "passkey"]
# By page: pictures that are drawn, and those whose place says why they are not.
PICTURES = {
    "validate": (["pareto", "layer-alone", "layer-errors", "outliers-met", "decoding", "passkey", *OF_CODEBOOK], []),
    "calibrate": (OF_CODEBOOK, []),
    "inspect": (OF_CODEBOOK, []),
    "plan": (["plan"], []),
    "bare": (["pareto", "layer-errors", "plan"], NOT_MEASURED),
}

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
PLOTS = """
const list = (one) => (one === undefined || typeof one === 'string' ? null
  : Array.from(one, (part) => (part?.length === undefined || typeof part === 'string' ? part : list(part))));
const plots = [...document.querySelectorAll(arguments[0] || '.plot')];
return Object.fromEntries(plots.map((plot) => [plot.parentNode.id.replace('picture-', ''),
  plot.data.map(({name, x, y, z}) => ({name, x: list(x), y: list(y), z: list(z)}))]));
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


def cells(table):
    """Numbers as numbers, the en dash of what is missing as None, other text as it is."""
    return [[json.loads(value) if value is not None else None if text == "\u2013" else text for value, text in row]
            for row in table["rows"]]
