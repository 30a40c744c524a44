"""Behaviour statistics as of a time: how often a key was shown, clicked and ordered in the days before, and the state
that a user's last clicks left behind.

A count changes when an event enters its window and when it leaves it; both moments are rounded up to the next midnight
(UTC), so a row per change day says all there is, and the newest row at or before T counts events strictly before T
only. An event enters at its *outcome* time, because an impression without an outcome says nothing yet.
State (`user_state`) changes with every click and is stamped with the next full second after it: a join at the very
moment of the click does not see it, and online stores, which keep whole seconds, agree with offline ones to the edge.

A log that grew, or was corrected, is counted from its first changed day on (`counted`): rows up to that midnight stay,
and those after it need the events of the longest window before it alone. State is written anew: it is one row a click.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import duckdb

from feature_repo import columns, counted, like_minded
from feature_repo.datasets.schema import Schema
from feature_repo.files import state_of
from feature_repo.sql import text
from feature_repo.workspace import Workspace

USER_STATE = "user_state"
MIDNIGHT = '"its midnight"'  # a column that no log has
USER_STATE_PUSH = "user_state_push"  # Feast's push source of that view


def table_of(owner: str) -> str:
    """The source table of one owner's statistics."""
    return f"{owner}_stats"


def build(
    workspace: Workspace, progress: Callable[[str], None] = lambda table: None, before: Path | None = None
) -> list[Path]:
    """Have the statistics that the schema keeps, and `user_state`, beside the source tables. Returns their files.

    Args:
        before: the folder of what was counted last; None: it is there already.
    """
    last = before or workspace.sources
    schema = Schema.load(workspace.schema)
    told = (schema.statistics, schema.window_days, schema.like_minded)
    keys = (columns.STATISTICS, columns.COUNTS, columns.RECENT_LENGTH)
    made_by = counted.made_by(
        (Path(module) for module in (__file__, like_minded.__file__, counted.__file__)), told, keys
    )
    files = [workspace.source(name) for name in _tables(schema)]
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        _load_events(db, workspace, schema)
        days, known = counted.days_of(db), counted.before(last, made_by)
        since = None if known is None else counted.first_change(known.days, days)
        if known is not None and since is None:
            for name in (*(file.name for file in files), counted.NOTE):
                os.replace(last / name, workspace.sources / name)
            return files
        (workspace.sources / counted.NOTE).unlink(missing_ok=True)
        for table, file in zip(_tables(schema), files, strict=True):
            progress(table)
            _write(db, _query(db, table, schema, last / file.name, since), file)
    counted.Counted(made_by=made_by, days=days, files=state_of(files)).save(workspace.sources)
    return files


@contextmanager
def carried(workspace: Workspace) -> Iterator[Path]:
    """A folder with the statistics, and what they were counted from, while the source tables change.

    Not among the source tables, where nobody could tell them from those of the new log if counting broke off.
    """
    names = [counted.NOTE, *(f"{table_of(owner)}.parquet" for owner in columns.STATISTICS)]
    names += [f"{name}.parquet" for name in (like_minded.TABLE, USER_STATE)]
    workspace.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workspace.root, prefix=".carried-") as name:
        for file in (workspace.sources / name for name in names):
            if file.is_file():
                shutil.copy2(file, name)
        yield Path(name)


def _tables(schema: Schema) -> list[str]:
    """The tables that a dataset's statistics are kept in."""
    company = [like_minded.TABLE] if schema.like_minded else []
    return [*(table_of(owner) for owner in schema.statistics), *company, USER_STATE]


def _query(db: duckdb.DuckDBPyConnection, table: str, schema: Schema, file: Path, since: datetime | None) -> str:
    """All rows of a table; those up to `since` are in its file already."""
    if table == USER_STATE:
        return state_sql()
    if table == like_minded.TABLE:
        return like_minded.create(db, max(schema.window_days), file, since)
    owner = table.removesuffix("_stats")
    query = counts_sql(owner, columns.STATISTICS[owner], schema.window_days, since)
    if since is None:
        return query
    kept = f"SELECT * FROM read_parquet({text(str(file))}) WHERE {columns.EVENT_TIMESTAMP} <= '{since}'"
    return f"{kept} UNION ALL ({query})"


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


def counts_sql(owner: str, keys: Sequence[str], window_days: Sequence[int], since: datetime | None = None) -> str:
    """Rows (keys, event_timestamp, counts per window), one a key and day on which any count changes.

    A key of nothing (a POI without a specialty) has no rows.

    Args:
        since: a midnight (UTC); only rows after it. What entered its longest window by then has left it by the next.
    """
    entered = f"AND {MIDNIGHT} > TIMESTAMPTZ '{since - timedelta(days=max(window_days))}'" if since else ""
    after = f"WHERE {columns.EVENT_TIMESTAMP} > TIMESTAMPTZ '{since}'" if since else ""
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
                f"SELECT {key}, {MIDNIGHT} + INTERVAL {shift} DAY AS moment, {days} AS window_days, {deltas} FROM e"
            )
    return f"""
        WITH e AS (SELECT *, date_trunc('day', {columns.OUTCOME_TIMESTAMP}) + INTERVAL 1 DAY AS {MIDNIGHT} FROM events
                   WHERE {" AND ".join(f"{name} IS NOT NULL" for name in keys)} {entered}),
        moments AS ({" UNION ALL ".join(moments)}),
        changes AS (SELECT {key}, moment, {", ".join(sums)} FROM moments GROUP BY {key}, moment),
        counts AS (
            SELECT {key}, moment AS {columns.EVENT_TIMESTAMP}, moment AS {columns.CREATED_TIMESTAMP},
                   {", ".join(running)}
            FROM changes WINDOW so_far AS (PARTITION BY {key} ORDER BY moment))
        SELECT * FROM counts {after} ORDER BY {columns.EVENT_TIMESTAMP}, {key}"""


def state_sql() -> str:
    """Rows of `user_state`, one a user and second with clicks: the last POIs, newest first, and what the last was.

    A function of the set of (time, POI) alone, so that a stream of clicks, which has no row numbers, ends in the same
    state (`streaming.state`): of two clicks at one time the later POI id is the newer, and the same click twice is one.
    """
    click = columns.OUTCOME_TIMESTAMP
    knowable = f"date_trunc('second', {click}) + INTERVAL 1 SECOND"
    so_far = f"PARTITION BY {columns.USER_ID} ORDER BY {click}, {columns.POI_ID}"
    window = f"{so_far} ROWS BETWEEN {columns.RECENT_LENGTH - 1} PRECEDING AND CURRENT ROW"
    return f"""
        WITH clicks AS (
            SELECT {columns.USER_ID}, {click}, {columns.POI_ID}, {columns.CATEGORY}, {columns.SPECIALTY},
                   max("{columns.ORDER}") AS "{columns.ORDER}"
            FROM events WHERE {columns.CLICK} = 1 GROUP BY ALL),
        state AS (
            SELECT {columns.USER_ID}, {knowable} AS {columns.EVENT_TIMESTAMP},
                   {knowable} AS {columns.CREATED_TIMESTAMP},
                   list_reverse(list({columns.POI_ID}) OVER ({window})) AS {columns.RECENT_POIS},
                   list_reverse(list(epoch_us({click})) OVER ({window})) AS {columns.RECENT_TIMES},
                   {columns.CATEGORY} AS {columns.LAST_CATEGORY}, {columns.SPECIALTY} AS {columns.LAST_SPECIALTY},
                   max(CASE WHEN "{columns.ORDER}" = 1 THEN epoch_us({click}) END) OVER ({so_far})
                       AS {columns.LAST_ORDER_TIME},
                   row_number() OVER (PARTITION BY {columns.USER_ID}, {knowable}
                                      ORDER BY {click} DESC, {columns.POI_ID} DESC) AS newest
            FROM clicks)
        SELECT * EXCLUDE (newest) FROM state WHERE newest = 1 ORDER BY {columns.EVENT_TIMESTAMP}, {columns.USER_ID}"""


def _write(db: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    staging = path.with_suffix(".partial")
    db.execute(f"COPY ({query}) TO {text(str(staging))} (FORMAT parquet, COMPRESSION zstd)")
    os.replace(staging, path)
