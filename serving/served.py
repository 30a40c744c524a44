"""What a sample of answers was made of, written down as they are given, to be compared with a later pull.

A proof replays the log before a bundle is served; this says what the running server really read. Each file holds some
answers: the request's own columns, as in the log, and every value as the ranker got it.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.scenes import EVENT_TIME_US
from serving.features import ContextReading, Reading
from serving.request import RequestContext

log = logging.getLogger(__name__)
ROWS = 5000  # in memory before a file is written
BUNDLE = b"bundle"  # a file's note of which bundle answered


class ServedLog:
    """Keeps a share of the answers of one bundle; safe to call from threads.

    What is in memory when the process is killed, or cannot be written, is lost: it is a sample.

    Args:
        share: of the answers, from 0 to 1.
        version: of the bundle.
    """

    def __init__(self, folder: Path, share: float, version: str, schema: Schema, rows: int = ROWS) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"the share of answers to keep is above 0 and at most 1, not {share}")
        self._folder, self._share, self._version, self._schema = folder, share, version, schema
        self._most = rows
        self._kept: list[pa.Table] = []
        self._fails = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Nothing runs in the background."""

    def answered(self, asked: RequestContext, context: ContextReading, reading: Reading) -> None:
        """Perhaps keep one answer's rows, as the ranker got them.

        A caller may name any moment. Of one before the newest value that was read, or of one to come, a later pull
        finds other values, and rightly so.
        """
        newest_us = max((view.newest_us or 0 for view in reading.views), default=0)
        if random.random() >= self._share or not newest_us <= context.time_us <= time.time_ns() // 1000:
            return
        with self._lock:
            self._kept.append(_with_request(reading.table, asked, self._schema))
            if sum(map(len, self._kept)) >= self._most:
                self._write()

    def close(self) -> None:
        """Write what is still in memory."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if not self._kept:
            return
        table, self._kept = pa.concat_tables(self._kept), []
        try:
            self._write_file(table.replace_schema_metadata({BUNDLE: self._version.encode()}))
        except OSError as error:  # no answer is to fail for it
            if not self._fails:
                log.warning("what answers were made of cannot be written: %s; it is left out", error)
            self._fails = True
        else:
            self._fails = False

    def _write_file(self, table: pa.Table) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{uuid.uuid4().hex}.parquet"
        staging = path.with_suffix(".partial")
        try:
            pq.write_table(table, staging, compression="zstd")
            os.replace(staging, path)
        except OSError:
            with suppress(OSError):
                staging.unlink()
            raise


def answers_of(folder: Path, version: str) -> Iterator[pa.Table]:
    """What was kept of one bundle's answers."""
    for path in sorted(folder.glob("*.parquet")):
        if (pq.read_schema(path).metadata or {}).get(BUNDLE) == version.encode():
            yield pq.read_table(path)


def _with_request(values: pa.Table, context: RequestContext, schema: Schema) -> pa.Table:
    n = len(values)
    table = values.append_column(columns.EVENT_TIMESTAMP, values[EVENT_TIME_US].cast(TIME))
    types = {field.name: field.type for field in schema.tables()["impressions"]}
    for field in schema.request_fields:
        value = context.scene_inputs.get(field.name)
        table = table.append_column(field.name, pa.array([value] * n, types[field.name]))
    return table
