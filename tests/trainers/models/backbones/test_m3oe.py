from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.m3oe import M3oE, StarLinear
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear, GroupedMLP

CONFIG = M3oE.Config(star_width=3, width=5, shared_experts=3, expert_widths=(4,), tower_widths=(3,))


def network_of(sizes: BackboneSizes) -> M3oE:
    torch.manual_seed(0)
    network = M3oE(CONFIG, sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)  # scenarios start alike
    return network


def expert(experts: GroupedMLP, index: int, row: Tensor) -> Tensor:
    layer = experts.layers[0]
    assert isinstance(layer, GroupedLinear)
    return torch.relu(row @ layer.weight_GIO[index] + layer.bias_G1O[index, 0])


def balanced(experts: GroupedMLP, own: int, count: int, balance: Tensor, row: Tensor) -> Tensor:
    others = [expert(experts, other, row) for other in range(count) if other != own]
    weight = torch.sigmoid(balance)
    return weight * expert(experts, own, row) + (1 - weight) * sum(others, torch.zeros(4).double()) / (count - 1)


def test_each_row_follows_the_equations(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    network, features = network_of(sizes), features_of()
    logits, hidden = network(features)
    star, gates = network.star, network.gates
    tower, head = network.towers.towers.layers[0], network.towers.heads
    assert isinstance(tower, ScenarioLinear)
    for row, scenario in enumerate(features.scenario_B.tolist()):
        given = features.flat_BI[row]
        starred = given @ (star.shared.weight.T * star.own_SIO[scenario]) + star.shared.bias + star.own_SO[scenario]
        view = torch.relu(network.after_star.weight @ starred + network.after_star.bias)
        view = view + torch.relu(network.skip.weight @ given + network.skip.bias)
        of_scenario = balanced(network.scenario_experts, scenario, 4, network.own_scenario, view)
        tops = []
        for task in range(2):
            gate = (view @ gates.weight_SGIO[scenario, task] + gates.bias_SG1O[scenario, task, 0]).softmax(0)
            top = sum((gate[x] * expert(network.shared_experts, x, view) for x in range(3)), torch.zeros(4).double())
            top = top + torch.sigmoid(network.of_scenario) * of_scenario
            of_task = balanced(network.task_experts, task, 2, network.own_task, view)
            top = top + torch.sigmoid(network.of_task) * of_task
            out = torch.relu(top @ tower.weight_SGIO[scenario, task] + tower.bias_SG1O[scenario, task, 0])
            logit = out @ head.weight_SGIO[scenario, task] + head.bias_SG1O[scenario, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-10)
            tops.append(top)
        assert torch.allclose(hidden[row], (tops[0] + tops[1]) / 2, atol=1e-10)


def test_scenarios_start_as_the_shared_layer() -> None:
    star, rows = StarLinear(3, 4, 2), torch.randn(9, 4)
    assert torch.allclose(star(rows, torch.arange(9) % 3), star.shared(rows), atol=1e-6)


def test_gates_do_not_shape_what_they_read(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    """With experts that give constants, the gates are all that a logit depends on: no gradient reaches the input."""
    network, features = network_of(sizes), features_of()
    for experts in (network.shared_experts, network.scenario_experts, network.task_experts):
        layer = experts.layers[0]
        assert isinstance(layer, GroupedLinear)
        torch.nn.init.zeros_(layer.weight_GIO)
    flat = features.flat_BI.clone().requires_grad_()
    logits, _ = network(replace(features, flat_BI=flat))
    logits.sum().backward()
    assert flat.grad is not None and not flat.grad.any()
    assert network.gates.weight_SGIO.grad is not None and network.gates.weight_SGIO.grad.any()


def test_one_task_has_no_other(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    logits, _ = M3oE(CONFIG, replace(sizes, tasks=1)).double()(features_of())
    assert logits.shape == (8, 1) and bool(logits.isfinite().all())


def test_no_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="shared experts and expert layers"):
        M3oE.Config(shared_experts=0)
