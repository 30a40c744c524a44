from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from feature_repo import columns
from feature_repo.store import open_store
from serving import degrade
from serving.admission import Gone
from serving.degrade import CachedScores, Caller, Degradation, Descent, Level, Pace, Reason, Rehearsals, popularity
from serving.features import FeatureReader
from serving.guard import StoreGuard, StoreSlow
from serving.pipeline import Pipeline
from serving.request import ExplainRequest, Place, RankRequest, RecommendRequest, RequestContext
from serving.retriever import Retriever
from serving.scorer import Scorer
from trainers import bundle as bundles
from trainers.index import load as load_index
from trainers.rows import Rows


class SlowScorer(Scorer):
    """The real one, after a while; quick where nothing is known of the scene."""

    def __init__(self, bundle, full_s: float, plain_s: float) -> None:
        super().__init__(bundle)
        self.full_s, self.plain_s, self.scored = full_s, plain_s, []

    def score(self, table):
        scene = table["scene_daypart"] if self.bundle.encoding.scene_features else []
        knows_scene = len(scene) > 0 and scene.null_count < len(scene)
        time.sleep(self.full_s if knows_scene else self.plain_s)
        self.scored.append("full" if knows_scene else "plain")
        return super().score(table)


@pytest.fixture(scope="module")
def reader(workspace, pipeline):
    return FeatureReader(open_store(workspace), pipeline.bundle)


@pytest.fixture
def request_of(moment, poi_ids):
    context = RequestContext(
        user_id="u3",
        scenario_id="lunch_deals",
        time_us=int(moment.timestamp() * 1e6),
        place=Place(60.17, 24.94),
        scene_inputs={"weather": "rain"},
    )
    return RankRequest(context=context, poi_ids=tuple(poi_ids[:16]))


def within(seconds: float) -> Caller:
    return Caller(deadline=time.monotonic() + seconds)


def unrehearsed(pipeline: Pipeline) -> Pipeline:
    """The same, and all that it does is done for the test's own requests."""
    pipeline._rehearsals.close()
    return pipeline


def test_every_rung_is_taken_when_the_one_above_does_not_fit(reader, pipeline, request_of):
    """The full model takes 2 s here and the plain one 0.5 s; how long is learned from answers without a deadline."""
    scorer = SlowScorer(pipeline.bundle, full_s=2.0, plain_s=0.5)
    slow = unrehearsed(Pipeline(reader, scorer))
    slow.rank(request_of)
    slow._scored("search", request_of.poi_ids, _read(slow, request_of), np.zeros(16), _at(Level.WITHOUT_SCENE))
    scorer.scored.clear()

    whole = slow.rank(request_of, within(20.0))
    assert whole.degradation is None and scorer.scored == ["full"]

    plain = slow.rank(request_of, within(2.5))
    assert plain.degradation == Degradation(Level.WITHOUT_SCENE, Reason.DEADLINE, ("scene",))
    assert scorer.scored == ["full", "plain"]
    assert not any(aspect.has_vector for aspect in plain.scene)

    cached = slow.rank(request_of, within(0.6))
    assert cached.degradation.level is Level.CACHED_SCORES and cached.degradation.reason is Reason.DEADLINE
    assert "user_profile" in cached.degradation.missing
    assert cached.scores.tolist() == whole.scores.tolist() and cached.poi_ids == whole.poi_ids

    elsewhere = replace(request_of, context=replace(request_of.context, scenario_id="search"))
    popular = slow.rank(elsewhere, within(0.6))
    assert popular.degradation.level is Level.POPULARITY
    assert len(scorer.scored) == 2
    slow.close()


def test_the_time_that_finding_places_takes_is_counted(reader, pipeline, workspace, request_of):
    class SlowRetriever(Retriever):
        def retrieve(self, *arguments, **named):
            time.sleep(1.0)
            return super().retrieve(*arguments, **named)

    slow = unrehearsed(Pipeline(reader, Scorer(pipeline.bundle), SlowRetriever(load_index(workspace.index))))
    asked = RecommendRequest(context=request_of.context, candidates=16)
    assert slow.recommend(asked).degradation is None
    hurried = slow.recommend(asked, within(1.4))
    assert hurried.degradation.level is Level.CACHED_SCORES and hurried.degradation.reason is Reason.DEADLINE
    slow.close()


def test_a_ranker_without_scene_has_no_rung_without_it(workspace, request_of):
    bundle = bundles.load(workspace.bundles / "ple")
    assert not bundle.encoding.scene_features
    scorer = SlowScorer(bundle, full_s=1.0, plain_s=1.0)
    slow = unrehearsed(Pipeline(FeatureReader(open_store(workspace), bundle), scorer))
    whole = slow.rank(request_of)
    assert whole.degradation is None
    cached = slow.rank(request_of, within(1.2))
    assert cached.degradation.level is Level.CACHED_SCORES and "scene" not in cached.degradation.missing
    assert cached.scores.tolist() == whole.scores.tolist()
    assert len(scorer.scored) == 1
    slow.close()


@pytest.mark.parametrize("asked", ["rank", "recommend"])
def test_what_was_slow_once_is_taken_in_again_when_it_fits(reader, pipeline, workspace, request_of, asked):
    """The first answer of each rung takes 0.8 s, as where nothing is warm, and all after it are given 0.5 s."""
    scorer = SlowScorer(pipeline.bundle, full_s=0.8, plain_s=0.8)
    slow = Pipeline(reader, scorer, Retriever(load_index(workspace.index)))
    recommended = RecommendRequest(context=request_of.context, candidates=16)
    ask = partial(slow.rank, request_of) if asked == "rank" else partial(slow.recommend, recommended)
    slow._rehearsals._next = math.inf  # not yet
    ask()
    assert ask(within(0.5)).degradation.level is Level.WITHOUT_SCENE
    assert ask(within(0.5)).degradation.level is Level.CACHED_SCORES
    scorer.full_s = scorer.plain_s = slow._rehearsals._next = 0.0
    end = time.monotonic() + 60.0
    while ask(within(0.5)).degradation is not None:
        assert time.monotonic() < end, "never whole again"
        time.sleep(0.02)
    slow.close()


def test_what_stays_slow_is_tried_for_nobody(reader, pipeline, request_of):
    class Kept:
        told = 0

        def start(self) -> None: ...

        def answered(self, *_: object) -> None:
            self.told += 1

        def close(self) -> None: ...

    scorer, kept = SlowScorer(pipeline.bundle, full_s=1.0, plain_s=0.0), Kept()
    slow = Pipeline(reader, scorer, keepers=[kept])
    slow.rank(request_of)
    scorer.scored.clear()
    end = time.monotonic() + 60.0
    while "full" not in scorer.scored:
        caller = within(1.3)
        assert slow.rank(request_of, caller).degradation.level is Level.WITHOUT_SCENE
        assert caller.left_s() > 0.0, "a caller waited for what does not fit"
        assert time.monotonic() < end, "it was never tried"
        time.sleep(0.02)
    assert slow.rank(request_of, within(1.3)).degradation.level is Level.WITHOUT_SCENE
    assert scorer.scored.count("full") == 1, "nine times as long as it took nothing is tried"
    slow.close()
    slow._rehearsals._pool.shutdown(wait=True)
    assert kept.told == 1, "a rehearsal is no answer that was given"


def test_rehearsals_come_one_at_a_time_with_a_rest_between_them(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(degrade, "time", clock)
    rehearsals, begun, go_on, ended = Rehearsals(), threading.Semaphore(0), threading.Semaphore(0), []

    def takes(seconds: float) -> None:
        begun.release()
        go_on.acquire()
        clock.now += seconds
        ended.append(seconds)
        raise ValueError("nobody is to be told")

    def rehearse(seconds: float) -> None:
        rehearsals.perhaps(lambda: takes(seconds))
        assert begun.acquire(timeout=60.0)
        rehearsals.perhaps(lambda: takes(-1.0))  # one is under way
        go_on.release()
        rehearsals._pool.submit(lambda: None).result(60.0)  # it has ended

    rehearse(2.0)
    clock.now += 17.9
    rehearsals.perhaps(lambda: takes(-1.0))
    clock.now += 0.2
    rehearse(0.01)
    clock.now += 0.9
    rehearsals.perhaps(lambda: takes(-1.0))
    clock.now += 0.2
    rehearse(0.0)
    assert ended == [2.0, 0.01, 0.0]
    rehearsals.close()
    clock.now += 100.0
    rehearsals.perhaps(lambda: takes(-1.0))
    assert ended == [2.0, 0.01, 0.0]


def _read(pipeline, request):
    context = pipeline.reader.read_context(request.context, request.context.time_us)
    return pipeline.reader.read_pois(context, request.poi_ids)


def _at(level):
    descent = Descent()
    descent.to(level, Reason.DEADLINE)
    return descent


def test_what_falls_short_is_neither_cached_nor_kept_as_served(reader, pipeline, request_of):
    scorer = SlowScorer(pipeline.bundle, full_s=0.0, plain_s=0.0)
    fresh = Pipeline(reader, scorer)
    fresh._scored("search", request_of.poi_ids, _read(fresh, request_of), np.zeros(16), _at(Level.WITHOUT_SCENE))
    assert fresh._cached.find("search", request_of.poi_ids) is None
    fresh.rank(request_of)
    assert fresh._cached.find("lunch_deals", request_of.poi_ids) is not None
    fresh.close()


@pytest.mark.parametrize("asks", [0, 1, 2])
def test_a_caller_who_left_is_not_worked_for(reader, pipeline, request_of, asks):
    """One who leaves before anything is read, before the places are, or before they are scored."""
    scorer = SlowScorer(pipeline.bundle, full_s=0.0, plain_s=0.0)
    fresh, waits = Pipeline(reader, scorer), iter([True] * asks)
    with pytest.raises(Gone):
        fresh.rank(request_of, Caller(is_wanted=lambda: next(waits, False)))
    assert scorer.scored == []
    fresh.close()


@pytest.mark.parametrize("asks", [0, 1])
def test_nothing_is_explained_to_a_caller_who_left(reader, pipeline, request_of, asks):
    scorer = SlowScorer(pipeline.bundle, full_s=0.0, plain_s=0.0)
    fresh, waits = Pipeline(reader, scorer), iter([True] * asks)
    with pytest.raises(Gone):
        question = ExplainRequest(context=request_of.context, poi_id=request_of.poi_ids[0])
        fresh.explain(question, Caller(is_wanted=lambda: next(waits, False)))
    assert scorer.scored == []
    fresh.close()


def test_an_explanation_waits_for_the_store_as_long_as_its_caller(reader, pipeline, request_of, monkeypatch):
    read = reader.read_context
    monkeypatch.setattr(reader, "read_context", lambda *asked: (time.sleep(1.0), read(*asked))[1])
    fresh, began = Pipeline(reader, pipeline._scorer, guard=StoreGuard(2)), time.monotonic()
    with pytest.raises(StoreSlow):
        question = ExplainRequest(context=request_of.context, poi_id=request_of.poi_ids[0])
        fresh.explain(question, Caller(deadline=began + 0.1))
    assert time.monotonic() - began < 0.8
    fresh.close()


def test_a_descent_never_goes_up_and_tells_its_first_reason():
    descent = Descent()
    assert descent.result() is None
    descent.to(Level.CACHED_SCORES, Reason.STORE_SLOW, ["b"])
    descent.to(Level.WITHOUT_SCENE, Reason.DEADLINE, ["a", "b"])
    assert descent.result() == Degradation(Level.CACHED_SCORES, Reason.STORE_SLOW, ("a", "b"))


def test_pace_is_learned_by_size_and_not_from_what_failed():
    pace = Pace(knows_scenes=True)
    assert pace.needs_s(("read", "score"), 200) == 0.0
    with pace.timed("read", 200):
        time.sleep(0.02)
    with pytest.raises(ZeroDivisionError), pace.timed("score", 200):
        1 // 0  # noqa: B018
    assert 0.03 <= pace.needs_s(("read", "score"), 255) < 0.2
    assert pace.needs_s(("read",), 256) == 0.0


def test_what_was_measured_long_ago_counts_for_less(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(degrade, "time", clock)
    pace = Pace(knows_scenes=True)
    # One second later 0.9 / 2 of what was known is left, in the same moment 0.9, and after a minute nothing.
    for pause_s, took_s, mean_s in ((0, 0.5, 0.5), (0.75, 0.25, 0.3625), (0, 0, 0.32625), (60, 0.125, 0.125)):
        clock.now += pause_s
        with pace.timed("score", 200):
            clock.now += took_s
        assert pace.needs_s(("score",), 200) == pytest.approx(1.5 * mean_s)


def test_one_slow_answer_after_a_rest_counts_a_tenth(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(degrade, "time", clock)
    pace = Pace(knows_scenes=True)
    for pause_s, took_s in ((0, 0.02), (60, 0.12)):
        clock.now += pause_s
        with pace.timed("score", 200):
            clock.now += took_s
    assert pace.needs_s(("score",), 200) == pytest.approx(1.5 * (0.9 * 0.02 + 0.1 * 0.12))


def test_the_first_rung_that_fits_is_taken_whatever_those_below_it_took():
    pace = Pace(knows_scenes=True)
    with pace.timed("score without scene", 200):
        time.sleep(0.2)
    descent = Descent()
    pace.come_down(descent, 0.1, ("pois",), 200)
    assert descent.result() is None
    with pace.timed("score", 200):
        time.sleep(0.2)
    pace.come_down(descent, None, ("pois",), 200)
    assert descent.result() is None
    pace.come_down(descent, 0.1, ("pois",), 200)
    assert descent.result() == Degradation(Level.CACHED_SCORES, Reason.DEADLINE, ("scene",))


def test_cached_scores_are_the_last_ones_of_each_scenario_and_bounded():
    cached = CachedScores(most=3)
    assert cached.find("home", ["a"]) is None
    cached.keep("home", ["a", "b"], np.array([0.5, 0.25]), np.array([0.25, 0.125]))
    cached.keep("home", ["a"], np.array([0.75]), np.array([0.5]))
    click, order = cached.find("home", ["b", "a", "c"])
    assert click.tolist() == [0.25, 0.75, 0.5] and order.tolist() == [0.125, 0.5, 0.3125]
    assert cached.find("search", ["a"]) is None
    cached.keep("search", ["x", "y"], np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    assert cached.find("home", ["b"]) is None and cached.find("home", ["a"]) is not None


def test_popularity_by_hand(pipeline):
    encoding = replace(pipeline.bundle.encoding, rates=(0.1, 0.5), near_km=2.0)
    counts = {"impressions": [80, None, 80], "clicks": [18, None, 18], "orders": [9, None, 9]}
    rows = Rows({columns.statistic("poi", name, 28): pa.array(v, pa.int64()) for name, v in counts.items()}, 3)
    click, order = popularity(rows, encoding, np.array([0.0, 2.0, np.nan]))
    # (18 + 20 * 0.1) / (80 + 20) = 0.2 at the door; the prior 0.1 at half for 2 km; 0.2 at half for a distance unknown.
    assert click.tolist() == pytest.approx([0.2, 0.05, 0.1])
    # An order: that times (9 + 20 * 0.5) / (18 + 20) = 0.5.
    assert order.tolist() == pytest.approx([0.1, 0.025, 0.05])
