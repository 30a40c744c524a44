"""Behaviour statistics as of a time: how often a key was shown, clicked and ordered in the days before, and the state
that a user's last clicks left behind.

A count changes when an event enters its window and when it leaves it; both moments are rounded up to the next midnight
(UTC), so a row per change day says all there is, and the newest row at or before T counts events strictly before T
only. An event enters at its *outcome* time, because an impression without an outcome says nothing yet.
State (`user_state`) changes with every click and is stamped with the next full second after it: a join at the very
moment of the click does not see it, and online stores, which keep whole seconds, agree with offline ones to the edge.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb

from feature_repo import columns, like_minded
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace

USER_STATE = "user_state"
USER_STATE_PUSH = "user_state_push"  # Feast's push source of that view


def table_of(owner: str) -> str:
    """The source table of one owner's statistics."""
    return f"{owner}_stats"


def build(workspace: Workspace, progress: Callable[[str], None] = lambda table: None) -> list[Path]:
    """Write the statistics that the schema keeps, and `user_state`, beside the source tables."""
    schema = Schema.load(workspace.schema)
    written = []
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        _load_events(db, workspace, schema)
        for owner in schema.statistics:
            progress(table_of(owner))
            query = counts_sql(owner, columns.STATISTICS[owner], schema.window_days)
            written.append(_write(db, query, workspace.source(table_of(owner))))
        if schema.like_minded:
            progress(like_minded.TABLE)
            query = like_minded.create(db, max(schema.window_days))
            written.append(_write(db, query, workspace.source(like_minded.TABLE)))
        progress(USER_STATE)
        written.append(_write(db, state_sql(), workspace.source(USER_STATE)))
    return written


def _load_events(db: duckdb.DuckDBPyConnection, workspace: Workspace, schema: Schema) -> None:
    """Impressions with the keys that statistics need: the POI's kinds and the local part of the day."""
    from feature_repo.scenes import daypart_of_hour

    cases = " ".join(f"WHEN {hour} THEN '{daypart_of_hour(hour)}'" for hour in range(24))
    local_hour = f"hour(timezone('{schema.timezone}', i.{columns.EVENT_TIMESTAMP}))"
    db.execute(
        f"""CREATE TEMP TABLE events AS
        SELECT i.*, p.{columns.CATEGORY} AS {columns.CATEGORY_KEY}, p.{columns.SPECIALTY} AS {columns.SPECIALTY_KEY},
               p.{columns.CATEGORY}, p.{columns.SPECIALTY}, CASE {local_hour} {cases} END AS {columns.DAYPART_KEY}
        FROM read_parquet(?) i JOIN read_parquet(?) p USING ({columns.POI_ID})""",
        [str(workspace.source("impressions")), str(workspace.source("pois"))],
    )


def counts_sql(owner: str, keys: Sequence[str], window_days: Sequence[int]) -> str:
    """Rows (keys, event_timestamp, counts per window), one a key and day on which any count changes.

    A key of nothing (a POI without a specialty) has no rows.
    """
    key = ", ".join(keys)
    moments, sums, running = [], [], []
    names = {"impressions": "1", "clicks": columns.CLICK, "orders": f'"{columns.ORDER}"'}
    for days in window_days:
        for count in columns.COUNTS:
            name = columns.statistic(owner, count, days)
            sums.append(f"sum(CASE window_days WHEN {days} THEN {count} ELSE 0 END) AS {name}")
            running.append(f"(sum({name}) OVER so_far)::BIGINT AS {name}")
    for days in window_days:
        for sign, shift in (("", 0), ("-", days)):
            deltas = ", ".join(f"{sign}({names[c]})::BIGINT AS {c}" for c in columns.COUNTS)
            moments.append(
                f"SELECT {key}, midnight + INTERVAL {shift} DAY AS moment, {days} AS window_days, {deltas} FROM e"
            )
    return f"""
        WITH e AS (SELECT *, date_trunc('day', {columns.OUTCOME_TIMESTAMP}) + INTERVAL 1 DAY AS midnight FROM events
                   WHERE {" AND ".join(f"{name} IS NOT NULL" for name in keys)}),
        moments AS ({" UNION ALL ".join(moments)}),
        changes AS (SELECT {key}, moment, {", ".join(sums)} FROM moments GROUP BY {key}, moment)
        SELECT {key}, moment AS {columns.EVENT_TIMESTAMP}, moment AS {columns.CREATED_TIMESTAMP}, {", ".join(running)}
        FROM changes WINDOW so_far AS (PARTITION BY {key} ORDER BY moment) ORDER BY moment, {key}"""


def state_sql() -> str:
    """Rows of `user_state`, one a user and second with clicks: the last POIs, newest first, and what the last was."""
    click = columns.OUTCOME_TIMESTAMP
    knowable = f"date_trunc('second', {click}) + INTERVAL 1 SECOND"
    window = f"""PARTITION BY {columns.USER_ID} ORDER BY {click}, {columns.ROW_ID}
                 ROWS BETWEEN {columns.RECENT_LENGTH - 1} PRECEDING AND CURRENT ROW"""
    so_far = f"PARTITION BY {columns.USER_ID} ORDER BY {click}, {columns.ROW_ID}"
    return f"""
        WITH state AS (
            SELECT {columns.USER_ID}, {knowable} AS {columns.EVENT_TIMESTAMP},
                   {knowable} AS {columns.CREATED_TIMESTAMP},
                   list_reverse(list({columns.POI_ID}) OVER ({window})) AS {columns.RECENT_POIS},
                   list_reverse(list(epoch_us({click})) OVER ({window})) AS {columns.RECENT_TIMES},
                   {columns.CATEGORY} AS {columns.LAST_CATEGORY}, {columns.SPECIALTY} AS {columns.LAST_SPECIALTY},
                   max(CASE WHEN "{columns.ORDER}" = 1 THEN epoch_us({click}) END) OVER ({so_far})
                       AS {columns.LAST_ORDER_TIME},
                   row_number() OVER (PARTITION BY {columns.USER_ID}, {knowable}
                                      ORDER BY {click} DESC, {columns.ROW_ID} DESC) AS newest
            FROM events WHERE {columns.CLICK} = 1)
        SELECT * EXCLUDE (newest) FROM state WHERE newest = 1 ORDER BY {columns.EVENT_TIMESTAMP}, {columns.USER_ID}"""


def _write(db: duckdb.DuckDBPyConnection, query: str, path: Path) -> Path:
    staging = path.with_suffix(".partial")
    db.execute(f"COPY ({query}) TO '{staging}' (FORMAT parquet, COMPRESSION zstd)")
    os.replace(staging, path)
    return path
