"""What needs no learning: orders of venues by the user's own check-ins, by popularity and by nearness.

Each has variants (how fast the past fades, what another part of the day counts, how far "near" is), of which the
validation part chooses, for each slice and measure on its own, so that the bar is no straw man.

Letters: B check-ins that are asked about, V venues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from benchmarks.experiments.check_ins.log import (
    DAY_US,
    MEASURES,
    SLICES,
    CheckIns,
    Ranks,
    Scores,
    mean_gains,
    new_venues,
    ranks_of,
)

FOREVER = float("inf")
UNSEEN = 0.1  # what a venue that nobody has been to yet counts as, in check-ins
OWN_HALF_LIVES = (30.0, 60.0, 120.0, FOREVER)
POPULAR_HALF_LIVES = (30.0, 90.0, FOREVER)
ELSEWHEN = (0.01, 0.1, 0.3)
SCALES_KM = (0.125, 0.25, 0.5, 1.0, 2.0)
FALLBACK = (90.0, 0.1)  # half-life and `elsewhen` of the popularity that follows the user's own venues

OWN = "own history"
OWN_DAYPART = "own history by part of day"
OWN_NEARBY = "own history by part of day, then nearby popularity"
NEARBY_DAYPART = "distance-decayed popularity by part of day"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One variant.

    Args:
        own_half_life_days: after which a check-in of the user's own counts half; None: they do not count.
        own_elsewhen: what one of another part of the day counts, against 1 of the same; 1 makes no difference.
        half_life_days, elsewhen: the same of everybody's, by which the venues are ordered that the own ones do not
            tell apart.
        scale_km: everybody's are multiplied by exp(-distance / scale); None leaves the distance out.
    """

    own_half_life_days: float | None = None
    own_elsewhen: float = 1.0
    half_life_days: float = FOREVER
    elsewhen: float = 1.0
    scale_km: float | None = None


class Asked:
    """Check-ins that are asked about, with what several variants share."""

    def __init__(self, log: CheckIns, rows: np.ndarray) -> None:
        self.log, self.rows = log, rows
        self._kept: dict[object, np.ndarray] = {}

    def scores(self, baseline: Baseline) -> Scores:
        b = baseline
        popular = self._counts(self.log.before, b.half_life_days, b.elsewhen)
        if b.scale_km is not None:
            popular = (popular + UNSEEN) * self._nearness(b.scale_km)
        if b.own_half_life_days is None:
            return Scores(first=popular, then=np.zeros_like(popular))
        own = self._counts(self.log.own_before, b.own_half_life_days, b.own_elsewhen)
        return Scores(first=own, then=popular)

    def ranks(self, baseline: Baseline) -> Ranks:
        new = self._once("new", lambda: new_venues(self.log, self.rows))
        return ranks_of(self.scores(baseline), self.log, self.rows, new)

    def _counts(self, seen: Callable[[int], np.ndarray], half_life_days: float, elsewhen: float) -> np.ndarray:
        """Faded check-ins at every venue, (B, V), those of other parts of the day times `elsewhen`."""
        all_day = self._once((seen.__name__, half_life_days), partial(self._visits, seen, half_life_days, False))
        if elsewhen == 1.0:
            return all_day
        same = self._once((seen.__name__, half_life_days, "same"), partial(self._visits, seen, half_life_days, True))
        return elsewhen * all_day + (1.0 - elsewhen) * same

    def _visits(self, seen: Callable[[int], np.ndarray], half_life_days: float, same_daypart: bool) -> np.ndarray:
        log = self.log
        faded = 0.5 ** ((log.time_us.max() - log.time_us) / DAY_US / half_life_days)
        counts = np.zeros((len(self.rows), len(log.venues)))
        for at, row in enumerate(self.rows):
            rows = seen(row)
            if same_daypart:
                rows = rows[log.daypart[rows] == log.daypart[row]]
            counts[at] = np.bincount(log.venue[rows], weights=faded[rows], minlength=len(log.venues)) / faded[row]
        return counts

    def _nearness(self, scale_km: float) -> np.ndarray:
        km = self._once("km", lambda: self.log.distance_km(self.rows))
        # A request without a place has no near and far.
        return np.nan_to_num(np.exp(-km / scale_km), nan=1.0)

    def _once(self, key: object, make: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def variants() -> dict[str, list[Baseline]]:
    """Name -> the variants of each baseline."""
    return {
        OWN: [Baseline(own_half_life_days=days) for days in OWN_HALF_LIVES],
        OWN_DAYPART: [Baseline(own_half_life_days=d, own_elsewhen=e) for d, e in product(OWN_HALF_LIVES, ELSEWHEN)],
        OWN_NEARBY: [
            Baseline(own_half_life_days=d, own_elsewhen=e, half_life_days=FALLBACK[0], elsewhen=FALLBACK[1], scale_km=s)
            for d, e, s in product(OWN_HALF_LIVES, ELSEWHEN, SCALES_KM)
        ],
        NEARBY_DAYPART: [
            Baseline(half_life_days=d, elsewhen=e, scale_km=s)
            for d, s, e in product(POPULAR_HALF_LIVES, SCALES_KM, ELSEWHEN)
        ],
    }


Question = tuple[str, str]  # slice, measure


def questions() -> Iterator[Question]:
    return product(SLICES, MEASURES)


def chosen(valid: Asked, names: Sequence[str]) -> dict[str, dict[Question, Baseline]]:
    """Baseline -> slice and measure -> the variant that is best there on the validation part."""
    found = {}
    for name in names:
        of_one = variants()[name]
        told = [mean_gains(valid.ranks(variant)) for variant in of_one]
        best = {(at, m): int(np.argmax([means[at][m] for means in told])) for at, m in questions()}
        found[name] = {question: of_one[at] for question, at in best.items()}
    return found
