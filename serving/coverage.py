"""How much of what a language model could know is there: who has a vector in each space, of which version, how old."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.workspace import Workspace
from trainers.knowledge import MODEL, KnowledgeError, load_matrix

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
    """

    space: str
    model: str
    version: str
    entities: int
    known: int | None
    texts: int
    newest_s: float | None
    median_s: float | None

    @property
    def share(self) -> float | None:
        return None if not self.known else self.entities / self.known


def measure(workspace: Workspace, at: datetime) -> Iterator[Coverage]:
    """Every vector space, in the order of `columns.SPACES`. Raises KnowledgeError for a file that mixes versions."""
    for space, key in columns.SPACES.items():
        known = _known(workspace, key, at)
        try:
            matrix = load_matrix(workspace.knowledge / f"{space}.parquet")
        except KnowledgeError:
            if (workspace.knowledge / f"{space}.parquet").exists():
                raise
            yield Coverage(
                space=space, model="", version="", entities=0, known=known, texts=0, newest_s=None, median_s=None
            )
            continue
        at_us = round(at.timestamp() * 1e6)
        there = matrix.available_at <= at_us
        keys, codes = np.unique(matrix.keys.to_numpy(zero_copy_only=False)[there], return_inverse=True)
        newest_us = np.zeros(len(keys), dtype=np.int64)
        np.maximum.at(newest_us, codes, matrix.available_at[there])
        ages_s = (at_us - newest_us) / 1e6
        yield Coverage(
            space=space,
            model=_model(workspace, space),
            version=matrix.version,
            entities=len(keys),
            known=known,
            texts=len(np.unique(matrix.rows[there])),
            newest_s=float(ages_s.min()) if len(keys) else None,
            median_s=float(np.median(ages_s)) if len(keys) else None,
        )


def _known(workspace: Workspace, key: str, at: datetime) -> int | None:
    if key not in TABLES:
        return None
    table = pq.read_table(workspace.source(TABLES[key]), columns=[key, columns.EVENT_TIMESTAMP])
    seen: int = pc.sum(pc.less_equal(table[columns.EVENT_TIMESTAMP], at)).as_py() or 0
    return seen


def _model(workspace: Workspace, space: str) -> str:
    name = columns.knowledge(space, MODEL)
    models = pc.unique(pq.read_table(workspace.knowledge / f"{space}.parquet", columns=[name])[name]).to_pylist()
    return ", ".join(models)
