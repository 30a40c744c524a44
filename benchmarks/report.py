"""How every benchmark reports: a row per comparison, in `benchmarks/results/<file>.json` and as a table."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
EXHAUSTED = ("Out of Memory", "MemoryError", "No space left on device")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, both sides measured in one run: ratio = ours / reference."""

    name: str
    ours: float
    reference: float
    better: Literal["lower", "higher"]
    unit: str
    n: int

    @property
    def ratio(self) -> float:
        return self.ours / self.reference


def write(benchmark: str, rows: list[Row]) -> Path:
    """Write and print the rows of one benchmark."""
    about = {"machine": machine(), "commit": commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.json"
    path.write_text(json.dumps([{**asdict(r), "ratio": r.ratio, **about} for r in rows], indent=1) + "\n")
    table = Table(title=f"{benchmark}: {about['machine']}, commit {about['commit']}", title_justify="left")
    for name in ("name", "ours", "reference", "ratio", "better", "unit", "n"):
        table.add_column(name, justify="left" if name in ("name", "better", "unit") else "right")
    for r in rows:
        table.add_row(r.name, f"{r.ours:.3g}", f"{r.reference:.3g}", f"{r.ratio:.3f}", r.better, r.unit, f"{r.n:,}")
    Console(width=120).print(table)
    return path


def machine() -> str:
    """Processor, cores and memory, in a line."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu.partition(':')[2].strip() or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def peak_mib() -> float:
    """The largest memory that this process had since it became this program, or since `forget_peak`, in MiB.

    Not `getrusage`: its maximum counts the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 2**10


def forget_peak() -> None:
    """Count from here on: a process that works on one thing after another tells the memory of each."""
    Path("/proc/self/clear_refs").write_text("5")


def answer_of(
    script: str, *arguments: str, folder: Path | None = None, patience_s: float | None = None
) -> dict[str, Any]:
    """Run a benchmark's script again, as one side of it in a process of its own: the JSON of the last line it prints.

    Args:
        folder: where it works; what it leaves behind stays there.
    Raises:
        MemoryError: it had none left, nor disk to spill to. RuntimeError: it failed otherwise.
        subprocess.TimeoutExpired: it took longer than `patience_s`.
    """
    command = [sys.executable, script, *arguments]
    said = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, cwd=folder)
    if said.returncode == -signal.SIGKILL or (said.returncode and any(words in said.stderr for words in EXHAUSTED)):
        raise MemoryError(f"{' '.join(command)} ran out of memory:\n{said.stderr}")
    if said.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{said.stderr}")
    line = said.stdout.splitlines()[-1]
    print(*arguments[:2], line, flush=True)
    answer: dict[str, Any] = json.loads(line)
    return answer


def commit() -> str:
    """The commit that was measured, with a mark where the tree had changes."""
    here = Path(__file__).parent
    name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True).stdout
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True).stdout
    return name.strip() + ("+changes" if changed else "")
