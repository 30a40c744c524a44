"""What people who go to the same places go to: how strongly a user's like-minded ones speak for a POI, week by week.

As of each Monday (UTC), from clicks whose outcome was known before, each user and POI counted once:

    score(u, p) = sum over other users v who clicked p of  |P_u and P_v| / sqrt(|P_u| |P_v|)

with P the POIs that a user clicked within the longest window of the dataset. A user keeps the best `KEPT` POIs; others,
and those of a user without company, have no row. A week's rows hold until the next week's.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import duckdb

from feature_repo import columns
from feature_repo.sql import text

TABLE = "like_minded"
WEEK = timedelta(days=7)
KEPT = 200
# A POI that more users went to says little of any two of them, and would pair all of them.
COMMON = 500
DIGITS = 6  # sums of parallel workers differ beyond


def create(
    db: duckdb.DuckDBPyConnection, window_days: int, file: Path | None = None, since: datetime | None = None
) -> str:
    """Fill the temporary table `TABLE` from the table `events`, and return a query of all its rows.

    Args:
        file, since: Mondays up to a midnight (UTC) are as this file has them; None: there is no such file.
    """
    db.execute(
        f"""CREATE OR REPLACE TEMP TABLE {TABLE} ({columns.USER_ID} VARCHAR, {columns.POI_ID} VARCHAR,
            {columns.EVENT_TIMESTAMP} TIMESTAMPTZ, {columns.CREATED_TIMESTAMP} TIMESTAMPTZ,
            {columns.LIKE_MINDED} DOUBLE)"""
    )
    first, last = db.execute(
        f"""SELECT date_trunc('week', min({columns.OUTCOME_TIMESTAMP})) + INTERVAL 7 DAY,
                   date_trunc('week', max({columns.OUTCOME_TIMESTAMP})) + INTERVAL 7 DAY
            FROM events WHERE {columns.CLICK} = 1"""
    ).fetchone() or (None, None)
    monday = first
    if since is not None and last is not None:
        sofar = f"FROM read_parquet({text(str(file))}) WHERE {columns.EVENT_TIMESTAMP} <= least($since, $last)"
        known = {"since": since, "last": last}
        db.execute(f"INSERT INTO {TABLE} BY NAME SELECT * {sofar}", known)
        newest = db.execute(f"SELECT max({columns.EVENT_TIMESTAMP}) {sofar}", known).fetchone()
        monday = newest[0] + WEEK if newest and newest[0] else first
    while monday is not None and last is not None and monday <= last:
        db.execute(f"INSERT INTO {TABLE} {scores_sql()}", {"monday": monday, "days": window_days})
        monday += WEEK
    return f"SELECT * FROM {TABLE} ORDER BY {columns.EVENT_TIMESTAMP}, {columns.USER_ID}, {columns.POI_ID}"


def scores_sql() -> str:
    """The rows of one Monday, with the parameters `monday` and `days`."""
    user, poi, known = columns.USER_ID, columns.POI_ID, columns.OUTCOME_TIMESTAMP
    return f"""
        WITH pairs AS (
            SELECT DISTINCT {user}, {poi} FROM events
            WHERE {columns.CLICK} = 1 AND {known} < $monday AND {known} >= $monday - to_days($days)),
        sizes AS (SELECT {user}, count(*) AS size FROM pairs GROUP BY {user}),
        telling AS (SELECT * FROM pairs QUALIFY count(*) OVER (PARTITION BY {poi}) <= {COMMON}),
        shared AS (
            SELECT a.{user}, b.{user} AS other, count(*) AS met
            FROM telling a JOIN telling b ON a.{poi} = b.{poi} AND a.{user} <> b.{user} GROUP BY ALL),
        alike AS (
            SELECT {user}, other, met / sqrt(s.size * o.size) AS weight
            FROM shared JOIN sizes s USING ({user}) JOIN sizes o ON o.{user} = other),
        scores AS (
            SELECT alike.{user}, pairs.{poi}, round(sum(weight), {DIGITS}) AS score
            FROM alike JOIN pairs ON pairs.{user} = other GROUP BY ALL)
        SELECT {user}, {poi}, $monday, $monday, score FROM scores
        QUALIFY row_number() OVER (PARTITION BY {user} ORDER BY score DESC, {poi}) <= {KEPT}"""
