from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.pepnet import GateUnit, PepNet
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear


def network_of(sizes: BackboneSizes, *, ep: bool = True, pp: bool = True) -> PepNet:
    torch.manual_seed(0)
    network = PepNet(PepNet.Config(ep=ep, pp=pp, gate_width=3, tower_widths=(5, 4)), sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network


def gate(unit: object, row: Tensor) -> Tensor:
    assert isinstance(unit, GateUnit)
    hidden = torch.relu(unit.hidden.weight @ row + unit.hidden.bias)
    return 2 / (1 + torch.exp(-(unit.gate.weight @ hidden + unit.gate.bias)))


@pytest.mark.parametrize(("ep", "pp"), [(True, True), (True, False), (False, True)])
def test_each_row_follows_the_equations_of_the_paper(
    sizes: BackboneSizes, features_of: Callable[..., Features], ep: bool, pp: bool
) -> None:
    network, features = network_of(sizes, ep=ep, pp=pp), features_of()
    logits, hidden = network(features)
    for row in range(len(logits)):
        scenario, user, poi = (features.id_BFE[row, field] for field in (0, 1, 2))
        given = features.flat_BI[row]
        if ep:
            given = given * gate(network.input_gate, torch.cat([scenario, given]))
        tops = []
        for task in range(2):
            top = given
            for at, (layer, width) in enumerate(zip(network.layers, (5, 4), strict=True)):
                assert isinstance(layer, GroupedLinear)
                top = torch.relu(top @ layer.weight_GIO[task] + layer.bias_G1O[task, 0])
                if pp:
                    of_all = gate(network.unit_gates[at], torch.cat([user, poi, given]))
                    top = top * of_all[task * width : (task + 1) * width]
            logit = top @ network.heads.weight_GIO[task] + network.heads.bias_G1O[task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)
            tops.append(top)
        assert torch.allclose(hidden[row], (tops[0] + tops[1]) / 2, atol=1e-12)


def test_gates_send_no_gradient_into_the_input_and_towers_do(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    """d logit / d input is what it is when the gates are constants."""
    network, features = network_of(sizes), features_of(3)
    flat = features.flat_BI.clone().requires_grad_()
    logits, _ = network(replace(features, flat_BI=flat))
    (found,) = torch.autograd.grad(logits.sum(), flat)
    assert network.input_gate is not None
    with torch.no_grad():
        weight = network.input_gate(torch.cat([features.id_BFE[:, 0], features.flat_BI], dim=1))
        prior = torch.cat([features.id_BFE[:, 1], features.id_BFE[:, 2], features.flat_BI * weight], dim=1)
        gates = [unit(prior) for unit in network.unit_gates]
    flat = features.flat_BI.clone().requires_grad_()
    rows = flat * weight
    for layer, of_layer in zip(network.layers, gates, strict=True):
        rows = torch.relu(layer(rows))
        rows = rows * of_layer.view(3, 2, -1).transpose(0, 1)
    (expected,) = torch.autograd.grad(network.heads(rows).sum(), flat)
    assert torch.allclose(found, expected, atol=1e-12) and bool((found != 0).any(dim=1).all())


def test_gates_teach_the_ids_that_they_read(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    features = features_of()
    ids = features.id_BFE.clone().requires_grad_()
    logits, _ = network_of(sizes)(replace(features, id_BFE=ids))
    (gradient,) = torch.autograd.grad(logits.sum(), ids)
    assert [bool(part.abs().sum() > 0) for part in gradient.unbind(1)] == [True, True, True, False]


def test_no_gate_and_no_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="set ep or pp"):
        PepNet.Config(ep=False, pp=False)
    with pytest.raises(ValueError, match="at least one tower layer"):
        PepNet.Config(tower_widths=())
