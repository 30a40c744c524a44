"""A city up to the day on which its rankers go online: the log until then, and what a language model knows by then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.experiments import worlds
from benchmarks.experiments.asked import PoiClicks, PromptChoice
from benchmarks.experiments.city import CityWorld
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import Reading, Vectors
from benchmarks.experiments.worlds import plain_hash
from feature_repo import columns
from feature_repo.datasets import city
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.schema import Dataset, Split
from feature_repo.workspace import Workspace, activate
from trainers.language.parquet import vector_array, write

HELD_OUT_DAYS = (2, 1)  # before the end, where the valid and the test part begin: what is new is soon learned from


@dataclass(frozen=True, kw_only=True)
class OnlineCity(CityWorld):
    """A city, and its day (from 0) on which rankers go online."""

    first_day: int

    def choice(self) -> Choice:
        return Choice(self, lambda progress: before(city.build(self.config, progress), self), ())

    def asked(self) -> PromptChoice:
        """Users are known by the places that they clicked last: asking about every one of them takes hours."""
        return PoiClicks()


def before(dataset: Dataset, world: OnlineCity) -> Dataset:
    """The log of the days before the first one online."""
    day, end = world.first_day, world.config.at_day(world.first_day)
    valid, test = (world.config.at_day(day - held_out) for held_out in HELD_OUT_DAYS)
    split = Split(train=world.config.at_day(day * 3 // 7), valid=valid, test=test, end=end)
    log = dataset.tables["impressions"]
    log = log.filter(pc.less(log[columns.EVENT_TIMESTAMP], end))
    truth = dataset.tables["oracle"]
    truth = truth.filter(pc.is_in(truth[columns.ROW_ID], value_set=log[columns.ROW_ID].combine_chunks()))
    tables = {**dataset.tables, "impressions": log, "oracle": truth}
    return replace(dataset, schema=replace(dataset.schema, split=split), tables=tables)


def is_prepared(world: OnlineCity, places: Places) -> bool:
    note = _start(world, places).root / worlds.NOTE
    return note.is_file() and note.read_text() == worlds.made_by("benchmarks/experiments/online/world.py")


def prepare(world: OnlineCity, places: Places) -> None:
    """Tables, statistics and texts, without vectors. Binds this process to them: call it once a process."""
    from serving import stages

    workspace = activate(_start(world, places).root)
    (workspace.root / worlds.NOTE).unlink(missing_ok=True)
    stages.data(workspace, world.choice(), lambda what, done, total: None)
    for space in columns.KNOWLEDGE:
        worlds.write_rows(workspace, space)
    worlds.write_prompts(workspace, world.asked())
    (workspace.root / worlds.NOTE).write_text(worlds.made_by("benchmarks/experiments/online/world.py"))


def readings(world: OnlineCity, vectors: Vectors, places: Places) -> Iterator[Reading]:
    """What language models have to have read of a prepared world."""
    workspace = _start(world, places)
    for space in columns.SPACES:
        for model in vectors.models(space):
            yield model.reading(space, sorted(set(worlds.texts_of_rows(workspace, space)[1])))


def begun(world: OnlineCity, vectors: Vectors, name: str, places: Places) -> Workspace:
    """A fresh copy of a prepared world, with vectors, as the workspace of this process."""
    root = places.scratch / "online" / name
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(_start(world, places).root, root)
    workspace = activate(root)
    for space in columns.SPACES:
        path = workspace.knowledge / f"{space}.parquet"
        _, texts = worlds.texts_of_rows(workspace, space)
        fields = {
            columns.VERSION: pa.array([plain_hash(vectors)[:12]] * len(texts)),
            columns.VECTOR: vector_array(list(vectors.of(space, texts, places))),
        }
        table = pq.read_table(path)
        for field, values in fields.items():
            column = columns.knowledge(space, field)
            table = table.set_column(table.column_names.index(column), column, values)
        write(table, path)
    return workspace


def _start(world: OnlineCity, places: Places) -> Workspace:
    return Workspace(worlds.folder(world, places))
