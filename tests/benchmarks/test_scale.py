"""The scale experiment: what its points and its store measure, and where a curve is said to bend."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.experiments import msr_scale as experiment
from benchmarks.experiments.city import Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import Options
from benchmarks.experiments.scale_point import VECTOR_WIDTH, Effort, Found, Point, measure, request, rows_of
from benchmarks.experiments.scale_store import Stored, StoreFound, table
from feature_repo import columns
from trainers import recipes
from trainers.knowledge import load_matrix
from trainers.language.parquet import write
from trainers.models.backbones.shared_bottom import SharedBottom

SHORT = Effort(steps=3, requests=5, bulks=2, seconds=0.1)


def point(scenarios: int, users: int, knowledge: bool = True) -> Point:
    recipe = (recipes.llm4msr if knowledge else recipes.ple)("tiny")
    recipe = recipes.on_backbone(recipe, SharedBottom.Config(bottom_widths=(16, 8), tower_widths=(8,)))
    return Point(recipe=recipe, scenarios=scenarios, users=users, effort=SHORT)


def found(**values: float) -> Found:
    return Found(**{**{f.name: 1.0 for f in fields(Found)}, **values})  # type: ignore[arg-type]


def test_rows_know_every_id_and_a_request_is_one_users() -> None:
    made = point(scenarios=7, users=50)
    batch = rows_of(made, 4000, seed=0)
    ids = batch.categorical_BF
    assert int(ids.min()) == 1 and ids.amax(0)[:2].tolist() == [7, 50]
    assert all(int(top) < c for top, c in zip(ids.amax(0), made.sizes.cardinalities, strict=True))
    assert torch.equal(batch.text_row_BK, ids[:, [1, 0]])
    one = request(made, seed=3)
    assert len(one) == 200 and len(torch.unique(one.categorical_BF[:, :4], dim=0)) == 1
    assert len(torch.unique(one.text_row_BK, dim=0)) == 1 and len(torch.unique(one.categorical_BF[:, 4])) > 100
    assert not torch.equal(request(made, seed=4).categorical_BF, one.categorical_BF)


def test_a_point_counts_what_grows() -> None:
    small, more = measure(point(3, 40)), measure(point(30, 40))
    assert small.vectors_mib == pytest.approx(4 * VECTOR_WIDTH * (4 + 41) / 2**20)
    # Two layers of the scenario's: 16 x 4 and 4 x 16 weights and 16 biases each, in float32, for 3 and the missing one.
    assert small.kept_mib == pytest.approx(4 * 4 * 2 * (2 * 64 + 16) / 2**20)
    assert more.kept_mib == pytest.approx(small.kept_mib * 31 / 4)
    # A tower for each scenario and task, 8 x 8 + 8 + 8 + 1, and an embedding of 8.
    assert more.parameters - small.parameters == 27 * (2 * 81 + 8)
    for one in (small, more):
        assert 0 < one.p50_ms <= one.p99_ms and one.optimizer_ms > 0 and one.peak_mib >= one.start_mib > 0
        assert one.train_rows_per_second == pytest.approx(1e3 * 256 / one.step_ms)
    alone = measure(point(3, 40, knowledge=False))
    assert alone.vectors_mib == alone.kept_mib == 0 and alone.parameters < small.parameters


def test_a_curve_bends_at_the_first_tenfold_that_costs_much() -> None:
    grid = experiment.points(Scale())["PLE"]
    rates = {10: 1000.0, 100: 900.0, 1_000: 450.0}
    measured = [
        (p, found(train_rows_per_second=rates[p.scenarios] / p.users, p50_ms=3.0, peak_mib=p.users / 10)) for p in grid
    ]
    lines = {(line.measure, line.axis): line for line in experiment.curves({"PLE": measured})}
    by_scenarios = lines["train_rows_per_second", "scenarios"]
    assert by_scenarios.sizes == (10, 100, 1_000) and by_scenarios.values == (0.1, 0.09, 0.045)
    assert by_scenarios.factors == pytest.approx((10 / 9, 2.0)) and by_scenarios.bend == 1_000
    assert lines["p50_ms", "users"].bend is None and lines["p50_ms", "users"].factors == (1.0, 1.0)
    assert lines["peak_mib", "users"].bend == 100_000 and lines["peak_mib", "scenarios"].bend is None


def test_the_grid_is_whole_and_a_point_is_found_again_by_its_configuration(tmp_path: Path) -> None:
    grid = experiment.points(Scale())
    assert list(grid) == ["SharedBottom", "SharedBottom + LLM4MSR", "PLE", "PLE + LLM4MSR"]
    for of_one in grid.values():
        assert len({(p.scenarios, p.users) for p in of_one}) == 9
    places = Places(scratch=tmp_path, results=tmp_path)
    every = [*(p for of_one in grid.values() for p in of_one), *experiment.stores(Scale())]
    assert len({experiment._path(p, places) for p in every}) == len(every)
    first = grid["PLE"][0]
    again = replace(first, effort=Effort())
    assert experiment._path(again, places) == experiment._path(first, places)
    shorter = replace(first, recipe=replace(first.recipe, fit=replace(first.recipe.fit, batch_size=512)))
    assert experiment._path(shorter, places) != experiment._path(first, places)


def test_a_store_is_a_knowledge_file(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    write(table(vectors), tmp_path / "user_knowledge.parquet")
    matrix = load_matrix(tmp_path / "user_knowledge.parquet")
    assert np.array_equal(matrix.matrix[1:], vectors) and not matrix.matrix[0].any()
    assert matrix.keys.to_pylist()[:2] == ["u0", "u1"] and matrix.space == columns.USER_ID.replace("_id", "_knowledge")


def test_a_rehearsal_measures_writes_and_then_only_reads(tmp_path: Path) -> None:
    places = Places(scratch=tmp_path, results=tmp_path)
    options = Options(places=places, command="a command")
    experiment.main(Scale(quick=True), options)
    text = (tmp_path / "msr_scale.md").read_text()
    assert "`a command`" in text and "| SharedBottom + LLM4MSR | 100 | 1,000 |" in text
    assert "to 100: " in text and "| 1,000 | 2" in text.split("The store of users' knowledge")[1]
    assert (tmp_path / "msr_scale.png").read_bytes().startswith(b"\x89PNG")
    store = experiment.read_json(tmp_path / "msr_scale.json")["stores"][0]
    # A vector of 576 numbers in float32 is 2,304 bytes wherever it lies.
    assert store["file_mib"] * 2**20 / 1_000 > 2_304 * 0.9 and store["online_bytes"] > 2_304
    written = {path: path.stat().st_mtime_ns for path in places.cells.iterdir()}
    experiment.main(Scale(quick=True), options)
    assert {path: path.stat().st_mtime_ns for path in places.cells.iterdir()} == written


def test_the_table_tells_the_stores() -> None:
    one = StoreFound(**{**{f.name: 2.0 for f in fields(StoreFound)}, "online_bytes": 4890.6})
    line = experiment._stores([(Stored(users=1_000), one)])[-1]
    assert line.startswith("| 1,000 | 2.0 | 2,097 |") and "| 4,891 |" in line
