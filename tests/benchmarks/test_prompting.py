"""The prompt study: probes on planted truths, likeness by hand, cells that are what they read, prompts that fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file

from benchmarks.experiments import msr_prompts, worlds
from benchmarks.experiments.city import CityWorld, Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.prompting import cells, measures, report
from benchmarks.experiments.prompting.analysis import CONTROLS, Line, Pair, analyse
from benchmarks.experiments.prompting.cells import WORDINGS, PromptCell, Store, asked_of, compute
from benchmarks.experiments.prompting.measures import Share, foretold
from benchmarks.experiments.prompting.people import facts_of, people_of
from benchmarks.experiments.prompting.versions import Repacked, repack
from benchmarks.experiments.vectors import LanguageModel
from feature_repo import columns
from feature_repo.datasets.city import CityConfig
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from trainers.knowledge import POI_SPACE
from trainers.language.facts import FactsConfig
from trainers.language.model import model_identity
from trainers.language.prompts import SLOT, read_prompt

WORLD = CityWorld(config=CityConfig(users=60, pois=60, days=14, requests_per_user_day=0.6, candidates=6))


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Places:
    """A world with its sources and the rows of its POIs' texts, which is all that this study reads."""
    from serving import stages

    root = tmp_path_factory.mktemp("prompting")
    found = Places(scratch=root / "scratch", results=root / "results")
    workspace = Workspace(worlds.folder(WORLD, found))
    stages.data(workspace, WORLD.choice(), lambda what, done, total: None)
    worlds.write_rows(workspace, POI_SPACE)
    return found


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory) -> LanguageModel:
    """The tiny model with room for prompts, of which its tokenizer makes many tokens."""
    folder = tmp_path_factory.mktemp("long") / "tiny"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 2048}))
    return LanguageModel(model=str(folder))


@pytest.fixture(scope="module")
def cell(model: LanguageModel) -> PromptCell:
    return PromptCell(world=WORLD, model=model, dtype="float32", limit=400, tokens=3, users=24)


def planted(noise: float, users: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, and tastes that are linear in them up to noise of so many times their deviation."""
    rng = np.random.default_rng(seed)
    vectors_nE = rng.normal(size=(users, 40)) * rng.uniform(0.1, 10, 40) + 5.0
    told_nK = (vectors_nE - 5.0) @ rng.normal(size=(40, 6)) + 3.0
    return vectors_nE, told_nK + noise * told_nK.std(axis=0) * rng.normal(size=told_nK.shape)


def test_a_probe_explains_what_was_planted_and_nothing_more() -> None:
    for noise in (0.0, 1.0, 2.0):
        vectors_nE, true_nK = planted(noise)
        found = foretold(vectors_nE, true_nK).explained(true_nK).value
        assert found == pytest.approx(1 / (1 + noise**2), abs=0.06)


def test_a_probe_finds_nothing_in_random_vectors() -> None:
    _, true_nK = planted(0.5)
    random_nE = np.random.default_rng(9).normal(size=(600, 500))  # more columns than it could tell apart
    found = foretold(random_nE, true_nK)
    assert -0.05 < found.explained(true_nK).value < 0.02
    assert found.first(true_nK).value == pytest.approx(1 / 6, abs=0.08)


def test_what_a_probe_says_of_a_user_does_not_depend_on_their_own_taste() -> None:
    vectors_nE, true_nK = planted(0.5, users=60)
    other_nK = true_nK.copy()
    other_nK[7] += 1000.0
    before, after = foretold(vectors_nE, true_nK), foretold(vectors_nE, other_nK)
    np.testing.assert_array_equal(after.said_nK[7], before.said_nK[7])
    np.testing.assert_array_equal(after.usual_nK[7], before.usual_nK[7])
    assert not np.allclose(after.said_nK, before.said_nK)


def test_a_probe_of_one_reading_meets_the_vectors_of_another() -> None:
    vectors_nE, true_nK = planted(0.0)
    same = foretold(vectors_nE, true_nK)
    np.testing.assert_array_equal(foretold(vectors_nE, true_nK, vectors_nE).said_nK, same.said_nK)
    turned = foretold(vectors_nE, true_nK, 10.0 - vectors_nE).explained(true_nK)  # mirrored at the mean
    assert turned.value == pytest.approx(-3.0, abs=0.2)  # 1 - 2^2
    assert turned.less(same.explained(true_nK)).high < -3.5


def test_a_share_is_a_ratio_of_sums_and_its_differences_are_paired() -> None:
    share = Share(np.array([1.0, 0.0, 3.0]), np.array([2.0, 1.0, 5.0]))
    assert share.value == 0.5
    nothing = share.less(share)
    assert (nothing.mean, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    halves = Share.mean(np.arange(400) % 2).interval()
    assert halves.mean == 0.5 and halves.by == "users"
    assert halves.high - halves.low == pytest.approx(2 * 1.96 * 0.5 / 20, abs=0.015)


def test_likeness_by_hand() -> None:
    # Centred, the first set is (-1, 0), (1, 0), (0, -1), (0, 1); the second turns the last two users round.
    a = np.array([[2.0, 5.0], [4.0, 5.0], [3.0, 4.0], [3.0, 6.0]])
    b = np.array([[0.0, 0.0], [20.0, 0.0], [10.0, 10.0], [10.0, -10.0]])
    np.testing.assert_allclose(measures.cosines(a, b), [1.0, 1.0, -1.0, -1.0], atol=1e-12)
    np.testing.assert_allclose(measures.cosines(a, 7.0 * a + 1.0), 1.0)
    assert measures.cosines(a, np.ones((4, 2))).tolist() == [0.0] * 4  # all alike: no direction


def test_neighbours_by_hand() -> None:
    angle = np.deg2rad([0, 10, 180, 200])
    a = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    b = a[[0, 2, 1, 3]]  # users 1 and 2 change places: of one neighbour each, nobody keeps theirs
    assert measures.shared_neighbours(a, a, 1).tolist() == [1.0] * 4
    assert measures.shared_neighbours(a, b, 1).tolist() == [0.0] * 4
    assert measures.shared_neighbours(a, b, 3).tolist() == [1.0] * 4  # all the others, whatever their order


def test_a_cell_is_what_it_reads() -> None:
    usual = PromptCell(world=WORLD)
    others = [
        replace(usual, world=replace(WORLD, config=replace(WORLD.config, seed=1))),
        replace(usual, model=Repacked()),
        replace(usual, dtype="float32"),
        replace(usual, pooling="generated-mean"),
        replace(usual, pooling="generated-mean", tokens=8),
        replace(usual, structure="history"),
        replace(usual, wording=2),
        replace(usual, limit=80),
        replace(usual, liked=4),
        replace(usual, users=200),
        replace(usual, pooling="poi-mean"),
        replace(usual, level="scenario", structure="brief"),
    ]
    assert len({other.hash for other in (usual, *others)}) == len(others) + 1
    assert PromptCell(world=WORLD).hash == usual.hash


def test_a_cell_is_not_what_it_does_not_read() -> None:
    usual = PromptCell(world=WORLD)
    assert replace(usual, tokens=8).hash == usual.hash  # it writes nothing
    means = replace(usual, pooling="poi-mean")
    assert replace(means, structure="history", limit=80, liked=2, dtype="float32").hash == means.hash
    scenario = replace(usual, level="scenario", structure="brief")
    assert replace(scenario, users=200, limit=80).hash == scenario.hash


def test_a_cell_changes_with_the_words_of_its_prompt(monkeypatch, tmp_path) -> None:
    worded = PromptCell(world=WORLD, wording=2)
    before = worded.hash
    monkeypatch.setattr(cells, "WORDINGS", tmp_path)
    (tmp_path / "user").mkdir()
    copy = tmp_path / "user" / "interests-2.txt"
    shutil.copyfile(WORDINGS / "user" / "interests-2.txt", copy)
    assert worded.hash == before
    copy.write_text(copy.read_text().replace("favourite", "liking"))
    assert worded.hash != before


def test_other_words_have_the_slots_of_the_projects_prompt() -> None:
    found = sorted(WORDINGS.rglob("*.txt"))
    for path in found:
        level, (structure, _) = path.parent.name, path.stem.split("-")
        own, other = read_prompt(level, structure).text, read_prompt(level, str(path)).text
        assert sorted(set(SLOT.findall(other))) == sorted(set(SLOT.findall(own))), path
        assert other != own and (other[-1] == '"') == (own[-1] == '"'), path
    study = msr_prompts.study(Scale())
    used = {(c.level, c.structure, c.wording) for c in study.cells if c.wording > 1}
    assert used == {(p.parent.name, p.stem.split("-")[0], int(p.stem.split("-")[1])) for p in found}


def test_the_study_reads_all_prompts_and_a_rehearsal_one_of_each_kind() -> None:
    study, rehearsal = msr_prompts.study(Scale()), msr_prompts.study(Scale(quick=True))
    assert {line.cell.structure for line in study.lines} == set(msr_prompts.WORDINGS)
    names = [(line.group, line.name) for line in study.lines]
    assert len(set(names)) == len(names)
    assert {line.group for line in rehearsal.lines} == {line.group for line in study.lines}
    assert len(rehearsal.lines) == len({line.group for line in study.lines})
    assert {pair.group for pair in rehearsal.pairs} == {pair.group for pair in study.pairs}
    for made in (study, rehearsal):
        assert made.control in made.cells
        assert all(line.users <= line.cell.users for line in made.lines)
        assert all(pair.a.users == pair.b.users for pair in made.pairs)


def test_planted_tastes_are_those_of_the_log(places: Places) -> None:
    people = people_of(WORLD, places)
    table = pq.read_table(Workspace(worlds.folder(WORLD, places)).source("favourites"))
    favourite = dict(zip(table[columns.USER_ID].to_pylist(), table[columns.CATEGORY].to_pylist(), strict=True))
    assert [people.kinds[k] for k in people.suits_nK.argmax(axis=1)] == [favourite[user] for user in people.users]
    assert people.counts_nK.sum(axis=1).min() >= 1 and people.counts_nK.sum(axis=1).max() <= FactsConfig().clicks
    split = Schema.load(Workspace(worlds.folder(WORLD, places)).schema).split
    assert facts_of(WORLD, FactsConfig(), places).time == split.valid


def test_a_prompt_says_as_much_as_fits(places: Places, cell: PromptCell) -> None:
    history = replace(cell, structure="history", limit=10_000)
    whole = asked_of(history, places)
    limit = int(np.median(whole.tokens))
    short = asked_of(replace(history, limit=limit), places)
    assert short.keys == whole.keys
    fits = whole.tokens <= limit
    assert [a == b for a, b in zip(short.prompts, whole.prompts, strict=True)] == fits.tolist()
    assert 0 < fits.sum() < len(fits) and (short.tokens[~fits] < whole.tokens[~fits]).all()
    least = asked_of(replace(history, limit=1), places)  # nothing fits: the fewest facts, none cut
    assert least.prompts == asked_of(replace(history, limit=10_000, liked=1), places).prompts
    assert all(prompt.endswith('"') for prompt in least.prompts)


def test_readings_are_kept_and_found_again(places: Places, cell: PromptCell) -> None:
    store = Store(places)
    for one in (cell, replace(cell, pooling="poi-mean"), replace(cell, pooling="generated-mean", users=6)):
        assert not store.has(one)
        result, vectors = compute(one, places)
        store.keep(one, result, vectors)
        assert store.has(one) and store.result(one).tokens == pytest.approx(result.tokens, rel=1e-5)
        kept = store.vectors(one)
        assert kept.keys == people_of(WORLD, places).users[: one.users]
        np.testing.assert_array_equal(kept.vectors_nE, vectors.vectors_nE)
        np.testing.assert_allclose(kept.head_nK.mean(axis=0), 0.0, atol=1e-4)  # the prior is taken off
        few = kept.first(3)
        np.testing.assert_allclose(few.head_nK.mean(axis=0), 0.0, atol=1e-4)


def test_a_reading_with_other_weights_is_not_found(places: Places, cell: PromptCell, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(cell.model.model, folder)
    moved = replace(cell, model=LanguageModel(model=str(folder)), users=4)
    store = Store(places)
    store.keep(moved, *compute(moved, places))
    assert store.has(moved)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 0.5}))
    assert not store.has(moved)


def test_findings_are_differences_of_the_same_users_and_stand_in_the_text(places: Places, cell: PromptCell) -> None:
    means, worded = replace(cell, pooling="poi-mean"), replace(cell, wording=2)
    brief = replace(cell, level="scenario", structure="brief")
    for one in (cell, means, worded, brief):
        Store(places).keep(one, *compute(one, places))
    lines = [
        Line(group=group, name=name, cell=one, users=24)
        for group, name, one in (
            ("structures", "interests", cell),
            ("wordings", "interests, wording 2", worded),
            (CONTROLS, "means", means),
        )
    ]
    scenario = Line(group="scenarios", name="brief", cell=brief, users=24)
    pairs = [Pair(group="wordings", a=lines[0], b=lines[1]), Pair(group="scenarios", a=scenario, b=scenario)]
    found = analyse(lines, pairs, means, places)
    assert [row.name for row in found.rows[3:]] == [line.name for line in lines]
    by_name = {row.name: row for row in found.rows}
    assert by_name["means"].tastes.against is None and by_name["means"].clicks.against is None
    assert by_name["clicks on each kind"].words.clicked > 0.6  # the newest clicks against all
    alike, same = found.likeness
    assert -1 <= alike.cosine.mean < 1 and alike.swapped is not None
    explained = [by_name[line.name].tastes.explained.mean for line in lines[:2]]
    assert alike.tastes.mean == pytest.approx(explained[1] - explained[0])
    assert by_name["interests"].tastes.against.mean == pytest.approx(
        explained[0] - by_name["means"].tastes.explained.mean
    )
    assert (same.cosine.mean, same.neighbours.mean, same.words.mean) == (pytest.approx(1.0), 1.0, 1.0)
    assert (
        same.swapped is None
        and same.tastes is None
        and same.users == len(facts_of(WORLD, FactsConfig(), places).scenarios)
    )
    text = report.write("study", ["a question"], found, places)
    assert (
        "Of the structures, interests tells most of tastes" in text
        and "interests, wording 2 beside interests: " in text
    )
    assert {path.suffix for path in places.results.glob("study.*")} == {".md", ".json", ".png"}


def test_a_model_packed_again_is_the_model_up_to_rounding(places: Places, model: LanguageModel) -> None:
    again = Repacked(model=model.model, format="Q8_0")
    assert not again.is_at_hand(places)
    folder = repack(again, places)
    assert again.is_at_hand(places) and repack(again, places) == folder
    before, after = (load_file(Path(place) / "model.safetensors") for place in (model.model, folder))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        matrix = ".layers." in name and weight.ndim == 2
        assert torch.equal(weight, after[name]) != matrix, name
        assert (weight - after[name]).abs().max() <= 0.01 * weight.abs().max()
    name = "model.layers.0.mlp.up_proj.weight"
    kind = GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(after[name].numpy(), dequantize(quantize(before[name].numpy(), kind), kind))
    assert model_identity(str(folder)) != model_identity(model.model)
