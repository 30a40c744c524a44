"""The same loop on logs that are not ours: public ones, and one that came with nothing but a mapping file."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.choose import DATA_VARIABLE

LOG = "log.csv"
# The city's log under other names: what a stranger's export looks like.
NAMES = {
    columns.USER_ID: "guest",
    columns.POI_ID: "venue",
    columns.EVENT_TIMESTAMP: "shown_at",
    columns.SCENARIO_ID: "page",
    columns.CLICK: "opened",
    columns.ORDER: "paid",
    "weather": "sky",
    "temperature": "degrees",
}
MAPPING = f"""
log: {LOG}
dataset: stranger
timezone: Europe/Helsinki
columns: {{user: guest, poi: venue, time: shown_at, click: opened, order: paid, scenario: page}}
time: {{unit: microseconds}}
scene:
  - sky
  - {{column: degrees, name: warmth, bands: 3}}
"""
SHOW = """
import sys
from pathlib import Path
from feature_repo.workspace import Workspace
from serving import demo
demo.show(Workspace(Path(sys.argv[1])), "larr", limit=5)
"""

needs_data = pytest.mark.skipif(DATA_VARIABLE not in os.environ, reason=f"{DATA_VARIABLE} names no folder of raw logs")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("kuairand", "--users", "150"), marks=needs_data),
        pytest.param(("foursquare",), marks=[needs_data, pytest.mark.full]),
    ],
    ids=lambda options: options[0],
)
def test_a_public_log_goes_through_the_loop(checkout, tiny_model, options):
    answered = loop(checkout, tiny_model, *options)
    assert "Rank: the " in answered and "Recommend: the best" in answered
    assert "scene: " in answered and "daypart" in answered


def test_a_mapped_log_goes_through_the_loop(city, checkout, tiny_model, tmp_path):
    log = pq.read_table(city.workspace.source("impressions"))
    times = log[columns.EVENT_TIMESTAMP].cast("int64")
    log = log.set_column(log.column_names.index(columns.EVENT_TIMESTAMP), columns.EVENT_TIMESTAMP, times)
    pcsv.write_csv(log.select(list(NAMES)).rename_columns(list(NAMES.values())), tmp_path / LOG)
    mapping = tmp_path / "stranger.yaml"
    mapping.write_text(MAPPING)
    answered = loop(checkout, tiny_model, "mapping", "--from", str(mapping))
    assert "sky " in answered and "warmth " in answered
    assert "Recommend: the best" in answered


def loop(checkout, tiny_model: Path, *data: str) -> str:
    """Raw log -> served ranking; what the client was shown."""
    said = checkout.verbs(
        ("data", *data),
        ("embed", "--language-model", str(tiny_model)),
        ("apply",),
        ("materialize",),
        ("train", "--model", "larr", "--recipe", "tiny"),
        ("prove", "--bundle", "larr", "--impressions", "50"),
        ("index",),
    )
    assert "│ larr " in said and "nearby popularity" in said
    return checkout.run("-c", SHOW, str(checkout.workspace.root)).stdout
