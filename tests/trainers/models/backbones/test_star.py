from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.star import EPSILON, PartitionedNorm, Star, StarLinear
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear

SMALL = Star.Config(bottom_widths=(5,), tower_widths=(4,), auxiliary_widths=(3,))


def star(layer: StarLinear, scenario: int, group: int, row: Tensor) -> Tensor:
    weight_IO = layer.own_weight_SGIO[scenario, group] * layer.shared_weight_GIO[group]
    return row @ weight_IO + layer.own_bias_SG1O[scenario, group, 0] + layer.shared_bias_G1O[group, 0]


def normalised(norm: PartitionedNorm, scenario: int, row: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    scale, shift = norm.scale_I * norm.own_scale_SI[scenario], norm.shift_I + norm.own_shift_SI[scenario]
    return scale * (row - mean) / torch.sqrt(variance + EPSILON) + shift


def shaken(config: Star.Config, sizes: BackboneSizes) -> Star:
    torch.manual_seed(0)
    network = Star(config, sizes).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)  # scenarios start alike
    return network


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("normalisation", [False, True])
def test_logits_are_the_equations_of_the_paper(
    sizes: BackboneSizes, features_of: Callable[..., Features], normalisation: bool, training: bool
) -> None:
    config = Star.Config(
        bottom_widths=(5,), tower_widths=(4,), auxiliary_widths=(3,), normalisation=normalisation, momentum=0.5
    )
    network, features = shaken(config, sizes).train(training), features_of()
    if network.norm is not None:
        torch.nn.init.normal_(network.norm.mean_SI)
        torch.nn.init.uniform_(network.norm.variance_SI, 0.5, 2.0)
        mean_SI, variance_SI = network.norm.mean_SI.clone(), network.norm.variance_SI.clone()
    logits, hidden = network(features)
    bottom, tower, auxiliary = network.bottom.layers[0], network.tower.layers[0], network.auxiliary.layers[0]
    assert isinstance(bottom, StarLinear) and isinstance(tower, StarLinear) and isinstance(auxiliary, GroupedLinear)
    for row, s in enumerate(features.scenario_B.tolist()):
        x = given = features.flat_BI[row]
        if network.norm is not None:
            like = features.flat_BI[features.scenario_B == s]
            mean, variance = (like.mean(0), like.var(0)) if training else (mean_SI[s], variance_SI[s])
            x = normalised(network.norm, s, given, mean, variance)
        h = torch.relu(star(bottom, s, 0, x))
        assert torch.allclose(hidden[row], h, atol=1e-12)
        beside = torch.cat([given, features.id_BFE[row, 0]])
        beside = torch.relu(beside @ auxiliary.weight_GIO[0] + auxiliary.bias_G1O[0, 0])
        for task in range(2):
            main = star(network.head, s, task, torch.relu(star(tower, s, task, h)))
            head = network.auxiliary_head
            added = beside @ head.weight_GIO[0, :, task] + head.bias_G1O[0, 0, task]
            assert torch.allclose(logits[row, task], main[0] + added, atol=1e-12)


def test_all_scenarios_start_as_the_shared_network(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    network = Star(SMALL, sizes).double().eval()
    first, _ = network(features_of(scenario_B=torch.full((8,), 1)))
    second, _ = network(features_of(scenario_B=torch.full((8,), 2)))
    assert torch.equal(first, second)


def test_the_star_part_can_lower_a_logit(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    network, features = shaken(SMALL, sizes).eval(), features_of()
    before, _ = network(features)
    with torch.no_grad():
        network.head.own_bias_SG1O -= 100.0
    after, _ = network(features)
    assert torch.allclose(after, before - 100.0)


def test_a_row_touches_the_weights_of_its_scenario_only(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    network = shaken(SMALL, sizes)
    logits, _ = network(features_of())
    logits[1].sum().backward()  # a row of scenario 2
    own = {name: p.grad for name, p in network.named_parameters() if "own_" in name}
    assert len(own) == 8
    for name, grad in own.items():
        assert grad is not None
        assert (grad.flatten(1).abs().sum(1) > 0).tolist() == [False, False, True, False], name


def test_running_averages_are_those_of_the_scenarios_rows() -> None:
    """The plain mean of the first batches, then a moving one with momentum 0.4; a single row does not count."""
    norm = PartitionedNorm(3, 1, momentum=0.4).double().train()

    def see(*rows: tuple[int, float]) -> None:
        norm(torch.tensor([[value] for _, value in rows], dtype=torch.float64), torch.tensor([s for s, _ in rows]))

    see((1, 1.0), (1, 3.0), (2, 50.0))
    assert norm.mean_SI[:, 0].tolist() == [2.0, 2.0, 2.0]  # 0 and 2 borrow while they have nothing
    see((1, 4.0), (1, 4.0), (2, 10.0), (2, 12.0))
    assert norm.mean_SI[1:, 0].tolist() == [3.0, 11.0]  # the mean of 2 and 4; the first of its own
    assert norm.variance_SI[1:, 0].tolist() == [1.0, 2.0]  # the mean of 2 and 0
    see((1, 8.0), (1, 8.0), (2, 99.0))
    assert norm.mean_SI[:, 0].tolist() == pytest.approx([8.0, 0.6 * 3.0 + 0.4 * 8.0, 11.0])
    before = norm.mean_SI.clone()
    norm.eval()
    see((1, 70.0), (1, 80.0))
    assert torch.equal(norm.mean_SI, before)


def test_few_rows_and_unknown_scenarios_are_finite(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    network = shaken(SMALL, sizes).train()
    for scenarios in ([2], [0, 2, 2], [1, 1, 2, 3, 0]):
        logits, _ = network(features_of(len(scenarios), scenario_B=torch.tensor(scenarios)))
        logits.sum().backward()
        assert bool(logits.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    logits, _ = network.eval()(features_of(scenario_B=torch.zeros(8, dtype=torch.int64)))
    assert bool(logits.isfinite().all())


def test_a_scenario_with_one_row_is_normalised_by_its_running_averages(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    network = shaken(SMALL, sizes).train()
    network(features_of(30))
    features = features_of(3, scenario_B=torch.tensor([1, 1, 3]))
    in_training, _ = network(features)
    later, _ = network.eval()(features)
    assert torch.allclose(in_training[2], later[2], atol=1e-12)
    assert not torch.allclose(in_training[0], later[0], atol=1e-3)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        Star.Config(bottom_widths=())
    with pytest.raises(ValueError, match="momentum"):
        Star.Config(momentum=0.0)
