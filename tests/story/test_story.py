"""The whole life of the system, as a person lives it: from a log to an answer, a click, and another answer.

Everything is real: the embedded language model, the trained ranker, a server process, a socket, the signal that ends
it. Only the city is small.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo import aggregates, columns
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from serving import demo
from serving.client import Access, Asker, Recommender, Wish
from serving.v1 import recommender_pb2 as pb

pytestmark = pytest.mark.story
CITY = ("--users", "80", "--days", "28", "--pois", "60")
STOP_SECONDS = 60
PATIENT = Access(timeout_seconds=60.0)


def test_from_a_log_to_an_answer_to_a_click_to_another_answer(checkout):
    checkout.verbs(
        ("data", "city", *CITY),
        ("embed",),
        ("apply",),
        ("materialize",),
        ("train", "--model", "larr", "--recipe", "tiny"),
        ("prove", "--bundle", "larr", "--impressions", "50"),
        ("index",),
    )
    workspace = checkout.workspace
    moment = demo.last_moment(workspace)
    end = Schema.load(workspace.schema).split.end
    asker = replace(moment.asker, time=end + timedelta(hours=2))
    wish = Wish(limit=60, details=True)
    with checkout.served("--bundle", "larr") as served, Recommender(served.address, PATIENT) as recommender:
        before = recommender.recommend(asker, wish)
        assert len(before.poi_ids) == 60
        assert list(before.p_click) == sorted(before.p_click, reverse=True)
        assert before.user_status == pb.VALUE_STATUS_PRESENT
        assert {"daypart", "weather", "landmark"} <= {aspect.feature for aspect in before.scene if aspect.has_vector}

        clicked = list(reversed(before.poi_ids))[:3]
        clicked_at = [end + timedelta(minutes=minutes) for minutes in (30, 40, 50)]
        click(workspace, asker, clicked, clicked_at)
        assert asker.time is not None
        checkout.scenerank("materialize", "--to", asker.time.strftime("%Y-%m-%dT%H:%M:%S"))

        after = recommender.recommend(asker, wish)
        assert sorted(after.poi_ids) == sorted(before.poi_ids)
        assert list(after.poi_ids) != list(before.poi_ids)
        state = next(view for view in after.views if view.view == "user_state")
        assert state.newest.ToSeconds() == int(clicked_at[-1].timestamp()) + 1  # known from the next second on
        scene = {aspect.feature: aspect.value for aspect in after.scene}
        pois = pq.read_table(workspace.source("pois"))
        last = pois.filter(pc.equal(pois[columns.POI_ID], clicked[-1])).to_pylist()[0]
        assert scene["last_category"] == last[columns.CATEGORY]
        assert scene["since_last_order"] == "just now"

        loaded = Path(f"/proc/{served.process.pid}/maps").read_text()
        assert "/torch/" in loaded
        assert "/tokenizers/" not in loaded  # what transformers would bring along
        served.process.terminate()
        assert served.process.wait(STOP_SECONDS) == 0


def click(workspace: Workspace, asker: Asker, poi_ids: list[str], moments: list[datetime]) -> None:
    """The user clicks POIs, the last of them to order there: the log grows, and statistics and state with it."""
    path = workspace.source("impressions")
    log = pq.read_table(path)
    rows = log.slice(len(log) - len(poi_ids)).to_pylist()
    for row, poi_id, moment in zip(rows, poi_ids, moments, strict=True):
        row |= {
            columns.ROW_ID: row[columns.ROW_ID] + len(rows),
            columns.REQUEST_ID: f"story-{poi_id}",
            columns.EVENT_TIMESTAMP: moment,
            columns.OUTCOME_TIMESTAMP: moment,
            columns.USER_ID: asker.user_id,
            columns.POI_ID: poi_id,
            columns.SCENARIO_ID: asker.scenario_id,
            columns.CLICK: 1,
            columns.ORDER: int(poi_id == poi_ids[-1]),
        }
    pq.write_table(pa.concat_tables([log, pa.Table.from_pylist(rows, log.schema)]), path)
    aggregates.build(workspace)
