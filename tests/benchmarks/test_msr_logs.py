"""Public logs for LLM4MSR: who is compared with whom, and prompts from which a planted test part is absent."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from benchmarks.experiments import msr_logs, worlds
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.msr_logs import DAILY, SITTINGS, USER_FRACTIONS, AskedKuaiRand, MovieLensWorld
from feature_repo import columns
from feature_repo.datasets import movielens
from feature_repo.datasets.movielens import MovieLensConfig
from feature_repo.datasets.schema import BORDERS
from feature_repo.workspace import Workspace

DAY = 24 * 3600  # seconds
PLANTED = "Western"  # the genre of films that are liked in test parts only
CUTS = {"by user": USER_FRACTIONS, "by time": None}


@pytest.fixture(scope="module", params=[False, True], ids=["full", "quick"])
def experiments(request: pytest.FixtureRequest) -> list[Experiment]:
    return [make(Scale(quick=request.param)) for make in msr_logs.EXPERIMENTS]


def test_each_backbone_is_compared_with_itself_on_every_scenario(experiments: list[Experiment]) -> None:
    assert [e.name for e in experiments] == ["msr_kuairand", "msr_movielens_users", "msr_movielens_time"]
    for e in experiments:
        assert len(e.arms) == 10 and len(e.comparisons) == 5
        for comparison in e.comparisons:
            assert comparison.ours == f"{comparison.reference} + LLM4MSR"
            for ours, reference in zip(e.cells[comparison.ours], e.cells[comparison.reference], strict=True):
                knowledge = ours.recipe.model.knowledge
                assert knowledge is not None and knowledge.user and knowledge.scenario
                assert replace(ours, recipe=reference.recipe) == reference, "nothing else differs"
                assert replace(ours.recipe, model=replace(ours.recipe.model, knowledge=None)) == reference.recipe
            assert {"all", "short history", "new POI"} < set(comparison.slices) <= set(e.slices)
    scenarios = [[at.removeprefix("scenario ") for at in e.slices if at.startswith("scenario ")] for e in experiments]
    assert scenarios == [["tab_1", "tab_0", "tab_4", "tab_2", "tab_6"], [*movielens.SCENARIOS], [*movielens.SCENARIOS]]


def test_seeds_are_five_and_of_the_weights_alone() -> None:
    for make in msr_logs.EXPERIMENTS:
        e = make(Scale())
        assert e.seeds == (0, 1, 2, 3, 4)
        assert len({worlds.plain_hash(cell.world) for cells in e.cells.values() for cell in cells}) == 1
        assert len({cell.hash for cells in e.cells.values() for cell in cells}) == 50


def test_no_world_tells_events_of_its_test_part() -> None:
    for world in (AskedKuaiRand(), MovieLensWorld(), MovieLensWorld(user_fractions=USER_FRACTIONS)):
        facts = world.asked().facts
        assert facts is not None and not facts.test_part
    assert AskedKuaiRand().asked().facts == DAILY and MovieLensWorld().asked().facts == SITTINGS


@pytest.fixture(scope="module", params=CUTS, ids=[*CUTS])
def films(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Ten people, one every other day, who rate fifty films at one a minute, and fifty more 38 days later.

    All like dramas, and, of what each of them or the log has last (the test part), westerns. The snapshot after eight
    weeks comes when most of the test part has happened, whichever the cut.
    """
    folder = tmp_path_factory.mktemp("films")
    fractions = CUTS[request.param]
    config = MovieLensConfig(source=folder, user_fractions=fractions)
    rows = []
    for user in range(10):
        for number in range(100):
            moment = 978_300_000 + user * 2 * DAY + number * 60 + (number >= 50) * 38 * DAY
            rows.append([f"u{user}", f"f{number}", 5, moment])
    rows.sort(key=lambda row: row[3])
    if fractions is None:
        tested = {(row[0], row[1]) for row in rows[900:]}
    else:
        tested = {(f"u{user}", f"f{number}") for user in range(10) for number in range(80, 100)}
    for row in rows:
        row[1] = f"w{row[1]}" if (row[0], row[1]) in tested else row[1]
    _write(folder, "inter", ["user_id", "item_id", "rating", "timestamp"], rows)
    people = [[f"u{user}", "25", "F", "10", "48067"] for user in range(10)]
    _write(folder, "user", ["user_id", "age", "gender", "occupation", "zip_code"], people)
    names = [f"{kind}f{number}" for number in range(100) for kind in ("", "w")]
    genres = {name: PLANTED if name.startswith("w") else "Drama" for name in names}
    _write(
        folder, "item", ["item_id", "movie_title", "release_year", "genre"], [[n, n, 1999, genres[n]] for n in names]
    )
    workspace = Workspace(folder / "workspace")
    workspace.knowledge.mkdir(parents=True)
    movielens.load(config).write(workspace.sources)
    return workspace


def _write(folder: Path, kind: str, names: list[str], rows: list[list[object]]) -> None:
    lines = ["\t".join(f"{name}:token" for name in names), *("\t".join(map(str, row)) for row in rows)]
    (folder / f"ml-1m.{kind}").write_text("\n".join(lines) + "\n")


def test_prompts_of_films_hold_nothing_of_the_planted_test_part(films: Workspace) -> None:
    asked = MovieLensWorld().asked()
    worlds.write_prompts(films, asked)
    prompts = {space: worlds.texts_of_rows(films, space)[1] for space in columns.PROMPTED}
    assert not any(PLANTED in prompt for of in prompts.values() for prompt in of)
    assert any("Drama" in prompt for prompt in prompts["user_knowledge"])
    assert any("Drama" in prompt for prompt in prompts["scenario_knowledge"])
    assert asked.facts is not None
    worlds.write_prompts(films, replace(asked, facts=replace(asked.facts, test_part=True)))
    leaky = [prompt for space in columns.PROMPTED for prompt in worlds.texts_of_rows(films, space)[1]]
    assert any(PLANTED in prompt for prompt in leaky), "the plant is where a prompt would find it"


def test_everybody_is_asked_about_after_ten_ratings_and_after_forty(films: Workspace) -> None:
    """A sitting of fifty minutes has two snapshots of its own, of which the rows after them know."""
    worlds.write_prompts(films, MovieLensWorld().asked())
    known = pl.read_parquet(films.knowledge / "user_knowledge.parquet")
    log = pl.read_parquet(films.source("impressions"))
    if films.source(BORDERS).is_file():
        log = log.join(pl.read_parquet(films.source(BORDERS)), on=columns.USER_ID)
        log = log.filter(pl.col(columns.EVENT_TIMESTAMP) < pl.col("test"))
    times = log.group_by(columns.USER_ID).agg(pl.col(columns.EVENT_TIMESTAMP).sort())
    moments = Counter(zip(known[columns.USER_ID], known[columns.EVENT_TIMESTAMP], strict=True))
    assert set(moments.values()) == {1}
    for user, of_user in times.rows():
        for count in (10, 40):
            after = [
                moment for (who, moment) in moments if who == user and of_user[count - 1] < moment < of_user[count]
            ]
            assert len(after) == 1
