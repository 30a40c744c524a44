"""Check-ins as a ranking task: where does this user go next, out of all venues?

Nothing looks ahead: whatever is asked about a check-in sees those that were known (a minute after they happened) at its
time, and the user's probable place as the data set tells it, never that of the venue that was chosen.

Letters: n check-ins of the log in time order, B of them that are asked about, V venues.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.experiments.slices import ALL
from feature_repo import columns, geo
from feature_repo.datasets.schema import TIME, Schema
from feature_repo.scenes import daypart_keys
from feature_repo.workspace import Workspace

DAY_US = 86_400_000_000
CUTOFF = 10  # HR@10 and NDCG@10
MEASURES = ("hr", "ndcg")
VISITED = "venues visited before"
NEW = "venues new to the user"
NEW_AMONG_ALL = "venues new to the user, ranked among known ones too"
SLICES = (ALL, VISITED, NEW, NEW_AMONG_ALL)


@dataclass(frozen=True)
class CheckIns:
    """A log of check-ins with its venues.

    Attributes:
        user, venue, daypart: codes, int64 (n,).
        time_us, known_us: when it happened and from when on it was known, int64 (n,), UTC.
        place: where the user probably was before, degrees, float64 (n, 2); NaN where nothing tells.
        venues: ids; venue_place: degrees, float64 (V, 2); venue_kind: code of the category, int64 (V,).
        rows: of the source table of impressions, (n,).
    """

    user: np.ndarray
    venue: np.ndarray
    daypart: np.ndarray
    time_us: np.ndarray
    known_us: np.ndarray
    place: np.ndarray
    venues: pa.Array = field(repr=False)
    venue_place: np.ndarray = field(repr=False)
    venue_kind: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)

    def part(self, schema: Schema, name: str) -> np.ndarray:
        """The check-ins of a part, int64 (B,)."""
        start, end = schema.split.bounds(name)
        first = 0 if start is None else int(start.timestamp() * 1e6)
        inside = (self.time_us >= first) & (self.time_us < int(end.timestamp() * 1e6))
        return np.flatnonzero(inside)

    def before(self, at: int) -> np.ndarray:
        """All check-ins that were known at the time of check-in `at`."""
        return self._by_knowledge[: np.searchsorted(self._known, self.time_us[at], side="right")]

    def own_before(self, at: int) -> np.ndarray:
        """Those of them that are the user's own."""
        mine = self._of_user[self.user[at]]
        return mine[self.known_us[mine] <= self.time_us[at]]

    @cached_property
    def visited(self) -> np.ndarray:
        """Whether the user had been to the venue before, bool (n,)."""
        return np.array([self.venue[at] in self.venue[self.own_before(at)] for at in range(len(self.user))])

    def distance_km(self, rows: np.ndarray) -> np.ndarray:
        """From the user's probable place to every venue, (B, V); NaN where nothing tells the place."""
        here, there = self.place[rows][:, None], self.venue_place[None]
        return geo.distance_km(here[..., 0], here[..., 1], there[..., 0], there[..., 1])

    @cached_property
    def _by_knowledge(self) -> np.ndarray:
        return np.argsort(self.known_us, kind="stable")

    @cached_property
    def _known(self) -> np.ndarray:
        return self.known_us[self._by_knowledge]

    @cached_property
    def _of_user(self) -> list[np.ndarray]:
        order = np.argsort(self.user, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.user))[:-1])


def read(workspace: Workspace) -> CheckIns:
    """The clicked impressions of a workspace, in time order."""
    schema = Schema.load(workspace.schema)
    log = pq.read_table(workspace.source("impressions"))
    rows = np.flatnonzero(log[columns.CLICK].to_numpy())
    rows = rows[np.argsort(log[columns.EVENT_TIMESTAMP].cast(TIME).cast(pa.int64()).to_numpy()[rows], kind="stable")]
    log = log.take(pa.array(rows)).combine_chunks()
    pois = pq.read_table(workspace.source("pois")).combine_chunks()
    ids = pois[columns.POI_ID].combine_chunks()
    times, known = (
        log[name].cast(TIME).cast(pa.int64()).to_numpy()
        for name in (columns.EVENT_TIMESTAMP, columns.OUTCOME_TIMESTAMP)
    )
    return CheckIns(
        user=_codes(log[columns.USER_ID].to_numpy()),
        venue=pc.index_in(log[columns.POI_ID], value_set=ids).to_numpy().astype(np.int64),
        daypart=_codes(np.array(daypart_keys(times, schema.timezone))),
        time_us=times,
        known_us=known,
        place=_degrees(log, columns.LATITUDE, columns.LONGITUDE),
        venues=ids,
        venue_place=_degrees(pois, columns.POI_LATITUDE, columns.POI_LONGITUDE),
        venue_kind=_codes(pois[columns.CATEGORY].to_numpy()),
        rows=rows,
    )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How B check-ins order V venues: by `first`, and where that is equal by `then`; float64 (B, V) each."""

    first: np.ndarray
    then: np.ndarray

    def ranks(self, venue: np.ndarray, *allowed: np.ndarray) -> list[np.ndarray]:
        """How many venues stand before the chosen one, float64 (B,); half of those that equal it count.

        Args:
            venue: int64 (B,), the chosen ones.
            allowed: bool (B, V), each: which venues are ranked at all.
        """
        own = np.arange(len(venue)), venue
        first, then = self.first[own][:, None], self.then[own][:, None]
        tied = self.first == first
        before = (self.first > first) | (tied & (self.then > then))
        tied &= self.then == then
        tied[own] = False
        return [(before & of).sum(axis=1) + (tied & of).sum(axis=1) / 2 for of in allowed]


def gains(rank: np.ndarray, cutoff: int = CUTOFF) -> dict[str, np.ndarray]:
    """What each of B check-ins with the answer at this rank (0: first) adds to HR and NDCG, float64 (B,) each."""
    hit = rank < cutoff
    return {"hr": hit.astype(np.float64), "ndcg": np.where(hit, 1 / np.log2(np.where(hit, rank, 0) + 2), 0.0)}


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where the answers of B check-ins stand: among all venues, and among those that are new to the user.

    `among_new` is NaN for a venue that is not.
    """

    among_all: np.ndarray
    among_new: np.ndarray

    def of(self, at: str) -> np.ndarray:
        """The ranks that count in a slice, float64 (B,); NaN for check-ins that are not in it."""
        new = ~np.isnan(self.among_new)
        found = {
            ALL: self.among_all,
            VISITED: np.where(new, np.nan, self.among_all),
            NEW: self.among_new,
            NEW_AMONG_ALL: np.where(new, self.among_all, np.nan),
        }
        return found[at]


def new_venues(log: CheckIns, rows: np.ndarray) -> np.ndarray:
    """Where the user has not been before each check-in, bool (B, V)."""
    new = np.ones((len(rows), len(log.venues)), dtype=bool)
    for at, row in enumerate(rows):
        new[at, log.venue[log.own_before(row)]] = False
    return new


def ranks_of(scores: Scores, log: CheckIns, rows: np.ndarray, new: np.ndarray) -> Ranks:
    """Ranks of full scores; `new` as of `new_venues`."""
    among_all, among_new = scores.ranks(log.venue[rows], np.ones_like(new), new)
    return Ranks(among_all=among_all, among_new=np.where(log.visited[rows], np.nan, among_new))


def mean_gains(ranks: Ranks) -> dict[str, dict[str, float]]:
    """HR and NDCG of every slice."""
    found = {}
    for at in SLICES:
        rank = ranks.of(at)
        found[at] = {name: float(gain.mean()) for name, gain in gains(rank[~np.isnan(rank)]).items()}
    return found


def _codes(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.unique(values.astype(str), return_inverse=True)[1]
    return found.astype(np.int64)


def _degrees(table: pa.Table, latitude: str, longitude: str) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in (latitude, longitude)], axis=1).astype(np.float64)
