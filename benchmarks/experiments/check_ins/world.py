"""The world of check-ins: Foursquare's source tables, and pairs of check-ins and venues with their features pulled.

    <world>/pairs/<part>/<n>.parquet   a piece of the pull: `train` and `valid` as drawn for training,
                                       `valid-all` and `test-all` with all candidates
    <world>/pairs/<part>.parquet       which check-ins, venues and probabilities these are

Pieces are kept as they come, so that a pull that was interrupted goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.experiments import worlds
from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.cells import staged
from benchmarks.experiments.check_ins.log import CheckIns, read
from benchmarks.experiments.check_ins.pairs import Pairs, Retrieval, candidates, drawn, spine
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import SPACES
from benchmarks.experiments.worlds import NOTE, Note, Progress
from benchmarks.report import peak_mib
from feature_repo.datasets.choose import Choice, DatasetName, Options, choose
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace, activate

PIECE_ROWS = 100_000
MODELS = ("ple", "ple_scene_ids", "larr")
# Name -> the part of the log, and whether all candidates are asked for.
PARTS = {"train": ("train", False), "valid": ("valid", False), "valid-all": ("valid", True), "test-all": ("test", True)}


@dataclass(frozen=True, kw_only=True)
class CheckInWorld:
    """Foursquare's check-ins below `SCENERANK_DATA`.

    Args:
        every: only every n-th check-in of a part is asked about; for rehearsals.
        seed: of the draws for training.
    """

    retrieval: Retrieval = field(default_factory=Retrieval)
    every: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        return "foursquare"

    def choice(self) -> Choice:
        return choose(DatasetName.FOURSQUARE, Options())

    def asked(self) -> PromptChoice | None:
        return None


@dataclass(frozen=True)
class Prepared:
    """What cells read. `rows` are the check-ins that are asked about: part -> positions in `log`, int64 (B,)."""

    workspace: Workspace
    schema: Schema
    note: Note
    log: CheckIns
    world: CheckInWorld

    def rows(self, part: str) -> np.ndarray:
        return asked(self.log, self.schema, part, self.world)

    def pairs(self, name: str) -> Pairs:
        kept = pq.read_table(self.workspace.root / "pairs" / f"{name}.parquet")
        return Pairs(**{f.name: kept[f.name].to_numpy() for f in fields(Pairs)})

    def table(self, name: str) -> pa.Table:
        return pa.concat_tables(self.pieces(name))

    def pieces(self, name: str) -> Iterator[pa.Table]:
        """The pull of `pairs(name)`, in their order."""
        for file in sorted((self.workspace.root / "pairs" / name).glob("*.parquet")):
            yield pq.read_table(file)


def prepare(world: CheckInWorld, places: Places, report: Progress = lambda what, done, total: None) -> None:
    """Make the workspace and its pulls. Binds this process to it: call it once a process."""
    workspace = activate(worlds.folder(world, places))
    was_made_by = workspace.root / "pairs" / "made_by"
    (workspace.root / NOTE).unlink(missing_ok=True)
    from serving import stages

    seconds: dict[str, float] = {}
    with worlds.timed(seconds, "data"):
        stages.data(workspace, world.choice(), report)
    for space in SPACES:
        worlds.write_rows(workspace, space)
    with worlds.timed(seconds, "apply"):
        store = stages.apply(workspace)
    if not was_made_by.is_file() or was_made_by.read_text() != _made_by():
        shutil.rmtree(was_made_by.parent, ignore_errors=True)
        was_made_by.parent.mkdir()
        was_made_by.write_text(_made_by())
    with worlds.timed(seconds, "pull"):
        for name in PARTS:
            _pull(workspace, store, world, name, report)
    from feature_repo import services

    note = Note(
        made_by=_made_by(),
        pulled="pairs",
        features={model: services.feature_references(getattr(services, model)) for model in MODELS},
        seconds=seconds,
        peak_mib=peak_mib(),
    )
    with staged(workspace.root / NOTE) as file:
        file.write_text(json.dumps(asdict(note), indent=1))


def load(world: CheckInWorld, places: Places) -> Prepared:
    """A prepared world. Raises FileNotFoundError for one that is not."""
    workspace = Workspace(worlds.folder(world, places))
    schema = Schema.load(workspace.schema)
    return Prepared(workspace, schema, worlds.note_of(world, places), read(workspace), world)


def is_prepared(world: CheckInWorld, places: Places) -> bool:
    path = worlds.folder(world, places) / NOTE
    return path.is_file() and json.loads(path.read_text())["made_by"] == _made_by()


def asked(log: CheckIns, schema: Schema, part: str, world: CheckInWorld) -> np.ndarray:
    """The check-ins of a part that are asked about, int64 (B,)."""
    return log.part(schema, part)[:: world.every]


def _pull(workspace: Workspace, store: object, world: CheckInWorld, name: str, report: Progress) -> None:
    """Draw or find the pairs of one part and join their features, a piece at a time."""
    from feature_repo import services
    from serving.stages import quiet
    from trainers import training_set

    log, schema = read(workspace), Schema.load(workspace.schema)
    part, everything = PARTS[name]
    rows = asked(log, schema, part, world)
    if everything:
        pairs = candidates(log, rows, world.retrieval)
    else:
        rng = np.random.default_rng([world.seed, list(PARTS).index(name)])
        pairs = drawn(log, rows, world.retrieval, rng)
    folder = workspace.root / "pairs" / name
    folder.mkdir(exist_ok=True)
    with staged(folder.with_suffix(".parquet")) as file:
        pq.write_table(pa.table({f.name: getattr(pairs, f.name) for f in fields(pairs)}), file)
    asked_pairs = spine(log, rows, pairs, pq.read_table(workspace.source("impressions")))
    for start in range(0, len(asked_pairs), PIECE_ROWS):
        report(f"pull {name}", start, len(asked_pairs))
        target: Path = folder / f"{start // PIECE_ROWS:04d}.parquet"
        if target.is_file():
            continue
        with quiet():
            joined = training_set.join(workspace, store, services.larr.name, asked_pairs.slice(start, PIECE_ROWS))
        with staged(target) as file:
            pq.write_table(joined, file, compression="zstd")
    report(f"pull {name}", len(asked_pairs), len(asked_pairs))


def _made_by() -> str:
    return worlds.made_by(*(f"benchmarks/experiments/check_ins/{name}.py" for name in ("log", "pairs", "world")))
