"""Writes formats/tokenizer/internal/unicode_tables.cpp: where the Unicode data of the reference differ from version 14.

    .deps/venv/bin/python formats/tokenizer/internal/make_unicode_tables.py [--check]

A person runs it when the reference's version changes; the build does not. --check writes nothing and exits with 1 where the file
differs from what would be written.

The reference is PyPI's tokenizers (0.23.3; tests/requirements.txt pins it), asked about every code point: its regular
expressions by \\p{...} and \\w, its normalizers and its pre-tokenizer Punctuation by what they do. Version 14 (the oldest that
utf8proc and Oniguruma may have) is that of unicodedata in Python 3.11; with another Python install unicodedata2==14.0.0.
"""

import argparse
import sys
import unicodedata
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

FILE = Path(__file__).resolve().with_name("unicode_tables.cpp")
REFERENCE = "0.23.3"
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
ALL = "".join(CHARACTERS)
# Cs is no character; what no other category has is Cn.
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co".split()
WORD = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"}


def unicode_14():
    if unicodedata.unidata_version == "14.0.0":
        return unicodedata
    try:
        import unicodedata2
    except ImportError:
        sys.exit(f"this Python's unicodedata is of Unicode {unicodedata.unidata_version}: pip install unicodedata2==14.0.0")
    if unicodedata2.unidata_version != "14.0.0":
        sys.exit(f"unicodedata2 is of Unicode {unicodedata2.unidata_version}: pip install unicodedata2==14.0.0")
    return unicodedata2


def matching(pattern):
    """The characters that a pattern of one character matches."""
    return set(normalizers.Replace(Regex(f"(?!{pattern})(?m:.)"), "").normalize_str(ALL))


def categories():
    """Each character's category for the regular expressions of the reference."""
    result = {}
    for name in CATEGORIES:
        for character in matching(rf"\p{{{name}}}"):
            assert character not in result, f"U+{ord(character):04X} is {result[character]} and {name}"
            result[character] = name
    return result


def punctuation():
    """What the pre-tokenizer cuts off."""
    whole = "".join(piece for piece, _ in pre_tokenizers.Punctuation("removed").pre_tokenize_str(ALL))
    return set(CHARACTERS) - set(whole)


def ranges(pairs):
    """(first, last, value) of ascending (code point, value), joined where neighbours have one value."""
    joined = []
    for code, value in pairs:
        if joined and joined[-1][1] + 1 == code and joined[-1][2] == value:
            joined[-1][1] = code
        else:
            joined.append([code, code, value])
    return joined


def ranges_of(characters):
    return ranges((code, None) for code in sorted(map(ord, characters)))


def tables():
    old = unicode_14()
    now = categories()
    recent = {c: now.get(c, "Cn") for c in CHARACTERS if now.get(c, "Cn") != old.category(c)}
    kept = set(normalizers.StripAccents().normalize_str(ALL))
    marks = {c for c, category in now.items() if category.startswith("M")} & kept
    inert = recent.keys() | marks
    nfkd = normalizers.NFKD()
    decompositions = {c for c in CHARACTERS if old.decomposition(c) and c not in inert and nfkd.normalize_str(c) == c}
    uncut = {c for c, category in now.items() if category.startswith("P")} - punctuation()
    return {
        "recent_table": ranges((ord(c), category) for c, category in recent.items()),
        "recent_marks": ranges_of(marks),
        "recent_decompositions": ranges_of(decompositions),
        "recent_punctuation": ranges_of(uncut),
        "word_extra": ranges_of(c for c in matching(r"\w") if now.get(c) not in WORD),
    }


def cpp(name, rows):
    kind = "RecentRange" if name == "recent_table" else "CodePointRange"
    entries = [f"{{0x{first:X}, 0x{last:X}{f', C::{value}' if value else ''}}}, " for first, last, value in rows]
    lines, line = [], ""
    for entry in entries:
        line += entry
        if len(line) > (40 if name == "recent_table" else 90):
            lines.append(line.rstrip())
            line = ""
    if line:
        lines.append(line)
    using = "  using C = GeneralCategory;\n" if name == "recent_table" else ""
    body = "".join(f"    {line}\n" for line in lines[:-1]) + f"    {lines[-1]} }};\n"
    return (f"std::span<const {kind}> {name}() {{\n  // clang-format off\n{using}  static constexpr {kind} kTable[] = {{\n"
            f"{body}  // clang-format on\n  return kTable;\n}}\n\n")


def main():
    parser = argparse.ArgumentParser(description="writes unicode_tables.cpp from what PyPI's tokenizers do")
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    options = parser.parse_args()
    if tokenizers.__version__ != REFERENCE:
        sys.exit(f"the reference is tokenizers {REFERENCE}, this is {tokenizers.__version__}")
    text = '#include "formats/tokenizer/internal/unicode_tables.h"\n\nnamespace kvcal::formats {\n\n'
    text += "".join(cpp(name, rows) for name, rows in tables().items()) + "}  // namespace kvcal::formats\n"
    if not options.check:
        FILE.write_text(text, encoding="utf-8")
    elif text != FILE.read_text(encoding="utf-8"):
        sys.exit(f"{FILE} is not what make_unicode_tables.py writes")


if __name__ == "__main__":
    main()
