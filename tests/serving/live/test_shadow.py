"""A bundle in the shadow of the one that answers: over a socket, with real bundles."""

from __future__ import annotations

import shutil
import time

import pytest

from feature_repo.stores.packed import StoreUnavailable
from serving import shadow as shadows
from serving.client import Asker, Happened, Wish
from serving.feedback import FeedbackLog
from serving.guard import StoreGuard
from serving.opening import open_pipeline
from serving.pipeline import Pipeline
from serving.retriever import Retriever
from serving.scorer import Scorer
from serving.served import answers_of
from serving.shadow import Shadow
from tests.serving.live.conftest import MODELS, ask, report_of, serving
from trainers import bundle as bundles


def test_the_same_bundle_in_the_shadow_is_the_same(both, moment, poi_ids):
    client, operator = both
    assert operator.shadow("larr", 1.0).shadow.share == 1.0
    for done in range(5):
        ask(client, moment, poi_ids)
        report = report_of(operator, done + 1)
    assert (report.answers, report.failed, report.overlap_at_10) == (5, 0, 1.0)
    (scenario,) = report.scenarios
    assert (scenario.scenario_id, scenario.places) == ("search", 100)
    assert scenario.mean_p_click == scenario.shadow_mean_p_click > 0
    assert not operator.shadow("").HasField("shadow")


def test_another_bundle_in_the_shadow_is_compared_by_value(load, expected, moment, poi_ids, tmp_path):
    feedback = FeedbackLog(f"sqlite:///{tmp_path / 'feedback.db'}")
    with serving(load, feedback) as (client, operator):
        answers, shadow = expected["larr"], expected["ple"]
        operator.shadow("ple", 1.0)
        ranking = ask(client, moment, poi_ids)
        report = report_of(operator, 1)
        common = len({*answers.poi_ids[:10]} & {*shadow.poi_ids[:10]})
        assert report.overlap_at_10 == pytest.approx(common / 10)
        (scenario,) = report.scenarios
        assert scenario.mean_p_click == pytest.approx(float(answers.p_click.mean()), rel=1e-6)
        assert scenario.shadow_mean_p_click == pytest.approx(float(shadow.p_click.mean()), rel=1e-6)
        token, (first, second, third) = ranking.attribution_token, ranking.poi_ids[:3]
        events = [
            Happened(token=token, poi_id=first, outcome="shown"),
            Happened(token=token, poi_id=first, outcome="clicked"),
            Happened(token=token, poi_id=second, outcome="shown"),
            Happened(token=token, poi_id=third, outcome="ordered"),
        ]
        client.record(events)
        client.record(events)
        (scenario,) = operator.serving().shadow.scenarios
        assert (scenario.shown, scenario.clicks) == (3, 2)
        of_shadow = dict(zip(shadow.poi_ids, shadow.p_click.tolist(), strict=True))
        assert scenario.expected_clicks == pytest.approx(sum(ranking.p_click[:3]), rel=1e-6)
        assert scenario.shadow_expected_clicks == pytest.approx(sum(of_shadow[p] for p in (first, second, third)))
    feedback.close()


def test_first_tens_of_all_candidates_are_compared_whatever_the_limit(both, expected, moment, poi_ids):
    client, operator = both
    operator.shadow("ple", 1.0)
    for done, limit in enumerate((1, 10)):
        client.rank(Asker(user_id="u3", scenario_id="search", time=moment), poi_ids[:20], Wish(limit=limit))
        report = report_of(operator, done + 1)
    common = len({*expected["larr"].poi_ids[:10]} & {*expected["ple"].poi_ids[:10]})
    assert common < 10, "the two order alike: a comparison of them says nothing"
    assert report.overlap_at_10 == pytest.approx(common / 10)
    assert sum(scenario.places for scenario in report.scenarios) == 11, "those that were answered"


def test_a_shadow_is_compared_with_what_answers_by_now(both, moment, poi_ids):
    client, operator = both
    operator.shadow("ple", 1.0)
    ask(client, moment, poi_ids)
    assert report_of(operator, 1).overlap_at_10 < 1.0
    assert operator.reload("ple").shadow.answers == 0
    ask(client, moment, poi_ids)
    report = report_of(operator, 1)
    assert report.overlap_at_10 == 1.0
    (scenario,) = report.scenarios
    assert scenario.mean_p_click == scenario.shadow_mean_p_click, "of one pair of bundles"


def test_what_a_server_explores_is_no_difference(workspace, folder, moment, poi_ids):
    with serving(lambda name: open_pipeline(workspace, folder / name, None, unproven=True, explore=5.0)) as both:
        client, operator = both
        operator.shadow("larr", 1.0)
        orders = set()
        for done in range(3):
            orders.add(tuple(ask(client, moment, poi_ids).poi_ids))
            report = report_of(operator, done + 1)
    assert len(orders) == 3 and (report.failed, report.overlap_at_10) == (0, 1.0)


def test_what_the_shadow_read_is_no_answer_that_was_served(workspace, folder, moment, poi_ids):
    def load(name):
        return open_pipeline(workspace, folder / name, None, unproven=True, served_share=1.0)

    try:
        with serving(load) as (client, operator):
            operator.shadow("ple", 1.0)
            ask(client, moment, poi_ids)
            report_of(operator, 1)
        larr, ple = (list(answers_of(workspace.served, bundles.load(folder / n).manifest.version)) for n in MODELS)
        assert sum(map(len, larr)) == 20 and not ple
    finally:
        shutil.rmtree(workspace.served)


@pytest.fixture
def shadow(load):
    shadow = Shadow(load("ple"), 1.0)
    yield shadow
    shadow.close()


def compared(shadow, answers):
    end = time.monotonic() + 60
    while (tally := shadow.tally("larr")).answers + tally.skipped + tally.failed < answers:
        assert time.monotonic() < end
        time.sleep(0.01)
    return tally


def test_as_many_places_are_remembered_as_may_be(shadow, load, request_of, monkeypatch):
    monkeypatch.setattr(shadows, "REMEMBERED", 50)
    answering, ids = load("larr"), []
    for done in range(5):
        ranking = answering.rank(request_of)
        ids.append(ranking.answer_id)
        shadow.answered(request_of, ranking, 0.01, "larr")
        compared(shadow, done + 1)
    assert list(shadow._answers) == ids[-2:], "of 20 places each"
    monkeypatch.setattr(shadows, "ANSWERS", 1)
    shadow.answered(request_of, answering.rank(request_of), 0.01, "larr")
    compared(shadow, 6)
    assert len(shadow._answers) == 1
    answering.close()


def test_an_answer_that_the_shadow_gave_without_the_store_is_no_comparison(load, request_of):
    def away():
        raise StoreUnavailable("away")

    guard, alike = StoreGuard(1, rest_s=3600.0), load("ple")
    with pytest.raises(StoreUnavailable):
        guard.ask(away)
    shadow = Shadow(Pipeline(alike.reader, Scorer(alike.bundle), guard=guard), 1.0)
    answering = load("larr")
    shadow.answered(request_of, answering.rank(request_of), 0.01, "larr")
    tally = compared(shadow, 1)
    assert (tally.answers, tally.skipped, tally.failed) == (0, 1, 0)
    shadow.close()
    answering.close()


def test_the_time_to_find_candidates_is_in_neither_of_the_times_compared(workspace, folder, moment, monkeypatch):
    embed = Retriever.embed
    monkeypatch.setattr(Retriever, "embed", lambda self, table: time.sleep(2.0) or embed(self, table))
    with serving(lambda name: open_pipeline(workspace, folder / name, workspace.index, unproven=True)) as both:
        client, operator = both
        asker = Asker(user_id="u3", scenario_id="search", time=moment)
        client.recommend(asker)  # the first one takes longer
        operator.shadow("larr", 1.0)
        client.recommend(asker, Wish(limit=3))
        report = report_of(operator, 1)
    assert report.failed == 0 and report.latency_ratio > 0.1, "the same work on both sides"
