from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.models.by_scenario import ScenarioLinear, linear_by_scenario

SCENARIOS, GROUPS, INPUTS, OUTPUTS, ROWS = 40, 2, 5, 3, 200


class Elements(TorchDispatchMode):
    """Counts the elements of all tensors that come out of operations, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not func.is_view:
            self.count += made.numel()
        return made


def parts(scenarios: int = SCENARIOS) -> tuple[ScenarioLinear, Tensor]:
    torch.manual_seed(0)
    linear = ScenarioLinear(scenarios, GROUPS, INPUTS, OUTPUTS).double()
    for parameter in linear.parameters():
        torch.nn.init.normal_(parameter)
    return linear, torch.randint(1, scenarios - 1, (ROWS,))  # neither the first nor the last one has rows


@pytest.mark.parametrize("shared", [True, False])
def test_rows_and_gradients_are_those_of_each_rows_own_map(shared: bool) -> None:
    linear, scenario_B = parts()
    rows = torch.randn(*(() if shared else (GROUPS,)), ROWS, INPUTS, dtype=torch.float64, requires_grad=True)
    wanted = torch.einsum(
        "bi,bgio->gbo" if shared else "gbi,bgio->gbo", rows, linear.weight_SGIO[scenario_B]
    ) + linear.bias_SG1O[scenario_B].squeeze(2).transpose(0, 1)
    inputs, towards = [rows, *linear.parameters()], torch.randn_like(wanted)
    found = linear(rows, scenario_B)
    assert torch.allclose(found, wanted, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, towards), torch.autograd.grad(wanted, inputs, towards), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(linear(rows, scenario_B), found)


def test_rows_of_one_scenario_are_not_moved() -> None:
    linear, _ = parts()
    rows = torch.randn(ROWS, INPUTS, dtype=torch.float64)
    alone = linear(rows, torch.full((ROWS,), 7))
    wanted = torch.einsum("bi,gio->gbo", rows, linear.weight_SGIO[7]) + linear.bias_SG1O[7]
    assert torch.allclose(alone, wanted, atol=1e-12)


def test_work_of_gradients_grows_with_scenarios_and_not_with_their_square() -> None:
    linear, scenario_B = parts()
    rows = torch.randn(ROWS, INPUTS, dtype=torch.float64)
    loss = linear_by_scenario(rows, scenario_B, linear.weight_SGIO, linear.bias_SG1O).sum()
    with Elements() as made:
        loss.backward()  # type: ignore[no-untyped-call]
    weights = sum(parameter.numel() for parameter in linear.parameters())
    assert made.count < 5 * (weights + loss.numel() + GROUPS * ROWS * (INPUTS + OUTPUTS))
