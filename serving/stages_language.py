"""The stages of language models, as functions of one workspace: a person's choice, turned into a whole configuration.

The run folder of a stage knows what it was made from; what is there is not done again.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from feature_repo import columns
from feature_repo.files import state_of
from feature_repo.workspace import Workspace
from serving.stages import Report, Stamp, code_of, quiet
from trainers import wanted


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """What a person chooses about stage 1; the rest is `trainers.language.pretrain.PretrainConfig`.

    Args:
        test: hold out what `probe` asks about, in place of `hold_out` of the POIs.
    """

    model: str = "smollm2"
    steps: int | None = None
    documents: int = 8
    full: bool = False
    general: float = 0.25
    general_text: Path | None = None
    hold_out: float = 0.1
    test: bool = False
    sharding: str = "ddp"
    seed: int = 0


def pretrain(workspace: Workspace, options: PretrainOptions, report: Report) -> Any:
    """History -> a language model that read it, in `<workspace>/language/pretrain...`. Returns its `PretrainReport`."""
    from trainers.language import pretrain as stage
    from trainers.language.clicks import TEST_HOLD_OUT, HoldOut

    plain = stage.PretrainConfig()
    if options.sharding not in ("ddp", "fsdp"):
        raise ValueError(f"no sharding {options.sharding!r}; there are ddp and fsdp")
    steps = plain.tune.steps if options.steps is None else options.steps
    rate = 5e-5 if options.full else plain.tune.learning_rate  # all weights together go further in a step
    hold_out = replace(TEST_HOLD_OUT if options.test else HoldOut(pois=options.hold_out), seed=options.seed)
    config = replace(
        plain,
        model=options.model,
        corpus=replace(plain.corpus, hold_out=hold_out, general_text=options.general_text),
        mixture=replace(plain.mixture, documents=options.documents, general=options.general, seed=options.seed),
        lora=None if options.full else plain.lora,
        tune=replace(
            plain.tune,
            steps=steps,
            learning_rate=rate,
            seed=options.seed,
            sharding="fsdp" if options.sharding == "fsdp" else "ddp",
        ),
    )
    return stage.pretrain(workspace, config, report)


@dataclass(frozen=True, kw_only=True)
class ContrastOptions:
    """What a person chooses about stage 2; the rest is `trainers.language.contrast.ContrastConfig`.

    Args:
        pairs, weights: of the kinds user_user, poi_poi and user_poi; a kind that is not named keeps its default.
        layers: adapted ones, from the last down; the others are frozen.
        test: hold POIs, categories and scene values out, for `probe`.
    """

    model: str = "smollm2"
    steps: int | None = None
    pairs: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    exposed: int | None = None
    temperature: float | None = None
    pooling: str = "last"
    user_side: str = "aspects"
    users: str = "companions"
    bucket: tuple[str, ...] = ("daypart",)
    reading: str = "projectors"
    width: int | None = None
    project: bool = False
    layers: int | None = None
    cached_gradients: bool = False
    test: bool = False
    sharding: str = "ddp"
    seed: int = 0


def contrast(workspace: Workspace, options: ContrastOptions, report: Report) -> Any:
    """Clicks of the history -> a text embedder, in `<workspace>/language/contrast...`. Returns its `ContrastReport`.

    Raises ValueError for an option that does not exist.
    """
    from trainers.language import contrast as stage

    return stage.contrast(workspace, configuration(options), report)


def configuration(options: ContrastOptions) -> Any:
    """The whole `ContrastConfig` of a person's options. Raises ValueError for a word or a kind that does not exist."""
    from trainers.language.clicks import TEST_HOLD_OUT
    from trainers.language.contrast import ContrastConfig
    from trainers.language.pairs import KINDS
    from trainers.plain import from_plain, to_plain

    if unknown := sorted({*options.pairs, *options.weights} - set(KINDS)):
        raise ValueError(f"no pairs of kind {unknown}; there are {', '.join(KINDS)}")
    plain = to_plain(ContrastConfig())
    plain |= {"model": options.model, "pooling": options.pooling, "project": options.project}
    plain["pairs"] |= {"users": options.users, "seed": options.seed}
    plain["pairs"]["clicks"] |= {"user_side": options.user_side, "bucket": list(options.bucket)}
    if options.test:
        plain["pairs"]["clicks"]["hold_out"] = to_plain(replace(TEST_HOLD_OUT, seed=options.seed))
    plain["draws"]["pairs"] |= options.pairs
    plain["draws"]["weights"] |= options.weights
    plain["draws"] |= _said(exposed=options.exposed, temperature=options.temperature)
    plain["scoring"]["reading"] = options.reading
    plain["heads"] |= _said(width=options.width)
    plain["lora"] |= _said(first_layer=None if options.layers is None else -options.layers)
    plain["reader"]["cached_gradients"] = options.cached_gradients
    plain["tune"] |= {"seed": options.seed, "sharding": options.sharding, **_said(steps=options.steps)}
    # Words are checked where plain data become a configuration.
    return from_plain(ContrastConfig, plain)


def probe(workspace: Workspace, model: str, moments: int, report: Report) -> Any:
    """Everything that embeds, asked about what was held out. Returns its `ProbeReport`.

    Args:
        model: the untuned language model to compare with.
        moments: clicks of held-out POIs that are asked for.
    """
    from trainers.language import probe as stage
    from trainers.language.questions import ProbeConfig

    config = ProbeConfig(moments=moments)
    hold_out = stage.hold_out_of(workspace) or config.hold_out
    return stage.probe(workspace, stage.candidates(workspace, model), replace(config, hold_out=hold_out), report)


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Which model reads the texts, and where it runs: in this process, behind an endpoint, or in workers of Ray.

    Args:
        model: a name, a folder or a Hugging Face id.
        unit_length: vectors of length 1, as some endpoints always give.
        beside: leave the version in use, and have this one served beside it.
        endpoint: url of a server that has the model, up to and without `/embeddings`.
        endpoint_model: the name by which the server calls it; None: as it is called here.
        ray: workers; 0: none.
        ray_gpus: of each worker.
        ray_address: of a running cluster; None: what `RAY_ADDRESS` names, or this machine.
    """

    model: str = "smollm2"
    unit_length: bool = False
    beside: bool = False
    endpoint: str | None = None
    endpoint_model: str | None = None
    ray: int = 0
    ray_gpus: int = 0
    ray_address: str | None = None

    def backend(self) -> Callable[[Any], Any] | None:
        """Makes a `Backend` from an `EncoderConfig`; None for this process."""
        from trainers.language.cluster import Cluster
        from trainers.language.endpoint import Endpoint

        if self.endpoint is not None and self.ray:
            raise ValueError("texts are embedded by an endpoint or by Ray, not by both")
        if self.endpoint is not None:
            return Endpoint(url=self.endpoint, model=self.endpoint_model)
        if self.ray:
            return Cluster(workers=self.ray, gpus=self.ray_gpus, address=self.ray_address)
        return None


def embed(workspace: Workspace, options: EmbedOptions, report: Report) -> bool:
    """Texts -> knowledge. Returns whether anything was done; texts that were embedded before are not again."""
    from trainers.language.embed import embed as embed_texts
    from trainers.language.encoder import EncoderConfig

    config, backend = EncoderConfig(model=options.model, unit_length=options.unit_length), options.backend()
    stamp = Stamp.of(
        workspace,
        "embed-beside" if options.beside else "embed",
        versions=[config.version(space) for space in columns.KNOWLEDGE],
        sources=state_of(workspace.sources.glob("*.parquet")),
        wanted=state_of(wanted.folder(workspace).glob("*.jsonl")),
        code=code_of("trainers/language", "feature_repo"),  # helpers of scene features may stand anywhere
    )
    if stamp.fresh:
        return False
    stamp.clear()
    embed_texts(workspace, config, report, backend=backend, beside=options.beside)
    stamp.set()
    return True


def drop(workspace: Workspace, version: str) -> list[str]:
    """Serve a version beside those in use no longer; what was computed is kept. Returns the views that are gone.

    Raises ValueError where no such version stands there.
    """
    from feature_repo.store import drop as drop_views
    from feature_repo.store import open_store

    files = sorted(workspace.beside.glob(f"{columns.beside('*', glob.escape(version))}.parquet"))
    if not files:
        there = sorted({file.stem.rpartition("_")[2] for file in workspace.beside.glob("*.parquet")})
        raise ValueError(f"no version {version!r} stands beside those in use; there are {', '.join(there) or 'none'}")
    views = [file.stem for file in files]
    if workspace.feature_store_yaml.exists():
        with quiet():
            drop_views(open_store(workspace), views)
    for file in files:
        file.unlink()
    for stage in ("embed-beside", "materialize"):  # what they did is undone
        Stamp.of(workspace, stage).clear()
    return views


@dataclass(frozen=True, kw_only=True)
class KnowledgeOptions:
    """What a person chooses about prompted knowledge; the rest is `trainers.language.prompted.KnowledgeConfig`."""

    model: str = "smollm2"
    pooling: str = "last"
    scenario_prompt: str = "contrast"
    user_prompt: str = "interests"
    every: int = 7
    liked: int = 8
    left: int = 4
    platform: str | None = None
    words: Path | None = None
    tokens: int = 32
    tell: bool = False
    max_length: int = 1024
    beside: bool = False


def knowledge(workspace: Workspace, options: KnowledgeOptions, report: Report) -> Any:
    """The log -> what a frozen language model makes of scenarios and users. Returns its `KnowledgeReport`.

    What the model was asked before is not asked again. Raises ValueError for an option that does not exist.
    """
    from trainers.language import prompted
    from trainers.language.encoder import EncoderConfig
    from trainers.language.facts import FactsConfig

    config = prompted.KnowledgeConfig(
        encoder=EncoderConfig(model=options.model, max_length=options.max_length),
        pooling=options.pooling,  # type: ignore[arg-type]  # a word that is none is refused
        scenario_prompt=options.scenario_prompt,
        user_prompt=options.user_prompt,
        facts=FactsConfig(every_days=options.every, liked=options.liked, left=options.left),
        platform=options.platform,
        words=options.words,
        tokens=options.tokens,
        tell=options.tell,
        beside=options.beside,
    )
    return prompted.ask(workspace, config, report)


def _said(**options: float | None) -> dict[str, float]:
    """Those that a person gave."""
    return {name: value for name, value in options.items() if value is not None}
