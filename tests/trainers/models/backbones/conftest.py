"""Features of a few rows by hand, for backbones that are tested against their equations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.embedding import Features

SIZES = BackboneSizes(inputs=6, tasks=2, scenarios=4, users=5, pois=7, fields=4, user_fields=2, width=3, numbers=2)


@pytest.fixture
def sizes() -> BackboneSizes:
    return SIZES


@pytest.fixture
def features_of() -> Callable[..., Features]:
    """Random features of `rows` rows in float64, in scenarios 1, 2, 3, 1 ...; any part may be given."""

    def make(rows: int = 8, **given: torch.Tensor) -> Features:
        draw = torch.Generator().manual_seed(5)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        parts = {
            "flat_BI": normal(rows, SIZES.inputs),
            "poi_BP": normal(rows, 4),
            "scenario_B": 1 + torch.arange(rows) % 3,
            "user_B": torch.randint(0, SIZES.users, (rows,), generator=draw),
            "poi_B": torch.randint(0, SIZES.pois, (rows,), generator=draw),
            "id_BFE": normal(rows, SIZES.fields, SIZES.width),
            "recent_BNE": normal(rows, 5, SIZES.width),
            "recent_age_BN": torch.rand(rows, 5, generator=draw, dtype=torch.float64),
            "recent_known_BN": torch.arange(5) < torch.randint(0, 6, (rows, 1), generator=draw),
            "numeric_BD": normal(rows, SIZES.numbers),
        }
        return Features(**{**parts, **given})

    return make
