"""Work in a few processes of one torch thread each: more is done in an hour than by one process of several threads."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.report import forget_peak

T = TypeVar("T")
# Read when torch is loaded: threads that wait must not starve those that work.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
SHAPE = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class WorkerError(RuntimeError):
    """A worker process died; what others finished is kept."""


def each(
    work: Callable[[T], None],
    items: Sequence[T],
    title: str,
    *,
    workers: int = 2,
    fresh: bool = False,
    console: Console | None = None,
) -> None:
    """Run `work(item)` for all items, a bar with the time left on the screen.

    Args:
        work: a function of a module; what it makes it must leave in files.
        fresh: every item in a process of its own.
    Raises:
        WorkerError: a process was killed. Whatever `work` raises comes through; what has not begun then never does.
    """
    if not items:
        return
    os.environ |= ENVIRONMENT  # children inherit it
    console = console or Console()
    with (
        Progress(*SHAPE, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars,
        ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            max_tasks_per_child=1 if fresh else None,
            initializer=_begin,
        ) as pool,
    ):
        bar = bars.add_task(title, total=len(items))
        futures = [pool.submit(_one, work, item) for item in items]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                bars.update(bar, completed=done)
                if not console.is_terminal:
                    console.print(f"{title}: {done} of {len(items)}")
        except BrokenProcessPool as error:
            raise WorkerError(
                f"{title}: a worker process was killed (out of memory?); all that was finished is kept: "
                "run the same command again, with --workers 1 if memory is short"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _one(work: Callable[[T], None], item: T) -> None:
    """The memory that an item is said to have taken is not that of the one before."""
    forget_peak()
    work(item)


def _begin() -> None:
    """In each process: one thread, and no word on the screen, which belongs to the bar (DuckDB draws its own)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    import torch

    torch.set_num_threads(1)
