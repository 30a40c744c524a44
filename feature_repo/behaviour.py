"""The shape that all views of behaviour statistics share: counts per window, written by `aggregates`."""

from datetime import timedelta

from feast import Entity, FeatureView, Field
from feast.types import Int64

from feature_repo import columns, sources
from feature_repo.aggregates import table_of

# A row says how things stood at a midnight and holds until the next one; without any row for this long there were no
# events in the longest window either, so the value has expired by its own meaning.
TTL = timedelta(days=max(sources.SCHEMA.window_days) + 1)


def statistics_view(owner: str, entities: list[Entity], description: str) -> FeatureView:
    """The view of one owner's counts."""
    names = [columns.statistic(owner, c, d) for d in sources.SCHEMA.window_days for c in columns.COUNTS]
    return FeatureView(
        name=table_of(owner),
        entities=entities,
        ttl=TTL,
        schema=[Field(name=name, dtype=Int64) for name in names],
        source=sources.table(table_of(owner)),
        tags={columns.FRESH_WITHIN: "26h"},  # counts change at midnight; two hours to compute them
        description=description,
    )


def kept_statistics_view(owner: str, entities: list[Entity], description: str) -> FeatureView | None:
    """The view of counts that not every dataset keeps; None where this one does not."""
    return statistics_view(owner, entities, description) if owner in sources.SCHEMA.statistics else None
