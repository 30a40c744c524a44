"""PLE, LARR and LARR + LLM4MSR online: the same simulated sessions over gRPC, users split by hash, days of feedback.

Each arm's server explores (`serve --explore`), so that the log of one says what another would have brought: IPS, SNIPS
and doubly robust estimates stand beside what it did bring. Every night what became of answers goes into the log and all
arms are trained again. A run is one city (seed) from its first day online to its last.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.markdown import Markdown

from benchmarks.experiments import pool, vectors
from benchmarks.experiments.cells import read_json, rounded, write_json
from benchmarks.experiments.city import QUICK, Scale
from benchmarks.experiments.online import report, world
from benchmarks.experiments.online.days import OnlineCell, live
from benchmarks.experiments.online.measured import Found, measure
from benchmarks.experiments.online.world import OnlineCity
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import Options, arguments, console
from benchmarks.experiments.vectors import HashedWords, Knowing, LanguageModel, PoiMeans
from benchmarks.experiments.worlds import plain_hash
from benchmarks.report import commit, machine
from feature_repo.datasets.city import CityConfig
from trainers.plain import from_plain, to_plain

NAME = "online_ab"
# Raise it by hand with any change that changes results under the same configuration.
VERSION = 1
SEEDS = (0, 1, 2, 3)
FIRST_DAY, DAYS = 49, 4  # on the last one rankers have learned from the first one's feedback
QUESTION = "What do clicks, orders and GMV gain online, and can a log alone foretell it?"


def cells(scale: Scale, seeds: tuple[int, ...] | None) -> list[OnlineCell]:
    """One a seed."""
    if scale.quick:
        return [_quick(seed) for seed in seeds or SEEDS[:1]]
    model = LanguageModel() if scale.language_model is None else LanguageModel(model=scale.language_model)
    means = PoiMeans() if scale.language_model is None else PoiMeans(model=scale.language_model)
    return [
        OnlineCell(
            world=OnlineCity(config=CityConfig(days=FIRST_DAY + DAYS, seed=seed), first_day=FIRST_DAY),
            vectors=Knowing(texts=model, prompts=means),
            days=DAYS,
        )
        for seed in seeds or SEEDS
    ]


def _quick(seed: int) -> OnlineCell:
    """A rehearsal: a small city of two days, words hashed, rankers of the recipes for tests."""
    days, first = 2, QUICK.days - 4
    config = CityConfig(users=150, pois=QUICK.pois, days=first + days, requests_per_user_day=0.3, seed=seed)
    return OnlineCell(
        world=OnlineCity(config=config, first_day=first), vectors=HashedWords(width=32), size="tiny", days=days, logs=20
    )


def main(scale: Scale, options: Options) -> None:
    """Run the cities that are not there yet, then write and show the tables and the plot."""
    places, wanted = options.places, cells(scale, options.seeds)
    missing = [cell for cell in wanted if not path(cell, places).is_file()]
    unready = [cell for cell in missing if not world.is_prepared(cell.world, places)]
    # Feast's definitions belong to one workspace a process.
    pool.each(partial(prepare, places=places), unready, "worlds", workers=options.workers, fresh=True, console=console)
    readings = [reading for cell in missing for reading in world.readings(cell.world, cell.vectors, places)]
    unread = [reading for reading in readings if reading.missing(places)]
    pool.each(partial(vectors.read, places=places), unread, "texts", workers=1, console=console)
    pool.each(partial(compute, places=places), missing, NAME, workers=options.workers, fresh=True, console=console)
    found = [from_plain(Found, read_json(path(cell, places))["found"]) for cell in wanted]
    seeds, one = ", ".join(str(cell.world.seed) for cell in wanted), wanted[0]
    told = [
        QUESTION,
        "",
        f"`{options.command}`, {found[-1].date}, seeds {seeds}, commit {commit()}, {found[-1].machine}. "
        f"{one.days} days, {one.positions} of {one.candidates} candidates seen, temperature {one.temperature}. "
        "Means over seeds, 95 % intervals, the wider of those over seeds and over users.",
    ]
    console.print(Markdown(report.write(NAME, told, found, places)))


def prepare(cell: OnlineCell, places: Places) -> None:
    """The work of one process of a pool: a city's log and texts."""
    world.prepare(cell.world, places)


def compute(cell: OnlineCell, places: Places) -> None:
    """The work of one process of a pool: a city's days and what they say."""
    lived = live(cell, plain_hash(cell)[:16], places)
    found = measure(lived, cell, f"{datetime.now(UTC):%Y-%m-%d}", machine())
    write_json(path(cell, places), {"cell": to_plain(cell), "found": rounded(to_plain(found))})


def path(cell: OnlineCell, places: Places) -> Path:
    return places.cells / f"{NAME}-{plain_hash(cell)[:12]}-v{VERSION}.json"


if __name__ == "__main__":
    main(*arguments(__doc__, None))
