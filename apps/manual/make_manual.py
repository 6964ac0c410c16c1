#!/usr/bin/env python3
"""make_manual.py KVCAL FOLDER: the manual page and the completion of bash, zsh and fish, from the program's own --help-json.

Writes FOLDER/kvcal.1, FOLDER/kvcal.bash, FOLDER/_kvcal and FOLDER/kvcal.fish.
"""
import json
import pathlib
import re
import subprocess
import sys


def asked(program, *arguments):
    return json.loads(subprocess.run([program, *arguments, "--help-json"], check=True, capture_output=True, text=True).stdout)


def roff(text):
    """As roff shows it: no line is taken for a request, no hyphen for one that may be set otherwise."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(r"\&" + line if line[:1] in (".", "'") else line for line in text.split("\n"))


def manual(whole, commands):
    lines = [rf'.TH KVCAL 1 "" "kvcal {whole["version"]}"', ".SH NAME",
             r"kvcal \- codebooks for the KV cache of language models at 2, 3 or 4 bits", ".SH SYNOPSIS", ".B kvcal", r"\fISUBCOMMAND\fR [\fIOPTIONS\fR]",
             ".SH SUBCOMMANDS"]
    for command in whole["commands"]:
        lines += [".TP", rf'\fB{roff(command["name"])}\fR', roff(command["summary"])]
    for command in commands:
        positional = [option["names"][-1] for option in command["options"] if option["positional"]]
        lines += [f'.SH KVCAL {command["name"].upper()}', rf'\fBkvcal {command["name"]}\fR [\fIOPTIONS\fR] ' + " ".join(rf"\fI{name}\fR" for name in positional),
                  ".PP", roff(command["text"])]
        for option in command["options"]:
            names = ", ".join(rf"\fB{roff(name)}\fR" for name in option["names"])
            lines += [".TP", names + (rf' \fI{roff(option["value"])}\fR' if option["value"] else ""), roff(option["text"])]
        lines += [".PP", "Example:", ".PP", ".nf", roff(command["example"]), ".fi"]
    lines += [".SH EXIT STATUS", "0: done. 1: the data or the machine failed. 2: wrong usage. 3: a limit was not met, or codebooks differ. 128 + n: ended by signal n.", ""]
    return "\n".join(lines)


def is_file(option):
    return bool(re.search("FILE|DIR", option["value"])) or option["positional"]


def named(options):
    return [option for option in options if not option["positional"]]


def bash(whole, commands):
    cases, files = [], []
    for command in commands:
        words = " ".join(name for option in named(command["options"]) for name in option["names"])
        cases.append(f'    {command["name"]}) options="{words}" ;;')
        files += [name for option in named(command["options"]) if option["value"] and not is_file(option) for name in option["names"]]
    names = " ".join(command["name"] for command in whole["commands"])
    other = "|".join(sorted(set(files)))
    return f"""# bash completion of kvcal
_kvcal() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} options=
  if ((COMP_CWORD == 1)); then
    mapfile -t COMPREPLY < <(compgen -W "{names} help --help --version" -- "$current")
    return
  fi
  case ${{COMP_WORDS[1]}} in
{chr(10).join(cases)}
    help) options="{names}" ;;
  esac
  if [[ $current == -* || ${{COMP_WORDS[1]}} == help ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    return
  fi
  case $previous in
    {other}) return ;;
  esac
  compopt -o filenames 2>/dev/null
  mapfile -t COMPREPLY < <(compgen -f -- "$current")
}}
complete -F _kvcal kvcal
"""


def brief(text):
    """The first sentence or so, for a list."""
    return re.split(r"[:;(]|\. ", text)[0].strip().replace("'", "’").replace("[", "(").replace("]", ")")


def zsh(whole, commands):
    subcommands = "\n".join(f"    '{command['name']}:{brief(command['summary'])}'" for command in whole["commands"])
    cases = []
    for command in commands:
        lines = []
        for option in named(command["options"]):
            value = f":{option['value'].strip('.')}:" + ("_files" if is_file(option) else "") if option["value"] else ""
            group = f"({' '.join(option['names'])})" if len(option["names"]) > 1 else ""
            lines += [f"        '{group}{name}[{brief(option['text'])}]{value}'" for name in option["names"]]
        lines.append("        '*:file:_files'")
        cases.append(f"    {command['name']})\n      _arguments \\\n" + " \\\n".join(lines) + " ;;")
    return f"""#compdef kvcal
_kvcal() {{
  local -a subcommands=(
{subcommands}
  )
  if ((CURRENT == 2)); then
    _describe subcommand subcommands
    return
  fi
  local subcommand=$words[2]
  shift words
  ((CURRENT--))
  case $subcommand in
{chr(10).join(cases)}
  esac
}}
_kvcal "$@"
"""


def fish(whole, commands):
    lines = ["# fish completion of kvcal"]
    for command in whole["commands"]:
        lines.append(f"complete -c kvcal -n __fish_use_subcommand -f -a {command['name']} -d '{brief(command['summary'])}'")
    for command in commands:
        for option in named(command["options"]):
            words = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option["names"])
            needs = ("-r -F" if is_file(option) else "-x") if option["value"] else ""
            lines.append(f"complete -c kvcal -n '__fish_seen_subcommand_from {command['name']}' {words} {needs} -d '{brief(option['text'])}'")
    return "\n".join(lines) + "\n"


def main():
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    whole = asked(program)
    commands = [asked(program, command["name"]) for command in whole["commands"]]
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in {"kvcal.1": manual, "kvcal.bash": bash, "_kvcal": zsh, "kvcal.fish": fish}.items():
        (folder / name).write_text(make(whole, commands))


main()
