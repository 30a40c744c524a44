"""One cell of check-ins: a ranker trained on drawn pairs, and where it ranks what was chosen, out of all venues.

<results>/cells/<hash>.json       the cell as plain data and its `Result`
<scratch>/ranks/<hash>.parquet    the ranks of every check-in of the test part, which paired bootstraps need
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.experiments import measures, worlds
from benchmarks.experiments.cells import Cell, read_json, rounded, staged, write_json
from benchmarks.experiments.check_ins.log import CheckIns, Ranks, mean_gains
from benchmarks.experiments.check_ins.pairs import Pairs
from benchmarks.experiments.check_ins.world import CheckInWorld, Prepared, load
from benchmarks.experiments.compute import service_of
from benchmarks.experiments.places import Places
from benchmarks.report import machine, peak_mib
from trainers import rank
from trainers.batch import Batch
from trainers.bundle import Bundle
from trainers.plain import from_plain, to_plain
from trainers.training_set import narrow

NOT_FOUND = 10**6  # the rank of a venue that is no candidate


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one cell came to.

    Attributes:
        valid, test: slice -> measure -> value.
        likelihood: log of the share that the kept epoch gives to what was chosen out of its drawn list, on validation.
        found: share of the test part's check-ins whose venue was a candidate.
        others: as in `cells.Result`.
    """

    valid: Mapping[str, Mapping[str, float]]
    test: Mapping[str, Mapping[str, float]]
    likelihood: float
    found: float
    alignment: float | None
    epochs: int
    train_seconds: float
    rows_per_second: float
    inference_ms: float
    inference_mflops: float
    parameters: int
    peak_mib: float
    date: str
    machine: str


def compute_cell(cell: Cell, places: Places) -> None:
    """The work of one process of a pool: a cell from its world to its files."""
    Store(places).keep(cell, *compute(cell, places))


def compute(cell: Cell, places: Places) -> tuple[Result, Ranks]:
    """Train and test one cell on a prepared world of check-ins."""
    assert isinstance(cell.world, CheckInWorld)
    world = load(cell.world, places)
    features = world.note.features[service_of(cell.recipe)]
    train, valid = (narrow(world.table(name), features) for name in ("train", "valid"))
    trained = rank.train(
        # What is tested here is not a sample: the report of training is of no use, and is made of a few rows.
        rank.Parts(train=train, valid=valid, test=narrow(next(iter(world.pieces("test-all"))), features)),
        world.schema,
        {space: worlds.matrix_of(world.workspace, space, cell.vectors, places) for space in cell.spaces},
        cell.recipe,
        rank.Provenance(service=cell.recipe.name, features=features, trained_until=world.schema.split.valid),
        seed=cell.seed,
    )
    bundle, history = trained.bundle, trained.history
    asked = measures.request(Batch.from_arrow(valid, bundle.encoding))
    on_valid, on_test = (ranks(world, bundle, part, features) for part in ("valid", "test"))
    kept = history.epochs[history.best]
    result = Result(
        valid=mean_gains(on_valid),
        test=mean_gains(on_test),
        likelihood=kept.measures["log_likelihood"],
        found=float((on_test.among_all < NOT_FOUND).mean()),
        alignment=kept.losses.get("alignment"),
        epochs=len(history.epochs),
        train_seconds=sum(epoch.seconds for epoch in history.epochs),
        rows_per_second=history.rows_per_second,
        inference_ms=measures.inference_ms(bundle.ranker, asked),
        inference_mflops=measures.inference_mflops(bundle.ranker, asked),
        parameters=measures.parameters(bundle.ranker),
        peak_mib=peak_mib(),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=machine(),
    )
    return result, on_test


def ranks(world: Prepared, bundle: Bundle, part: str, features: tuple[str, ...]) -> Ranks:
    """Where a ranker puts the venue of each check-in of a part."""
    pieces = (narrow(piece, features) for piece in world.pieces(f"{part}-all"))
    click = [rank.probabilities(bundle.ranker, Batch.from_arrow(piece, bundle.encoding))[0] for piece in pieces]
    return ranks_of_pairs(world.log, world.rows(part), world.pairs(f"{part}-all"), np.concatenate(click))


def ranks_of_pairs(log: CheckIns, rows: np.ndarray, pairs: Pairs, score: np.ndarray) -> Ranks:
    """Ranks of the venues of B check-ins among their candidates, ties counted half; `NOT_FOUND` for one that is none.

    Args:
        rows: the check-ins, (B,). score: of every pair, (k,).
    """
    at = pairs.check_in
    chosen = pairs.venue == log.venue[rows][at]
    own = np.full(len(rows), np.nan)
    own[at[chosen]] = score[chosen]
    before = (score > own[at]) + 0.5 * ((score == own[at]) & ~chosen)
    among_all, among_new = (np.bincount(at, before * of, minlength=len(rows)) for of in (1.0, ~pairs.known))
    for found in (among_all, among_new):
        found[np.isnan(own)] = NOT_FOUND
    return Ranks(among_all=among_all, among_new=np.where(log.visited[rows], np.nan, among_new))


@dataclass(frozen=True)
class Store:
    """Results and ranks of cells on disk."""

    places: Places

    def result(self, cell: Cell) -> Result | None:
        path = self.places.cells / f"{cell.hash}.json"
        return from_plain(Result, read_json(path)["result"]) if path.is_file() else None

    def ranks(self, cell: Cell) -> Ranks | None:
        path = self.places.scratch / "ranks" / f"{cell.hash}.parquet"
        if not path.is_file():
            return None
        kept = pq.read_table(path)
        return Ranks(among_all=kept["among_all"].to_numpy(), among_new=kept["among_new"].to_numpy())

    def keep(self, cell: Cell, result: Result, ranks: Ranks) -> None:
        with staged(self.places.scratch / "ranks" / f"{cell.hash}.parquet") as file:
            pq.write_table(pa.table(asdict(ranks)), file)
        content = {"cell": cell.plain(), "result": rounded(to_plain(result))}
        write_json(self.places.cells / f"{cell.hash}.json", content)
