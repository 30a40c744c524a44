"""Clicks expected and clicks that came, of answers and feedback over a socket, and of many that are drawn."""

from __future__ import annotations

import random
import time
from datetime import timedelta

import numpy as np
import pytest
from prometheus_client import generate_latest

from serving.attribution import new_answer_id
from serving.calibration import Calibration, Came
from serving.client import Happened, Recommender
from serving.feedback import FeedbackLog
from serving.metrics import Metrics
from serving.pipeline import Ranking
from serving.request import RankRequest, RequestContext
from serving.server import ServerOptions, create_server
from tests.serving.conftest import until
from tests.serving.test_metrics import samples


def ranking_of(p_click: list[float]) -> Ranking:
    """An answer of places p0, p1, ..."""
    empty = np.zeros(0)
    poi_ids = tuple(f"p{n}" for n in range(len(p_click)))
    return Ranking(
        candidates=poi_ids,
        poi_ids=poi_ids,
        scores=np.array(p_click, np.float32),
        p_click=np.array(p_click, np.float32),
        p_order=empty,
        distance_km=empty,
        poi_statuses=(),
        names=(),
        categories=(),
        user_status=None,  # type: ignore[arg-type]
        scene=(),
        views=(),
        time_us=1,
        answer_id=new_answer_id(),
        token="",
        degradation=None,
        propensities=empty,
    )


def test_what_is_expected_is_of_the_places_that_were_shown_alone() -> None:
    told: list[Came] = []
    known: dict[str, dict[str, bool]] = {}
    answers = [ranking_of([0.5, 0.25, 0.125]) for _ in range(2)]
    known[answers[0].answer_id] = {"p0": True, "p2": False, "elsewhere": True}
    calibration = Calibration(lambda ids: known, told.append, wait_s=0.3, every_s=0.01)
    for answer in answers:
        calibration.answered("lunch", answer)
        time.sleep(0.02)
    assert not told  # it is not known yet
    until(lambda: told)
    time.sleep(0.1)
    assert told == [Came(scenario="lunch", shown=2, expected=0.625, clicked=1)]  # of the other, nothing was shown
    calibration.stop()


def test_a_database_that_is_away_is_asked_again_and_memory_is_bounded() -> None:
    told: list[Came] = []
    away = True

    def outcomes(ids: object) -> dict[str, dict[str, bool]]:
        if away:
            raise ConnectionError
        return {answer.answer_id: {"p0": False} for answer in answers}

    calibration = Calibration(outcomes, told.append, wait_s=0.05, every_s=0.005)
    answers = [ranking_of([0.5]) for _ in range(60)]
    for answer in answers:
        calibration.answered("lunch", answer)
        time.sleep(0.006)
    assert len(calibration._waiting) == 21 and not told
    away = False
    until(lambda: len(told) == 21)
    calibration.stop()


def test_a_ranker_that_is_right_is_seen_to_be_and_one_that_is_wrong_too() -> None:
    """Clicks drawn with the probability that was said, and with half of it."""
    rng, draw = np.random.default_rng(3), random.Random(3)
    for factor, least, most in ((1.0, 0.9, 1.1), (0.5, 0.4, 0.6)):
        told: list[Came] = []
        known: dict[str, dict[str, bool]] = {}
        calibration = Calibration(lambda ids, known=known: known, told.append, wait_s=0.05, every_s=1e-6)
        for _ in range(400):
            answer = ranking_of(rng.uniform(0, 0.6, 10).tolist())
            pairs = zip(answer.poi_ids, answer.p_click.tolist(), strict=True)
            became = {poi: draw.random() < factor * p for poi, p in pairs if draw.random() < 0.7}
            known[answer.answer_id] = became
            calibration.answered("lunch", answer)
        until(lambda told=told: len(told) == 400)
        calibration.stop()
        assert least < sum(c.clicked for c in told) / sum(c.expected for c in told) < most


def test_feedback_over_a_socket_is_compared_with_what_was_answered(pipeline, asker, poi_ids, moment, url):
    log, metrics = FeedbackLog(url), Metrics()
    server = create_server(pipeline, ServerOptions(), log)
    calibration = Calibration(log.outcomes, metrics.came, wait_s=0.5, every_s=0.01)
    context = RequestContext(
        user_id=asker.user_id, scenario_id=asker.scenario_id, time_us=int(moment.timestamp() * 1e6)
    )
    answer = pipeline.rank(RankRequest(context=context, poi_ids=poi_ids[:6]))
    with Recommender(f"127.0.0.1:{server.port}") as client:
        client.rank(asker, poi_ids[:6])
        assert server.calibration is not None and len(server.calibration._waiting) == 1
        events = [
            Happened(token=answer.token, poi_id=answer.poi_ids[n], outcome=outcome, time=moment + timedelta(seconds=5))
            for n, outcome in ((0, "shown"), (1, "shown"), (2, "shown"), (5, "clicked"), (5, "ordered"))
        ]
        client.record(events)
    calibration.answered(asker.scenario_id, answer)  # not before: what is recorded too late does not count
    until(lambda: b"calibration_clicks_total{" in generate_latest(metrics.registry))
    found = samples(generate_latest(metrics.registry).decode())
    labels = (asker.scenario_id,)
    assert found["scenerank_calibration_shown_total", labels] == 4
    assert found["scenerank_calibration_clicks_total", labels] == 1
    expected = sum(answer.p_click[n] for n in (0, 1, 2, 5))
    assert found["scenerank_calibration_expected_clicks_total", labels] == pytest.approx(expected, rel=1e-6)
    calibration.stop()
    server.stop()
    log.close()
