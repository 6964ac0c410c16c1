"""On every code point our program does what PyPI's tokenizers do: classes, case, normal forms, what pre-tokenizers cut.

One run of tokenize_file for each fact, on one text of all characters. KVCAL_BUILD names the build folder (bin/tokenize_file).
The longer tests of tokenizer_reference_test.py (KVCAL_EXHAUSTIVE=1) ask the same of whole encodings.
"""
import subprocess

import numpy
import pytest
from tokenizer_reference_test import BYTES, CHARACTERS, PROGRAM, made_up, sequence, split, tokenizers

ALL = "".join(map(chr, CHARACTERS))
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF_ID = numpy.array(PRINTABLE + sorted(set(range(256)) - set(PRINTABLE)), dtype=numpy.uint8)


class Run:
    """tokenize_file with a made-up tokenizer whose ids are bytes; it runs while the reference does."""

    def __init__(self, folder, text, tmp_path):
        file = tmp_path / "text.txt"
        file.write_bytes(text.encode())
        self.process = subprocess.Popen([PROGRAM, folder, file, "--binary"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def text(self):
        out, error = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, error.decode()
        return BYTE_OF_ID[numpy.frombuffer(out, dtype=numpy.int32)].tobytes().decode()


def check_equal(got, expected):
    """Like assert got == expected, without a picture of megabytes."""
    if got == expected:
        return
    low, high = 0, min(len(got), len(expected))
    while low < high:  # the length of what they have in common
        middle = (low + high + 1) // 2
        low, high = (middle, high) if got[:middle] == expected[:middle] else (low, middle - 1)
    around = slice(max(low - 4, 0), low + 12)
    pytest.fail(f"after {low} characters {ascii(got[around])} was found, not {ascii(expected[around])}", pytrace=False)


def check_normalizer(part, theirs, text, tmp_path):
    run = Run(made_up(tmp_path, part, BYTES), text, tmp_path)
    expected = theirs.normalize_str(text)
    check_equal(run.text(), expected)


def check_removed(pattern, text, tmp_path):
    theirs = tokenizers.normalizers.Replace(tokenizers.Regex(pattern), "")
    check_normalizer({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}, theirs, text, tmp_path)


CATEGORIES = ("L M N P S Z C Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cn Co").split()
POSIX = "alnum alpha blank cntrl digit graph lower print punct space upper word xdigit".split()
SCRIPTS = "Arabic Cyrillic Greek Han Hangul Hebrew Hiragana Katakana Latin Thai".split()
CLASSES = [r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\h", r"\H", r"\R", ".", "(?m:.)", r"[^\s\p{L}\p{N}]", r"[^\r\n\p{L}\p{N}]", r"[\W_]", r"\P{L}",
           r"\p{^M}", r"[\p{L}\p{M}]", r"[\p{L}&&[^\p{Han}]]", r"\p{Punct}", r"\p{Alphabetic}", r"\p{Lowercase}", r"\p{Uppercase}",
           *[rf"\p{{{name}}}" for name in CATEGORIES + SCRIPTS], *[f"[[:{name}:]]" for name in POSIX], r"[[:^punct:]]"]


@pytest.mark.parametrize("pattern", CLASSES)
def test_class(pattern, tmp_path):
    check_removed(pattern, ALL, tmp_path)


@pytest.mark.parametrize("pattern", [r"\s", r"\p{L}", r"\p{N}", r"\w", r"\p{P}", r"[[:punct:]]"])
def test_split(pattern, tmp_path):
    parts = [split({"Regex": pattern}, "Removed", invert=True), BYTES]
    run = Run(made_up(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": parts}), ALL, tmp_path)
    theirs = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True)
    expected = "".join(piece for piece, _ in theirs.pre_tokenize_str(ALL))
    check_equal(run.text(), expected)


def cased():
    without = tokenizers.normalizers.Replace(tokenizers.Regex(r"[\p{Lu}\p{Ll}\p{Lt}]"), "").normalize_str(ALL)
    return sorted((set(ALL) - set(without)) | {c for c in ALL if c.lower() != c or c.upper() != c or c.casefold() != c})


# Each cased letter has a number from 1 on, each pattern the letters whose number has a bit; of a class also those whose number has
# it not: what a character matches says which letters it is a case of. Folded texts stand there, too: some letters are cases of two
# or three characters.
@pytest.mark.parametrize("form", ["class", "alternatives"])
def test_ignored_case(form, tmp_path):
    letters = cased()
    assert len(letters) > 2800
    folded = {text for letter in letters for text in (letter.casefold(), letter.upper(), letter.lower())}
    near = "\n".join(letters + sorted(text for text in folded if len(text) > 1))
    for bit in range(len(letters).bit_length()):
        for value in (0, 1) if form == "class" else (1,):
            chosen = [letter for number, letter in enumerate(letters, 1) if number >> bit & 1 == value]
            for part in (chosen[:2000], chosen[2000:]):  # our patterns have a limit of 16384 bytes
                pattern = f"(?i:[{''.join(part)}])" if form == "class" else f"(?i:{'|'.join(part)})"
                if part:
                    check_removed(pattern, ALL if bit == 0 and form == "class" else near, tmp_path)


FORMS = ["NFC", "NFD", "NFKC", "NFKD"]


@pytest.mark.parametrize("name", [*FORMS, "Lowercase", "StripAccents"])
def test_normalizer(name, tmp_path):
    check_normalizer({"type": name}, getattr(tokenizers.normalizers, name)(), "a".join(map(chr, CHARACTERS)), tmp_path)


@pytest.mark.parametrize("name", ["NFC", "NFKD"])
def test_order_of_marks(name, tmp_path):
    # Between a mark above (class 230) and one below (220) a character says its own class by where it goes.
    text = "".join(f"a\u0301{chr(code)}\u0323" for code in CHARACTERS)
    check_normalizer({"type": name}, getattr(tokenizers.normalizers, name)(), text, tmp_path)


@pytest.mark.parametrize("name", ["NFC", "NFKC"])
def test_composition(name, tmp_path):
    nfd = tokenizers.normalizers.NFD()
    parts = [nfd.normalize_str(chr(code)) for code in CHARACTERS]
    text = "a".join(part for code, part in zip(CHARACTERS, parts, strict=True) if part != chr(code))
    check_normalizer({"type": name}, getattr(tokenizers.normalizers, name)(), text, tmp_path)


# In a text of all characters in turn, the cuts tell of each whether it is of the kind of the one before.
@pytest.mark.parametrize("part,theirs", [
    ({"type": "Digits", "individual_digits": True}, tokenizers.pre_tokenizers.Digits(individual_digits=True)),
    ({"type": "Punctuation", "behavior": "Isolated"}, tokenizers.pre_tokenizers.Punctuation("isolated")),
    ({"type": "Whitespace"}, tokenizers.pre_tokenizers.Whitespace()),
    ({"type": "WhitespaceSplit"}, tokenizers.pre_tokenizers.WhitespaceSplit()),
], ids=["Digits", "Punctuation", "Whitespace", "WhitespaceSplit"])
def test_cuts(part, theirs, tmp_path):
    text = ALL.replace(" ", "").replace("\u2581", "")  # the mark of a cut, and what it stands for
    run = Run(made_up(tmp_path, pre_tokenizer=sequence(part)), text, tmp_path)
    expected = "".join(f"\u2581{piece}" for piece, _ in theirs.pre_tokenize_str(text))
    check_equal(run.text(), expected)
