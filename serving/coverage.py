"""How much of what a language model could know is there: who has a vector in each space, of which version, how old."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.workspace import Workspace
from trainers import wanted
from trainers.knowledge import MODEL, one_version, served_from

# Where all entities of a key are listed; scene values are listed nowhere but in their own knowledge.
TABLES = {columns.USER_ID: "users", columns.POI_ID: "pois", columns.SCENARIO_ID: "scenarios"}


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One vector space as of a moment.

    Attributes:
        model: in words; version: of encoder, template or prompt. Empty where the space has no file.
        entities: that have a vector. known: that there are, first seen by then; None where nobody lists them.
        texts: different texts or prompts that were read.
        newest_s, median_s: ages of each entity's newest vector; None without any.
        beside: whether it is served beside the version in use.
        wanted: keys that servers were asked for and that have no vector (`trainers.wanted`).
    """

    space: str
    model: str
    version: str
    entities: int
    known: int | None
    texts: int
    newest_s: float | None
    median_s: float | None
    beside: bool = False
    wanted: int = 0

    @property
    def share(self) -> float | None:
        return None if not self.known else self.entities / self.known


def measure(workspace: Workspace, at: datetime) -> Iterator[Coverage]:
    """Every vector space, in the order of `columns.SPACES`: the version in use, then those beside it.

    Raises KnowledgeError for a file that mixes versions.
    """
    for space, key in columns.SPACES.items():
        path, known = served_from(workspace, space), _known(workspace, key, at)
        asked = wanted.read(workspace, space)
        if path.exists():
            yield replace(_of_file(space, key, path, known, at), wanted=_lacking(asked, path, key))
        else:
            yield Coverage(
                space=space,
                model="",
                version="",
                entities=0,
                known=known,
                texts=0,
                newest_s=None,
                median_s=None,
                wanted=len(asked),
            )
        for beside in sorted(workspace.beside.glob(f"{columns.beside(space, '*')}.parquet")):
            yield replace(_of_file(space, key, beside, known, at), beside=True)


def _of_file(space: str, key: str, path: Path, known: int | None, at: datetime) -> Coverage:
    """All but the vectors is read."""
    row, version, model = (columns.knowledge(space, name) for name in (columns.ROW, columns.VERSION, MODEL))
    table = pq.read_table(path, columns=[key, columns.CREATED_TIMESTAMP, row, version, model])
    there = table.filter(pc.less_equal(table[columns.CREATED_TIMESTAMP], at))
    newest = there.group_by(key).aggregate([(columns.CREATED_TIMESTAMP, "max")])
    ages_s = [(at - moment).total_seconds() for moment in newest[f"{columns.CREATED_TIMESTAMP}_max"].to_pylist()]
    return Coverage(
        space=space,
        model=", ".join(pc.unique(table[model]).to_pylist()),
        version=one_version(table[version], path),
        entities=len(ages_s),
        known=known,
        texts=pc.count_distinct(there[row]).as_py(),
        newest_s=min(ages_s, default=None),
        median_s=median(ages_s) if ages_s else None,
    )


def _lacking(asked: Iterable[str], path: Path, key: str) -> int:
    """How many of the keys have no vector of any time."""
    keys = pa.array(asked, pa.string())
    return len(keys) - (pc.sum(pc.is_in(keys, value_set=pq.read_table(path, columns=[key])[key])).as_py() or 0)


def _known(workspace: Workspace, key: str, at: datetime) -> int | None:
    if key not in TABLES:
        return None
    table = pq.read_table(workspace.source(TABLES[key]), columns=[key, columns.EVENT_TIMESTAMP])
    seen: int = pc.sum(pc.less_equal(table[columns.EVENT_TIMESTAMP], at)).as_py() or 0
    return seen
