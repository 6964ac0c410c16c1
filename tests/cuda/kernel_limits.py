#!/usr/bin/env python3
"""Holds each CUDA kernel to its limits of tests/cuda/kernel_limits.json: registers and instructions. No GPU is needed.

    tests/cuda/kernel_limits.py [--nvcc nvcc] [--source cuda/kernels/launch_cuda.cu] [--json tests/cuda/kernel_limits.json]
                                [--table FILE] [--write]

Compiles the kernels for each architecture of the limits file, with warnings as errors, and reads ptxas' report and the
machine code (by nvdisasm, as cuobjdump -sass does; sass.py counts). Fails on a spill, a stack, an access of local memory,
MUFU.SIN or MUFU.COS, and on a kernel that needs more than its limit. --write measures, and writes limits instead: 5 % above what
was found, registers rounded up to a multiple of 8. --table writes what is printed as Markdown, too.

What is counted, per kernel; all of it static, nothing is run:
  registers     ptxas' own number.
  code          all instructions, those of called functions too; without the padding.
  per element   instructions that a warp issues per element of one lane (32 elements), predicated ones that do nothing included:
    append      one turn of the loop over rows / (dim / 32): of input of the type that costs the least, with the next row's load
                and the votes on outliers, but no outlier. Values: with the picks that 0.5 % of outliers at each end need.
    dequantise  one tile of 16 tokens, from the warp's first instruction to its last / (16 * dim / 32), written as the type that
                costs the least (fp16); without slots, whose number is the layout's, and without sinks.
  slowest       dequantise: the same, written as the type that costs the most (bf16).
  pick          append_values: one turn of the loop that takes the smallest number of a row; part of per element.

Of both rows whose values are not turned (turn_row.h). sass.py says which path through a kernel is counted. Nothing is said of how long an instruction waits; blocks per multiprocessor
are what registers and shared memory allow.

Exit status: 0 all within limits; 1 not, each is named; 2 a tool is missing or its output is not understood.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sass import NAME, Failure, key_of, measure_append, measure_dequantise, parse_sass

SOURCE = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_90")
KERNELS = 36
THREADS = 128  # of a block, kWarps * 32 of launch_cuda.cu
# Of a multiprocessor of these; the runtime keeps 1 KiB of shared memory for itself in each block. CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability".
REGISTERS, THREADS_AT_ONCE, BLOCKS_AT_ONCE, RESERVED = 65536, 2048, 32, 1024
SHARED_MEMORY = {"sm_80": 164 << 10, "sm_90": 228 << 10}
MARGIN = 1.05
FORBIDDEN = re.compile(r"MUFU\.(SIN|COS)|(LDL|STL)(\.|$)")
GET_TOOLS = ("neither beside nvcc nor on PATH. It comes with the CUDA toolkit, or from PyPI: pip install nvidia-cuda-nvdisasm "
             "(setup.sh --cuda does), then put nvidia/cu13/bin of site-packages on PATH, or name it with --nvdisasm")


# ---- tools


def find_nvdisasm(given, nvcc):
    for candidate in (given, Path(shutil.which(nvcc) or nvcc).resolve().parent / "nvdisasm", "nvdisasm"):
        found = shutil.which(str(candidate)) if candidate else None
        if found:
            return found
        if given:
            break
    raise Failure(f"there is no nvdisasm, {GET_TOOLS}")


def run(command):
    try:
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failure(f"{command[0]} can't be run: {error.strerror}") from error


def compile_kernels(nvcc, source, architecture, folder):
    """The cubin, and what ptxas said. Headers are found as the build finds them: through a folder with nothing but a link."""
    view = folder / "view" / "cuda"
    if not view.exists():
        view.mkdir(parents=True)
        (view / "kernels").symlink_to(SOURCE / "cuda" / "kernels")
    cubin = folder / f"{architecture}.cubin"
    done = run([nvcc, "-std=c++20", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "--expt-relaxed-constexpr",
                "--expt-extended-lambda", "-fmad=false", "-Werror=all-warnings",
                "-Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off", "-I", view.parent, source, "-o", cubin])
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise SystemExit(f"kernel_limits.py: {architecture}: {source} does not compile without warnings")
    return cubin, done.stdout + done.stderr


def parse_ptxas(text):
    """Registers, stack, spills and shared memory of each kernel."""
    pattern = re.compile(r"Compiling entry function '(?P<name>\S+)'.*?(?P<stack>\d+) bytes stack frame, "
                         r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s.*?"
                         r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)", re.DOTALL)
    found = {}
    for match in pattern.finditer(text):
        name = NAME.search(match["name"])
        if name is None:
            continue
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found[key_of(name)] = {"registers": int(match["registers"]), "stack": int(match["stack"]),
                               "spills": int(match["stores"]) + int(match["loads"]), "shared": int(shared[1]) if shared else 0}
    return found


# ---- all of them


def blocks_at_once(architecture, registers, shared):
    """Registers are given out to warps, 256 at a time."""
    per_warp = math.ceil(registers * 32 / 256) * 256
    by_shared_memory = SHARED_MEMORY[architecture] // (math.ceil(shared / 128) * 128 + RESERVED)
    return min(REGISTERS // per_warp // (THREADS // 32), by_shared_memory, THREADS_AT_ONCE // THREADS, BLOCKS_AT_ONCE)


def measure(options, folder):
    """{architecture: {kernel: what was measured}}, and what is wrong whatever the limits are."""
    nvdisasm = find_nvdisasm(options.nvdisasm, options.nvcc)
    measured, wrong = {}, []
    for architecture in ARCHITECTURES:
        cubin, said = compile_kernels(options.nvcc, options.source, architecture, folder)
        wrong += [f"{architecture}: ptxas warns: {line.strip()}" for line in said.split("\n") if "warning" in line.lower()]
        used = parse_ptxas(said)
        done = run([nvdisasm, "-c", cubin])
        if done.returncode != 0:
            raise Failure(f"nvdisasm can't read the cubin of {architecture}: {done.stderr.strip()}")
        graphs = parse_sass(done.stdout)
        if set(used) != set(graphs) or len(used) != KERNELS:
            raise Failure(f"{architecture}: ptxas tells of {len(used)} kernels, nvdisasm of {len(graphs)}; "
                          f"there should be {KERNELS}")
        for kernel, blocks in sorted(graphs.items()):
            kind, _, dim = kernel
            found = used[kernel]
            found["code"] = sum(len(block.instructions) for block in blocks)
            try:
                found |= measure_append(blocks, kind, dim) if kind.startswith("append") else measure_dequantise(blocks, dim)
            except Failure as failure:
                raise Failure(f"{architecture}, {title(kernel)}: {failure}") from failure
            found["blocks"] = blocks_at_once(architecture, found["registers"], found["shared"])
            for block in blocks:
                wrong += [f"{architecture}, {title(kernel)}: {instruction.opcode} at {instruction.address:#x}"
                          for instruction in block.instructions if FORBIDDEN.match(instruction.opcode)]
            if found["spills"] or found["stack"]:
                wrong.append(f"{architecture}, {title(kernel)}: {found['spills']} bytes spilled, {found['stack']} of stack")
            measured.setdefault(architecture, {})[kernel] = found
    return measured, wrong


# ---- limits and the table

LIMITED = ("registers", "code", "per_element", "slowest", "pick")


def title(kernel):
    return f"{kernel[0]} {kernel[1]} bits x {kernel[2]}"


def limit_of(what, value):
    if what == "registers":
        return math.ceil(value / 8) * 8
    return math.ceil(value * MARGIN) if what in ("code", "pick") else math.ceil(value * MARGIN * 10) / 10


def write_limits(file, measured, nvcc):
    """A line for each kernel."""
    lines = [f'  "measured_with": {json.dumps(version_of(nvcc))}']
    for architecture, kernels in measured.items():
        rows = [f"    {json.dumps(title(kernel)):<34}: "
                + json.dumps({what: limit_of(what, found[what]) for what in LIMITED if what in found})
                for kernel, found in kernels.items()]
        lines.append(f'  "{architecture}": {{\n' + ",\n".join(rows) + "\n  }")
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def version_of(nvcc):
    found = re.search(r"V(\d[\d.]*)", run([nvcc, "--version"]).stdout)
    return f"nvcc {found[1]}" if found else "nvcc"


def compare(measured, limits, nvcc):
    wrong = []
    for architecture, kernels in measured.items():
        known = limits.get(architecture, {})
        wrong += [f"{architecture}, {name}: there is no such kernel" for name in known if name not in map(title, kernels)]
        for kernel, found in kernels.items():
            limit = known.get(title(kernel))
            if limit is None:
                wrong.append(f"{architecture}, {title(kernel)}: has no limits")
                continue
            wrong += [f"{architecture}, {title(kernel)}: {what.replace('_', ' ')} {found[what]:.4g}, the limit is {limit[what]}"
                      for what in LIMITED if what in found and found[what] > limit.get(what, 0)]
    if wrong and limits.get("measured_with") != version_of(nvcc):
        wrong.append(f"(the limits were measured with {limits.get('measured_with')}, this is {version_of(nvcc)})")
    return wrong


def table(measured):
    lines = []
    for architecture, kernels in measured.items():
        lines += [f"| {architecture} | registers | spilled, bytes | shared memory, bytes | blocks per SM | code | per element | "
                  "slowest | pick |",
                  "|---|---|---|---|---|---|---|---|---|"]
        for kernel, found in kernels.items():
            extra = [f"{found['slowest']:.1f}" if "slowest" in found else "", f"{found['pick']:.0f}" if "pick" in found else ""]
            lines.append(f"| {title(kernel)} | {found['registers']} | {found['spills']} | {found['shared']} | "
                         f"{found['blocks']} | {found['code']} | {found['per_element']:.1f} | {extra[0]} | {extra[1]} |")
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="Registers and instructions of the CUDA kernels against their limits")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--nvdisasm", help="default: beside nvcc, else on PATH")
    parser.add_argument("--source", type=Path, default=SOURCE / "cuda" / "kernels" / "launch_cuda.cu")
    parser.add_argument("--json", type=Path, default=SOURCE / "tests" / "cuda" / "kernel_limits.json")
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--write", action="store_true",
                        help="write limits, 5 %% above what is measured, instead of checking them")
    options = parser.parse_args()
    os.environ["LC_ALL"] = "C"
    if shutil.which(options.nvcc) is None:
        raise Failure(f"there is no '{options.nvcc}': put nvcc on PATH or name it with --nvcc; ./setup.sh --cuda installs one")
    with tempfile.TemporaryDirectory() as folder:
        measured, wrong = measure(options, Path(folder))
    text = table(measured)
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    if options.write:
        write_limits(options.json, measured, options.nvcc)
    else:
        wrong += compare(measured, json.loads(options.json.read_text(encoding="utf-8")), options.nvcc)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"kernel_limits.py: {failure}", file=sys.stderr)
        sys.exit(2)
