"""The proof against skew: impressions through the online path and through the point-in-time pull, bit by bit.

Requests of the log are asked again of a store that holds what was known at their moment (`replay`), in the order of
time. Some are asked as they were; others for a user or a place that nobody knows, without a word about the moment, or
so long after the log's end that values have outlived their time. Some are asked once more with values of places kept in
the process, as a server keeps them. The same rows are then pulled as a training set is.
Where every value of every column agrees the bundle gets a certificate, which a server wants to see.

What a server really read for a sample of its answers (`served`) is compared with a pull in the same way, as far as the
log has come since.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.workspace import Workspace
from serving.certificate import Certificate, Difference, code
from serving.features import FeatureReader, Reading
from serving.online import ValueStatus
from serving.replay import Replay, empty_store
from serving.request import Place, RequestContext
from serving.served import answers_of
from trainers import training_set
from trainers.bundle import Bundle

AFTER_DAYS = 40  # how long after the log's end the latest requests are asked
STRANGER = "nobody whom anybody knows"
KEPT = 32  # requests that are asked once more: for each, all places are read again
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Some rows of the log as one request, perhaps changed; `kept`: also asked with values of places that are kept."""

    case: str
    rows: pa.Table
    context: RequestContext
    kept: bool

    @property
    def time_us(self) -> int:
        assert self.context.time_us is not None
        return self.context.time_us

    @property
    def poi_ids(self) -> list[str]:
        found: list[str] = self.rows[columns.POI_ID].to_pylist()
        return found


def prove(
    workspace: Workspace,
    store: Any,
    bundle: Bundle,
    impressions: int,
    progress: Progress = lambda done, total: None,
) -> Certificate:
    """Ask at least so many impressions again (or all that the test part has), both ways.

    Args:
        store: the workspace's, for the pull; its online values are neither read nor changed.
    """
    asked = questions(workspace, impressions)
    readings, again = _replayed(workspace, bundle, asked, progress)
    online, kept = (pa.concat_tables([reading.table for reading in read]) for read in (readings, again))
    offline = _join(workspace, store, bundle, spine(asked))
    found = list(differences(online, offline, bundle.manifest.features))
    those = np.repeat([question.kept for question in asked], [len(question.rows) for question in asked])
    found += differences(kept, offline.filter(pa.array(those)), bundle.manifest.features)
    really = served_rows(workspace, bundle)
    if len(really):
        found += differences(really, _pulled(workspace, store, bundle, really), bundle.manifest.features)
    return Certificate(
        bundle=bundle.manifest.version,
        service=bundle.manifest.service,
        code=code(),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        impressions=len(online),
        requests=len(asked),
        cases=Counter(question.case for question in asked),
        values=statuses(readings),
        columns=len(online.column_names),
        served=len(really),
        differences=tuple(found),
    )


def _replayed(
    workspace: Workspace, bundle: Bundle, asked: Sequence[Question], progress: Progress
) -> tuple[list[Reading], list[Reading]]:
    """What is read online for each question at its moment, and, for those that want it, with values of places kept."""
    readings, again = [], []
    with tempfile.TemporaryDirectory(prefix="prove-") as name:
        then = empty_store(workspace, Path(name))
        reader, keeping = FeatureReader(then, bundle), FeatureReader(then, bundle, poi_age_s=math.inf)
        replay = Replay(then, reader.views)
        for done, question in enumerate(asked, start=1):
            replay.advance(question.time_us)
            readings.append(_read(reader, question))
            if question.kept:
                keeping.refresh()
                again.append(_read(keeping, question))
            progress(done, len(asked))
    return readings, again


def _read(reader: FeatureReader, question: Question) -> Reading:
    return reader.read_pois(reader.read_context(question.context, question.time_us), question.poi_ids)


def served_rows(workspace: Workspace, bundle: Bundle) -> pa.Table:
    """What a server read for a sample of this bundle's answers, of moments before the end of the log."""
    kept = list(answers_of(workspace.served, bundle.manifest.version))
    if not kept:
        return pa.table({})
    rows = pa.concat_tables(kept)
    end = Schema.load(workspace.schema).split.end
    return rows.filter(pc.less(rows[columns.EVENT_TIMESTAMP], pa.scalar(end, TIME)))


def _pulled(workspace: Workspace, store: Any, bundle: Bundle, served: pa.Table) -> pa.Table:
    """A pull of rows that were served."""
    asked = [
        name for name in Schema.load(workspace.schema).tables()["impressions"].names if name in served.column_names
    ]
    numbered = served.select(asked).append_column(columns.ROW_ID, pa.array(range(len(served)), pa.int64()))
    return _join(workspace, store, bundle, numbered)


def _join(workspace: Workspace, store: Any, bundle: Bundle, rows: pa.Table) -> pa.Table:
    """The pull of what a bundle reads, of the versions of knowledge that it was trained on."""
    manifest = bundle.manifest
    return training_set.join(workspace, store, manifest.service, rows, manifest.knowledge_versions)


def questions(workspace: Workspace, impressions: int, seed: int = 0) -> list[Question]:
    """Requests of the test part, drawn at random, in the order of their moments."""
    schema = Schema.load(workspace.schema)
    start = schema.split.train if schema.split.by_user else schema.split.test
    when = pc.field(columns.EVENT_TIMESTAMP)
    log = pq.read_table(workspace.source("impressions"), filters=when >= pa.scalar(start, TIME))
    log = log.sort_by([(columns.REQUEST_ID, "ascending"), (columns.ROW_ID, "ascending")])
    ids, sizes = np.unique(log[columns.REQUEST_ID].to_numpy(zero_copy_only=False), return_counts=True)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(ids))
    wanted = int(np.searchsorted(np.cumsum(sizes[order]), impressions)) + 1
    made = []
    for number, at in enumerate(order[:wanted]):
        case = CASES[number % len(CASES)]
        made.append(_asked(log.slice(starts[at], sizes[at]), case, schema, rng, number < KEPT))
    return sorted(made, key=lambda question: question.time_us)


CASES = ("as logged", "as logged", "unknown user", "as logged", "unknown place", "as logged", "silent moment", "later")


def _asked(rows: pa.Table, case: str, schema: Schema, rng: np.random.Generator, kept: bool) -> Question:
    changed: dict[str, object] = {}
    moment: datetime = rows[columns.EVENT_TIMESTAMP][0].as_py()
    match case:
        case "unknown user":
            changed = {columns.USER_ID: STRANGER}
        case "silent moment":
            fields = [columns.LATITUDE, columns.LONGITUDE, *(f.name for f in schema.request_fields)]
            changed = dict.fromkeys(fields)
        case "later":
            moment = schema.split.end + timedelta(days=float(rng.uniform(0, AFTER_DAYS)))
    changed |= {columns.EVENT_TIMESTAMP: moment, columns.OUTCOME_TIMESTAMP: moment}
    pois = rows[columns.POI_ID].to_pylist()
    if case == "unknown place":
        pois[-1] = STRANGER
    table = _with(rows, {name: [value] * len(rows) for name, value in changed.items()} | {columns.POI_ID: pois})
    # A feed may show a POI twice in one request; a caller may not.
    first = sorted({poi: at for at, poi in reversed(list(enumerate(pois)))}.values())
    table = table.take(pa.array(first))
    return Question(case=case, rows=table, context=_context(table, schema), kept=kept)


def _with(rows: pa.Table, values: Mapping[str, Sequence[object]]) -> pa.Table:
    for name, column in values.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(column, rows.schema.field(at).type))
    return rows


def _context(rows: pa.Table, schema: Schema) -> RequestContext:
    """The request that rows of the log were the answer to, as a server gets it."""
    row = rows.slice(0, 1).to_pylist()[0]
    place = (row[columns.LATITUDE], row[columns.LONGITUDE])
    inputs = {f.name: row[f.name] for f in schema.request_fields if row[f.name] not in (None, "")}
    return RequestContext(
        user_id=row[columns.USER_ID],
        scenario_id=row[columns.SCENARIO_ID],
        time_us=rows[columns.EVENT_TIMESTAMP].cast(TIME).cast(pa.int64())[0].as_py(),
        place=None if None in place else Place(*place),
        scene_inputs=inputs,
    )


def spine(asked: Sequence[Question]) -> pa.Table:
    """The rows of all requests, numbered in the order of the questions."""
    rows = pa.concat_tables([question.rows for question in asked])
    return _with(rows, {columns.ROW_ID: range(len(rows))})


def statuses(readings: Sequence[Reading]) -> dict[str, int]:
    """Stored values by status over all readings."""
    views = [view for reading in readings for view in reading.views]
    return {s.name.lower(): sum(getattr(view, s.name.lower()) for view in views) for s in ValueStatus}


def differences(online: pa.Table, offline: pa.Table, features: Sequence[str]) -> Iterator[Difference]:
    """Every column of the online side that is not, bit by bit, the offline one.

    What the reader knows of a request and no ranker of this service reads is in no pull, and is not compared.

    Args:
        features: of the service, `view:feature`.
    """
    views = {feature: view for view, feature in (reference.split(":", 1) for reference in features)}
    for name in online.column_names:
        view = views.get(name, "")
        if name not in offline.column_names:
            if not {name, name.removesuffix("_row")} & views.keys():
                continue
            yield Difference(column=name, view=view, rows=len(online), example="the pull has no such column")
            continue
        ours, theirs = (table[name].combine_chunks() for table in (online, offline))
        if ours.type != theirs.type:
            example = f"online it is {ours.type}, offline {theirs.type}"
            yield Difference(column=name, view=view, rows=len(online), example=example)
            continue
        rows = [at for at, (a, b) in enumerate(zip(_bits(ours), _bits(theirs), strict=True)) if a != b]
        if rows:
            at = rows[0]
            user, poi = online[columns.USER_ID][at].as_py(), online[columns.POI_ID][at].as_py()
            example = f"user {user!r}, POI {poi!r}: online {ours[at].as_py()!r}, offline {theirs[at].as_py()!r}"
            yield Difference(column=name, view=view, rows=len(rows), example=example)


def _bits(array: pa.Array) -> list[object]:
    """Values that are equal only where their bits are: not a number equals itself, zero does not equal minus zero."""
    if not pa.types.is_floating(array.type):
        plain: list[object] = array.to_pylist()
        return plain
    width = {4: np.int32, 8: np.int64}[array.type.bit_width // 8]
    bits = array.fill_null(0.0).to_numpy(zero_copy_only=False).view(width).tolist()
    return [bit if there else None for bit, there in zip(bits, array.is_valid().to_pylist(), strict=True)]
