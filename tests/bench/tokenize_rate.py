#!/usr/bin/env python3
"""How fast kvcal makes tokens of a text, beside PyPI's tokenizers on one thread.

    .deps/venv/bin/python tests/bench/tokenize_rate.py [--program build/release/bin/tokenize_file] [--shared ../shared/data]
                                                       [--repeats 5]

Prints a Markdown table: megabytes of text a second of CPU time, for the whole of wikitext-2's training text in one call, which takes
some times longer than loading the largest of the tokenizers. CPU time and not the clock's, so that other processes count little; the best of the
repeats, in turn. Neither has seen the text before: what each remembers of words, it learns in the call. Ours is a run of
tokenize_file less a run on an empty text, so that loading doesn't count (writing the ids as text does); theirs is `encode`
alone, of a tokenizer just loaded. The ids are compared; where they differ, it fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402  (it reads the environment)

SOURCE = Path(__file__).resolve().parents[2]


def our_run(program, folder, text_file):
    """CPU seconds of the program, the ids it printed."""
    process = subprocess.Popen([program, folder, text_file], stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"{program} {folder} {text_file} failed")
    return usage.ru_utime + usage.ru_stime, out


def their_run(folder, text):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = time.process_time()
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return time.process_time() - begin, encoding.ids


def rates(program, folder, data, repeats, scratch):
    """Megabytes a second: ours, theirs."""
    (scratch / "text").write_bytes(data)
    (scratch / "empty").write_bytes(b"")
    text = data.decode()
    ours, empty, theirs = [], [], []
    for _ in range(repeats):
        empty.append(our_run(program, folder, scratch / "empty")[0])
        seconds, out = our_run(program, folder, scratch / "text")
        ours.append(seconds)
        seconds, ids = their_run(folder, text)
        theirs.append(seconds)
        if list(map(int, out.split())) != ids:
            sys.exit(f"{folder}: the ids differ")
    megabytes = len(data) / 1e6
    return megabytes / max(min(ours) - min(empty), 1e-3), megabytes / min(theirs)


def main():
    parser = argparse.ArgumentParser(description="tokens from text: megabytes a second, ours and PyPI's tokenizers'")
    parser.add_argument("--program", type=Path, default=SOURCE / "build" / "release" / "bin" / "tokenize_file")
    parser.add_argument("--shared", type=Path, default=SOURCE.parent / "shared" / "data")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    data = (options.shared / "text" / "wikitext-2.train.tokens.txt").read_bytes()
    folders = {folder.name: folder for folder in sorted((options.shared / "tokenizers").iterdir())}
    folders["TinyStories-656K"] = options.shared / "weights" / "TinyStories-656K"
    folders["bundled model"] = SOURCE / "data" / "model"
    print("| tokenizer | kvcal, MB/s | tokenizers, MB/s | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in folders.items():
            ours, theirs = rates(options.program, folder, data, options.repeats, Path(scratch))
            print(f"| {name} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.1f} |", flush=True)


if __name__ == "__main__":
    main()
