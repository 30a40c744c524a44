from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.contract.test_rankers import SIZES, as_double, batch_of, logits, matrices, ranker_of, shaken
from trainers import recipes
from trainers.batch import Batch
from trainers.models import meta_layers
from trainers.models.llm4msr import KnowledgeUse
from trainers.models.meta_layers import MetaLayers, MetaLinear
from trainers.models.ranker import Ranker
from trainers.recipes import Recipe

LAYERS = MetaLayers.Config(bottleneck=6, rank=2)
USE = KnowledgeUse.Config(user=LAYERS, scenario=LAYERS, width=8)


def recipe_of(use: KnowledgeUse.Config) -> Recipe:
    recipe = recipes.ple("tiny")
    return replace(recipe, model=replace(recipe.model, knowledge=use))


def test_a_ranker_starts_as_its_backbone_alone_but_for_the_users_layers() -> None:
    alone = ranker_of(recipes.ple("tiny"))
    use = KnowledgeUse.Config(user=None, scenario=LAYERS)
    beside = ranker_of(recipe_of(use))
    beside.load_state_dict({**beside.state_dict(), **alone.state_dict()})
    batch = batch_of(40, seed=1)
    assert torch.allclose(logits(beside(batch)), logits(alone(batch)), atol=1e-6)
    below = ranker_of(recipe_of(KnowledgeUse.Config(user=LAYERS, scenario=None)))
    below.load_state_dict({**below.state_dict(), **alone.state_dict()})
    moved = (logits(below(batch)) - logits(alone(batch))).abs().mean()
    assert 0.0 < moved < 0.3


@pytest.mark.parametrize("merge", ["sum", "gate", "concat"])
@pytest.mark.parametrize("source", ["vectors", "ids"])
def test_scores_follow_the_vector_of_their_own_user_and_scenario(merge: str, source: str) -> None:
    use = KnowledgeUse.Config(user=LAYERS, scenario=LAYERS, width=8, merge=merge, source=source)  # type: ignore[arg-type]
    ranker, batch = shaken(ranker_of(recipe_of(use))), batch_of(40, seed=2)
    before = logits(ranker(batch))
    for column, place in ((1, 1), (2, 0)):  # the user's, the scenario's
        rows = batch.text_row_BK.clone()
        first = int(rows[rows[:, column] > 0][0, column])
        rows[:, column] = torch.where(rows[:, column] == first, 0, rows[:, column])
        after = logits(ranker(replace(batch, text_row_BK=rows)))
        changed = (after - before).abs().amax(1) > 1e-7
        if source == "ids":
            assert not changed.any()
        else:
            assert torch.equal(changed, batch.text_row_BK[:, column] == first), place


@pytest.mark.parametrize("source", ["vectors", "ids"])
def test_codes_are_dropped_in_training_alone(source: str) -> None:
    layers = replace(LAYERS, code_dropout=0.5)
    use = KnowledgeUse.Config(user=layers, scenario=None, source=source)  # type: ignore[arg-type]
    ranker = shaken(ranker_of(recipe_of(use)))
    level = ranker.knowledge.user_level
    rows = torch.arange(1, level.code.count).repeat(40)
    whole = level.eval().code(rows)
    assert (whole != 0).all() and torch.equal(level.code(rows), whole)
    dropped = level.train().code(rows)
    assert (dropped == 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(dropped[dropped != 0], 2 * whole[dropped != 0])


def test_what_is_read_is_what_is_named() -> None:
    assert KnowledgeUse.Config().spaces == ("user_knowledge", "scenario_knowledge")
    assert KnowledgeUse.Config(user=None).spaces == ("scenario_knowledge",)
    assert KnowledgeUse.Config(source="ids").spaces == ()
    with pytest.raises(ValueError, match="no use"):
        KnowledgeUse.Config(user=None, scenario=None)
    wrong = KnowledgeUse.Config(user_space="user_dreams")
    with pytest.raises(ValueError, match=r"knowledge of \['user_dreams'\].*scenerank knowledge"):
        Ranker(recipe_of(wrong).model, SIZES, matrices())


def test_a_longer_matrix_takes_the_place_of_the_old_one() -> None:
    ranker, batch = shaken(ranker_of(recipe_of(KnowledgeUse.Config()))), batch_of(40, seed=3)
    before = logits(ranker(batch))
    grown = torch.cat([matrices()["user_knowledge"], torch.randn(1, 10)])
    ranker.extend_vectors("user_knowledge", grown)
    assert torch.equal(logits(ranker(batch)), before)
    rows = batch.text_row_BK.clone()
    rows[0, 1] = len(grown) - 1
    assert (logits(ranker(replace(batch, text_row_BK=rows))) - before)[0].abs().max() > 1e-6


def served(ranker: Ranker, batch: Batch) -> Tensor:
    """Logits as a server computes them, with layers that are kept."""
    with torch.inference_mode():
        return logits(ranker(batch)).clone()


def plain(ranker: Ranker, batch: Batch) -> Tensor:
    """Logits of a copy in which every code is too many for generated layers, kept ones included."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(meta_layers, "FEW", 0)
        return logits(copy.deepcopy(ranker).eval()(batch))


@pytest.mark.parametrize("merge", ["sum", "gate", "concat"])
@pytest.mark.parametrize("source", ["vectors", "ids"])
def test_layers_that_are_kept_score_as_those_of_the_plain_path(merge: str, source: str) -> None:
    use = replace(USE, merge=merge, source=source)  # type: ignore[arg-type]
    ranker, batch = shaken(ranker_of(recipe_of(use), seed=1)), batch_of(200, seed=4)
    few = batch.rows(batch.categorical_BF[:, 1] < 6)  # of few users as well
    for precise, tolerance in ((False, 1e-5), (True, 1e-9)):
        ranker = ranker.double() if precise else ranker  # what is kept in float32 must not stay
        for rows in (batch, few, few.rows(torch.tensor([0]))):
            rows = as_double(rows) if precise else rows
            found, wanted = served(ranker, rows), plain(ranker, rows)
            assert found.dtype == wanted.dtype and torch.allclose(found, wanted, rtol=0, atol=tolerance)
            assert torch.equal(served(ranker, rows), found)


def shake(ranker: Ranker) -> None:
    shaken(ranker.train()).eval()


def load(ranker: Ranker) -> None:
    ranker.load_state_dict(shaken(copy.deepcopy(ranker)).state_dict())


def refit(ranker: Ranker) -> None:
    rows = batch_of(400, seed=99)
    ranker.fit_vectors(replace(rows, text_row_BK=rows.text_row_BK % 3))


@pytest.mark.parametrize("change", [shake, load, refit])
def test_kept_layers_go_when_what_they_are_made_of_changes(change: Callable[[Ranker], None]) -> None:
    ranker, batch = shaken(ranker_of(recipe_of(USE))), batch_of(40, seed=5)
    before = served(ranker, batch)
    change(ranker)
    after = served(ranker, batch)
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(after, plain(ranker, batch), atol=1e-5)


def test_a_scenario_whose_vector_came_later_has_layers_too() -> None:
    ranker, batch = shaken(ranker_of(recipe_of(USE))), batch_of(40, seed=6)
    served(ranker, batch)
    grown = torch.cat([matrices()["scenario_knowledge"], torch.randn(1, 10)])
    ranker.extend_vectors("scenario_knowledge", grown)
    rows = batch.text_row_BK.clone()
    rows[:, 2] = len(grown) - 1
    later = replace(batch, text_row_BK=rows)
    assert torch.allclose(served(ranker, later), plain(ranker, later), atol=1e-5)


def test_a_request_generates_the_layers_of_its_user_once_and_none_of_a_scenario(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranker, batch = ranker_of(recipe_of(USE)), batch_of(200, seed=7)
    assert ranker.knowledge is not None and ranker.knowledge.user_level is not None
    ids, rows = batch.categorical_BF.clone(), batch.text_row_BK.clone()
    ids[:, :2], rows[:, 1:] = torch.tensor([2, 7]), torch.tensor([7, 2])
    request = replace(batch, categorical_BF=ids, text_row_BK=rows)
    served(ranker, batch)  # as any request before
    generated: list[tuple[MetaLinear, int]] = []
    usual = MetaLinear.generate

    def counted(of_map: MetaLinear, code_UC: Tensor) -> Tensor:
        generated.append((of_map, len(code_UC)))
        return usual(of_map, code_UC)

    monkeypatch.setattr(MetaLinear, "generate", counted)
    for candidates in (1, 200):
        generated.clear()
        served(ranker, request.rows(torch.arange(candidates)))
        maps = [m for m in ranker.knowledge.user_level.modules() if isinstance(m, MetaLinear)]
        assert generated == [(of_map, 1) for of_map in maps]


def test_what_is_generated_is_no_part_of_the_weights_and_leaves_training_alone() -> None:
    ranker, batch = shaken(ranker_of(recipe_of(USE))), batch_of(40, seed=8)
    fresh, before = copy.deepcopy(ranker), copy.deepcopy(ranker.state_dict())
    served(ranker, batch)
    assert ranker.knowledge is not None and ranker.knowledge.scenario_level is not None
    assert ranker.knowledge.scenario_level.kept is not None
    after = ranker.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    for other in (ranker, fresh):
        logits(other.train()(batch)).square().sum().backward()
    assert ranker.knowledge.scenario_level.kept is None
    for ours, wanted in zip(ranker.parameters(), fresh.parameters(), strict=True):
        assert ours.grad is not None and wanted.grad is not None and torch.equal(ours.grad, wanted.grad)
