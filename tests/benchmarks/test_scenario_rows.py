"""Which rows a cell sees: of a new scenario none but those given back, of one scenario none of another."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.experiments import msr_cold_scenario, popularity
from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.city import Scale
from benchmarks.experiments.popularity import Popularity
from benchmarks.experiments.scenario_rows import NewScenario, OneScenario, Parts
from feature_repo import aggregates, columns
from feature_repo.datasets import city
from feature_repo.datasets.city import CityConfig
from feature_repo.workspace import Workspace

SCENARIOS = ("feed", "search", "deals")


def part(requests: int, seed: int) -> pa.Table:
    """Requests of five rows, each in one scenario."""
    rng = np.random.default_rng(seed)
    request = np.repeat(np.arange(requests), 5)
    scenario = np.array(SCENARIOS)[rng.integers(3, size=requests)][request]
    return pa.table(
        {
            columns.ROW_ID: np.arange(len(request)),
            columns.REQUEST_ID: [f"r{number}" for number in request],
            columns.SCENARIO_ID: scenario,
            "scenario_clicks_7d": np.ones(len(request)),
            "poi_clicks_7d": np.ones(len(request)),
        }
    )


PARTS = Parts(part(400, 0), part(60, 1), part(80, 2))


def rows(table: pa.Table, scenario: str | None) -> set[int]:
    return {row["row_id"] for row in table.to_pylist() if row["scenario_id"] == scenario}


@pytest.mark.parametrize("given", [0, 7, 100])
def test_nothing_of_a_new_scenario_is_left_but_what_is_given_back(given):
    train, valid, test = NewScenario(scenario="deals", given=given).of(PARTS, seed=3)
    back = rows(train, "deals")
    assert len(back) == given and back <= rows(PARTS.train, "deals")
    assert not rows(valid, "deals") and len(valid) == len(PARTS.valid) - len(rows(PARTS.valid, "deals"))
    assert test.equals(PARTS.test.filter(pa.compute.equal(PARTS.test["scenario_id"], "deals")))
    # All rows of the other scenarios are there, in their order; of a tenth nobody knows the scenario.
    others = [row for row in train.to_pylist() if row["scenario_id"] != "deals"]
    all_others = [row for row in PARTS.train.to_pylist() if row["scenario_id"] != "deals"]
    assert [row["row_id"] for row in others] == [row["row_id"] for row in all_others]
    hidden = [row["scenario_id"] is None for row in others]
    assert 0.07 < np.mean(hidden) < 0.13
    assert all(a["scenario_id"] in (None, b["scenario_id"]) for a, b in zip(others, all_others, strict=True))
    assert [row["scenario_clicks_7d"] is None for row in others] == hidden
    assert train["poi_clicks_7d"].null_count == 0


def test_fewer_impressions_are_among_more_and_come_in_whole_requests():
    given = {n: rows(NewScenario(scenario="deals", given=n).of(PARTS, seed=3).train, "deals") for n in (7, 50, 100)}
    assert given[7] < given[50] < given[100]
    assert {row // 5 * 5 + at for row in given[50] for at in range(5)} == given[50]
    others = rows(NewScenario(scenario="deals", given=50).of(PARTS, seed=4).train, "deals")
    assert others != given[50]


def test_the_same_rows_are_hidden_however_many_are_given_back():
    few, many = (NewScenario(scenario="deals", given=n).of(PARTS, seed=3).train for n in (0, 100))
    assert rows(few, None) == rows(many, None) and not rows(
        NewScenario(scenario="deals", unknown=0).of(PARTS, 3)[0], None
    )


def test_more_than_there_is_cannot_be_given_back():
    with pytest.raises(ValueError, match="1000000 training rows of a new scenario are asked for, there are"):
        NewScenario(scenario="deals", given=1_000_000).of(PARTS, seed=3)


def test_one_scenario_alone_sees_no_other():
    for found, whole in zip(OneScenario(scenario="search").of(PARTS, seed=0), PARTS, strict=True):
        assert rows(found, "search") == rows(whole, "search") and len(found) == len(rows(whole, "search"))


def test_popularity_is_clicks_an_impression_drawn_towards_the_overall_rate():
    train = pa.table({"poi_id": ["a"] * 4 + ["b"] * 4, "click": [1, 1, 0, 0, 0, 0, 0, 0], "order": [1] + [0] * 7})
    click, order = popularity.scores(train, pa.table({"poi_id": ["b", "a", "new"]}), Popularity(prior=4.0))
    np.testing.assert_allclose(click, [1 / 8, 3 / 8, 1 / 4])
    np.testing.assert_allclose(order, [0.5 / 8, 1.5 / 8, 1 / 8])


def test_a_run_holds_out_another_scenario_or_has_another_seed():
    experiment = msr_cold_scenario.experiment(Scale())
    cells = experiment.cells["SharedBottom, 0"]
    runs = [(cell.rows.scenario, cell.world.new, cell.seed, cell.world.seed) for cell in cells]
    assert len(set(runs)) == len(runs) == 9
    assert all(of_rows == of_world and a == b for of_rows, of_world, a, b in runs)
    assert len({scenario for scenario, *_ in runs}) == 3 and len({seed for *_, seed in runs}) == 3
    for name in experiment.arms:
        assert [(cell.rows.scenario, cell.seed) for cell in experiment.cells[name]] == [(a, c) for a, _, c, _ in runs]


def test_a_log_knows_nothing_of_a_new_scenario_before_its_end(tmp_path):
    """Statistics, states and prompts are the same whatever happened there."""
    config = CityConfig(users=30, pois=40, days=21, requests_per_user_day=0.6, candidates=6)
    made = msr_cold_scenario.unknown_until_the_end(city.build(config), "search")
    log = made.tables["impressions"]
    other = log.filter(pa.compute.not_equal(log["scenario_id"], "search"))
    assert 100 < len(other) < len(log) - 100
    stays = {**made.tables, "impressions": other}
    found = [known(Workspace(tmp_path / name), made, tables) for name, tables in (("a", made.tables), ("b", stays))]
    assert found[0] == found[1] and found[0]


def known(workspace: Workspace, made, tables) -> list[object]:
    """All that features and prompts are made of, as of the last moment before the end of the log."""
    workspace.sources.mkdir(parents=True)
    for name, table in tables.items():
        pq.write_table(table, workspace.source(name))
    made.schema.save(workspace.schema)
    aggregates.build(workspace)
    found: list[object] = []
    for name in ("user_stats", "poi_stats", "scenario_stats", aggregates.USER_STATE):
        table = pq.read_table(workspace.source(name))
        before = pa.compute.less(table[columns.EVENT_TIMESTAMP], pa.scalar(made.schema.split.end))
        found.append(sorted(map(str, table.filter(before).to_pylist())))
    asked = PromptChoice(scenario="brief").questions(workspace)
    assert {q.key for q in asked["scenario"]} >= {"search"}
    assert not any("search" in q.prompt.split("parts:")[-1] for q in asked["user"])
    return [*found, asked["user"], [q.prompt for q in asked["scenario"]]]
