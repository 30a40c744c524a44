"""LARR's two uses of the scene vector: as an input of the ranker (utilization) and as what guides it (guidance).

Utilization: the scene vector c joins the flat input, and so does its product with the POI, (A c) * poi: "rain wants
soup" is a preference of a scene for a kind of POI, and a product learns it from few rows where an MLP over [c ; poi]
needs many. Guidance: c and a collaborative vector r, tapped from the ranker, are projected to where InfoNCE pulls the
pairs of one row together (`trainers.losses`). The same two uses with ids in place of vectors make the honest baseline
PLE + scene ids. As `trainers.recipes` has them the two differ in more: LARR aggregates tokens by an encoder, is guided,
and reads the vector of the POI's text; experiments take these apart (`larr_aggregation`, `larr_alignment`).

Letters: B rows, U distinct scenes, C scene width, P product width, I flat width, A width of the alignment space.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.models.embedding import FeatureEmbedding, Features, InputSizes
from trainers.models.scene_encoder import SceneEncoder


@dataclass(frozen=True)
class Aligned:
    """The two vectors of each row that guidance pulls together."""

    scene_BA: Tensor
    collaborative_BA: Tensor


class SceneUse(nn.Module):
    """Scenes of a batch -> more columns of the flat input, and pairs to align."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Args:
            utilization: the scene vector is an input of the backbone.
            tap: where guidance takes its collaborative vector: the flat "input" without the scene, the backbone's
                "hidden" vector before the towers (which has seen the scene already if utilization is on), or nowhere:
                no guidance. The paper does not say.
            alignment_width: of the space where the pairs are compared.
        """

        encoder: SceneEncoder.Config = field(default_factory=SceneEncoder.Config)
        utilization: bool = True
        tap: Literal["input", "hidden"] | None = None
        alignment_width: int = 32

        def __post_init__(self) -> None:
            if not self.utilization and self.tap is None:
                raise ValueError("a scene that is neither an input nor aligned has no use: leave SceneUse out")

    def __init__(
        self, config: Config, sizes: InputSizes, matrix_RV: Tensor | None, features: FeatureEmbedding, hidden: int
    ) -> None:
        """
        Args:
            matrix_RV: the scene values' vectors; None where tokens are ids.
            features: gives the widths of the flat input and of products.
            hidden: width of the backbone's hidden vector.
        """
        super().__init__()
        self.config = config
        self.encoder = SceneEncoder(config.encoder, sizes.scene_cardinalities, matrix_RV)
        output = config.encoder.output
        self.scene_side = nn.Linear(output, features.product_width, bias=False) if config.utilization else None
        self.width = output + features.product_width if config.utilization else 0
        tapped = features.width if config.tap == "input" else hidden
        self.align_scene = nn.Linear(output, config.alignment_width) if config.tap else None
        self.align_collaborative = nn.Linear(tapped, config.alignment_width) if config.tap else None

    def scenes(self, batch: Batch) -> Tensor:
        """Vectors (U, C) of the distinct scenes."""
        scene_UC: Tensor = self.encoder(batch.scene_id_US, batch.scene_row_US)
        return scene_UC

    def utilize(self, scene_BC: Tensor, features: Features) -> Features:
        """The backbone's input: the flat one, and if wished scene and scene x POI beside it."""
        if self.scene_side is None:
            return features
        beside = [scene_BC, self.scene_side(scene_BC) * features.poi_BP]
        return replace(features, flat_BI=torch.cat([features.flat_BI, *beside], dim=1))

    def align(self, scene_BC: Tensor, features: Features, hidden_BH: Tensor) -> Aligned | None:
        """The pairs that InfoNCE pulls together, with gradients into both sides; None without guidance."""
        if self.align_scene is None or self.align_collaborative is None:
            return None
        tapped = features.flat_BI if self.config.tap == "input" else hidden_BH
        return Aligned(self.align_scene(scene_BC), self.align_collaborative(tapped))
