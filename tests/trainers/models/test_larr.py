from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainers.batch import Batch
from trainers.losses import LossConfig, ranking_loss
from trainers.models.backbones.ple import Ple
from trainers.models.embedding import FeatureEmbedding, InputSizes
from trainers.models.larr import SceneUse
from trainers.models.ranker import Ranker
from trainers.models.scene_encoder import SceneEncoder

SIZES = InputSizes(
    cardinalities=(3, 5, 9, 4),
    user_fields=2,
    numbers=2,
    scene_cardinalities=(4, 4),
    text_spaces=(),
    scene_space="scene_text",
)
ENCODER = SceneEncoder.Config(width=8, heads=2, feed_forward=8, output=6)


def config(use: SceneUse.Config) -> Ranker.Config:
    return Ranker.Config(
        features=FeatureEmbedding.Config(width=4, product_width=5),
        backbone=Ple.Config(expert_widths=(8, 7), tower_widths=(4,)),
        scene=use,
    )


def ranker(use: SceneUse.Config) -> Ranker:
    torch.manual_seed(0)
    return Ranker(config(use), SIZES, {"scene_text": torch.randn(8, 5)})


def batch(rows: int = 40) -> Batch:
    rng = torch.Generator().manual_seed(2)
    click = (torch.rand(rows, generator=rng) < 0.5).float()
    return Batch(
        categorical_BF=torch.stack([torch.randint(1, c, (rows,), generator=rng) for c in SIZES.cardinalities], dim=1),
        numeric_BD=torch.randn(rows, 2, generator=rng),
        recent_poi_BN=torch.randint(0, 9, (rows, 3), generator=rng),
        recent_age_BN=torch.rand(rows, 3, generator=rng),
        text_row_BK=torch.zeros(rows, 0, dtype=torch.int64),
        scene_of_row_B=torch.arange(rows) // 4,
        scene_id_US=torch.randint(0, 4, (rows // 4, 2), generator=rng),
        scene_row_US=torch.randint(0, 8, (rows // 4, 2), generator=rng),
        click_B=click,
        order_B=click * (torch.rand(rows, generator=rng) < 0.5),
    )


def reached(network: Ranker, use: str, loss: Tensor) -> bool:
    network.zero_grad()
    loss.backward(retain_graph=True)
    return any(
        p.grad is not None and float(p.grad.abs().sum()) > 0 for n, p in network.named_parameters() if n.startswith(use)
    )


@pytest.mark.parametrize("tap", ["input", "hidden"])
def test_alignment_alone_moves_both_the_scene_and_the_ranker(tap: str) -> None:
    """Guidance guides: its gradient reaches the encoder and, undetached, the tables below the tap."""
    network = ranker(SceneUse.Config(encoder=ENCODER, utilization=False, tap=tap)).train()
    rows = batch()
    loss = ranking_loss(network(rows), rows, LossConfig(click=0.0, order=0.0, alignment=1.0)).total
    assert reached(network, "scene.encoder", loss) and reached(network, "features.table", loss)
    assert reached(network, "backbone.levels", loss) == (tap == "hidden")


def test_without_utilization_scores_do_not_see_the_scene() -> None:
    rows = batch()
    other = replace(rows, scene_row_US=rows.scene_row_US.roll(1, 0), scene_id_US=rows.scene_id_US.roll(1, 0))
    for utilization in (False, True):
        network = ranker(SceneUse.Config(encoder=ENCODER, utilization=utilization, tap="input")).eval()
        same = torch.equal(network(rows).click_logit_B, network(other).click_logit_B)
        assert same == (not utilization)


def test_without_guidance_there_is_nothing_to_align() -> None:
    rows = batch()
    network = ranker(SceneUse.Config(encoder=ENCODER, tap=None)).train()
    assert network(rows).aligned is None
    assert set(ranking_loss(network(rows), rows, LossConfig()).parts) == {"click", "order"}
    with pytest.raises(ValueError, match="neither an input nor aligned"):
        SceneUse.Config(utilization=False, tap=None)


def test_pairs_are_offered_in_training_only_and_of_the_asked_rows() -> None:
    rows = batch()
    network = ranker(SceneUse.Config(encoder=ENCODER, tap="input"))
    assert network.eval()(rows).aligned is None
    scores = network.train()(rows)
    assert scores.aligned is not None and scores.aligned.scene_BA.shape == (40, 32)
    clicked, every = (
        ranking_loss(scores, rows, LossConfig(aligned_rows=which)).parts["alignment"] for which in ("clicked", "all")
    )
    assert not torch.equal(clicked, every)


def test_the_weight_of_alignment_is_its_share_of_the_loss() -> None:
    rows = batch()
    network = ranker(SceneUse.Config(encoder=ENCODER, tap="input")).train()
    losses = ranking_loss(network(rows), rows, LossConfig(click=2.0, order=0.5, alignment=0.3))
    parts = losses.parts
    expected = 2.0 * parts["click"] + 0.5 * parts["order"] + 0.3 * parts["alignment"]
    assert torch.allclose(losses.total.detach(), expected)


def test_a_scene_is_encoded_once_however_many_rows_share_it() -> None:
    network = ranker(SceneUse.Config(encoder=ENCODER)).eval()
    assert network.scene is not None
    seen: list[int] = []
    network.scene.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    network(batch(40))
    assert seen == [10]


def test_a_direct_order_head_is_an_option() -> None:
    torch.manual_seed(0)
    network = Ranker(
        replace(config(SceneUse.Config(encoder=replace(ENCODER, tokens="ids"))), ctcvr="direct"), SIZES, {}
    )
    scores = network.eval()(batch())
    assert torch.equal(scores.p_order_B, scores.conversion_logit_B.sigmoid())


def test_a_batch_without_labels_has_no_loss() -> None:
    network, rows = ranker(SceneUse.Config(encoder=ENCODER)), batch()
    with pytest.raises(ValueError, match="needs a batch with labels"):
        ranking_loss(network(rows), replace(rows, click_B=None), LossConfig())


def test_scene_values_embedded_after_training_are_read() -> None:
    network, rows = ranker(SceneUse.Config(encoder=ENCODER)).eval(), batch()
    assert network.scene is not None and network.scene.encoder.vectors is not None
    longer = torch.cat([network.scene.encoder.vectors.matrix, torch.ones(1, 5)])
    before = network(rows).click_logit_B
    network.extend_vectors("scene_text", longer)
    assert torch.equal(network(rows).click_logit_B, before)
    late = replace(rows, scene_row_US=torch.full_like(rows.scene_row_US, 8))
    assert bool(torch.isfinite(network(late).click_logit_B).all())


def test_rows_of_one_scene_are_no_negatives_of_each_other() -> None:
    """All rows in one scene: there is no other scene to be told from, so alignment costs nothing."""
    rows = batch()
    network = ranker(SceneUse.Config(encoder=ENCODER, tap="input")).train()
    together = replace(rows, scene_of_row_B=torch.zeros_like(rows.scene_of_row_B))
    loss = LossConfig(aligned_rows="all")
    assert float(ranking_loss(network(together), together, loss).parts["alignment"]) == 0.0
    assert float(ranking_loss(network(rows), rows, loss).parts["alignment"]) > 0.1
