from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.scenario_ple import ScenarioExtraction, ScenarioPle
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear


def experts_of(level: ScenarioExtraction, scenario: int, own: Tensor, shared: Tensor) -> list[Tensor]:
    """One row through the experts that it meets, those of its scenario first."""
    found = []
    for index in range(2):
        row = own
        for layer in level.own.layers:
            assert isinstance(layer, ScenarioLinear)
            row = torch.relu(row @ layer.weight_SGIO[scenario, index] + layer.bias_SG1O[scenario, index, 0])
        found.append(row)
    row = shared
    for layer in level.shared.layers:
        assert isinstance(layer, GroupedLinear)
        row = torch.relu(row @ layer.weight_GIO[0] + layer.bias_G1O[0, 0])
    return [*found, row]


def mixed(gate: Tensor, experts: list[Tensor]) -> Tensor:
    return sum((w * e for w, e in zip(gate.softmax(0), experts, strict=True)), torch.zeros(()))


def test_two_levels_are_the_equations_of_the_paper(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    """Two experts of each scenario's own and a shared one, written out expert by expert."""
    torch.manual_seed(0)
    config = ScenarioPle.Config(levels=2, scenario_experts=2, shared_experts=1, expert_widths=(5, 3), tower_widths=(4,))
    network = ScenarioPle(config, sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)  # scenarios start alike
    features = features_of()
    logits, hidden = network(features)
    first, last = network.levels
    assert isinstance(first, ScenarioExtraction) and isinstance(last, ScenarioExtraction)
    assert first.shared_gate is not None and last.shared_gate is None
    tower, head = network.towers.towers.layers[0], network.towers.heads
    assert isinstance(tower, ScenarioLinear)
    for row, s in enumerate(features.scenario_B.tolist()):
        x = features.flat_BI[row]
        of_first = experts_of(first, s, x, x)
        own = mixed(x @ first.own_gates.weight_SGIO[s, 0] + first.own_gates.bias_SG1O[s, 0, 0], of_first)
        shared = mixed(x @ first.shared_gate.weight_GIO[0] + first.shared_gate.bias_G1O[0, 0], of_first)
        of_last = experts_of(last, s, own, shared)
        end = mixed(own @ last.own_gates.weight_SGIO[s, 0] + last.own_gates.bias_SG1O[s, 0, 0], of_last)
        assert torch.allclose(hidden[row], end, atol=1e-12)
        for task in range(2):
            top = torch.relu(end @ tower.weight_SGIO[s, task] + tower.bias_SG1O[s, task, 0])
            logit = top @ head.weight_SGIO[s, task] + head.bias_SG1O[s, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)


def test_a_row_cannot_reach_the_other_scenarios_experts(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    network = ScenarioPle(ScenarioPle.Config(levels=2, expert_widths=(4,)), sizes).double()
    logits, _ = network(features_of())
    logits[1].sum().backward()  # a row of scenario 2
    for level in network.levels:
        assert isinstance(level, ScenarioExtraction)
        for layer in (level.own.layers[0], level.own_gates):
            assert isinstance(layer, ScenarioLinear) and layer.weight_SGIO.grad is not None
            assert (layer.weight_SGIO.grad.abs().sum((1, 2, 3)) > 0).tolist() == [False, False, True, False]


def test_no_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one level, expert"):
        ScenarioPle.Config(scenario_experts=0)
