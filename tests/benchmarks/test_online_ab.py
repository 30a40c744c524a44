"""The online experiment: lifts by hand, and two days of a small city whose feedback, log and truth must agree."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.experiments import online_ab, run, vectors, worlds
from benchmarks.experiments.city import Scale
from benchmarks.experiments.online import report, world
from benchmarks.experiments.online.days import ARMS, Sessions, arm_of
from benchmarks.experiments.online.measured import Foretold, Found, Lift, Mean, OfDay, Seen, apart, together
from benchmarks.experiments.online.off_policy import ESTIMATORS, Estimate
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import Knowing, LanguageModel, PoiMeans
from benchmarks.experiments.worlds import plain_hash
from feature_repo import columns
from feature_repo.datasets.city import CityConfig
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from serving.feedback_export import REQUEST
from trainers.knowledge import SCENARIO_KNOWLEDGE

ROOT = Path(__file__).resolve().parents[2]
CELL = replace(online_ab.cells(Scale(quick=True), None)[0], days=2, candidates=6, positions=3, temperature=0.5, logs=5)
CELL = replace(
    CELL,
    world=replace(CELL.world, config=CityConfig(users=60, pois=40, days=16, requests_per_user_day=0.6), first_day=14),
)
# A cell is one process: Feast's definitions belong to one workspace.
LIVE = """
import json, sys
from pathlib import Path
from benchmarks.experiments import online_ab
from benchmarks.experiments.places import Places
from tests.benchmarks.test_online_ab import CELL

root = Path(sys.argv[1])
places = Places(scratch=root, results=root / "results")
if sys.argv[2] == "prepare":
    online_ab.prepare(CELL, places)
else:
    online_ab.compute(CELL, places)
    from feature_repo.store import open_store
    from feature_repo.workspace import active

    users = [f"u{number}" for number in range(CELL.world.config.users)]
    found = open_store(active()).get_online_features(["user_state:recent_pois"], {"user_id": users}).to_dict()
    (root / "online.json").write_text(json.dumps(dict(zip(users, found["recent_pois"], strict=True))))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("online")
    for step in ("prepare", "live"):
        done = subprocess.run([sys.executable, "-c", LIVE, str(root), step], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return Places(scratch=root, results=root / "results")


@pytest.fixture(scope="module")
def sessions(places: Places) -> Sessions:
    return Sessions(**np.load(places.scratch / "online" / plain_hash(CELL)[:16] / "sessions.npz"))


@pytest.fixture(scope="module")
def workspace(places: Places) -> Workspace:
    return Workspace(places.scratch / "online" / plain_hash(CELL)[:16])


def test_the_log_grows_by_what_was_shown_and_what_came_of_it(workspace, sessions):
    log = pq.read_table(workspace.source("impressions"))
    rows = log.filter(pc.starts_with(log[columns.REQUEST_ID], REQUEST))
    assert len(rows) == sessions.shown.size
    assert pc.sum(rows[columns.CLICK]).as_py() == sessions.click.sum()
    assert pc.sum(rows[columns.ORDER]).as_py() == sessions.order.sum()
    assert set(rows[columns.POSITION].to_pylist()) == {0, 1, 2}
    assert Schema.load(workspace.schema).split.end == CELL.world.config.at_day(16)
    old = log.filter(pc.invert(pc.starts_with(log[columns.REQUEST_ID], REQUEST)))
    assert pc.max(old[columns.EVENT_TIMESTAMP]).as_py() < CELL.world.config.at_day(14)


def test_propensities_of_the_log_are_those_of_the_draw(workspace, sessions):
    """Row by row: softmax over the candidates that do not stand above."""
    log = pq.read_table(workspace.source("impressions"))
    rows = log.filter(pc.starts_with(log[columns.REQUEST_ID], REQUEST))
    logged = sorted(rows[columns.PROPENSITY].to_pylist())
    at = np.arange(len(sessions.arm))
    odds = np.exp(sessions.logits[at, sessions.arm])
    shown = np.take_along_axis(odds, sessions.shown, axis=1)
    left = odds.sum(axis=1, keepdims=True) - np.cumsum(shown, axis=1) + shown
    assert logged == pytest.approx(sorted((shown / left).ravel()), rel=1e-3)


def test_clicks_are_online_before_the_night_and_in_the_log_after_it(places, workspace, sessions):
    clicks = [json.loads(line) for line in (workspace.root / "clicks.jsonl").read_text().splitlines()]
    assert len(clicks) == sessions.click.sum()
    last = {click["user_id"]: click["poi_id"] for click in sorted(clicks, key=lambda click: click["time"])}
    online = json.loads((places.scratch / "online.json").read_text())
    assert {user: online[user][0] for user in last} == last
    state = pq.read_table(workspace.source("user_state")).sort_by(columns.EVENT_TIMESTAMP)
    users, recent = (state[name].to_pylist() for name in (columns.USER_ID, columns.RECENT_POIS))
    newest = dict(zip(users, recent, strict=True))
    assert {user: newest[user][0] for user in last} == last


def test_arms_are_of_users_and_answer_every_session(sessions):
    assert all(arm_of(f"u{user}") == arm for user, arm in zip(sessions.user, sessions.arm, strict=True))
    assert set(sessions.arm) == {0, 1, 2} and set(sessions.day) == {0, 1}
    assert not np.allclose(sessions.p_click[:, 0], sessions.p_click[:, 1])
    assert (sessions.p_order < sessions.p_click).all()


def test_a_retrained_arm_is_another_one(workspace):
    from trainers import bundle

    ends = {model: bundle.load(workspace.bundles / model).manifest.trained_until for model in ARMS.values()}
    assert set(ends.values()) == {CELL.world.config.at_day(13)}  # a day later than in the first night


def test_what_is_expected_is_what_happens(sessions):
    """Of the drawn orders, as far as chance allows: four standard errors of the sum of Bernoulli draws."""
    at, position = np.arange(len(sessions.arm))[:, None], np.arange(3)
    chance = sessions.click_chance[at, sessions.shown, position]
    spread = float(np.sqrt((chance * (1 - chance)).sum()))
    assert abs(sessions.click.sum() - chance.sum()) < 4 * spread
    seen = Seen(sessions)
    assert seen.expected("clicks", 0, "drawn").mean() == pytest.approx(
        np.einsum("nmk,nmk->n", seen.drawn[0], sessions.click_chance).mean()
    )


def test_a_city_is_lived_once_and_told_twice(places, monkeypatch):
    monkeypatch.setattr(online_ab, "cells", lambda scale, seeds: [CELL])
    options = run.Options(places=places, command="a command")
    before = online_ab.path(CELL, places).stat().st_mtime_ns
    online_ab.main(Scale(quick=True), options)
    assert online_ab.path(CELL, places).stat().st_mtime_ns == before
    text = (places.results / "online_ab.md").read_text()
    assert "`a command`" in text and "LARR against PLE" in text and "Doubly" not in text.split("##")[0]
    assert (places.results / "online_ab.png").read_bytes().startswith(b"\x89PNG")
    plain = json.loads((places.results / "online_ab.json").read_text())
    assert {one["arm"] for one in plain["seeds"][0]["means"]} == set(ARMS)
    assert len(plain["seeds"][0]["foretold"]) == 6 * 3 * len(ESTIMATORS)


def test_a_language_model_reads_what_rankers_know(places, tiny_model):
    """As in the real run: texts, and users as means over the places that they clicked. The tiny model reads too few
    tokens for the prompts about scenarios."""
    model = str(tiny_model)
    kind = Knowing(texts=LanguageModel(model=model), prompts=PoiMeans(model=model))
    wanted = [r for r in world.readings(CELL.world, kind, places) if r.space != SCENARIO_KNOWLEDGE]
    for reading in wanted:
        vectors.read(reading, places)
    assert wanted and not any(reading.missing(places) for reading in wanted)
    workspace = Workspace(worlds.folder(CELL.world, places))
    for space in columns.SPACES.keys() - {SCENARIO_KNOWLEDGE}:
        found = kind.of(space, worlds.texts_of_rows(workspace, space)[1], places)
        assert len(found) > 0 and found.shape[1] == 32 and np.isfinite(found).all()


def test_lifts_by_hand():
    ours, reference = (Estimate(value=v, error=e, low=0.0, high=2.0) for v, e in ((1.2, 0.12), (1.0, 0.1)))
    assert apart(ours, reference) == pytest.approx((0.2, 1.2 * 0.02**0.5))
    same = together(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), np.array([0, 1, 2]))
    assert same == (1.0, 0.0)  # twice as much in every session: nothing is left to chance


def of_seed(value: float) -> Found:
    rows = [
        (arm, how, measure) for arm in ARMS for how in ("observed", "drawn", "certain") for measure in report.MEASURES
    ]
    return Found(
        means=tuple(Mean(arm=a, how=h, measure=m, sessions=10, value=value, error=0.1) for a, h, m in rows),
        lifts=tuple(Lift(arm=a, how=h, measure=m, value=value, error=0.3) for a, h, m in rows if a != "PLE"),
        days=tuple(OfDay(arm=arm, day=0, clicks=value) for arm in ARMS),
        foretold=tuple(
            Foretold(
                logged="PLE",
                other="LARR",
                measure=measure,
                estimator=name,
                value=value,
                low=value - 0.15,
                high=value + 0.15,
                truth=1.0,
                covered=19,
                logs=20,
            )
            for measure in report.MEASURES
            for name in ESTIMATORS
        ),
        users=5,
        rows=30,
        seconds={"learn": 1.0},
        date="2012-05-07",
        machine="a machine",
    )


def test_seeds_are_told_together():
    found = [of_seed(value) for value in (1.0, 1.1, 1.2, 1.3)]
    told = report.lift(found, "LARR", "observed", "clicks")
    assert told.mean == pytest.approx(1.15) and told.by == "users"  # .3 / 2 is wider than what seeds differ by
    assert told.high - told.mean == pytest.approx(1.96 * 0.3 / 2)
    assert report.lift(found[:1], "LARR", "observed", "clicks").by == "users"
    text = report.markdown("online_ab", ["told"], found)
    assert "| clicks | IPS | 95.0% [87.8%, 98.0%] | 95.0% | 2 of 4 |" in text
    assert "LARR + LLM4MSR against PLE, observed, each arm's own users: clicks +115.00%" in text
