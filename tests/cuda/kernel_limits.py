#!/usr/bin/env python3
"""Holds each CUDA kernel to its limits of tests/cuda/kernel_limits.json: registers and instructions. No GPU is needed.

    tests/cuda/kernel_limits.py [--nvcc nvcc] [--source cuda/kernels/launch_cuda.cu] [--json tests/cuda/kernel_limits.json]
                                [--table FILE] [--write]

Compiles the kernels for each architecture of the limits file, with warnings as errors, and reads ptxas' report and the
machine code (by nvdisasm, as cuobjdump -sass does). Fails on a spill, a stack, an access of local memory, MUFU.SIN or MUFU.COS, and
on a kernel that needs more than its limit. --write measures, and writes limits instead: 5 % above what was found, registers
rounded up to a multiple of 8. --table writes what is printed as Markdown, too.

What is counted, per kernel; all of it static, nothing is run:
  registers     ptxas' own number.
  code          all instructions, those of called functions too; without the padding.
  per element   instructions that a warp issues per element of one lane (32 elements), predicated ones that do nothing included:
    append      one turn of the loop over rows / (dim / 32): of input of the type that costs the least, with the next row's load and
                the votes on outliers, but no outlier. Values: with the picks that 0.5 % of outliers at each end need.
    dequantise  one tile of 16 tokens, from the warp's first instruction to its last / (16 * dim / 32), written as the type that costs
                the least (fp16); without slots, whose number is the layout's, and without sinks.
  slowest       dequantise: the same, written as the type that costs the most (bf16).
  pick          append_values: one turn of the loop that takes the smallest number of a row; part of per element.

How: blocks and branches of the machine code make a graph. Of the paths through the row loop (or through a whole kernel), each loop
inside entered at most once, the one is taken that passes the most marked blocks, and of those the one with the fewest instructions.
Marked are blocks of that level that load and clamp numbers, store codes, vote, dequantise or write rows. So what is rare
falls away by itself: outliers' insertion, sinks, 64-bit divisions, and the branches of a warp that is not converged (BRA.DIV).
It says nothing of how long an instruction waits; blocks per multiprocessor are what registers and shared memory allow.

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
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_90")
KERNELS = 36
THREADS = 128  # of a block, kWarps * 32 of launch_cuda.cu
TILE_TOKENS = 16
# Of a multiprocessor of these; the runtime keeps 1 KiB of shared memory for itself in each block. CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability".
REGISTERS, THREADS_AT_ONCE, BLOCKS_AT_ONCE, RESERVED = 65536, 2048, 32, 1024
SHARED_MEMORY = {"sm_80": 164 << 10, "sm_90": 228 << 10}
MARGIN = 1.05
FORBIDDEN = re.compile(r"MUFU\.(SIN|COS)|(LDL|STL)(\.|$)")
NAME = re.compile(r"(append_keys|append_values|dequantise_keys|dequantise_values)_kernelILi(\d+)ELj(\d+)E")
GET_TOOLS = ("neither beside nvcc nor on PATH. It comes with the CUDA toolkit, or from PyPI: pip install nvidia-cuda-nvdisasm (setup.sh "
             "--cuda does), then put nvidia/cu13/bin of site-packages on PATH, or name it with --nvdisasm")


class Failure(Exception):
    """Something that leaves nothing to judge: exit status 2."""


@dataclass
class Instruction:
    address: int
    predicate: str  # "", "P0", "!P0"
    opcode: str     # with its suffixes
    operands: str

    @property
    def text(self):
        return f"{self.opcode} {self.operands}"


@dataclass
class Block:
    instructions: list
    next: list = field(default_factory=list)  # indices of blocks that may follow

    def has(self, pattern):
        return any(re.match(pattern, instruction.text) for instruction in self.instructions)


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
                "--expt-extended-lambda", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off", "-I",
                view.parent, source, "-o", cubin])
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise SystemExit(f"kernel_limits.py: {architecture}: {source} does not compile without warnings")
    return cubin, done.stdout + done.stderr


def parse_ptxas(text):
    """Registers, stack, spills and shared memory of each kernel."""
    pattern = re.compile(r"Compiling entry function '(?P<name>\S+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill "
                         r"stores, (?P<loads>\d+) bytes spill loads\s.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)", re.DOTALL)
    found = {}
    for match in pattern.finditer(text):
        name = NAME.search(match["name"])
        if name is None:
            continue
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found[key_of(name)] = {"registers": int(match["registers"]), "stack": int(match["stack"]),
                               "spills": int(match["stores"]) + int(match["loads"]), "shared": int(shared[1]) if shared else 0}
    return found


def key_of(match):
    return match[1], int(match[2]), int(match[3])


# ---- the graph of a kernel


def parse_sass(text):
    """{kernel: its blocks and the forbidden instructions}, from `nvdisasm -c`."""
    kernels = {}
    for section in re.split(r"^//-{10,}", text, flags=re.MULTILINE)[1:]:
        name = NAME.search(section.split("\n", 1)[0]) if section.lstrip().startswith(".text.") else None
        if name:
            kernels[key_of(name)] = graph_of(section)
    return kernels


LINE = re.compile(r"^\s*(?:/\*([0-9a-f]{4,})\*/\s+\{?\s*(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;|(\S+):\s*$)")


def graph_of(section):
    """Blocks in the order of addresses. Functions that are called are left out of the first one's edges: a call costs one."""
    labels, instructions = {}, []
    for line in section.split("\n"):
        match = LINE.match(line)
        if match is None:
            if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
                raise Failure(f"a line of nvdisasm's is not understood: {line.strip()}")
        elif match[5]:
            labels[match[5]] = len(instructions)
        else:
            instructions.append(Instruction(int(match[1], 16), match[2] or "", match[3], match[4]))
    while instructions and instructions[-1].opcode == "NOP":
        instructions.pop()
    # The trap behind the last instruction: a branch to itself.
    if instructions and instructions[-1].opcode == "BRA":
        instructions.pop()
    starts = {0} | {index for index in labels.values() if index < len(instructions)}
    for index, instruction in enumerate(instructions):
        if ends_block(instruction) and index + 1 < len(instructions):
            starts.add(index + 1)
    starts = sorted(starts)
    number = {start: i for i, start in enumerate(starts)}
    blocks = []
    for i, start in enumerate(starts):
        end = starts[i + 1] if i + 1 < len(starts) else len(instructions)
        block = Block(instructions[start:end])
        last = block.instructions[-1]
        target, falls_through = where_to(last, labels)
        if target is not None and target < len(instructions):
            block.next.append(number[target])
        if falls_through and end < len(instructions):
            block.next.append(i + 1)
        blocks.append(block)
    return blocks


def ends_block(instruction):
    return instruction.opcode.split(".")[0] in ("BRA", "BRX", "JMP", "EXIT", "RET")


def where_to(last, labels):
    """The instruction that a block's last one branches to, and whether it may also go on to the next."""
    kind = last.opcode.split(".")[0]
    conditional = last.predicate not in ("", "PT")
    if kind in ("EXIT", "RET"):
        return None, conditional
    if kind in ("BRX", "JMP"):
        raise Failure(f"{last.opcode} at {last.address:#x}: no branch of this kind is expected")
    if kind != "BRA":
        return None, True
    label = re.search(r"`\(([^)]+)\)", last.operands)
    if label is None or label[1] not in labels:
        raise Failure(f"{last.opcode} {last.operands} at {last.address:#x}: the target is not understood")
    if ".DIV" in last.opcode:  # taken where lanes have diverged
        return None, True
    if ".CONV" in last.opcode:  # taken where they have not
        return labels[label[1]], False
    before = last.operands[: label.start()]
    return labels[label[1]], conditional or re.search(r"!?U?P\d", before) is not None


def reachable(blocks, start=0):
    seen, todo = set(), [start]
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            todo.extend(blocks[i].next)
    return seen


def loops_of(blocks):
    """{header: blocks of its natural loop}."""
    nodes = sorted(reachable(blocks))
    before = {i: [j for j in nodes if i in blocks[j].next] for i in nodes}
    everything = set(nodes)
    dominators = {i: everything for i in nodes} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for i in nodes[1:]:
            new = {i} | set.intersection(*(dominators[j] for j in before[i]))
            if new != dominators[i]:
                dominators[i], changed = new, True
    loops = {}
    for i in nodes:
        for header in blocks[i].next:
            if header in dominators[i]:
                body, todo = loops.setdefault(header, {header}), [i]
                while todo:
                    j = todo.pop()
                    if j not in body:
                        body.add(j)
                        todo.extend(before[j])
    return loops


def innermost(loops, i):
    """The header of the smallest loop that block i is in; None: of none."""
    return min((header for header in loops if i in loops[header]), key=lambda header: len(loops[header]), default=None)


def path(blocks, body, first, lasts, marked, longest=False):
    """(marks passed, instructions, blocks) of the path through `body` from `first` to any of `lasts`: the most marks, then the fewest
    instructions, or with `longest` the most. No edge is taken back to a loop's header."""
    order, state = [], {}

    def visit(i):
        todo = [(i, iter(blocks[i].next))]
        state[i] = "open"
        while todo:
            j, following = todo[-1]
            k = next((k for k in following if k in body and k not in state), None)
            if k is None:
                todo.pop()
                order.append(j)
                state[j] = "done"
            else:
                state[k] = "open"
                todo.append((k, iter(blocks[k].next)))

    visit(first)
    position = {i: n for n, i in enumerate(reversed(order))}
    best = {}
    for i in order:  # from the end
        size = len(blocks[i].instructions) * (1 if longest else -1)
        onward = [best[j] for j in blocks[i].next if j in best and j in position and position[j] > position[i]]
        if i in lasts:
            onward.append((0, 0, ()))
        if onward:
            marks, instructions, rest = max(onward, key=lambda found: found[:2])
            best[i] = (marks + (i in marked), instructions + size, (i,) + rest)
    if first not in best:
        raise Failure(f"no path leads from {blocks[first].instructions[0].address:#x} to the end of its loop")
    marks, instructions, passed = best[first]
    return marks, abs(instructions), passed


def turn(blocks, loops, header, marks, longest=False):
    """A turn of a loop: (instructions, blocks). marks: patterns of opcodes; only blocks of no loop further in are marked."""
    body = loops[header]
    lasts = {i for i in body if header in blocks[i].next}
    marked = {i for i in body if innermost(loops, i) == header and any(blocks[i].has(mark) for mark in marks)}
    _, instructions, passed = path(blocks, body, header, lasts, marked, longest)
    return instructions, passed


# ---- what the kernels are measured by


def count(blocks, numbers, pattern):
    return sum(bool(re.match(pattern, instruction.text)) for i in numbers for instruction in blocks[i].instructions)


# Loads are known by the greatest of their bits, which make_storable() takes.
LOADS, VOTES, SMALLEST = r"V?IMNMX", r"VOTE", r"C?REDUX\.(MIN|MAX)"


def stored_codes(kind, dim):
    """A pattern of the stores of codes: they go to AppendScratch::codes, behind two tables of 16 numbers and the slots."""
    slots = 64 if kind == "append_keys" else dim // 16 * 64
    begin = 2 * 16 * 4 + 4 * slots
    offsets = "|".join(hex(begin + i) for i in range(dim // 32))
    return rf"STS(\.U8|\.U16|\.64)? .*\+(?:{offsets})\]"


def bytes_stored(blocks, numbers, pattern):
    widths = {".U8": 1, ".U16": 2, None: 4, ".64": 8}
    return sum(widths[match[1]] for i in numbers for instruction in blocks[i].instructions
               if (match := re.match(pattern, instruction.text)))


def measure_append(blocks, kind, dim):
    loops = loops_of(blocks)
    per_lane = dim // 32
    codes = stored_codes(kind, dim)
    rows = {innermost(loops, i) for i in reachable(blocks) if blocks[i].has(codes)} - {None}
    if not rows:
        raise Failure("no loop stores codes")
    bytes_per_row = per_lane // 2 if kind == "append_keys" else per_lane
    worst = {}
    for header in rows:
        picks, picked = 0, []
        if kind == "append_values":
            inside = {innermost(loops, i) for i in loops[header] if blocks[i].has(SMALLEST)} - {None, header}
            picked = [pick_of(blocks, loops, pick) for pick in inside]
            # Some picks are in the row's path: each loop's body once, and what the compiler peeled. The rest are turns of the loop.
            wanted = 2 * (int(0.005 * (dim - 1)) + 2)
            if not picked:
                raise Failure("no loop picks the smallest number")
        instructions, passed = turn(blocks, loops, header, (LOADS, codes, VOTES, SMALLEST))
        turns = bytes_stored(blocks, passed, codes) / bytes_per_row
        if turns < 1 or turns != int(turns):
            raise Failure(f"the row loop stores {turns} rows of codes in a turn")
        found = {}
        if picked:
            pick = max(picked)
            picks = count(blocks, passed, SMALLEST) / turns
            found["pick"] = pick
            instructions += turns * pick * (wanted - picks)
        found["per_element"] = instructions / turns / per_lane
        if not worst or found["per_element"] > worst["per_element"]:
            worst = found
    return worst


def pick_of(blocks, loops, header):
    instructions, passed = turn(blocks, loops, header, (SMALLEST, VOTES))
    return instructions / max(1, count(blocks, passed, SMALLEST))


def measure_dequantise(blocks, dim):
    loops = loops_of(blocks)
    body = reachable(blocks)
    exits = {i for i in body if blocks[i].instructions[-1].opcode == "EXIT"}
    writes, decodes = r"LDS\.128", r"FMUL"
    marked = {i for i in body if blocks[i].has(writes) or blocks[i].has(decodes)}
    _, instructions, passed = path(blocks, body, 0, exits, marked)
    multiplied = count(blocks, passed, decodes)
    if multiplied != dim // 2:
        raise Failure(f"a lane multiplies {multiplied} numbers of its {dim // 2}")
    turns_wanted = dim // 16  # a lane writes 8 numbers in a turn
    headers = {innermost(loops, i) for i in body if blocks[i].has(writes)} - {None}
    done = count(blocks, passed, writes)
    slow = instructions
    if done < turns_wanted:
        if len(headers) != 1:
            raise Failure(f"{len(headers)} loops write rows")
        header = headers.pop()
        fast, in_turn = turn(blocks, loops, header, (writes,))
        at_once = count(blocks, in_turn, writes)
        slowest, _ = turn(blocks, loops, header, (writes,), longest=True)
        slow += (turns_wanted - done) / at_once * slowest + done / at_once * (slowest - fast)
        instructions += (turns_wanted - done) / at_once * fast
    per_lane = TILE_TOKENS * dim / 32
    return {"per_element": instructions / per_lane, "slowest": slow / per_lane}


def blocks_at_once(architecture, registers, shared):
    """Registers are given out to warps, 256 at a time."""
    per_warp = math.ceil(registers * 32 / 256) * 256
    return min(REGISTERS // per_warp // (THREADS // 32), SHARED_MEMORY[architecture] // (math.ceil(shared / 128) * 128 + RESERVED),
               THREADS_AT_ONCE // THREADS, BLOCKS_AT_ONCE)


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
            raise Failure(f"{architecture}: ptxas tells of {len(used)} kernels, nvdisasm of {len(graphs)}; there should be {KERNELS}")
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
        lines += [f"| {architecture} | registers | spilled, bytes | shared memory, bytes | blocks per SM | code | per element | slowest | pick |",
                  "|---|---|---|---|---|---|---|---|---|"]
        for kernel, found in kernels.items():
            extra = [f"{found['slowest']:.1f}" if "slowest" in found else "", f"{found['pick']:.0f}" if "pick" in found else ""]
            lines.append(f"| {title(kernel)} | {found['registers']} | {found['spills']} | {found['shared']} | {found['blocks']} | "
                         f"{found['code']} | {found['per_element']:.1f} | {extra[0]} | {extra[1]} |")
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="Registers and instructions of the CUDA kernels against their limits")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--nvdisasm", help="default: beside nvcc, else on PATH")
    parser.add_argument("--source", type=Path, default=SOURCE / "cuda" / "kernels" / "launch_cuda.cu")
    parser.add_argument("--json", type=Path, default=SOURCE / "tests" / "cuda" / "kernel_limits.json")
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--write", action="store_true", help="write limits, 5 %% above what is measured, instead of checking them")
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
