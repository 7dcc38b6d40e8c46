"""What nvcc makes of the kernels for one architecture: registers, spills, the instructions of loops."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ARCH = "sm_90"

CLASSES = {
    "fp32": r"F(ADD|MUL|FMA|SETP|SET|MNMX|SEL|CHK|SWZADD)\b|MUFU",
    "fp64": r"D(ADD|MUL|FMA|SETP|MNMX)\b",
    "convert": r"(F2F|F2I|I2F|I2FP|FRND|F2FP|H\w+2|PRMT)\b",
    "device": r"(LDG|STG|ATOMG|ATOM|RED|LD|ST)\b",
    "shared": r"(LDS|STS|ATOMS|LDSM)\b",
    "control": r"(BRA|BRX|BSSY|BSYNC|BREAK|EXIT|WARPSYNC|BAR|CALL|RET|NOP|YIELD|BMOV|MEMBAR|ERRBAR|CCTL)\b",
}
"""Classes of instructions; whatever else there is works on integers, predicates and addresses."""
MEMORY = re.compile(r"(LDG|STG|ATOMG|RED|LDS|STS|ATOMS|LD|ST|ATOM)(\.\S*)?")
WIDTH = re.compile(r"\.(U8|S8|U16|S16|64|128)\b")
BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}

Line = tuple[str, int]
"""File name and line number."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, whose line it is, and where it branches to (an index), if anywhere."""

    name: str
    line: Line
    target: int | None = None
    conditional: bool = False

    @property
    def kind(self) -> str:
        for kind, pattern in CLASSES.items():
            if re.match(pattern, self.name):
                return kind
        return "integer"

    @property
    def memory(self) -> tuple[bool, int] | None:
        """Whether it goes to shared memory, and the bytes per thread; None if it is no load or store."""
        if not (match := MEMORY.fullmatch(self.name)):
            return None
        width = WIDTH.search(self.name)
        return match[1] in ("LDS", "STS", "ATOMS"), BYTES[width[1]] if width else 4


@dataclass(eq=False)
class Loop:
    """Instructions first to last, which branches back. `parts`: those that no inner loop has, in pieces that
    begin where a branch may lead or end."""

    first: int
    last: int
    parent: Loop | None = None
    parts: list[list[Instruction]] = field(default_factory=list)

    @property
    def own(self) -> list[Instruction]:
        return [i for part in self.parts for i in part]

    @property
    def classes(self) -> Counter[str]:
        return Counter(i.kind for i in self.own)


@dataclass
class Kernel:
    """A kernel for one architecture. The outermost of `loops` is the kernel itself, run once by each warp."""

    name: str
    registers: int
    shared: int
    spills: int
    loops: list[Loop]


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit; triton, which comes with a CUDA build of torch, has some as well."""
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin"]
    if spec := importlib.util.find_spec("triton"):
        folders.append(str(Path(spec.origin or "").parent / "backends/nvidia/bin"))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frcnn/emulated-gpu"
    folders += map(str, cache.glob("lib/python*/site-packages/triton/backends/nvidia/bin"))
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def short(name: str) -> str:
    """A demangled kernel's name and template arguments, without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|frcnn::|^void |\((int|bool)\)", "", name)
    return name.split("(")[0].replace("__nv_bfloat16", "bfloat16").replace("__half", "half")


def demangle(names: list[str]) -> list[str]:
    result = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True)
    return [short(line) for line in result.stdout.splitlines()]


def find_loops(instructions: list[Instruction]) -> list[Loop]:
    """The kernel itself and its loops: from the target of a backward branch to the branch.

    Code behind the kernel's end that branches back into it is no loop, but a case put aside.
    """
    ends: dict[int, int] = {}
    over = [i.name.startswith(("EXIT", "RET")) and not i.conditional for i in instructions]
    for i, instruction in enumerate(instructions):
        # a branch to itself is padding
        if (
            instruction.target is not None
            and instruction.target < i
            and not any(over[instruction.target : i])
        ):
            ends[instruction.target] = max(i, ends.get(instruction.target, 0))
    loops = [Loop(-1, len(instructions))]
    for first, last in sorted(ends.items(), key=lambda ends: (ends[0], -ends[1])):
        around = [loop for loop in loops if loop.first < first and last <= loop.last]
        loops.append(Loop(first, last, around[-1]))
    leaders = {i.target for i in instructions} | {loop.last + 1 for loop in loops}
    leaders |= {n + 1 for n, i in enumerate(instructions) if re.match(r"BR[AX]|EXIT|CALL|RET", i.name)}
    for n, instruction in enumerate(instructions):
        inmost = max((o for o in loops if o.first <= n <= o.last), key=lambda o: (o.first, -o.last))
        if n in leaders or not inmost.parts:
            inmost.parts.append([])
        inmost.parts[-1].append(instruction)
    return loops


def parse(listing: str) -> dict[str, list[Instruction]]:
    """Mangled kernel name -> its instructions, from what `nvdisasm -gi` prints."""
    kernels = {}
    for part in listing.split("\n.text.")[1:]:
        name, _, body = part.partition(":\n")
        labels: dict[str, int] = {}
        found: list[tuple[str, str | None, bool, Line]] = []
        line, known = ("", 0), False
        for text in body.splitlines():
            if text.startswith("\t.section"):
                break
            if match := re.match(r'\s*//## File "([^"]+)", line (\d+)', text):
                # the innermost of the project's own files
                if not known and "/csrc/" in match[1]:
                    line, known = (Path(match[1]).name, int(match[2])), True
            elif match := re.match(r"(\.L_\w+):", text):
                labels[match[1]] = len(found)
            elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ )?(\S+)([^;]*);", text):
                known = False
                to = re.search(r"`\((\.L_\w+)\)", match[3]) if match[2].startswith("BRA") else None
                found.append((match[2], to[1] if to else None, bool(match[1]), line))
        kernels[name] = [
            Instruction(op, where, labels[to] if to else None, conditional)
            for op, to, conditional, where in found
        ]
    return kernels


def read() -> dict[tuple[str, str], Kernel]:
    """Compile every kernel of csrc/cuda and read the result: kernels by their file's and their short name."""
    nvcc, nvdisasm, cuobjdump = tool("nvcc"), tool("nvdisasm"), tool("cuobjdump")
    if not (nvcc and nvdisasm and cuobjdump):
        raise SystemExit("nvcc, nvdisasm and cuobjdump are needed: put them on PATH or set CUDA_HOME")
    flags = ["-std=c++17", "-O3", "--fmad=false", f"-arch={ARCH}", "-lineinfo", "-cubin"]
    files = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cu", ".h"))
    version = hashlib.sha256(b"".join(path.read_bytes() for path in files) + repr(flags).encode())
    folder = ROOT / "build" / "emulated" / "cubins" / version.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> dict[tuple[str, str], Kernel]:
        cubin = folder / f"{source.stem}.cubin"
        if not cubin.exists():
            scratch = cubin.with_suffix(f".{os.getpid()}")
            subprocess.run([nvcc, *flags, str(source), "-o", str(scratch)], check=True)
            scratch.replace(cubin)

        def output(*command: str) -> str:
            return subprocess.run([*command, str(cubin)], check=True, text=True, capture_output=True).stdout

        usage = re.findall(
            r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
            output(cuobjdump, "--dump-resource-usage"),
        )
        listing = parse(output(nvdisasm, "-gi", "-c"))
        names = demangle([row[0] for row in usage])
        return {
            (source.name, name): Kernel(
                name, int(r), int(shared), int(stack) + int(local), find_loops(listing[mangled])
            )
            for name, (mangled, r, stack, shared, local) in zip(names, usage, strict=True)
        }

    kernels: dict[tuple[str, str], Kernel] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(one, sorted((ROOT / "csrc" / "cuda").glob("*.cu"))):
            kernels |= found
    return kernels


def issued(kernel: Kernel, warps: int, counted: dict[tuple[Line, bool], tuple[float, int]]) -> list[float]:
    """How many of each loop's own instructions all warps issue, by what the emulator counted.

    counted: (line, shared) -> requests and bytes per thread. Where a line has several instructions in the
    listing, each is taken to do an equal part of its requests. A loop runs as often as the busiest of its
    accesses; one without a counted access as often as what is around it. Within a loop, a part without an
    access runs as often as the next part that has one; the first and the last run whenever the loop does.
    """
    places: Counter[tuple[Line, bool]] = Counter()
    for i in (i for loop in kernel.loops for i in loop.own):
        if i.memory and (key := (i.line, i.memory[0])) in counted:
            places[key] += max(1, i.memory[1] // counted[key][1])

    def seen(part: list[Instruction]) -> float | None:
        keys = {(i.line, i.memory[0]) for i in part if i.memory} & counted.keys()
        return max((counted[key][0] / places[key] for key in keys), default=None)

    times: dict[Loop, float] = {}
    result = []
    for loop in kernel.loops:
        if loop.parent is None:
            times[loop] = float(warps)
        else:
            known = [n for part in loop.parts if (n := seen(part)) is not None]
            times[loop] = max(known, default=times[loop.parent])
        total, following = 0.0, 0.0 if loop.parent is None else times[loop]
        for n, part in reversed(list(enumerate(loop.parts))):
            if (own := seen(part)) is not None:
                following = min(own, times[loop])
            ends = n == 0 or (n == len(loop.parts) - 1 and loop.parent is not None)
            total += len(part) * (times[loop] if ends else following)
        result.append(total)
    return result
