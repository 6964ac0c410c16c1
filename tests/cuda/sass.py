"""Reads the machine code of the CUDA kernels as `nvdisasm -c` prints it, and counts instructions for kernel_limits.py.

How: blocks and branches of the machine code make a graph. Of the paths through the row loop (or through a whole kernel), each
loop inside entered at most once, the one is taken that passes the most marked blocks, and of those the one with the fewest
instructions. Marked are blocks of that level that load and clamp numbers, store codes, vote, dequantise or write rows. So what
is rare falls away by itself: outliers' insertion, sinks, 64-bit divisions, and the branches of a warp that is not converged
(BRA.DIV).
"""

import re
from dataclasses import dataclass, field

TILE_TOKENS = 16
NAME = re.compile(r"(append_keys|append_values|dequantise_keys|dequantise_values)_kernelILi(\d+)ELj(\d+)E")


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


# ---- the graph of a kernel


def key_of(match):
    return match[1], int(match[2]), int(match[3])


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
    seen, waiting = set(), [start]
    while waiting:
        i = waiting.pop()
        if i not in seen:
            seen.add(i)
            waiting.extend(blocks[i].next)
    return seen


def before_of(blocks):
    nodes = sorted(reachable(blocks))
    return {i: [j for j in nodes if i in blocks[j].next] for i in nodes}


def dominators_of(blocks):
    """{block: those that every way to it passes, itself too}."""
    before = before_of(blocks)
    everything = set(before)
    dominators = {i: everything for i in before} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for i in list(before)[1:]:
            new = {i} | set.intersection(*(dominators[j] for j in before[i]))
            if new != dominators[i]:
                dominators[i], changed = new, True
    return dominators


EXCHANGES = r"SHFL\.BFLY"


def turned_blocks(blocks, ends):
    """The blocks that nothing but rows of turned values passes: turn_row() is known by its exchanges, the branch into it is the
    outermost one that leads to none of `ends`, which other rows pass."""
    dominators = dominators_of(blocks)
    turned = set()
    for exchange in (i for i in dominators if blocks[i].has(EXCHANGES)):
        entries = [i for i in dominators[exchange] if not any(i in dominators[end] for end in ends)]
        if entries:
            entry = min(entries, key=lambda i: len(dominators[i]))
            turned |= {i for i in dominators if entry in dominators[i]}
    return turned


def loops_of(blocks):
    """{header: blocks of its natural loop}."""
    before, dominators = before_of(blocks), dominators_of(blocks)
    loops = {}
    for i in before:
        for header in blocks[i].next:
            if header in dominators[i]:
                body, waiting = loops.setdefault(header, {header}), [i]
                while waiting:
                    j = waiting.pop()
                    if j not in body:
                        body.add(j)
                        waiting.extend(before[j])
    return loops


def innermost(loops, i):
    """The header of the smallest loop that block i is in; None: of none."""
    return min((header for header in loops if i in loops[header]), key=lambda header: len(loops[header]), default=None)


def path(blocks, body, first, lasts, marked, longest=False):
    """(marks passed, instructions, blocks) of the path through `body` from `first` to any of `lasts`: the most marks, then the
    fewest instructions, or with `longest` the most. No edge is taken back to a loop's header."""
    order, state = [], {}

    def visit(i):
        waiting = [(i, iter(blocks[i].next))]
        state[i] = "open"
        while waiting:
            j, following = waiting[-1]
            k = next((k for k in following if k in body and k not in state), None)
            if k is None:
                waiting.pop()
                order.append(j)
                state[j] = "done"
            else:
                state[k] = "open"
                waiting.append((k, iter(blocks[k].next)))

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
    """A turn of a loop, of a row that is not turned: (instructions, blocks). marks: patterns of opcodes; only blocks of no loop
    further in are marked."""
    lasts = {i for i in loops[header] if header in blocks[i].next}
    body = loops[header] - turned_blocks(blocks, lasts)
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
            # Some picks are in the row's path: each loop's body once, and what the compiler peeled. The rest are turns of the
            # loop.
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
    exits = {i for i in reachable(blocks) if blocks[i].instructions[-1].opcode == "EXIT"}
    writes, decodes = r"LDS\.128", r"FMUL"
    exchanging = {i for loop in loops.values() if any(blocks[i].has(EXCHANGES) for i in loop) for i in loop}
    body = reachable(blocks)
    body -= turned_blocks(blocks, {i for i in body if blocks[i].has(writes) and i not in exchanging})
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
