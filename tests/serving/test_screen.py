"""What is seen of a long stage while it runs, and what stays of it."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from serving import screen


def seen(monkeypatch, unit: str | None, terminal: bool) -> str:
    printed = io.StringIO()
    shown = Console(file=printed, force_terminal=terminal, color_system=None, width=160)
    monkeypatch.setattr(screen, "console", shown)
    with screen.stage("pull", unit) as report:
        for done in (1000, 2000, 3000):
            time.sleep(0.1)
            report("some", done, 4000)
            time.sleep(0.1)
    return printed.getvalue()


def test_rows_are_told_with_their_rate_where_no_bar_is_seen(monkeypatch):
    text = seen(monkeypatch, "rows", terminal=False)
    found = re.fullmatch(r"✓ pull \((\d\.\d) s, 3,000 rows, ([\d,]+) rows/s\)\n", text)
    assert found and 3000 / (float(found[1]) + 0.06) < int(found[2].replace(",", "")) < 3000 / 0.6


def test_the_bar_shows_the_rate_too(monkeypatch):
    bar = seen(monkeypatch, "rows", terminal=True).rpartition("✓")[0]
    assert re.search(r"some .*[1-9][\d,]* rows/s", bar)


def test_of_other_units_there_is_no_rate(monkeypatch):
    assert "/s" not in seen(monkeypatch, None, terminal=True)
