"""What a user's clicks leave behind, `user_state`, as a function of the set of clicks and of nothing else.

The order in which clicks arrive does not matter, nor that one arrives twice: merging is a union of sets. So the value
equals the one that `aggregates.state_sql` computes from the whole log, and a batch of clicks can be merged again after
a crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from feature_repo import columns
from feature_repo.stores.layout import SECOND_US
from feature_repo.streaming.click import Click


@dataclass(frozen=True)
class Kind:
    """What sort of place a POI is; None where it has no such word."""

    category: str | None
    specialty: str | None


@dataclass(frozen=True, kw_only=True)
class UserState:
    """The columns of `user_state`.

    Attributes:
        recent: (microseconds UTC, POI) of the last `columns.RECENT_LENGTH` clicks, newest first; of two at one time
            the one with the later id.
        last: kind of the first of them.
        last_order_us: time of the newest click that ended in an order.
    """

    recent: tuple[tuple[int, str], ...] = ()
    last: Kind = Kind(None, None)
    last_order_us: int | None = None

    @property
    def event_us(self) -> int:
        """From when on it holds: the next full second after its newest click, as in the log's own statistics."""
        return (self.recent[0][0] // SECOND_US + 1) * SECOND_US

    def after(self, clicks: Sequence[Click], kinds: Mapping[str, Kind]) -> UserState:
        """With clicks of this user, late ones and repeated ones among them.

        Args:
            kinds: of the POIs of these clicks.
        """
        new = {(click.time_us, click.poi_id) for click in clicks}
        recent = tuple(sorted({*self.recent, *new}, reverse=True)[: columns.RECENT_LENGTH])
        newest = recent[0]
        orders = _present([self.last_order_us, *(click.time_us for click in clicks if click.ordered)])
        return replace(
            self,
            recent=recent,
            last=kinds[newest[1]] if newest in new else self.last,
            last_order_us=max(orders, default=None),
        )

    def row(self) -> dict[str, object]:
        """The view's columns."""
        return {
            columns.RECENT_POIS: [poi for _, poi in self.recent],
            columns.RECENT_TIMES: [time for time, _ in self.recent],
            columns.LAST_CATEGORY: self.last.category,
            columns.LAST_SPECIALTY: self.last.specialty,
            columns.LAST_ORDER_TIME: self.last_order_us,
        }

    @staticmethod
    def of(row: Mapping[str, object]) -> UserState:
        """The inverse of `row`; a user without a state has nulls."""
        times, pois = row[columns.RECENT_TIMES] or (), row[columns.RECENT_POIS] or ()
        category, specialty, order = (
            row[name] for name in (columns.LAST_CATEGORY, columns.LAST_SPECIALTY, columns.LAST_ORDER_TIME)
        )
        return UserState(
            recent=tuple(zip(times, pois, strict=True)),  # type: ignore[call-overload]  # lists of the store
            last=Kind(category, specialty),  # type: ignore[arg-type]
            last_order_us=order,  # type: ignore[arg-type]
        )


def _present(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]
