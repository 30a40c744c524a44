"""Backbone: what every one of them reads and gives, so that each is plugged in by composition.

A backbone maps the features of B rows to the logits of T tasks (click, conversion) in the row's own scenario, and to
one hidden vector of each row that guidance may tap. The logit of a row depends on nothing but this row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from trainers.batch import Batch
from trainers.models.embedding import Features


@dataclass(frozen=True, kw_only=True)
class BackboneSizes:
    """How large its inputs and outputs are.

    Attributes:
        inputs: I, the width of `Features.flat_BI` as the backbone gets it (scene columns may have joined it).
        tasks: T.
        scenarios: S, ids of scenarios, the unknown one included.
        users, pois: ids of users and of POIs, the unknown one included.
        fields: F, embedded ids a row; user_fields: how many of them describe scenario and user.
        width: E, of an embedded id.
        numbers: D.
    """

    inputs: int
    tasks: int
    scenarios: int
    users: int
    pois: int
    fields: int
    user_fields: int
    width: int
    numbers: int


class Backbone(Protocol):
    """An `nn.Module` made of its `Config`, which knows the width H of the hidden vector, and of `BackboneSizes`."""

    def __call__(self, features: Features) -> tuple[Tensor, Tensor]:
        """(B, T) logits, and (B, H) hidden vectors before the towers."""
        ...


@runtime_checkable
class FittedBackbone(Protocol):
    """A `Backbone` that takes more from the training part than weights."""

    def fit(self, batch: Batch) -> None:
        """Take it from rows that training reads; called once, before training."""
        ...
