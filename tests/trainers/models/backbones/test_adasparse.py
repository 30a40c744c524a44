from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.adasparse import AdaSparse
from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear


def network_of(sizes: BackboneSizes) -> AdaSparse:
    torch.manual_seed(0)
    config = AdaSparse.Config(layer_widths=(5, 4), tower_widths=(3,), epsilon=0.3, alpha=1.5, alpha_step=0.25)
    network = AdaSparse(config, sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network


def pruned(pruner: object, scenario: Tensor, hidden: Tensor, alpha: float) -> Tensor:
    """Unit by unit."""
    assert isinstance(pruner, torch.nn.Linear)
    raw = pruner.weight @ torch.cat([scenario, hidden]) + pruner.bias
    factors = [2 / (1 + torch.exp(-alpha * value)) for value in raw]
    return torch.stack([unit * (f if f > 0.3 else 0) for unit, f in zip(hidden, factors, strict=True)])


@pytest.mark.parametrize("steps", [0, 3])
def test_each_row_is_pruned_as_in_the_paper(
    sizes: BackboneSizes, features_of: Callable[..., Features], steps: int
) -> None:
    network, features = network_of(sizes), features_of()
    network.train()
    for _ in range(steps):
        network(features)
    alpha = 1.5 + 0.25 * steps
    logits, hidden = network.eval()(features)
    cut = 0
    tower, heads = network.towers.layers[0], network.heads
    assert isinstance(tower, GroupedLinear)
    for row in range(len(logits)):
        scenario = features.id_BFE[row, 0]
        top = pruned(network.pruners[0], scenario, features.flat_BI[row], alpha)
        for layer, pruner in zip(network.layers, network.pruners[1:], strict=True):
            assert isinstance(layer, torch.nn.Linear)
            cut += int((top == 0).sum())
            top = pruned(pruner, scenario, torch.relu(layer.weight @ top + layer.bias), alpha)
        assert torch.allclose(hidden[row], top, atol=1e-12)
        for task in range(2):
            out = torch.relu(top @ tower.weight_GIO[task] + tower.bias_G1O[task, 0])
            logit = out @ heads.weight_GIO[task] + heads.bias_G1O[task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)
    assert cut > 0


def test_only_training_steps_make_the_pruners_steeper(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    network, features = network_of(sizes), features_of()
    first, _ = network(features)
    second, _ = network(features)
    assert torch.equal(first, second)
    network.train()(features)
    assert not torch.equal(network.eval()(features)[0], first)
    other = network_of(sizes)
    other.load_state_dict(network.state_dict())  # the steps are among the weights
    assert torch.equal(other(features)[0], network(features)[0])


def test_a_fresh_network_cuts_nothing(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    features = features_of(50)
    network = AdaSparse(AdaSparse.Config(), sizes).double()
    raw = network.pruners[0](torch.cat([features.id_BFE[:, 0], features.flat_BI], dim=1))
    assert bool((2 * torch.sigmoid(raw) > 0.01).all())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layer_widths": ()}, "at least one layer"),
        ({"epsilon": 1.0}, "every unit is cut at the start"),
        ({"alpha": 0.0}, "alpha is positive"),
    ],
)
def test_what_cannot_prune_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdaSparse.Config(**wrong)  # type: ignore[arg-type]
