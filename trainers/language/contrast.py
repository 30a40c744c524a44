"""Stage 2: a language model becomes a text embedder, by telling texts that belong together from those that do not.

What it ends in is an ordinary model folder with projector heads beside the weights and a note that says how texts are
read: templates, pooling, the head of each vector space and whether its vectors are wanted. `embed` then needs no option
but the folder's name.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from feature_repo.aggregates import USER_STATE
from feature_repo.datasets.schema import Schema
from feature_repo.scenes import fingerprints
from feature_repo.workspace import Workspace
from trainers.language.adapters import LoraConfig, Tunable, add_tokens, layers_of, load, merge_and_save, with_lora
from trainers.language.clicks import POIS, SPACES, USERS, HeldOut, SpaceText
from trainers.language.contrastive import Scoring
from trainers.language.draws import ContrastTask, DrawConfig
from trainers.language.encoder import TEMPLATES
from trainers.language.heads import Groups, HeadConfig, Heads
from trainers.language.local import Prompts
from trainers.language.model import Embedder, Provenance, model_folder, model_identity, seen_until, sha256
from trainers.language.pairs import Mined, PairConfig, mine
from trainers.language.processes import Processes
from trainers.language.reader import Reader, ReaderConfig
from trainers.language.run_folder import Run
from trainers.language.texts import SCENES
from trainers.language.tuning import TuneConfig, tune
from trainers.plain import from_plain, to_plain

Progress = Callable[[str, int, int], None]  # what, done, total

EMBEDDING_TOKEN = "<emb>"


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """One run of stage 2.

    Args:
        model: what is tuned: "smollm2", a folder such as that of stage 1, or a Hugging Face id.
        revision: of a Hugging Face id.
        templates: for each vector space, the prompt around `{text}`.
        pooling: of the final layer: the "last" token of the prompt, the "mean" over all, or a special "token" that is
            appended to every prompt, whose row in the token matrix is trained. The last one trains through all layers,
            which takes about three times as long.
        max_length: tokens of one prompt; a longer text is cut, its template never is.
        statistics: texts of each group that its mean is taken from.
        pairs: what is mined.
        draws: what a step learns from.
        scoring: what symmetric and asymmetric mean.
        heads: the projectors.
        project: vectors of the tuned model are the heads' projections, which tell clicked from shown best; else the
            states behind them, which keep what the heads leave out (Chen et al. 2020, SimCLR, section 4.2, found
            the same of images) and serve a ranker better (`docs/log.md`).
        lora: the adapters. The layers below the first adapter are frozen: what they make of a text is computed once.
        reader: how texts are run through the model.
        tune: steps, learning rates, processes.
    """

    model: str = "smollm2"
    revision: str = "main"
    templates: Mapping[str, str] = field(default_factory=lambda: dict(TEMPLATES))
    pooling: Literal["last", "mean", "token"] = "last"
    max_length: int = 256
    statistics: int = 64
    pairs: PairConfig = field(default_factory=PairConfig)
    draws: DrawConfig = field(default_factory=DrawConfig)
    scoring: Scoring = field(default_factory=Scoring)
    heads: HeadConfig = field(default_factory=HeadConfig)
    project: bool = False
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(first_layer=-8))
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    tune: TuneConfig = field(
        default_factory=lambda: TuneConfig(
            steps=80,
            learning_rate=5e-4,
            learning_rates={"heads": 2.0},
            warmup_steps=10,
            weight_decay=0.01,
            log_every=5,
            checkpoint_every=20,
        )
    )


@dataclass(frozen=True, kw_only=True)
class ContrastReport:
    """What a run took and came to.

    Attributes:
        pairs: mined pairs of each kind.
        texts: distinct texts that a step may draw.
        held_out: what never entered mining.
        first, last: mean losses of the first and of the last logged steps.
        seconds: of training, without mining and loading.
    """

    model: str
    pairs: Mapping[str, int]
    texts: int
    held_out: HeldOut
    cut: datetime
    first: Mapping[str, float]
    last: Mapping[str, float]
    seconds: float


def contrast(
    workspace: Workspace, config: ContrastConfig, progress: Progress = lambda what, done, total: None
) -> ContrastReport:
    """Tune a model on the history part of a workspace; the finished model is `folder(workspace, config)` / "model".

    The same configuration on the same source tables goes on where it was interrupted and does nothing once finished.
    Raises PairError, ModelError or TrainingError.
    """
    schema = Schema.load(workspace.schema)
    cut = schema.split.train
    tables = {name: sha256(workspace.source(name)) for name in ("impressions", "users", "pois", USER_STATE)}
    base = model_identity(config.model, config.revision)
    decides = {"config": config, "base": base, "cut": cut, "tables": tables, "features": fingerprints(schema)}
    run = Run(folder(workspace, config), decides)
    if run.finished:
        return from_plain(ContrastReport, run.result)
    progress("mine pairs", 0, 1)
    mined = mine(workspace, cut, config.pairs)
    progress("mine pairs", 1, 1)
    prepared = prepare(config, schema, mined, progress)
    tune(prepared.reader, prepared.task, config.tune, run, progress)
    before = Provenance.read(model_folder(config.model, config.revision))
    note = Provenance(
        stage="contrast",
        base=base,
        available_at=seen_until(before, cut),
        config=to_plain(config),
        embedder=prepared.embedder(config),
        before=before,
    )
    if Processes.join().first:
        heads = prepared.reader.heads
        merge_and_save(
            prepared.reader.language,
            prepared.tunable.tokenizer,
            run.model,
            note,
            seed=config.tune.seed,
            beside=lambda path: _write_beside(path, heads, config),
        )
    lines = run.losses() or [{}]
    report = ContrastReport(
        model=str(run.model),
        pairs={kind: len(pairs) for kind, pairs in mined.pairs.items()},
        texts=len(mined.texts),
        held_out=mined.held_out,
        cut=cut,
        first=lines[0],
        last=lines[-1],
        seconds=lines[-1].get("seconds", 0.0),
    )
    return from_plain(ContrastReport, run.finish(report))


def folder(workspace: Workspace, config: ContrastConfig) -> Path:
    """The run folder. A model that is to be tested on what it has not seen never takes the place of the one in use."""
    return run_folder(workspace, tested=not config.pairs.clicks.hold_out.nothing, token=config.pooling == "token")


def run_folder(workspace: Workspace, *, tested: bool, token: bool = False) -> Path:
    """The folder of runs that hold something out (`tested`), and of those that pool by a special token."""
    return workspace.language / ("contrast" + ("-held-out" if tested else "") + ("-token" if token else ""))


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network and its task, ready to be tuned."""

    tunable: Tunable
    reader: Reader
    task: ContrastTask

    def embedder(self, config: ContrastConfig) -> Embedder:
        """How the tuned model is to be read. A space whose head was not trained keeps its pooled states."""
        user, poi = config.scoring.projectors("user_poi")
        trained = set(self.reader.heads.note.names)
        heads = {space: head for space, head in ((USERS, user), (SCENES, user), (POIS, poi)) if head in trained}
        templates, pooling = _templates(config), _pooling(config)
        return Embedder(templates=templates, pooling=pooling, heads=heads, project=config.project)


def prepare(
    config: ContrastConfig, schema: Schema, mined: Mined, progress: Progress = lambda what, done, total: None
) -> Prepared:
    """Load the model, give it adapters and heads, and take the statistics that heads standardise by."""
    tunable = load(config.model, revision=config.revision)
    rows = add_tokens(tunable, [EMBEDDING_TOKEN]) if config.pooling == "token" else []
    with torch.random.fork_rng():
        torch.manual_seed(config.tune.seed)
        language = with_lora(tunable, config.lora, rows)
        groups = Groups.of_schema(SPACES, schema, features=config.heads.centre_features)
        kinds = config.draws.kinds()
        names = sorted({name for kind in kinds for name in config.scoring.projectors(kind)})
        heads = Heads(names, tunable.model.config.hidden_size, config.heads, groups)
    # A token's row lies below all layers: then none of them is frozen.
    frozen = 0 if rows else _first_layer(tunable, config.lora)
    reader = Reader(language, heads, config.reader, pooling=_pooling(config), frozen=frozen)
    reader.to(Processes.join().device)
    prompts = _prompts(tunable, mined.texts, config)
    group_T = _groups(mined.texts, groups)
    _fit_heads(reader, prompts, group_T, config, progress)
    task = ContrastTask(mined, prompts, group_T, config.draws, config.scoring, seed=config.tune.seed)
    return Prepared(tunable=tunable, reader=reader, task=task)


def _fit_heads(
    reader: Reader, prompts: Sequence[Sequence[int]], group_T: np.ndarray, config: ContrastConfig, progress: Progress
) -> None:
    """Means and scale of the untuned states of some texts of every group; they stay what they are from here on."""
    rng = np.random.default_rng(config.tune.seed)
    chosen = [rng.permutation(np.flatnonzero(group_T == group))[: config.statistics] for group in np.unique(group_T)]
    states, groups = [], []
    with torch.no_grad():
        for done, texts in enumerate(chosen):
            progress("statistics of texts", done, len(chosen))
            states.append(reader.pooled([prompts[text] for text in texts]))
            groups.append(torch.from_numpy(group_T[texts]))
    reader.heads.fit(torch.cat(states), torch.cat(groups).to(states[0].device))


def _prompts(tunable: Tunable, texts: Sequence[SpaceText], config: ContrastConfig) -> list[list[int]]:
    """The token ids of every text in the template of its space."""
    templates = _templates(config)
    ids: list[list[int]] = [[] for _ in texts]
    with tempfile.TemporaryDirectory() as place:
        tunable.tokenizer.save_pretrained(place)
        fitting = Prompts(Path(place), config.max_length)
    for space in SPACES:
        at = [number for number, text in enumerate(texts) if text.space == space]
        for number, prompt in zip(at, fitting.fit([texts[n].text for n in at], templates[space]), strict=True):
            ids[number] = prompt.ids
    return ids


def _groups(texts: Sequence[SpaceText], groups: Groups) -> np.ndarray:
    return np.array([groups.of(text.space, [text.text])[0] for text in texts], np.int64)


def _templates(config: ContrastConfig) -> dict[str, str]:
    end = EMBEDDING_TOKEN if config.pooling == "token" else ""
    return {space: template + end for space, template in config.templates.items()}


def _pooling(config: ContrastConfig) -> Literal["last", "mean"]:
    return "mean" if config.pooling == "mean" else "last"


def _first_layer(tunable: Tunable, lora: LoraConfig) -> int:
    """The number of layers that no adapter touches."""
    count = layers_of(tunable.model)[1]
    return min(count, lora.first_layer) if lora.first_layer >= 0 else max(0, count + lora.first_layer)


def _write_beside(path: Path, heads: Heads, config: ContrastConfig) -> None:
    """Heads, and what sentence-transformers, vLLM and endpoints read: they pool as the model does, and stop there, as
    every vector space has a head and means of its own."""
    heads.save(path)
    width = heads.note.width_in
    modes = {f"pooling_mode_{mode}": False for mode in ("cls_token", "max_tokens", "mean_sqrt_len_tokens")}
    mean = _pooling(config) == "mean"
    pooling = {
        "word_embedding_dimension": width,
        **modes,
        "pooling_mode_mean_tokens": mean,
        "pooling_mode_lasttoken": not mean,
        "include_prompt": True,
    }
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=1))
    (path / "modules.json").write_text(json.dumps(modules, indent=1))
    settings = {"max_seq_length": config.max_length, "do_lower_case": False}
    (path / "sentence_bert_config.json").write_text(json.dumps(settings, indent=1))
