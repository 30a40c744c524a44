"""Feedback as rows of the log: values computed by hand, and the whole way from an answer to the next training set."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.city import CityConfig, build
from feature_repo.datasets.schema import DataError, Schema
from serving.attribution import Attribution
from serving.client import Asker, Happened, Recommender, Wish, shown
from serving.feedback import FeedbackEvent, FeedbackLog, Outcome
from serving.feedback_export import REQUEST, Exported, grown
from serving.feedback_tables import opened
from serving.request import Place, RequestContext

WAIT = timedelta(minutes=30)
MINUTE_US = 60_000_000


@pytest.fixture
def until(workspace) -> datetime:
    return Schema.load(workspace.schema).split.end + timedelta(days=2)


@pytest.fixture
def log(workspace, until, tmp_path, poi_ids) -> str:
    """Answers at 0, 1, 2, ... minutes, two days after the end of the log less an hour."""
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    start_us = int((until - timedelta(hours=1)).timestamp() * 1e6)
    a, b, c = poi_ids[:3]
    ours = Schema.load(workspace.schema).identity

    def events(
        answer: str, minute: int, *happened: tuple[str, Outcome, int | None, int], user: str = "u1", dataset: str = ours
    ) -> None:
        time_us = start_us + minute * MINUTE_US
        context = RequestContext(
            user_id=user,
            scenario_id="lunch_deals",
            time_us=time_us,
            place=Place(60.1, 24.9) if answer == "bought" else None,
            scene_inputs={"weather": "rain", "temperature": 3.5, "gone": "x"} if answer == "bought" else {},
        )
        of = Attribution(answer_id=answer, bundle="b", dataset=dataset, context=context)
        record(
            [
                FeedbackEvent(
                    event_id=f"{answer}-{at}",
                    answer=of,
                    poi_id=poi_id,
                    outcome=outcome,
                    position=position,
                    time_us=time_us + later_s * 1_000_000,
                )
                for at, (poi_id, outcome, position, later_s) in enumerate(happened)
            ]
        )

    kept = FeedbackLog(url)
    record = kept.record
    # Orders of events, and shows after clicks, must not matter.
    events("bought", 1, (b, Outcome.ORDERED, None, 50), (a, Outcome.SHOWN, 0, 2), (b, Outcome.CLICKED, 9, 10),
           (b, Outcome.SHOWN, 1, 30), (b, Outcome.SHOWN, 4, 2))  # fmt: skip
    events("unseen", 0, (c, Outcome.CLICKED, None, 7))
    events("unknown", 2, ("nowhere", Outcome.SHOWN, 0, 0), (a, Outcome.SHOWN, 1, 0))
    events("stranger", 3, (a, Outcome.ORDERED, None, 1), user="nobody")
    events("young", 31, (a, Outcome.CLICKED, None, 1))
    events("elsewhere", 4, (a, Outcome.CLICKED, 0, 1), dataset="city/another")
    kept.close()
    return url


def test_a_row_says_what_became_of_a_place(workspace, log, until, poi_ids):
    before = pq.read_table(workspace.source("impressions"))
    dataset, exported = grown(workspace, opened(log), until, WAIT)
    assert exported == Exported(rows=4, clicks=2, orders=1, waiting=1, unknown=2, foreign=1)
    table = dataset.tables["impressions"]
    assert table.slice(0, len(before)).equals(before)
    rows = table.slice(len(before)).to_pylist()
    start = until - timedelta(hours=1)
    a, b, c = poi_ids[:3]
    first = before[columns.ROW_ID].to_numpy().max() + 1
    assert [row[columns.ROW_ID] for row in rows] == list(range(first, first + 4))
    wanted = [
        # answer, POI, click, order, position, minutes of the answer, seconds until its outcome was known
        ("unseen", c, 1, 0, None, 0, 7),
        ("bought", a, 0, 0, 0, 1, 1800),
        ("bought", b, 1, 1, 1, 1, 50),
        ("unknown", a, 0, 0, 1, 2, 1800),
    ]
    for row, (answer, poi_id, click, order, position, minute, known_s) in zip(rows, wanted, strict=True):
        at = start + timedelta(minutes=minute)
        assert row[columns.REQUEST_ID] == f"{REQUEST}{answer}" and row[columns.POI_ID] == poi_id
        assert (row[columns.CLICK], row[columns.ORDER], row[columns.POSITION]) == (click, order, position)
        assert row[columns.EVENT_TIMESTAMP] == at
        assert row[columns.OUTCOME_TIMESTAMP] == at + timedelta(seconds=known_s)
        assert row[columns.PROPENSITY] is None and row[columns.USER_ID] == "u1"
        told = ("rain", 3.5, 60.1, 24.9) if answer == "bought" else (None,) * 4
        assert tuple(row[n] for n in ("weather", "temperature", columns.LATITUDE, columns.LONGITUDE)) == told


def test_each_city_has_a_name_of_its_own_and_a_longer_log_has_the_same(workspace, log, until):
    cities = [CityConfig(users=20, days=7, pois=20, seed=seed) for seed in (0, 1, 0)]
    first, other, again = (build(config).schema for config in cities)
    assert first.dataset == other.dataset == "city"
    assert first.identity == again.identity != other.identity
    dataset, _ = grown(workspace, opened(log), until, WAIT)
    assert dataset.schema.identity == Schema.load(workspace.schema).identity


def test_valid_and_test_part_move_with_the_end(workspace, log, until):
    old = Schema.load(workspace.schema).split
    new = grown(workspace, opened(log), until, WAIT)[0].schema.split
    assert new.end - old.end == new.test - old.test == new.valid - old.valid == timedelta(days=2)
    assert new.train == old.train


def test_no_part_is_left_empty_by_a_gap_in_the_log(workspace, poi_ids, tmp_path):
    old = Schema.load(workspace.schema).split
    at = old.end + timedelta(days=400)
    time_us = int(at.timestamp() * 1e6)
    context = RequestContext(user_id="u1", scenario_id="lunch_deals", time_us=time_us)
    shown_ = FeedbackEvent(
        event_id="e",
        answer=Attribution(answer_id="a", bundle="b", dataset="", context=context),
        poi_id=poi_ids[0],
        outcome=Outcome.SHOWN,
        position=0,
        time_us=time_us,
    )
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    kept = FeedbackLog(url)
    kept.record([shown_])
    kept.close()
    new = grown(workspace, opened(url), at + timedelta(days=1), WAIT)[0].schema.split
    assert (new.train, new.valid, new.test) == (old.train, old.valid, old.test) and new.end > at


def test_an_answer_is_in_the_log_once_however_often_it_is_exported(workspace, log, until, tmp_path):
    once, _ = grown(workspace, opened(log), until, WAIT)
    copy = type(workspace)(tmp_path / "city")
    once.write(copy.sources)
    again, exported = grown(copy, opened(log), until, WAIT)
    assert again.tables["impressions"].equals(once.tables["impressions"]) and again.schema == once.schema
    later, grew = grown(copy, opened(log), until + timedelta(hours=1), WAIT)
    assert (exported.waiting, grew.waiting, grew.rows) == (1, 0, exported.rows + 1)
    emptied, _ = grown(copy, opened(f"sqlite:///{tmp_path / 'another.db'}"), until, WAIT)
    assert emptied.tables["impressions"].equals(once.tables["impressions"])  # what another database brought stays
    assert pc.count_distinct(later.tables["impressions"][columns.ROW_ID]).as_py() == len(later.tables["impressions"])


def test_an_empty_log_adds_nothing(workspace, until, tmp_path):
    dataset, exported = grown(workspace, opened(f"sqlite:///{tmp_path / 'new.db'}"), until, WAIT)
    assert exported == Exported(rows=0, clicks=0, orders=0, waiting=0, unknown=0, foreign=0)
    assert dataset.tables["impressions"].equals(pq.read_table(workspace.source("impressions")))


def test_a_log_that_is_cut_user_by_user_is_refused(workspace, log, until, tmp_path):
    copy = type(workspace)(tmp_path / "city")
    copy.sources.mkdir(parents=True)
    raw = json.loads(workspace.schema.read_text())
    raw["split"] |= {"valid": raw["split"]["end"], "test": raw["split"]["end"]}
    copy.schema.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="user by user"):
        grown(copy, opened(log), until, WAIT)


def test_from_an_answer_to_the_next_training_set(checkout, tiny_model):
    """Everything by the verbs that a person would type, and over gRPC."""
    city = ("data", "city", "--users", "20", "--days", "14", "--pois", "30")
    train = ("train", "--model", "larr", "--recipe", "tiny")
    checkout.verbs(city, ("embed", "--language-model", str(tiny_model)), ("apply",), ("materialize",), train)
    workspace = checkout.workspace
    schema = Schema.load(workspace.schema)
    pois = pq.read_table(workspace.source("pois"))[columns.POI_ID].to_pylist()[:8]
    moment = schema.split.end + timedelta(hours=12)
    options = ("--bundle", "larr", "--unproven", "--explore", "0.3")
    with checkout.served(*options) as served, Recommender(served.address) as client:
        asker = Asker(user_id="u1", scenario_id="lunch_deals", time=moment, scene={"weather": "rain"})
        ranking = client.rank(asker, pois, Wish())
        bought = Happened(
            token=ranking.attribution_token, poi_id=ranking.poi_ids[3], outcome="ordered", time=moment + WAIT
        )
        assert client.record([*shown(ranking, moment), bought]).recorded == 9
    said = checkout.verbs(
        ("feedback",), ("feedback", "export"), ("materialize",), ("backfill", "--model", "larr"), train
    )
    assert "8 shown, 0 clicked, 1 ordered" in said
    assert "8 places shown, 1 clicked, 1 ordered are in the log; 0 answers are too young" in " ".join(said.split())
    folders = [line for line in said.splitlines() if line.startswith(str(workspace.training))]
    pulled = pds.dataset(sorted(workspace.training.glob(f"{folders[0].rsplit('/', 1)[1]}/part-*"))).to_table()
    new = pulled.filter(pc.starts_with(pulled[columns.REQUEST_ID], REQUEST))
    assert new[columns.POI_ID].to_pylist() == list(ranking.poi_ids)
    assert new[columns.PROPENSITY].to_pylist() == list(ranking.propensities) != [1.0] * 8
    assert new[columns.ORDER].to_pylist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert new[columns.scene("weather")].to_pylist() == ["rain"] * 8
    # What a row of training is made of is what the answer was made of.
    seen = {aspect.feature: aspect.value for aspect in ranking.scene}
    for name in ("daypart", "last_category"):
        assert {value or "" for value in new[columns.scene(name)].to_pylist()} == {seen[name]}
    state = pq.read_table(workspace.source("user_state"))
    mine = state.filter(pc.equal(state[columns.USER_ID], "u1")).sort_by(columns.EVENT_TIMESTAMP)
    assert mine["recent_pois"].to_pylist()[-1][0] == ranking.poi_ids[3]
