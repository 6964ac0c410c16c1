"""The manual page and completion say all that --help says."""
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

BUILD = pathlib.Path(os.environ.get("KVCAL_BUILD", "build/release")).resolve()
KVCAL, MANUAL = BUILD / "bin" / "kvcal", BUILD / "manual"

if not (KVCAL.exists() and MANUAL.exists()):
    pytest.skip(f"no program and manual in {BUILD}: build them and set KVCAL_BUILD", allow_module_level=True)


def output(*command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


COMMANDS = [command["name"] for command in json.loads(output(KVCAL, "--help-json"))["commands"]]


def options_of_help(command):
    lines = [line for line in output(KVCAL, command, "--help").splitlines() if re.match(r"  -", line)]
    return {name for line in lines for name in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_help_stands_in_all_of_them(command):
    names = options_of_help(command)
    assert {"-h", "--help"} <= names
    page = (MANUAL / "kvcal.1").read_text()
    section = page.split(f".SH KVCAL {command.upper()}\n")[1].split(".SH ")[0].replace(r"\-", "-")
    bash = re.search(rf'^    {command}\) options="(.*)" ;;$', (MANUAL / "kvcal.bash").read_text(), re.M)[1].split()
    fish = (MANUAL / "kvcal.fish").read_text()
    zsh = (MANUAL / "_kvcal").read_text()
    for name in names - {"--no-parse-special"}:
        assert rf"\fB{name}\fR" in section and name in bash
        assert f"{name}[" in zsh
        assert (f"-l {name[2:]} " if name.startswith("--") else f"-s {name[1:]} ") in fish


def completed(*words):
    """What bash offers for the last of the words."""
    script = (f"source {MANUAL / 'kvcal.bash'}; COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
              '_kvcal 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"')
    return output("bash", "-c", script).split()


def test_bash_completes_subcommands_options_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prose.txt").write_text("a")
    assert set(COMMANDS) <= set(completed("kvcal", ""))
    assert completed("kvcal", "cal") == ["calibrate"]
    assert "--max-kld" in completed("kvcal", "validate", "--max") and "--max-kld" not in completed("kvcal", "calibrate", "--max")
    assert completed("kvcal", "calibrate", "--text", "pro") == ["prose.txt"]
    assert completed("kvcal", "calibrate", "--samples", "") == []


def test_the_page_is_a_page(tmp_path):
    text = (MANUAL / "kvcal.1").read_text()
    assert text.startswith(".TH KVCAL 1")
    groff = shutil.which("groff")
    if groff:
        done = subprocess.run([groff, "-man", "-Tutf8", "-ww", MANUAL / "kvcal.1"], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr
