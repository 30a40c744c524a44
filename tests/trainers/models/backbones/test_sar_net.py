from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.sar_net import CrossScenarioAttention, SarNet
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features

CONFIG = SarNet.Config(shared_experts=2, scenario_experts=1, expert_width=4, tower_widths=(3,))


def network_of(sizes: BackboneSizes) -> SarNet:
    torch.manual_seed(0)
    network = SarNet(CONFIG, sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)  # scenarios start alike
    return network


def test_each_row_follows_the_equations(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    network, features = network_of(sizes), features_of()
    logits, hidden = network(features)
    shared, own = network.shared_experts, network.scenario_experts
    tower, head = network.towers.towers.layers[0], network.towers.heads
    assert isinstance(tower, ScenarioLinear)
    for row, scenario in enumerate(features.scenario_B.tolist()):
        known = int(features.recent_known_BN[row].sum())
        query = network.behaviour.query.weight @ torch.cat([features.id_BFE[row, 2], features.id_BFE[row, 0]])
        matches = [query @ recent / 3**0.5 for recent in features.recent_BNE[row, :known]]
        weight = torch.stack([*matches, network.behaviour.nothing]).softmax(0)
        visited = sum(
            (w * recent for w, recent in zip(weight, features.recent_BNE[row, :known], strict=False)),
            torch.zeros(3, dtype=torch.float64),
        )
        seen = torch.cat([features.flat_BI[row], visited])
        seen = network.scale_SZ[scenario] * seen + network.shift_SZ[scenario]
        gate = (network.gate.weight @ seen + network.gate.bias).softmax(0)
        mixed = gate[2] * (seen @ own.weight_SGIO[scenario, 0] + own.bias_SG1O[scenario, 0, 0])
        for expert in range(2):
            mixed = mixed + gate[expert] * (seen @ shared.weight_GIO[expert] + shared.bias_G1O[expert, 0])
        assert torch.allclose(hidden[row], mixed, atol=1e-12)
        for task in range(2):
            top = torch.relu(mixed @ tower.weight_SGIO[scenario, task] + tower.bias_SG1O[scenario, task, 0])
            logit = top @ head.weight_SGIO[scenario, task] + head.bias_SG1O[scenario, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)


def test_attention_is_the_product_of_a_poi_and_a_scenario_attention(features_of: Callable[..., Features]) -> None:
    """Two POIs: the odds of their weights are those of the POI alone times those of the scenario alone."""
    torch.manual_seed(0)
    attention = CrossScenarioAttention(3).double()
    two = torch.tensor([[True, True, False, False, False]])
    features = features_of(1, recent_known_BN=two)

    def odds(*fields: int) -> float:
        kept = torch.zeros_like(features.id_BFE)
        kept[:, fields] = features.id_BFE[:, fields]
        part = replace(features, id_BFE=kept, recent_BNE=features.recent_BNE)
        mixed = attention(part, 2)[0]
        first, second = torch.linalg.lstsq(features.recent_BNE[0, :2].T, mixed[:, None]).solution[:, 0].tolist()
        return first / second

    assert odds(0, 2) == pytest.approx(odds(0) * odds(2))


def test_a_user_without_recent_pois_has_no_interest(features_of: Callable[..., Features]) -> None:
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    assert torch.equal(
        CrossScenarioAttention(3).double()(features_of(2, recent_known_BN=nothing), 2), torch.zeros(2, 3).double()
    )


def test_no_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one expert of each kind"):
        SarNet.Config(scenario_experts=0)
