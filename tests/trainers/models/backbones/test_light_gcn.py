from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from trainers.batch import Batch
from trainers.models.backbones.backbone import BackboneSizes, FittedBackbone
from trainers.models.backbones.light_gcn import LightGcn
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features, InputSizes
from trainers.models.mlp import GroupedLinear
from trainers.models.ranker import Ranker

CLICKED = [(1, 2), (1, 3), (2, 3), (4, 6), (1, 2), (0, 5), (3, 0)]  # one twice, two with an unknown end
EDGES = {(1, 2), (1, 3), (2, 3), (4, 6)}
SEEN = [(2, 2), (4, 1)]  # without a click


def training_rows(clicked: list[tuple[int, int]], seen: list[tuple[int, int]]) -> Batch:
    pairs = torch.tensor([*clicked, *seen])
    rows = len(pairs)
    ones = torch.ones(rows, 1, dtype=torch.int64)
    return Batch(
        categorical_BF=torch.cat([ones, pairs, ones], dim=1),
        numeric_BD=torch.zeros(rows, 2),
        recent_poi_BN=torch.zeros(rows, 5, dtype=torch.int64),
        recent_age_BN=torch.zeros(rows, 5),
        text_row_BK=torch.zeros(rows, 0, dtype=torch.int64),
        scene_of_row_B=torch.zeros(rows, dtype=torch.int64),
        scene_id_US=torch.zeros(1, 0, dtype=torch.int64),
        scene_row_US=torch.zeros(1, 0, dtype=torch.int64),
        click_B=torch.arange(rows).lt(len(clicked)).float(),
    )


def network_of(sizes: BackboneSizes, *, leave_out: bool = True) -> LightGcn:
    torch.manual_seed(0)
    config = LightGcn.Config(width=4, layers=3, leave_out=leave_out, layer_widths=(5,), tower_widths=(3,))
    network = LightGcn(config, sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    network.fit(training_rows(CLICKED, SEEN))
    return network


def by_dense_matrix(network: LightGcn, edges: set[tuple[int, int]]) -> torch.Tensor:
    """Users, then POIs: the mean of (D^-1/2 A D^-1/2)^k E over k = 0 .. 3."""
    node = torch.cat([network.user.weight, network.poi.weight])
    adjacency = torch.zeros(len(node), len(node), dtype=torch.float64)
    for user, poi in edges:
        adjacency[user, 5 + poi] = adjacency[5 + poi, user] = 1.0
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    step = scale[:, None] * adjacency * scale[None, :]
    return sum((torch.linalg.matrix_power(step, k) @ node for k in range(4)), torch.zeros_like(node)) / 4


def test_propagation_is_that_of_the_dense_matrix(sizes: BackboneSizes) -> None:
    network = network_of(sizes)
    assert isinstance(network, FittedBackbone)
    assert [(int(e) // 7, int(e) % 7) for e in network.edge_M] == sorted(EDGES)
    assert torch.allclose(network.propagate(network.edge_M), by_dense_matrix(network, EDGES), atol=1e-12)
    none = network.edge_M[:0]
    assert torch.allclose(network.propagate(none), by_dense_matrix(network, set()), atol=1e-12)


def test_each_row_reads_the_product_of_its_nodes(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    network, features = network_of(sizes), features_of()
    with torch.no_grad():
        logits, hidden = network(features)
    node = by_dense_matrix(network, EDGES)
    bottom, tower, head = network.bottom.layers[0], network.towers.towers.layers[0], network.towers.heads
    assert isinstance(bottom, GroupedLinear) and isinstance(tower, ScenarioLinear)
    for row, scenario in enumerate(features.scenario_B.tolist()):
        product = node[features.user_B[row]] * node[5 + features.poi_B[row]]
        joined = torch.cat([features.flat_BI[row], product])
        shared = torch.relu(joined @ bottom.weight_GIO[0] + bottom.bias_G1O[0, 0])
        assert torch.allclose(hidden[row], shared, atol=1e-12)
        for task in range(2):
            top = torch.relu(shared @ tower.weight_SGIO[scenario, task] + tower.bias_SG1O[scenario, task, 0])
            logit = top @ head.weight_SGIO[scenario, task] + head.bias_SG1O[scenario, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)


@pytest.mark.parametrize(("leave_out", "left"), [(True, EDGES - {(1, 3), (4, 6)}), (False, EDGES)])
def test_a_training_step_does_not_see_the_clicks_of_its_pairs(
    sizes: BackboneSizes, features_of: Callable[..., Features], leave_out: bool, left: set[tuple[int, int]]
) -> None:
    network = network_of(sizes, leave_out=leave_out)
    pairs = torch.tensor([(1, 3), (4, 6), (2, 2), (4, 6)])  # two edges, one of them twice, and no edge
    features = features_of(4, user_B=pairs[:, 0], poi_B=pairs[:, 1])
    logits, _ = network.train()(features)
    node = by_dense_matrix(network, left)
    joined = torch.cat([features.flat_BI, node[pairs[:, 0]] * node[5 + pairs[:, 1]]], dim=1)
    expected = network.towers(network.bottom(joined)[0], features.scenario_B)
    assert torch.allclose(logits, expected, atol=1e-12)


def test_saved_and_loaded_is_the_same_graph(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    network, features = network_of(sizes), features_of()
    saved = safetensors.torch.load(safetensors.torch.save(network.state_dict()))
    other = LightGcn(network.config, sizes).double().eval()
    with torch.no_grad():
        other(features)  # what is kept of the graph before must not outlive it
        other.load_state_dict(saved)
        assert torch.equal(other.edge_M, network.edge_M)
        assert torch.equal(other(features)[0], network(features)[0])


def test_what_is_kept_for_evaluation_follows_weights_and_graph(
    sizes: BackboneSizes, features_of: Callable[..., Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, features = network_of(sizes), features_of()
    calls: list[int] = []
    propagate = network.propagate

    def counted(edge_M: torch.Tensor) -> torch.Tensor:
        calls.append(len(edge_M))
        return propagate(edge_M)

    monkeypatch.setattr(network, "propagate", counted)
    with torch.inference_mode():
        first, _ = network(features)
    with torch.no_grad():
        assert torch.equal(network(features)[0], first) and calls == [4]
        network.fit(training_rows([(3, 3)], []))
        assert not torch.equal(network(features)[0], first) and calls == [4, 1]
        network.float().double()
        network(features)
        assert calls == [4, 1, 1]
        network.train()
        network.user.weight.add_(1.0)
        network.eval()
        changed, _ = network(features)
        assert calls == [4, 1, 1, 1]
    copy.deepcopy(network)
    with_gradient, _ = network(features)
    assert with_gradient.requires_grad and torch.allclose(with_gradient, changed, atol=1e-12)


def test_rows_without_clicks_and_no_layers_are_refused(sizes: BackboneSizes) -> None:
    with pytest.raises(ValueError, match="made of clicks"):
        network_of(sizes).fit(replace(training_rows(CLICKED, SEEN), click_B=None))
    with pytest.raises(ValueError, match="at least one layer of each kind"):
        LightGcn.Config(layers=0)


def test_a_ranker_gives_its_backbone_the_training_rows() -> None:
    sizes = InputSizes(
        cardinalities=(4, 5, 7, 3), user_fields=2, numbers=2, scene_cardinalities=(), text_spaces=(), scene_space=""
    )
    ranker = Ranker(Ranker.Config(backbone=LightGcn.Config()), sizes, {})
    ranker.fit_vectors(training_rows(CLICKED, SEEN))
    assert isinstance(ranker.backbone, LightGcn) and len(ranker.backbone.edge_M) == len(EDGES)
