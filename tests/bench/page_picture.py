"""A picture of a page that `kvcal validate --html` wrote: the part of it that shows quality against memory.

    .deps/venv/bin/python tests/bench/page_picture.py PAGE.html OUT.png

Needs chromium and chromedriver (./setup.sh --tests).
"""

import argparse
import base64
import time
from pathlib import Path

from selenium import webdriver

WIDTH, HEIGHT, MARGIN = 1180, 900, 16
PARETO = "picture-pareto"


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def write_picture(page: Path, out: Path, picture: str = PARETO) -> None:
    """The part of the page that shows one of its pictures, drawn."""
    driver = browser()
    try:
        driver.get(page.resolve().as_uri())
        driver.execute_script(f"document.getElementById('{picture}').scrollIntoView({{block: 'start', behavior: 'instant'}})")
        drawn = f"return document.querySelector('#{picture} [data-drawn]')?.dataset.drawn || '0'"
        deadline = time.monotonic() + 60
        while driver.execute_script(drawn) == "0":
            if time.monotonic() > deadline:
                raise SystemExit(f"page_picture.py: {page} did not draw {picture} within a minute")
            time.sleep(0.1)
        time.sleep(1)  # fonts and the last frame
        box = driver.execute_script(f"""const r = document.getElementById('{picture}').getBoundingClientRect();
            return [r.left + scrollX, r.top + scrollY, r.width, r.height]""")
        x, y, width, height = box
        clip = {"x": x - MARGIN, "y": y - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN, "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        out.write_bytes(base64.b64decode(shot["data"]))
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write_picture(arguments.page, arguments.out)


if __name__ == "__main__":
    main()
