"""Running experiments: worlds, vectors, cells, resamples, tables; each only where it is not there yet."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.experiments import pool, resamples, tables, vectors, worlds
from benchmarks.experiments.analysis import analyse
from benchmarks.experiments.cells import Cell, Store
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Experiment, once
from benchmarks.experiments.places import Places
from benchmarks.experiments.tuned import TunedModel, train
from benchmarks.experiments.worlds import World
from benchmarks.report import commit, machine
from feature_repo.workspace import Workspace

Make = Callable[[Scale], Experiment]
console = Console(width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a command runs.

    Args:
        seeds: in place of the experiment's own.
        command: what tables call this run.
    """

    places: Places = field(default_factory=Places)
    seeds: tuple[int, ...] | None = None
    workers: int = 2
    command: str = ""


def main(*makes: Make, command: str | None = None) -> None:
    """The command line of one or several experiments.

    Args:
        command: what tables call this run; by default the module of the one experiment.
    """
    scale, options = arguments(sys.modules[makes[0].__module__].__doc__, command)
    run([make(scale) for make in makes], options)


def arguments(about: str | None, command: str | None) -> tuple[Scale, Options]:
    """What stands on the command line; `about` is told by `--help` where one experiment is run alone."""
    parser = argparse.ArgumentParser(description=about if command is None else None)
    parser.add_argument("--quick", action="store_true", help="a rehearsal on a tiny city; leaves no results")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds, for development; leaves no results")
    parser.add_argument("--language-model", type=Path, help="a folder in LARR's model's place; leaves no results")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    command = command or f"python -m {__package__}.{Path(sys.argv[0]).stem}"
    options = Options(
        places=Places.quick() if given.quick or given.seeds or given.language_model else Places(),
        seeds=tuple(given.seeds) if given.seeds else None,
        workers=given.workers,
        command=" ".join([command, *sys.argv[1:]]),
    )
    folder = given.language_model and str(given.language_model.resolve())
    return Scale(quick=given.quick, language_model=folder), options


def run(experiments: Sequence[Experiment], options: Options) -> None:
    """Compute what is not there yet, then write and show the tables."""
    if options.seeds:
        experiments = [replace(e, seeds=options.seeds) for e in experiments]
    places, store = options.places, Store(options.places)
    done = {e.name: tables.written(e, places) for e in experiments if all(store.result(c) for c in _cells([e]))}
    open_ = [e for e in experiments if done.get(e.name) is None]
    needs_scores = {cell.hash for e in open_ for cell in e.compared_cells if not resamples.path(cell, places).is_file()}

    def behind() -> tuple[list[Cell], list[Cell]]:
        """Cells to compute, and all that need worlds and models: facts are measured on those of the first seed."""
        missing = [cell for cell in _cells(open_) if not store.has(cell, scores=cell.hash in needs_scores)]
        return missing, [*missing, *(cells[0] for e in open_ if e.facts for cells in e.cells.values())]

    tune(behind()[1], options)
    # A model that was just trained has weights of its own: cells that read others, trained elsewhere, no longer count.
    missing, needed = behind()
    prepare([cell.world for cell in needed], options)
    embed(missing, options)
    pool.each(partial(compute_cell, places=places), missing, "cells", workers=options.workers, console=console)
    compared = once(cell for e in open_ for cell in e.compared_cells)
    stale = {cell.hash for cell in missing}
    again = [cell for cell in compared if cell.hash in stale or not resamples.path(cell, places).is_file()]
    prepare([cell.world for cell in again], options)
    pool.each(partial(resample, places=places), again, "resamples", workers=options.workers, console=console)
    for e in experiments:
        text = done.get(e.name) or tables.write(e, analyse(e, store), about(e, options), places)
        console.print(Markdown(tables.brief(text)))
        console.print(f"[green]✓[/] {places.results / e.name}.md, .json, .png\n", highlight=False)


def prepare(needed: Sequence[World], options: Options) -> None:
    """Have every world ready that some cells stand in."""
    places = options.places
    different = {worlds.plain_hash(world): world for world in needed}
    waiting = [world for world in different.values() if not worlds.is_prepared(world, places)]
    work = partial(prepare_world, places=places)
    pool.each(work, waiting, "worlds", workers=options.workers, fresh=True, console=console)


def tune(cells: Sequence[Cell], options: Options) -> None:
    """Have every language model trained whose vectors some cells want; one stage at a time, with all processors."""
    places = options.places
    models = (model for cell in cells for space in cell.spaces for model in cell.vectors.models(space))
    stages = {worlds.plain_hash(s): s for model in models if isinstance(model, TunedModel) for s in model.stages()}
    waiting = [stage for stage in stages.values() if not stage.is_at_hand(places)]
    prepare([stage.world for stage in waiting], options)
    work = partial(train_model, places=places)
    pool.each(work, waiting, "language models", workers=1, fresh=True, console=console)


def embed(cells: Sequence[Cell], options: Options) -> None:
    """Have every text read by every language model whose vectors some cells want; one model at a time."""
    wanted: dict[tuple[str, str], tuple[vectors.LanguageModel, set[str]]] = {}
    for cell in cells:
        workspace = Workspace(worlds.folder(cell.world, options.places))
        for space in cell.spaces:
            for model in cell.vectors.models(space):
                _, texts = wanted.setdefault((worlds.plain_hash(model), space), (model, set()))
                texts.update(worlds.texts_of_rows(workspace, space)[1])
    readings = [model.reading(space, sorted(texts)) for (_, space), (model, texts) in wanted.items()]
    unread = [reading for reading in readings if reading.missing(options.places)]
    pool.each(partial(vectors.read, places=options.places), unread, "texts", workers=1, console=console)


def compute_cell(cell: Cell, places: Places) -> None:
    """The work of one process of a pool: a cell from its world to its files."""
    from benchmarks.experiments.compute import compute

    result, scores = compute(cell, places)
    resamples.path(cell, places).unlink(missing_ok=True)  # of the scores that were there before
    Store(places).keep(cell, result, scores)


def resample(cell: Cell, places: Places) -> None:
    resamples.resample(cell, places)


def train_model(tuned: TunedModel, places: Places) -> None:
    train(tuned, places)


def prepare_world(world: World, places: Places) -> None:
    worlds.prepare(world, places)


def _cells(experiments: Sequence[Experiment]) -> list[Cell]:
    return once(cell for e in experiments for cells in e.cells.values() for cell in cells)


def about(experiment: Experiment, options: Options) -> tables.About:
    return tables.About(
        command=options.command,
        question=experiment.question,
        seeds=experiment.seeds,
        fingerprint=experiment.fingerprint,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        commit=commit(),
        machine=machine(),
        worlds={arm: worlds.plain(cells[0].world) for arm, cells in experiment.cells.items()},
    )
