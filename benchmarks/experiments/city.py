"""The city as a world of experiments, and the recipes that are compared in it, at full and at quick scale.

Development used seed 100, its test part too (`docs/log.md`); reported seeds begin at 0: other people, the same city.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from benchmarks.experiments.asked import PromptChoice
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.scenario_rows import Rows
from benchmarks.experiments.tuned import TunedModel
from benchmarks.experiments.vectors import Knowing, LanguageModel, PromptStates, RandomVectors, Vectors
from benchmarks.experiments.worlds import World
from feature_repo.datasets import city
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.city import CityConfig, Variant
from trainers import recipes
from trainers.knowledge import POI_SPACE, SCENE_SPACE
from trainers.language.contrast import ContrastConfig
from trainers.language.pretrain import PretrainConfig
from trainers.models.backbones import BackboneConfig
from trainers.models.llm4msr import KnowledgeUse
from trainers.recipes import Recipe, Size

DEVELOPMENT_SEED = 100
QUICK = CityConfig(users=120, pois=80, days=28, requests_per_user_day=0.4, candidates=8)


@dataclass(frozen=True, kw_only=True)
class CityWorld:
    """A city, seed included."""

    config: CityConfig = field(default_factory=CityConfig)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def name(self) -> str:
        return "city"

    def choice(self) -> Choice:
        return Choice(self.config, lambda progress: city.build(self.config, progress), ())

    def asked(self) -> PromptChoice | None:
        return None


@dataclass(frozen=True, kw_only=True)
class AskedCity(CityWorld):
    """The same city, and what a language model makes of its users and scenarios."""

    prompts: PromptChoice = field(default_factory=PromptChoice)

    def asked(self) -> PromptChoice:
        return self.prompts


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large experiments are: as reported, or a rehearsal of minutes.

    Args:
        language_model: a folder in place of the model that experiments tune themselves, for development.
    """

    quick: bool = False
    language_model: str | None = None

    @property
    def size(self) -> Size:
        return "tiny" if self.quick else "default"

    @property
    def core_seeds(self) -> tuple[int, ...]:
        return (0, 1) if self.quick else (0, 1, 2, 3, 4)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of experiments beyond the core set."""
        return (0,) if self.quick else (0, 1, 2)

    def world(self, seed: int, variant: Variant | None = None) -> CityWorld:
        config = QUICK if self.quick else city.SIZES["default"]
        return CityWorld(config=replace(config, seed=seed, variant=variant or Variant()))

    @property
    def knowledge(self) -> KnowledgeUse.Config:
        """The layers of LLM4MSR, at both levels."""
        usual = recipes.llm4msr(self.size).model.knowledge
        assert usual is not None
        return usual

    @property
    def pretrained(self) -> TunedModel:
        """The embedded model after stage 1."""
        return self._tuned("pretrained", self._pretrain(), LanguageModel())

    def contrasted(self, name: str, base: LanguageModel, config: ContrastConfig | None = None) -> TunedModel:
        """A model after stage 2."""
        return self._tuned(name, config or self.contrast(), base)

    @property
    def tuned(self) -> LanguageModel:
        """The model of LARR: both stages."""
        if self.language_model is not None:
            return LanguageModel(model=self.language_model)
        return self.contrasted("tuned", self.pretrained)

    def contrast(self) -> ContrastConfig:
        """Stage 2 as it is by default, or in a few steps of its topmost layers."""
        usual = ContrastConfig()
        if not self.quick:
            return usual
        draws = replace(usual.draws, pairs=dict.fromkeys(usual.draws.pairs, 2), exposed=1)
        tune = replace(usual.tune, steps=2, warmup_steps=1)
        return replace(usual, statistics=2, lora=replace(usual.lora, first_layer=-1), draws=draws, tune=tune)

    def cell(
        self, seed: int, recipe: Recipe, *, vectors: Vectors | None = None, variant: Variant | None = None
    ) -> Cell:
        """A recipe in the city of a seed; the seed is also that of the initial weights."""
        return Cell(world=self.world(seed, variant), recipe=recipe, vectors=vectors or self.tuned, seed=seed)

    def asked_cell(
        self,
        world: World,
        backbone: BackboneConfig,
        knowledge: KnowledgeUse.Config | None = None,
        *,
        prompts: Vectors | None = None,
        rows: Rows | None = None,
        seed: int | None = None,
    ) -> Cell:
        """A backbone, perhaps in LLM4MSR's layers, in a world that a model was asked about.

        Args:
            seed: of the weights; by default the world's.
            prompts: what prompts are to the ranker; by default the model's states.
        """
        recipe = recipes.on_backbone(recipes.ple(self.size), backbone)
        fit = replace(recipe.fit, epochs=1) if self.quick else recipe.fit
        recipe = replace(recipe, model=replace(recipe.model, knowledge=knowledge), fit=fit)
        vectors = Knowing(texts=LanguageModel(), prompts=prompts or PromptStates())
        return Cell(world=world, recipe=recipe, vectors=vectors, seed=world.seed if seed is None else seed, rows=rows)

    def ple(self, seed: int, variant: Variant | None = None) -> Cell:
        return self.cell(seed, recipes.ple(self.size), variant=variant)

    def scene_ids(self, seed: int, variant: Variant | None = None) -> Cell:
        return self.cell(seed, recipes.ple_scene_ids(self.size), variant=variant)

    def scene_ids_and_text(self, seed: int, variant: Variant | None = None) -> Cell:
        """Ids of scene values, and LARR's vectors of POIs: what words of the moment add to words of places."""
        return self.cell(seed, reading_pois(recipes.ple_scene_ids(self.size), True), variant=variant)

    def random(self, seed: int, variant: Variant | None = None) -> Cell:
        """LARR in all but the vectors, whose directions are drawn at random (by the seed)."""
        vectors = RandomVectors(like=self.tuned, seed=seed)
        return self.cell(seed, recipes.larr(self.size), vectors=vectors, variant=variant)

    def random_scenes(self, seed: int, variant: Variant | None = None) -> Cell:
        """LARR in all but the scene values' vectors: those of POIs keep their meaning."""
        vectors = RandomVectors(like=self.tuned, seed=seed, spaces=(SCENE_SPACE,))
        return self.cell(seed, recipes.larr(self.size), vectors=vectors, variant=variant)

    def larr(self, seed: int, variant: Variant | None = None) -> Cell:
        return self.cell(seed, recipes.larr(self.size), variant=variant)

    def larr_without_pois(self, seed: int, variant: Variant | None = None) -> Cell:
        """LARR in all but the vector of the POI's text."""
        return self.cell(seed, reading_pois(recipes.larr(self.size), False), variant=variant)

    def _pretrain(self) -> PretrainConfig:
        usual = PretrainConfig()
        if not self.quick:
            return usual
        return replace(usual, tune=replace(usual.tune, steps=2, warmup_steps=1), test_documents=1, samples=0)

    def _tuned(self, name: str, stage: PretrainConfig | ContrastConfig, base: LanguageModel) -> TunedModel:
        return TunedModel(model=name, stage=stage, base=base, world=self.world(DEVELOPMENT_SEED))


def unaligned(recipe: Recipe) -> Recipe:
    """The same ranker, from the same initial weights, without guidance."""
    return replace(recipe, loss=replace(recipe.loss, alignment=0.0))


def reading_pois(recipe: Recipe, reads: bool) -> Recipe:
    """The same ranker with or without the vector of the POI's text as an input."""
    features = replace(recipe.model.features, text_spaces=(POI_SPACE,) if reads else ())
    return replace(recipe, model=replace(recipe.model, features=features))
