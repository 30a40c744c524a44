from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.contract.test_rankers import SIZES, batch_of, logits, matrices, ranker_of, shaken
from trainers import recipes
from trainers.models.llm4msr import KnowledgeUse
from trainers.models.meta_layers import MetaLayers
from trainers.models.ranker import Ranker
from trainers.recipes import Recipe

LAYERS = MetaLayers.Config(bottleneck=6, rank=2)


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
