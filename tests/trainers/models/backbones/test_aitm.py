from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trainers.models.backbones.aitm import Aitm
from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear, GroupedMLP


def shaken(config: Aitm.Config, sizes: BackboneSizes) -> Aitm:
    torch.manual_seed(0)
    network = Aitm(config, sizes).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)  # towers start alike
    return network


def bottom(network: Aitm, scenario: int, row: Tensor) -> Tensor:
    layers = network.bottoms[scenario]
    assert isinstance(layers, GroupedMLP)
    for layer in layers.layers:
        assert isinstance(layer, GroupedLinear)
        row = torch.relu(row @ layer.weight_GIO[0] + layer.bias_G1O[0, 0])
    return row


@pytest.mark.parametrize("order", [None, (3, 1, 2)])
def test_a_row_is_the_end_of_its_chain(
    sizes: BackboneSizes, features_of: Callable[..., Features], order: tuple[int, ...] | None
) -> None:
    network = shaken(Aitm.Config(order=order, bottom_widths=(5, 3), tower_widths=(4,)), sizes)
    features = features_of(9, scenario_B=torch.tensor([1, 2, 3, 0, 3, 1, 0, 2, 3]))
    logits, hidden = network(features)
    attention, chain = network.attention, [0, *(order or (1, 2, 3))]
    tower, head = network.towers.towers.layers[0], network.towers.heads
    assert isinstance(tower, ScenarioLinear)
    for row, scenario in enumerate(features.scenario_B.tolist()):
        x = features.flat_BI[row]
        z = bottom(network, 0, x)
        for place in range(1, chain.index(scenario) + 1):
            p, q = network.transfers[place - 1](z), bottom(network, chain[place], x)
            scores = [torch.dot(attention.key(u), attention.query(u)) / 3**0.5 for u in (p, q)]
            weight = torch.stack(scores).softmax(0)
            z = weight[0] * attention.value(p) + weight[1] * attention.value(q)
        assert torch.allclose(hidden[row], z, atol=1e-12)
        for task in range(2):
            top = torch.relu(z @ tower.weight_SGIO[scenario, task] + tower.bias_SG1O[scenario, task, 0])
            logit = top @ head.weight_SGIO[scenario, task] + head.bias_SG1O[scenario, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)


def test_a_row_touches_no_bottom_after_its_scenarios(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    torch.manual_seed(0)
    network = Aitm(Aitm.Config(order=(2, 3, 1), bottom_widths=(5,)), sizes).double()
    logits, _ = network(features_of())
    logits[2].sum().backward()  # a row of scenario 3, which is the second of the known ones
    reached = [scenario for scenario in range(4) if _gradient(network.bottoms[scenario]) > 0]
    assert reached == [0, 2, 3]
    assert [_gradient(transfer) > 0 for transfer in network.transfers] == [True, True, False]


def _gradient(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("order", [(1, 2), (1, 2, 2), (0, 1, 2), (1, 2, 3, 4)])
def test_an_order_of_other_scenarios_is_refused(sizes: BackboneSizes, order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"each id of 1 \.\. 3 once"):
        Aitm(Aitm.Config(order=order), sizes)


def test_a_bottom_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        Aitm.Config(bottom_widths=())
