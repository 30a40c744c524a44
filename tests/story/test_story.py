"""The whole life of the system, as a person lives it: from a log to an answer, a click told of it, and another answer.

Everything is real: the embedded language model, the trained ranker, a server process, a socket, the signal that ends
it. Only the city is small.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from serving import demo
from serving.client import Access, Happened, Recommender, Wish, shown
from serving.v1 import recommender_pb2 as pb

pytestmark = pytest.mark.story
CITY = ("--users", "80", "--days", "28", "--pois", "60")
STOP_SECONDS = 60
PATIENT = Access(timeout_seconds=60.0)
OUTCOMES: tuple[Literal["clicked", "ordered"], ...] = ("clicked", "clicked", "ordered")


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

        earlier = replace(asker, time=end + timedelta(minutes=10))
        answer = recommender.recommend(earlier, wish)
        clicked = list(reversed(before.poi_ids))[:3]
        clicked_at = [end + timedelta(minutes=minutes) for minutes in (30, 40, 50)]
        happened = [
            Happened(token=answer.attribution_token, poi_id=poi_id, outcome=outcome, time=time)
            for poi_id, outcome, time in zip(clicked, OUTCOMES, clicked_at, strict=True)
        ]
        assert recommender.record([*shown(answer, earlier.time), *happened]).recorded == 63
        assert asker.time is not None
        to = asker.time.strftime("%Y-%m-%dT%H:%M:%S")
        said = checkout.verbs(("feedback", "export"), ("materialize", "--to", to))
        assert "60 places shown, 3 clicked, 1 ordered are in the log" in " ".join(said.split())

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
