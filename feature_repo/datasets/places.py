"""Where a user probably is, judged only from the check-ins strictly before: never from the venue being chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import polars as pl

from feature_repo import columns

CELL_DEGREES = 0.02  # about 2 km: one area


@dataclass(frozen=True)
class Visit:
    """One check-in's time, coordinates in degrees, and locality."""

    time: datetime
    latitude: float
    longitude: float
    locality: str | None


Place = tuple[float | None, float | None, str | None]


@dataclass
class Trail:
    """One user's earlier visits, in time order."""

    visits: list[Visit] = field(default_factory=list)
    areas: dict[tuple[int, int], list[Visit]] = field(default_factory=dict)
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, visit: Visit) -> None:
        cell = (int(visit.latitude // CELL_DEGREES), int(visit.longitude // CELL_DEGREES))
        self.visits.append(visit)
        self.areas.setdefault(cell, []).append(visit)
        self.counts[cell] += 1

    def place(self, moment: datetime, recent: timedelta) -> Place:
        """Latitude, longitude and locality: the last visit's if recent, else of the most visited area."""
        if not self.visits:
            return None, None, None
        last = self.visits[-1]
        if moment - last.time <= recent:
            return last.latitude, last.longitude, last.locality
        area = self.areas[self.counts.most_common(1)[0][0]]
        return (
            sum(v.latitude for v in area) / len(area),
            sum(v.longitude for v in area) / len(area),
            area[-1].locality,
        )


def request_places(checkins: pl.DataFrame, recent: timedelta) -> pl.DataFrame:
    """For n check-ins in time order: the `latitude`, `longitude` and `landmark` of the user's place, or nulls.

    Check-ins of one user in one minute do not see each other.
    """
    trails: dict[str, Trail] = {}
    waiting: dict[str, list[Visit]] = {}
    places: list[Place] = []
    fields = checkins.select("user_id", columns.EVENT_TIMESTAMP, "latitude", "longitude", "locality")
    for user, time, latitude, longitude, locality in fields.iter_rows():
        trail, pending = trails.setdefault(user, Trail()), waiting.setdefault(user, [])
        if pending and pending[0].time < time:
            for visit in pending:
                trail.add(visit)
            pending.clear()
        places.append(trail.place(time, recent))
        pending.append(Visit(time, latitude, longitude, locality))
    schema = {columns.LATITUDE: pl.Float64, columns.LONGITUDE: pl.Float64, "landmark": pl.String}
    return pl.DataFrame(places, schema=schema, orient="row")
