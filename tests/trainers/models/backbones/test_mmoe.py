from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.mmoe import Mmoe
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear


def test_the_gate_of_its_scenario_mixes_the_experts_of_a_row(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    torch.manual_seed(0)
    network = Mmoe(Mmoe.Config(experts=3, expert_widths=(5, 3), tower_widths=(4,)), sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)  # scenarios start alike
    features = features_of()
    logits, hidden = network(features)

    def expert(index: int, row: Tensor) -> Tensor:
        for layer in network.experts.layers:
            assert isinstance(layer, GroupedLinear)
            row = torch.relu(row @ layer.weight_GIO[index] + layer.bias_G1O[index, 0])
        return row

    tower, head = network.towers.towers.layers[0], network.towers.heads
    assert isinstance(tower, ScenarioLinear)
    for row, scenario in enumerate(features.scenario_B.tolist()):
        x = features.flat_BI[row]
        gate = (x @ network.gates.weight_SGIO[scenario, 0] + network.gates.bias_SG1O[scenario, 0, 0]).softmax(0)
        mixed = sum((gate[i] * expert(i, x) for i in range(3)), torch.zeros(()))
        assert torch.allclose(hidden[row], mixed, atol=1e-12)
        for task in range(2):
            top = torch.relu(mixed @ tower.weight_SGIO[scenario, task] + tower.bias_SG1O[scenario, task, 0])
            logit = top @ head.weight_SGIO[scenario, task] + head.bias_SG1O[scenario, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)


def test_a_row_touches_the_gate_of_its_scenario_only(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    network = Mmoe(Mmoe.Config(expert_widths=(4,)), sizes).double()
    logits, _ = network(features_of())
    logits[1].sum().backward()  # a row of scenario 2
    assert network.gates.weight_SGIO.grad is not None
    assert (network.gates.weight_SGIO.grad.abs().sum((1, 2, 3)) > 0).tolist() == [False, False, True, False]


def test_a_gate_without_a_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two experts"):
        Mmoe.Config(experts=1)
