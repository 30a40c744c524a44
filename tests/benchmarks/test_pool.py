import io
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.experiments import pool
from benchmarks.report import peak_mib


def leave(item: str, folder: Path) -> None:
    """The work of these tests: leave a file that says which process made it; one item ends its process instead."""
    if item == "killed" and not (folder / "again").exists():
        (folder / "again").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "wrong":
        raise ValueError("this item is wrong")
    (folder / item).write_text(str(os.getpid()))


def each(folder: Path, items: list[str], **options) -> str:
    console = Console(file=io.StringIO())
    pool.each(partial(leave, folder=folder), items, "items", console=console, **options)
    return console.file.getvalue()


def test_every_item_is_worked_on(tmp_path):
    printed = each(tmp_path, ["a", "b", "c"], workers=1)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 1
    assert "items: 3 of 3" in printed


def test_every_item_may_have_a_process_of_its_own(tmp_path):
    each(tmp_path, ["a", "b"], workers=1, fresh=True)
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 2


def test_a_killed_worker_is_told_and_the_next_run_goes_on(tmp_path):
    with pytest.raises(pool.WorkerError, match="run the same command again"):
        each(tmp_path, ["a", "killed", "b"], workers=1)
    assert (tmp_path / "a").exists() and not (tmp_path / "killed").exists()
    each(tmp_path, ["killed", "b"], workers=1)
    assert (tmp_path / "killed").exists() and (tmp_path / "b").exists()


def test_what_work_raises_comes_through(tmp_path):
    with pytest.raises(ValueError, match="this item is wrong"):
        each(tmp_path, ["wrong", "a"], workers=1)


def take(mib: int, folder: Path) -> None:
    """Use so much memory, and leave a file with the largest that was used."""
    held = np.ones(mib * 2**17)
    (folder / str(mib)).write_text(str(peak_mib()))
    del held


def test_an_item_is_not_told_the_memory_of_the_one_before(tmp_path):
    pool.each(partial(take, folder=tmp_path), [800, 100], "items", workers=1, console=Console(file=io.StringIO()))
    large, small = (float((tmp_path / name).read_text()) for name in ("800", "100"))
    assert large - small == pytest.approx(700, abs=50)
