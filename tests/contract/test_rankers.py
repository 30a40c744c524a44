"""One behaviour for every ranker: a new one is a line in RANKERS.

The world is planted: what a category is worth depends on the scenario (all rankers must learn it) or on a value of the
scene (rankers that see the scene must learn it, the others cannot).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from trainers import recipes
from trainers.batch import Batch
from trainers.batches import InMemory
from trainers.loop import FitConfig, fit
from trainers.losses import ranking_loss
from trainers.metrics import auc
from trainers.models.backbones import BackboneConfig
from trainers.models.backbones.adasparse import AdaSparse
from trainers.models.backbones.aitm import Aitm
from trainers.models.backbones.hamur import Hamur
from trainers.models.backbones.light_gcn import LightGcn
from trainers.models.backbones.m2m import M2m
from trainers.models.backbones.m3oe import M3oE
from trainers.models.backbones.mmoe import Mmoe
from trainers.models.backbones.omoe import Omoe
from trainers.models.backbones.pepnet import PepNet
from trainers.models.backbones.sar_net import SarNet
from trainers.models.backbones.sasrec import SasRec
from trainers.models.backbones.scenario_ple import ScenarioPle
from trainers.models.backbones.shared_bottom import SharedBottom
from trainers.models.backbones.star import Star
from trainers.models.embedding import InputSizes
from trainers.models.ranker import Ranker, Scores
from trainers.recipes import Recipe


def on(backbone: BackboneConfig) -> Recipes:
    """The ranker without scene on another backbone, the same one at all sizes."""
    return lambda size: recipes.on_backbone(recipes.ple(size), backbone)


Recipes = Callable[[recipes.Size], Recipe]
BACKBONES: tuple[BackboneConfig, ...] = (
    Aitm.Config(bottom_widths=(16, 8), tower_widths=(8,), order=(3, 1, 2)),
    M2m.Config(expert_widths=(16, 8), scenario_widths=(8,), bottleneck=4),
    Mmoe.Config(expert_widths=(16, 8), tower_widths=(8,)),
    Omoe.Config(expert_widths=(16, 8), tower_widths=(8,)),
    ScenarioPle.Config(levels=2, expert_widths=(16, 8), tower_widths=(8,)),
    Star.Config(bottom_widths=(16, 8), tower_widths=(8,), auxiliary_widths=(8,)),
    AdaSparse.Config(layer_widths=(16, 8), tower_widths=(8,)),
    Hamur.Config(layer_widths=(16, 8), adapter_width=8, matrix_side=4, hyper_width=16, tower_widths=(8,)),
    LightGcn.Config(width=8, layer_widths=(16, 8), tower_widths=(8,)),
    M3oE.Config(star_width=8, width=16, shared_experts=2, expert_widths=(8,), tower_widths=(8,)),
    PepNet.Config(gate_width=8, tower_widths=(16, 8)),
    SarNet.Config(expert_width=8, tower_widths=(8,)),
    SasRec.Config(width=8, feed_forward=16, layer_widths=(16, 8), tower_widths=(8,)),
    SharedBottom.Config(bottom_widths=(16, 8), tower_widths=(8,)),
)
RANKERS = (
    recipes.ple,
    recipes.ple_scene_ids,
    recipes.larr,
    recipes.llm4msr,
    recipes.larr_llm4msr,
    *(pytest.param(on(backbone), id=backbone.kind) for backbone in BACKBONES),
)
SIZES = InputSizes(
    cardinalities=(4, 21, 31, 6),  # scenario, user, POI, category; id 0 is unknown
    user_fields=2,
    numbers=3,
    scene_cardinalities=(5, 4, 9),
    text_spaces=("poi_text", "user_knowledge", "scenario_knowledge"),
    scene_space="scene_text",
)
SCENE_ROWS = 40
LAST_BIASES = (  # what every backbone ends in
    "auxiliary_head.bias_G1O",
    "head.shared_bias_G1O",
    "heads.bias_G1O",
    "towers.heads.bias_SG1O",
)
OFFSETS = (0, 5, 9)
# Click logit by deciding value and category. Over all four values each category is worth the same, so that whoever does
# not see the value can learn nothing.
TASTE = torch.tensor(
    [[0.0, -3, -3, 3, 0, 3], [0, 3, -3, 0, 3, -3], [0, -3, 3, 0, -3, 3], [0, 3, 3, -3, 0, -3]],
)


def batch_of(rows: int, seed: int, taste: str = "scenario") -> Batch:
    """Rows in scenes of four; the click depends on scenario x category or on the second scene slot x category."""
    rng = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int, low: int = 1) -> Tensor:
        return torch.randint(low, high, shape, generator=rng)

    ids = torch.stack([draw(c, rows) for c in SIZES.cardinalities], dim=1)
    scenes = (rows + 3) // 4
    scene_id = torch.stack([draw(c, scenes, low=0) for c in SIZES.scene_cardinalities], dim=1)
    scene_row = torch.where(scene_id > 0, scene_id + torch.tensor(OFFSETS), 0)
    scene_of_row = torch.arange(rows) // 4
    p_click = _true_logit(ids, scene_id[scene_of_row], taste).sigmoid()
    click = (torch.rand(rows, generator=rng) < p_click).float()
    order = click * (torch.rand(rows, generator=rng) < p_click).float()
    lengths = draw(21, rows, low=0)
    recent = draw(SIZES.cardinalities[2], rows, 20) * (torch.arange(20) < lengths[:, None])
    return Batch(
        categorical_BF=ids,
        numeric_BD=torch.randn(rows, SIZES.numbers, generator=rng),
        recent_poi_BN=recent,
        recent_age_BN=torch.rand(rows, 20, generator=rng) * (recent > 0),
        # Of the POI, of the user's knowledge, of the scenario's.
        text_row_BK=torch.where(torch.rand(rows, 1, generator=rng) < 0.1, 0, ids[:, [2, 1, 0]]),
        scene_of_row_B=scene_of_row,
        scene_id_US=scene_id,
        scene_row_US=scene_row,
        click_B=click,
        order_B=order,
    )


def _true_logit(ids_BF: Tensor, scene_id_BS: Tensor, taste: str) -> Tensor:
    return TASTE[ids_BF[:, 0] if taste == "scenario" else scene_id_BS[:, 1], ids_BF[:, 3]]


def matrices() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    scenarios, users, pois = SIZES.cardinalities[:3]
    shapes = {"scene_text": (SCENE_ROWS, 16), "poi_text": (pois, 12)}
    shapes |= {"user_knowledge": (users, 10), "scenario_knowledge": (scenarios, 10)}
    made = {space: torch.randn(shape, generator=rng) + 3.0 for space, shape in shapes.items()}
    for matrix in made.values():
        matrix[0] = 0.0
    return made


def ranker_of(recipe: Recipe, seed: int = 0) -> Ranker:
    torch.manual_seed(seed)
    ranker = Ranker(recipe.model, SIZES, matrices())
    ranker.fit_vectors(batch_of(400, seed=99))
    return ranker.eval()


def as_double(batch: Batch) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: v.double() for name, v in values.items() if v is not None and v.is_floating_point()})


def logits(scores: Scores) -> Tensor:
    return torch.stack([scores.click_logit_B, scores.conversion_logit_B], dim=1)


def shaken(ranker: Ranker) -> Ranker:
    """Every parameter moved off its start, so that nothing is zero by initialisation."""
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ranker


@pytest.mark.parametrize("size", ["tiny", "default", "reference"])
@pytest.mark.parametrize("recipe", RANKERS)
def test_scores_do_not_depend_on_company(recipe: Recipes, size: recipes.Size) -> None:
    ranker = shaken(ranker_of(recipe(size), seed=1))
    for precise, tolerance in ((False, 1e-5), (True, 1e-9)):
        ranker = ranker.double() if precise else ranker
        whole = as_double(batch_of(4000, seed=1)) if precise else batch_of(4000, seed=1)
        with torch.no_grad():
            together = logits(ranker(whole))
            assert together.std() > 0.01
            for rows in (torch.arange(1992, 2008), torch.tensor([7]), torch.tensor([3999]), torch.tensor([0, 3998])):
                alone = logits(ranker(whole.rows(rows)))
                assert torch.allclose(alone, together[rows], rtol=0, atol=tolerance)


@pytest.mark.parametrize("recipe", RANKERS)
def test_every_parameter_gets_a_gradient(recipe: Recipes) -> None:
    config = recipe("tiny")
    ranker = shaken(ranker_of(config)).train()
    batch = batch_of(2000, seed=2)
    ranking_loss(ranker(batch), batch, config.loss).total.backward()
    dead = [name for name, p in ranker.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert dead == []


@pytest.mark.parametrize("recipe", RANKERS)
def test_evaluation_twice_gives_the_same(recipe: Recipes) -> None:
    ranker, batch = ranker_of(recipe("default")), batch_of(100, seed=3)
    before = copy.deepcopy(ranker.state_dict())
    with torch.no_grad():
        first, second = logits(ranker(batch)), logits(ranker(batch))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in ranker.state_dict().items())


@pytest.mark.parametrize("recipe", RANKERS)
def test_logits_come_out(recipe: Recipes) -> None:
    ranker, batch = ranker_of(recipe("tiny")), batch_of(50, seed=4)
    with torch.no_grad():
        for name, parameter in ranker.backbone.named_parameters():
            if name in LAST_BIASES:
                parameter.fill_(-30.0)  # below any probability, beyond any sigmoid
        scores = ranker(batch)
    assert scores.click_logit_B.shape == scores.conversion_logit_B.shape == (50,)
    assert bool((scores.click_logit_B < -20).all()) and bool((scores.conversion_logit_B < -20).all())
    assert torch.allclose(scores.p_order_B, scores.click_logit_B.sigmoid() * scores.conversion_logit_B.sigmoid())


@pytest.mark.parametrize("recipe", RANKERS)
def test_saved_and_loaded_weights_score_the_same(recipe: Recipes) -> None:
    ranker, batch = shaken(ranker_of(recipe("tiny"), seed=0)), batch_of(64, seed=5)
    torch.manual_seed(1)
    other = Ranker(recipe("tiny").model, SIZES, matrices())
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(ranker.state_dict())))
    with torch.no_grad():
        assert torch.equal(logits(other.eval()(batch)), logits(ranker(batch)))


@pytest.mark.parametrize("recipe", RANKERS)
def test_a_planted_scenario_difference_is_learned(recipe: Recipes) -> None:
    learned, best = _learned_auc(recipe("tiny"), "scenario")
    assert learned > 0.5 + 0.85 * (best - 0.5)


@pytest.mark.parametrize("recipe", RANKERS)
def test_a_planted_taste_of_a_scene_is_learned_by_those_who_see_it(recipe: Recipes) -> None:
    learned, best = _learned_auc(recipe("tiny"), "scene")
    if recipe("tiny").model.scene is None:
        assert learned < 0.53
    else:
        assert learned > 0.5 + 0.75 * (best - 0.5)


@pytest.mark.parametrize("aggregate", ["encoder", "attention", "mean", "concat"])
@pytest.mark.parametrize("tokens", ["vectors", "ids", "both"])
def test_every_way_to_join_a_scene_keeps_the_contract(tokens: str, aggregate: str) -> None:
    recipe = recipes.larr("tiny")
    assert recipe.model.scene is not None
    encoder = replace(recipe.model.scene.encoder, tokens=tokens, aggregate=aggregate)
    scene = replace(recipe.model.scene, encoder=encoder, tap="hidden")
    recipe = replace(recipe, model=replace(recipe.model, scene=scene))
    for check in (test_every_parameter_gets_a_gradient, test_evaluation_twice_gives_the_same):
        check(lambda size: recipe)
    test_scores_do_not_depend_on_company(lambda size: recipe, "tiny")


def _learned_auc(recipe: Recipe, taste: str) -> tuple[float, float]:
    """The click AUC on fresh rows after a short training, and that of the true probabilities."""
    ranker = ranker_of(recipe)
    fresh = batch_of(3000, seed=11, taste=taste)
    assert fresh.click_B is not None
    label = fresh.click_B.numpy()

    def area(score_B: Tensor) -> float:
        found = auc(score_B.numpy().astype(np.float64), label)
        assert found is not None
        return found

    history = fit(
        ranker,
        lambda batch: ranking_loss(ranker(batch), batch, recipe.loss),
        InMemory(batch_of(9000, seed=10, taste=taste)),
        lambda: {"auc": area(ranker(fresh).click_logit_B)},
        FitConfig(epochs=5, batch_size=512, learning_rate=1e-2, warmup_steps=5),
        seed=0,
    )
    return history.epochs[history.best].score, area(
        _true_logit(fresh.categorical_BF, fresh.scene_id_US[fresh.scene_of_row_B], taste)
    )
