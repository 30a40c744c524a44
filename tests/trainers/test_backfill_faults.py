"""A backfill that is killed or finds the disk full: what is there is whole, and the next run ends all the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace

PART_ROWS = 100
# Processes are forked from one that has loaded everything and has no threads yet.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["feast", "trainers.training_set", "feature_repo.store", "feature_repo.services"])


def pull(root: Path, said: Connection, most_bytes: int | None = None) -> None:
    """A backfill of the test part; says each part that is done, and at last how it ended."""
    from feature_repo import services
    from feature_repo.store import open_store
    from trainers.training_set import Pull, backfill

    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    workspace = Workspace(root)
    split = Schema.load(workspace.schema).split
    wanted = Pull(service=services.ple_scene_ids.name, start=split.test, end=split.end)
    try:
        folder = backfill(workspace, open_store(workspace), wanted, lambda done, total: said.send(done), PART_ROWS)
        said.send(str(folder))
    except (OSError, ValueError) as error:
        said.send(f"{type(error).__name__}: {error}")


@pytest.fixture
def root(city, tmp_path) -> Path:
    """The city with nothing pulled yet."""
    root = tmp_path / "city"
    shutil.copytree(city.workspace.root, root, ignore=shutil.ignore_patterns("training", "bundles"))
    return root


def to_the_end(root: Path, most_bytes: int | None = None) -> tuple[list[int], str]:
    """Parts that a run reported, and how it ended."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=pull, args=(root, there, most_bytes))
    process.start()
    reported = []
    while not isinstance(said := here.recv(), str):
        reported.append(said)
    process.join()
    return reported, said


def rows_of(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


@pytest.fixture(scope="module")
def undisturbed(city, tmp_path_factory) -> pa.Table:
    root = tmp_path_factory.mktemp("undisturbed") / "city"
    shutil.copytree(city.workspace.root, root, ignore=shutil.ignore_patterns("training", "bundles"))
    reported, folder = to_the_end(root)
    table = rows_of(Path(folder))
    assert len(reported) > 3 and reported[-1] == len(table)
    return table


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_a_backfill_that_is_killed_goes_on_to_the_same_rows(root, undisturbed, kills):
    rng, killed = random.Random(0), 0
    for _ in range(kills):
        here, there = CONTEXT.Pipe()
        process = CONTEXT.Process(target=pull, args=(root, there))
        process.start()
        here.recv()
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        parts = sorted(root.glob("training/*/part-*.parquet"))
        assert all(pq.read_table(part).num_rows for part in parts), "what has its name is whole"
        for part in rng.sample(parts, min(len(parts), 3)):
            part.unlink()  # there is always something left to do
    assert killed > kills // 2
    _, folder = to_the_end(root)
    assert rows_of(Path(folder)).equals(undisturbed)


def test_of_two_backfills_of_one_pull_one_works_and_the_other_says_so(root, undisturbed):
    """They would write to the same files, and each would take the other's for its own."""
    first, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=pull, args=(root, there))
    process.start()
    first.recv()
    process_id = process.pid
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)  # in the middle of it
    reported, ended = to_the_end(root)
    assert not reported and ended.startswith("ValueError: another backfill is at work in") and str(root) in ended
    os.kill(process_id, signal.SIGCONT)
    while not isinstance(folder := first.recv(), str):
        pass
    process.join()
    assert rows_of(Path(folder)).equals(undisturbed) and not list(Path(folder).glob("*.partial"))


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(root, undisturbed):
    # No file may grow over this, which some parts do.
    sizes = sorted(len(undisturbed.slice(at, PART_ROWS).to_pandas().to_parquet()) for at in range(0, 1000, PART_ROWS))
    reported, ended = to_the_end(root, most_bytes=sizes[0] // 8)
    assert ended.startswith("OSError") and "too large" in ended and not reported
    assert not list(root.glob("training/*/part-*.parquet"))
    _, folder = to_the_end(root)
    assert rows_of(Path(folder)).equals(undisturbed)
