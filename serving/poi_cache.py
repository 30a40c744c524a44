"""Columns of many POIs in this process, read again and again from the online store so that none is older than a bound.

What belongs to a place alone is asked for with every request that ranks it and changes seldom. One thread reads all
places of interest in the background; requests take rows of what it read last, in time that does not depend on the
store. A place that was not read yet, or longer ago than the bound allows, is read from the store with the request, and
so is one that the store does not know: nothing is kept of it.
Where the store cannot be reached, the last values are there still, whatever their age.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from serving.online import Read, View

log = logging.getLogger(__name__)
CHUNK = 1000  # POIs of one background read: requests come in between
CAPACITY = 200_000
NEW = 10_000  # POIs that one background read takes up: callers can make up as many as they like
READS_A_BOUND = 3  # background reads in the time that a value may be old
Reader = Callable[[Sequence[View], Sequence[str]], list[Read]]


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """What was read of m POIs, each view with n features as columns of m values, nothing left out as too old.

    Attributes:
        row: POI -> its row. read_at: of the oldest row, by the monotonic clock.
        used: bool (m,), whether a request asked for it since it was read.
    """

    row: dict[str, int] = field(default_factory=dict)
    batches: tuple[pa.RecordBatch, ...] = ()
    times_us: tuple[np.ndarray, ...] = ()
    used: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    read_at: float = float("-inf")


class PoiCache:
    """The views of POIs; safe to call from threads.

    Args:
        views: keyed by the POI alone.
        read: views of POIs, straight from the store, without a time to live; may raise what the store raises.
        max_age_s: how long ago a value may have been read, above 0.
        first: POIs to read before any request asks for them.
        capacity: POIs that are kept; beyond it those that nobody asks for go first.
    """

    def __init__(
        self,
        views: Sequence[View],
        read: Reader,
        max_age_s: float,
        first: Iterable[str] = (),
        capacity: int = CAPACITY,
    ) -> None:
        if not max_age_s > 0:
            raise ValueError(f"values of POIs may be older than 0 s, not {max_age_s}: leave the cache out for none")
        self.views, self._read, self._max_age_s, self._capacity = tuple(views), read, max_age_s, capacity
        self._snapshot = _Snapshot()
        self._wanted = dict.fromkeys(first)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def age_s(self) -> float:
        """How long ago its oldest value was read; infinite before the first read."""
        return time.monotonic() - self._snapshot.read_at

    def start(self) -> None:
        """Read in the background from now on."""
        self._thread = threading.Thread(target=self._run, name="poi-cache", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the reading in the background."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)  # it is a daemon: one that hangs in a store keeps nobody

    def read(self, poi_ids: Sequence[str], at_us: int, *, reach: bool = True) -> list[Read]:
        """Every view of n POIs, as of a moment (microseconds UTC).

        Args:
            reach: whether the store may be asked; without, what was read last counts, whatever its age, and what never
                was is missing.
        """
        snapshot = self._snapshot
        row_of = snapshot.row
        rows = np.fromiter((row_of.get(poi_id, -1) for poi_id in poi_ids), dtype=np.int64, count=len(poi_ids))
        there = rows >= 0
        snapshot.used[rows[there]] = True
        self._want(_of(poi_ids, ~there))
        if reach and time.monotonic() - snapshot.read_at > self._max_age_s:
            there[:] = False
        fresh: Sequence[Read | None] = [None] * len(self.views)
        if reach and not there.all():
            fresh = self._read(self.views, _of(poi_ids, ~there))
        return [self._joined(at, snapshot, rows, there, fresh[at], at_us) for at in range(len(self.views))]

    def refresh(self) -> None:
        """Read all POIs of interest. Raises what the store raises, and then keeps what was there."""
        started, before = time.monotonic(), self._snapshot
        with self._lock:
            new, self._wanted = self._wanted, {}
        poi_ids = self._of_interest(before, new)
        try:
            parts = [self._read(self.views, poi_ids[at : at + CHUNK]) for at in range(0, len(poi_ids), CHUNK)]
        except Exception:
            with self._lock:
                self._wanted = new | self._wanted
            raise
        if parts:
            self._snapshot = self._kept(poi_ids, parts, started)

    def _kept(self, poi_ids: Sequence[str], parts: Sequence[Sequence[Read]], read_at: float) -> _Snapshot:
        """What the store knows of what was read, in parts of every view."""
        there = np.concatenate([np.any([read.times_us != 0 for read in part], axis=0) for part in parts])
        each = range(len(self.views))
        batches = (pa.concat_batches([_batch(part[at]) for part in parts]) for at in each)
        times_us = (np.concatenate([part[at].times_us for part in parts]) for at in each)
        return _Snapshot(
            row={poi_id: at for at, poi_id in enumerate(_of(poi_ids, there))},
            batches=tuple(batch.filter(pa.array(there)) for batch in batches),
            times_us=tuple(times[there] for times in times_us),
            used=np.zeros(int(there.sum()), dtype=bool),
            read_at=read_at,
        )

    def _of_interest(self, before: _Snapshot, new: Iterable[str]) -> list[str]:
        """What is kept and what is new; where that is too much, those that nobody asked for go first."""
        together = dict.fromkeys([*before.row, *new])
        if len(together) > self._capacity:
            idle = {poi_id for poi_id, at in before.row.items() if not before.used[at]}
            together = dict.fromkeys([*(poi_id for poi_id in together if poi_id not in idle), *together])
        return list(together)[: self._capacity]

    def _want(self, poi_ids: Iterable[str]) -> None:
        with self._lock:
            for poi_id in poi_ids:
                if len(self._wanted) >= NEW:
                    return
                self._wanted[poi_id] = None

    def _joined(
        self, at: int, snapshot: _Snapshot, rows: np.ndarray, there: np.ndarray, fresh: Read | None, at_us: int
    ) -> Read:
        """One view of n POIs: the rows that are there, the fresh ones for the others, and the time to live applied."""
        view, kept = self.views[at], snapshot.batches[at] if snapshot.batches else _nothing(self.views[at])
        times_us = np.zeros(len(rows), dtype=np.int64)
        times_us[there] = snapshot.times_us[at][rows[there]] if snapshot.batches else 0
        if fresh is not None:
            times_us[~there] = fresh.times_us
            # Of many that are kept few are wanted: only those are copied beside the fresh ones.
            kept = pa.concat_batches([kept.take(pa.array(rows[there])), _batch(fresh)])
            rows = np.where(there, np.cumsum(there), there.sum() + np.cumsum(~there)) - 1
        stale = (times_us != 0) & (view.ttl_us > 0) & (times_us < at_us - view.ttl_us)
        taken = kept.take(pa.array(rows, mask=stale | (rows < 0)))
        return Read(view=view, values=dict(zip(view.types, taken.columns, strict=True)), stale=stale, times_us=times_us)

    def _run(self) -> None:
        reached = True
        while not self._ending.is_set():
            started = time.monotonic()
            try:
                self.refresh()
                reached = True
            except Exception as error:
                if reached:
                    log.warning("POIs cannot be read again in the background: %s", type(error).__name__)
                reached = False
            took = time.monotonic() - started
            self._ending.wait(max(self._max_age_s / READS_A_BOUND - took, took))  # half of the time at most


def _of(poi_ids: Sequence[str], chosen: np.ndarray) -> list[str]:
    return [poi_ids[at] for at in np.flatnonzero(chosen).tolist()]


def _batch(read: Read) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([read.values[name] for name in read.view.types], list(read.view.types))


def _nothing(view: View) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, dtype) for dtype in view.types.values()], list(view.types))
