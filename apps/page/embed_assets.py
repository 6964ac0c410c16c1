#!/usr/bin/env python3
"""embed_assets.py PLOTLY LICENCE OUT.cpp: what page_assets.h declares, from this folder's assets/ and plotly.min.js."""
import base64
import gzip
import pathlib
import re
import sys

ASSETS = pathlib.Path(__file__).resolve().parent / "assets"
# Some compilers limit the length of one literal more than that of their concatenation; C++ asks of both for 65536 bytes alone.
PIECE = 8000


def script_files():
    """In the order in which they run."""
    first, last = [ASSETS / name for name in ("core.js", "table.js", "picture.js")], ASSETS / "main.js"
    return [*first, *sorted(ASSETS.glob("sections/*.js")), *sorted(ASSETS.glob("pictures/*.js")), last]


def joined(files):
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def licences(plotly, licence):
    """The package's own licence, and the notices that the script carries of what it bundles."""
    notices = re.findall(r"/\*!(.*?)\*/", plotly, re.S)
    bundled = [notice.replace("\\n", "\n").strip() for notice in notices if re.search("licen[cs]e", notice, re.I)]
    return "\n\n".join([licence.strip(), "plotly.js bundles other libraries; the notices that it carries of them:", *bundled])


def literal(text):
    """A C++ string literal of many pieces."""
    pieces = [text[i:i + PIECE] for i in range(0, len(text), PIECE)] or [""]
    quoted = ['"' + "".join(escaped(letter) for letter in piece) + '"' for piece in pieces]
    return "\n    ".join(quoted)


def escaped(letter):
    if letter in '"\\':
        return "\\" + letter
    if letter == "\n":
        return "\\n"
    if " " <= letter <= "~":
        return letter
    # Octal: at most three digits, so that no digit behind it counts.
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8"))


def main():
    plotly_file, licence_file, out = (pathlib.Path(argument) for argument in sys.argv[1:])
    plotly = plotly_file.read_text(encoding="utf-8")
    packed = base64.b64encode(gzip.compress(plotly.encode("utf-8"), 9, mtime=0)).decode("ascii")
    texts = {
        "kPageTemplate": joined([ASSETS / "page.html"]),
        "kPageStyle": joined([ASSETS / "page.css"]),
        "kPageScript": joined(script_files()),
        "kPlotly": packed,
        "kPlotlyLicence": licences(plotly, licence_file.read_text(encoding="utf-8")),
    }
    lines = ["// Written by apps/page/embed_assets.py.", '#include "apps/page/page_assets.h"', "",
             '#pragma GCC diagnostic ignored "-Woverlength-strings"', "", "namespace kvcal::apps {", ""]
    # Of constant length: strlen() of megabytes is a compiler's slow path.
    for name, text in texts.items():
        lines += [f"constinit const std::string_view {name}(", f"    {literal(text)},", f"    {len(text.encode('utf-8'))});", ""]
    out.write_text("\n".join([*lines, "}  // namespace kvcal::apps", ""]), encoding="ascii")


main()
