"""Recipes: a run is a function that returns its whole typed configuration, and nothing of it stands anywhere else.

`ple()` knows no scene, `ple_scene_ids()` has the scene values as ids, `larr()` as vectors of a language model. Each
comes in three sizes: "tiny" for tests, "default" chosen on the validation part of the city, and "reference", whose
sizes are those of every speed claim (20 fields x 16, 10 scene slots x 128, PLE 2 + 2 + 2 experts, towers of 64).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from trainers.knowledge import POI_SPACE
from trainers.loop import FitConfig
from trainers.losses import LossConfig
from trainers.models.backbones import BackboneConfig
from trainers.models.backbones.ple import Ple
from trainers.models.embedding import FeatureEmbedding
from trainers.models.larr import SceneUse
from trainers.models.llm4msr import KnowledgeUse
from trainers.models.meta_layers import MetaLayers
from trainers.models.ranker import Ranker
from trainers.models.scene_encoder import SceneEncoder

Size = Literal["tiny", "default", "reference"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run. `name` is what bundles, reports and the command line call it."""

    name: str
    model: Ranker.Config
    loss: LossConfig = field(default_factory=LossConfig)
    fit: FitConfig = field(default_factory=FitConfig)


def ple(size: Size = "default") -> Recipe:
    """PLE on ids, numbers and recent POIs, without a scene."""
    return Recipe(name="ple", model=_model(size), fit=_fit(size))


def ple_scene_ids(size: Size = "default") -> Recipe:
    """PLE with the scene values as ids, concatenated: what context alone is worth. The honest baseline of LARR.

    Joined by LARR's encoder, ids do slightly worse on the validation part of the city: the baseline has the better way.
    """
    use = SceneUse.Config(encoder=replace(_encoder(size, "ids"), aggregate="concat"))
    return Recipe(name="ple_scene_ids", model=replace(_model(size), scene=use), fit=_fit(size))


def larr(size: Size = "default") -> Recipe:
    """LARR: the scene values' vectors, joined by the scene encoder, used as input and aligned.

    The POI is read by the same language model: a scene that was never seen can only want what it has words for, so both
    sides of the product of scene and POI are made of words.
    """
    use = SceneUse.Config(encoder=_encoder(size, "vectors"), tap="input")
    model = _model(size)
    features = replace(model.features, text_spaces=(POI_SPACE,))
    return Recipe(name="larr", model=replace(model, features=features, scene=use), fit=_fit(size))


def llm4msr(size: Size = "default") -> Recipe:
    """LLM4MSR: meta layers generated from knowledge of user and scenario, around PLE."""
    model = replace(_model(size), knowledge=_knowledge(size))
    return Recipe(name="llm4msr", model=model, fit=_fit(size))


def larr_llm4msr(size: Size = "default") -> Recipe:
    """Both papers in one: the moment as vectors, and layers generated from knowledge of user and scenario."""
    recipe = larr(size)
    return replace(recipe, name="larr_llm4msr", model=replace(recipe.model, knowledge=_knowledge(size)))


def on_backbone(recipe: Recipe, backbone: BackboneConfig) -> Recipe:
    """The same ranker around another backbone."""
    return replace(recipe, name=f"{recipe.name}_{backbone.kind}", model=replace(recipe.model, backbone=backbone))


def _knowledge(size: Size) -> KnowledgeUse.Config:
    match size:
        case "tiny":
            layers = MetaLayers.Config(bottleneck=8, rank=4)
            return KnowledgeUse.Config(user=layers, scenario=layers, width=16)
        case "default":
            # Layers of the paper's freedom learn users by heart: on the city they cost a percent of AUC.
            user = MetaLayers.Config(layers=1, bottleneck=4, rank=1, code_dropout=0.5)
            return KnowledgeUse.Config(user=user, scenario=MetaLayers.Config(layers=1, bottleneck=8, rank=2))
        case "reference":
            return KnowledgeUse.Config()


def _model(size: Size) -> Ranker.Config:
    match size:
        case "tiny":
            features = FeatureEmbedding.Config(width=8, product_width=8)
            backbone = Ple.Config(expert_widths=(16, 8), tower_widths=(8,))
        case "default":
            features = FeatureEmbedding.Config(width=16, product_width=64, unknown_rate=0.05, dropout=0.1)
            backbone = Ple.Config(expert_widths=(128, 64), tower_widths=(32,), dropout=0.1)
        case "reference":
            features = FeatureEmbedding.Config(width=16, product_width=64)
            backbone = Ple.Config(expert_widths=(256, 128), tower_widths=(64,))
    return Ranker.Config(features=features, backbone=backbone)


def _encoder(size: Size, tokens: Literal["vectors", "ids"]) -> SceneEncoder.Config:
    match size:
        case "tiny":
            return SceneEncoder.Config(tokens=tokens, width=8, heads=2, feed_forward=16, output=8)
        case "default":
            return SceneEncoder.Config(tokens=tokens, width=64, output=64, unknown_rate=0.05)
        case "reference":
            return SceneEncoder.Config(tokens=tokens, width=128, feed_forward=512, output=64)


def _fit(size: Size) -> FitConfig:
    return FitConfig(epochs=3, batch_size=256, warmup_steps=5) if size == "tiny" else FitConfig()
