"""Pairs of a check-in and a venue that it may lead to: found as a server would find candidates, pulled as it trains.

Candidates of a check-in are all venues where the user was before, then, taken in turn, the best of: popular venues
nearby, venues around the user's own ones, venues of the kinds that the user has gone to, and popular ones anywhere (all
as of this part of the day). A venue that nobody has been to yet is not known and cannot be found.

Rankers are trained on draws: all of the user's own venues, and some of the other candidates. A candidate that is drawn
with probability q stands for 1 / q of them (`trainers.losses.list_softmax`); `PROPENSITY` holds q. A check-in whose
venue is no candidate teaches nothing: its venue would be the only far one, and to be far would be a good sign.

Letters: B check-ins, V venues.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from benchmarks.experiments.check_ins.log import DAY_US, CheckIns
from benchmarks.experiments.check_ins.rules import UNSEEN
from feature_repo import columns, geo

CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How candidates are found.

    Args:
        size: candidates of a check-in where the user has not been; those where the user was come on top.
        drawn: how many of the other candidates are drawn for training.
        half_life_days, elsewhen: of popularity, as in `rules.Baseline`.
        near_km, own_km, kind_km: scales of nearness to the probable place, to the user's own venues, and to the
            probable place for venues of the user's kinds.
    """

    size: int = 300
    drawn: int = 40
    half_life_days: float = 90.0
    elsewhen: float = 0.1
    near_km: float = 0.25
    own_km: float = 0.5
    kind_km: float = 2.0


@dataclass(frozen=True)
class Pairs:
    """Flat: which of the B check-ins, which venue, whether the user was there before, and q; (k,) each."""

    check_in: np.ndarray
    venue: np.ndarray
    known: np.ndarray
    q: np.ndarray


def candidates(log: CheckIns, rows: np.ndarray, retrieval: Retrieval) -> Pairs:
    """Candidates of B check-ins, with the q of training."""
    return _joined(
        [_flat(start, own | others, own, others, retrieval) for start, own, others in found(log, rows, retrieval)]
    )


def drawn(log: CheckIns, rows: np.ndarray, retrieval: Retrieval, rng: np.random.Generator) -> Pairs:
    """Training pairs of B check-ins; those whose venue is no candidate have none."""
    parts = []
    for start, own, others in found(log, rows, retrieval):
        chosen = np.zeros_like(own)
        chosen[np.arange(len(own)), log.venue[rows[start : start + len(own)]]] = True
        taken = own | _draw(others, retrieval.drawn, rng) | chosen
        taken[~(chosen & (own | others)).any(axis=1)] = False
        parts.append(_flat(start, taken, own, others, retrieval))
    return _joined(parts)


def spine(log: CheckIns, rows: np.ndarray, pairs: Pairs, impressions: pa.Table) -> pa.Table:
    """Rows of the shape of `impressions`, one a pair: its check-in's moment with another venue, clicked if chosen.

    Row ids number the pairs; positions are unknown.
    """
    of_pair = rows[pairs.check_in]
    table = impressions.take(pa.array(log.rows[of_pair])).combine_chunks()
    click = (pairs.venue == log.venue[of_pair]).astype(np.int8)
    values = {
        columns.ROW_ID: pa.array(np.arange(len(of_pair))),
        columns.POI_ID: log.venues.take(pa.array(pairs.venue)),
        columns.CLICK: pa.array(click),
        columns.POSITION: pa.nulls(len(of_pair), pa.int32()),
        columns.PROPENSITY: pa.array(pairs.q.astype(np.float64)),
    }
    for name, array in values.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), array)
    return table


def found(log: CheckIns, rows: np.ndarray, retrieval: Retrieval) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """A chunk at a time: its first check-in, and masks (b, V) of own venues and of other candidates."""
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        own, known = (np.zeros((len(chunk), len(log.venues)), dtype=bool) for _ in range(2))
        for at, row in enumerate(chunk):
            own[at, log.venue[log.own_before(row)]] = True
            known[at, log.venue[log.before(row)]] = True
        scores = np.where(known & ~own, np.stack(list(_sources(log, chunk, retrieval))), -np.inf)
        # In turn: the best of the first source, of the second ..., the second best of the first ...
        place = np.argsort(np.argsort(-scores, axis=2, kind="stable"), axis=2, kind="stable")
        turn = (place * len(scores) + np.arange(len(scores))[:, None, None]).min(axis=0)
        turn[own | ~known] = np.iinfo(np.int64).max
        others = np.zeros_like(own)
        np.put_along_axis(others, np.argsort(turn, axis=1, kind="stable")[:, : retrieval.size], True, axis=1)
        yield start, own, others & known & ~own


def _draw(of: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` venues of each row's mask, at random."""
    lot = np.where(of, rng.random(of.shape), np.inf)
    drawn = np.zeros_like(of)
    np.put_along_axis(drawn, np.argpartition(lot, count, axis=1)[:, :count], True, axis=1)
    return drawn & of


def _flat(start: int, taken: np.ndarray, own: np.ndarray, others: np.ndarray, retrieval: Retrieval) -> Pairs:
    check_in, venue = np.nonzero(taken)
    share = np.minimum(1.0, retrieval.drawn / np.maximum(others.sum(axis=1), 1))
    known = own[check_in, venue]
    return Pairs(start + check_in, venue, known, np.where(known, 1.0, share[check_in]))


def _joined(parts: list[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Pairs)))


def _sources(log: CheckIns, rows: np.ndarray, retrieval: Retrieval) -> Iterator[np.ndarray]:
    """Scores (B, V) of each source."""
    kinds = int(log.venue_kind.max()) + 1
    popular = np.zeros((len(rows), len(log.venues)))
    around, liked = np.zeros_like(popular), np.zeros((len(rows), kinds))
    there = log.venue_place
    km = geo.distance_km(there[:, None, 0], there[:, None, 1], there[None, :, 0], there[None, :, 1])
    beside = np.exp(-km / retrieval.own_km)
    faded = 0.5 ** ((log.time_us.max() - log.time_us) / DAY_US / retrieval.half_life_days)
    for at, row in enumerate(rows):
        seen, mine = log.before(row), log.own_before(row)
        weight = [
            faded[of] * np.where(log.daypart[of] == log.daypart[row], 1.0, retrieval.elsewhen) for of in (seen, mine)
        ]
        popular[at] = np.bincount(log.venue[seen], weights=weight[0], minlength=len(log.venues)) / faded[row]
        around[at] = beside[log.venue[mine]].sum(axis=0)
        liked[at] = np.bincount(log.venue_kind[log.venue[mine]], weights=weight[1], minlength=kinds) / faded[row]
    popular += UNSEEN
    here = log.distance_km(rows)
    yield popular * np.nan_to_num(np.exp(-here / retrieval.near_km), nan=1.0)
    yield popular * (around + 1e-9)
    yield popular * (liked[:, log.venue_kind] + 1e-9) * np.nan_to_num(np.exp(-here / retrieval.kind_km), nan=1.0)
    yield popular
