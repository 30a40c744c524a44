"""What statistics were last counted from, so that a log that grew is counted again from its first changed day on.

Beside the statistics lies `counted.json`: a digest of the events of each day (by outcome), one of the code that counted
them, and the state of each file that was written. A day that says something else, a file that is not as it was written,
and a run that broke off (which leaves no note) are all counted again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path

import duckdb

from feature_repo import columns
from feature_repo.files import state_of, write_whole

NOTE = "counted.json"
# All that any statistic depends on.
COUNTED = (
    *(columns.USER_ID, columns.POI_ID, columns.SCENARIO_ID, columns.CATEGORY_KEY, columns.SPECIALTY_KEY),
    *(columns.DAYPART_KEY, columns.CLICK, f'"{columns.ORDER}"', columns.OUTCOME_TIMESTAMP),
)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """
    Attributes:
        made_by: digest of the code, and of what it was told to count.
        days: date -> digest of the events whose outcome was on it.
        files: name -> size and time of its last change, of what was written.
    """

    made_by: str
    days: Mapping[str, str]
    files: Mapping[str, list[int]]

    def save(self, folder: Path) -> None:
        write_whole(folder / NOTE, json.dumps(asdict(self)))


def before(folder: Path, made_by: str) -> Counted | None:
    """What was counted last; None where it has to be counted from the beginning."""
    path = folder / NOTE
    if not path.is_file():
        return None
    found = Counted(**json.loads(path.read_text()))
    there = [path for path in (folder / name for name in found.files) if path.is_file()]
    same = found.made_by == made_by and found.files == state_of(there)
    return found if same else None


def first_change(old: Mapping[str, str], new: Mapping[str, str]) -> datetime | None:
    """The midnight (UTC) at which the first day begins that differs; None where all days are the same."""
    changed = [day for day in old.keys() | new.keys() if old.get(day) != new.get(day)]
    return datetime.combine(date.fromisoformat(min(changed)), time(), UTC) if changed else None


def days_of(db: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """The digest of each day of the table `events`, whatever the order of its rows."""
    rows = db.execute(
        f"""SELECT date_trunc('day', {columns.OUTCOME_TIMESTAMP})::DATE::VARCHAR,
                   count(*) || ' ' || sum(hash({", ".join(COUNTED)})::HUGEINT)
            FROM events GROUP BY ALL"""
    ).fetchall()
    return dict(rows)


def made_by(code: Iterable[Path], *told: object) -> str:
    """A digest of code, of what it was told, and of the engine, whose hashes are its own."""
    digest = hashlib.sha256(repr((duckdb.__version__, *told)).encode())
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()
