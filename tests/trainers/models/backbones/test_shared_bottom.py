from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.shared_bottom import SharedBottom
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear


def test_each_row_goes_through_the_bottom_and_its_scenarios_tower(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    torch.manual_seed(0)
    network = SharedBottom(SharedBottom.Config(bottom_widths=(5,), tower_widths=(4,)), sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)  # scenarios start alike
    features = features_of()
    logits, hidden = network(features)
    bottom, tower, head = network.bottom.layers[0], network.towers.towers.layers[0], network.towers.heads
    assert isinstance(bottom, GroupedLinear) and isinstance(tower, ScenarioLinear)
    for row, scenario in enumerate(features.scenario_B.tolist()):
        shared = torch.relu(features.flat_BI[row] @ bottom.weight_GIO[0] + bottom.bias_G1O[0, 0])
        assert torch.allclose(hidden[row], shared, atol=1e-12)
        for task in range(2):
            top = torch.relu(shared @ tower.weight_SGIO[scenario, task] + tower.bias_SG1O[scenario, task, 0])
            logit = top @ head.weight_SGIO[scenario, task] + head.bias_SG1O[scenario, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)


def test_a_bottom_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        SharedBottom.Config(bottom_widths=())
