"""Writes knowledge: every text of a workspace embedded once, kept with its version, its clock and a row for ever.

Each vector space has one table a version, `knowledge/<space>/<version>.parquet`, and `knowledge/<space>.parquet` is the
version in use, so that going back to an earlier model or template embeds nothing; other versions that are served lie in
`knowledge/beside`. A row number means one (key, text) for as long as the version lives: rows are appended, never moved
or reused. A vector has one time, from which on it is available: when its text was and its model was. Until then it is
neither trained on nor put online.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import TIME
from feature_repo.workspace import Workspace
from trainers.knowledge import MODEL
from trainers.language.encoder import Backend, EncoderConfig, Progress, TextEncoder
from trainers.language.model import ModelError
from trainers.language.parquet import hash_of, knowledge_table, serve, vector_array, vectors_of, write
from trainers.language.texts import collect

CHECKPOINT_TEXTS = 256
# When a withdrawn text becomes available: after every impression, and inside every library's range of times.
NEVER_US = 7_258_118_400_000_000  # 2200-01-01
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class SpaceReport:
    """What embedding one vector space took: `texts` = reused + computed."""

    space: str
    version: str
    texts: int
    reused: int
    computed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    spaces: tuple[SpaceReport, ...]


class Text(NamedTuple):
    """A text that a key has from a time on."""

    key: str
    time_us: int
    text: str


class Record(NamedTuple):
    """One line of a knowledge file without its vector."""

    key: str
    time_us: int
    row: int
    text: str
    model: str
    computed_us: int


def embed(
    workspace: Workspace,
    config: EncoderConfig,
    progress: Progress | None = None,
    spaces: Sequence[str] = tuple(columns.KNOWLEDGE),
    backend: Callable[[EncoderConfig], Backend] | None = None,
    beside: bool = False,
) -> EmbedReport:
    """Bring the knowledge files of a workspace up to date with its source tables.

    Only texts that this version of the encoder has not read yet are embedded, and the model is loaded only for them:
    into this process, or into `backend`. An interrupted run keeps what it computed. Raises TextError or ModelError.

    Args:
        beside: leave the version in use, and have this one served beside it.
    """
    encoder: TextEncoder | None = None
    model_us = available_us(config)
    reports = []
    for space in spaces:
        started = time.perf_counter()
        texts = _texts(collect(workspace, space), columns.KNOWLEDGE[space], model_us)
        archive = _Archive(workspace, space, config.version(space), beside)
        vectors = archive.vectors()
        missing = {t.text for t in texts} - vectors.keys()
        if missing:
            encoder = encoder or TextEncoder(config, backend)
            vectors |= _compute(encoder, archive, sorted(missing), progress)
        model = encoder.name if encoder else config.model
        archive.write(merge(archive.records(), texts, model=model, now=datetime.now(UTC)), vectors)
        computed = sum(t.text in missing for t in texts)
        reports.append(
            SpaceReport(
                space=space,
                version=archive.version,
                texts=len(texts),
                reused=len(texts) - computed,
                computed=computed,
                seconds=time.perf_counter() - started,
            )
        )
    return EmbedReport(spaces=tuple(reports))


def merge(old: Iterable[Record], source: Iterable[Text], *, model: str, now: datetime) -> list[Record]:
    """Records of a version after the source tables changed.

    A text that its key had before keeps its row. Where the source speaks of a key, it is the truth from its first time
    on: older records stay as history, later ones that it contradicts are withdrawn (their row stays, never available).
    A text equal to the one before it adds nothing. Keys that the source no longer has stay as they were.
    """
    known: dict[str, list[Record]] = {}
    for record in old:
        known.setdefault(record.key, []).append(record)
    wanted: dict[str, list[Text]] = {}
    for text in source:
        wanted.setdefault(text.key, []).append(text)
    next_row = 1 + max((r.row for records in known.values() for r in records), default=0)
    merged = [r for key, records in known.items() if key not in wanted for r in records]
    for key, texts in wanted.items():
        before = known.get(key, [])
        rows = {r.text: r for r in before}
        start = min(t.time_us for t in texts)
        kept = sorted((r for r in before if r.time_us < start), key=lambda r: r.time_us)
        for text in sorted(texts, key=lambda t: t.time_us):
            if kept and kept[-1].text == text.text:
                continue
            if text.text not in rows:
                rows[text.text] = Record(key, text.time_us, next_row, text.text, model, int(now.timestamp() * 1e6))
                next_row += 1
            kept.append(rows[text.text]._replace(time_us=text.time_us))
        live = {r.text for r in kept}
        merged += kept + [r._replace(time_us=NEVER_US) for r in rows.values() if r.text not in live]
    return sorted(merged, key=lambda r: (r.row, r.time_us))


def available_us(config: EncoderConfig) -> int:
    """From when on the model was there: the cut-off of the log that it learned from; the epoch for one that did not."""
    available_at = config.available_at() or EPOCH
    if available_at.tzinfo is None:
        raise ModelError(f"{config.model}: available_at {available_at} has no time zone; train the model again")
    return (available_at - EPOCH) // timedelta(microseconds=1)


def _texts(table: pa.Table, key: str, model_us: int) -> list[Text]:
    """Each text from when on its vector is available: when the fact, the knowledge of it and the model all are.

    Of several texts that a key had before the model was there, the newest is the only one that is ever the newest.
    """
    names = (key, columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP, columns.TEXT)
    keys, events, created, texts = (_plain(table[name]) for name in names)
    known = sorted((max(e, c), k, t) for k, e, c, t in zip(keys, events, created, texts, strict=True))
    newest = {(k, max(time, model_us)): t for time, k, t in known}
    return [Text(k, time, t) for (k, time), t in newest.items()]


def _plain(values: pa.ChunkedArray) -> list[Any]:
    """Python values; times as microseconds since the epoch UTC."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(TIME).cast(pa.int64())
    return list(values.to_pylist())


def _compute(
    encoder: TextEncoder, archive: _Archive, texts: Sequence[str], progress: Progress | None
) -> dict[str, np.ndarray]:
    """Embed texts, putting every `CHECKPOINT_TEXTS` of them away as soon as they are there."""
    computed: dict[str, np.ndarray] = {}
    fresh: dict[str, np.ndarray] = {}
    for at, batch in encoder.batches(texts, archive.space):
        fresh |= {texts[i]: vector for i, vector in zip(at, batch, strict=True)}
        if len(fresh) >= CHECKPOINT_TEXTS:
            archive.checkpoint(fresh)
            computed |= fresh
            fresh = {}
        if progress:
            progress(archive.space, len(computed) + len(fresh), len(texts))
    archive.checkpoint(fresh)
    return computed | fresh


class _Archive:
    """The files of one version of one vector space: its table, and checkpoints of a run that has not ended."""

    def __init__(self, workspace: Workspace, space: str, version: str, beside: bool) -> None:
        self.space, self.version = space, version
        self.path = workspace.knowledge / space / f"{version}.parquet"
        self._workspace, self._beside = workspace, beside
        self._checkpoints = workspace.knowledge / space / f"{version}.checkpoints"

    def vectors(self) -> dict[str, np.ndarray]:
        """Text -> vector of everything that this version has read."""
        text, vector = (columns.knowledge(self.space, name) for name in (columns.TEXT, columns.VECTOR))
        known: dict[str, np.ndarray] = {}
        for file in [*sorted(self._checkpoints.glob("*.parquet")), *([self.path] if self.path.is_file() else [])]:
            table = pq.read_table(file, columns=[text, vector])
            known |= dict(zip(table[text].to_pylist(), vectors_of(table[vector]), strict=True))
        return known

    def records(self) -> list[Record]:
        if not self.path.is_file():
            return []
        names = [columns.KNOWLEDGE[self.space], columns.CREATED_TIMESTAMP]
        fields = (columns.ROW, columns.TEXT, MODEL, columns.COMPUTED_AT)
        names += [columns.knowledge(self.space, field) for field in fields]
        table = pq.read_table(self.path, columns=names)
        return [Record(*values) for values in zip(*(_plain(table[name]) for name in names), strict=True)]

    def checkpoint(self, vectors: Mapping[str, np.ndarray]) -> None:
        if not vectors:
            return
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        number = len(list(self._checkpoints.glob("*.parquet")))
        text, vector = (columns.knowledge(self.space, name) for name in (columns.TEXT, columns.VECTOR))
        table = pa.table({text: pa.array(list(vectors), pa.string()), vector: vector_array(list(vectors.values()))})
        write(table, self._checkpoints / f"{number:06d}.parquet")

    def write(self, records: Sequence[Record], vectors: Mapping[str, np.ndarray]) -> None:
        """Put the version's table in place, if it changed, and have it served."""
        if list(records) != self.records() or not self.path.is_file():
            write(self._table(records, vectors), self.path)
        serve(self.path, self._workspace, self.space, self.version, beside=self._beside)
        shutil.rmtree(self._checkpoints, ignore_errors=True)

    def _table(self, records: Sequence[Record], vectors: Mapping[str, np.ndarray]) -> pa.Table:
        times = pa.array([r.time_us for r in records], pa.int64()).cast(TIME)
        hashes = [hash_of(r.text) for r in records]
        computed = pa.array([r.computed_us for r in records], pa.int64()).cast(TIME)
        fields: dict[str, pa.Array] = {
            columns.ROW: pa.array([r.row for r in records], pa.int64()),
            columns.VERSION: pa.array([self.version] * len(records), pa.string()),
            columns.TEXT_HASH: pa.array(hashes, pa.string()),
            columns.TEXT: pa.array([r.text for r in records], pa.string()),
            columns.VECTOR: vector_array([vectors[r.text] for r in records]),
            MODEL: pa.array([r.model for r in records], pa.string()),
            columns.COMPUTED_AT: computed,
        }
        return knowledge_table(self.space, pa.array([r.key for r in records], pa.string()), times, fields)
