"""Stage 1: a causal language model goes on learning from the documents of a workspace.

Two objectives in one run: the next token of whole documents (POIs in several wordings, users' histories, general text
so that the model does not forget), and the description and offers of a POI whose name and location are given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from feature_repo.workspace import Workspace
from trainers.language.adapters import LoraConfig, Tunable, add_tokens, fully, load, merge_and_save, with_lora
from trainers.language.corpus import Corpus, CorpusConfig, Document, Facts, place_document, read_corpus
from trainers.language.likelihood import Example, NextToken, Perplexity, completion, encode, perplexity
from trainers.language.mixture import Mixture, MixtureConfig
from trainers.language.model import Provenance, model_folder, model_identity, seen_until
from trainers.language.run_folder import Run
from trainers.language.tuning import Progress, TuneConfig, tune
from trainers.loop import TrainingError
from trainers.plain import from_plain, to_plain

TEST_TOKENS = 2048  # run through the model at once


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How stage 1 is run.

    Args:
        model: "smollm2" (embedded), a folder, or a Hugging Face id; `revision` is of the latter.
        corpus: which documents there are, and which are held out.
        mixture: what a step reads.
        lora: which adapters are trained, beside the rows of the special tokens; None trains all weights.
        tune: steps, learning rate, processes.
        test_documents: of each kind, at most, on which perplexity is measured.
        samples: held-out POIs whose description the model is made to write.
    """

    model: str = "smollm2"
    revision: str = "main"
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    tune: TuneConfig = field(
        default_factory=lambda: TuneConfig(
            steps=100, learning_rate=1e-3, warmup_steps=10, log_every=5, checkpoint_every=20
        )
    )
    test_documents: int = 40
    samples: int = 3

    def __post_init__(self) -> None:
        if self.test_documents < 1 or self.samples < 0:
            raise TrainingError(f"test_documents must be positive and samples not negative, got {self}")


@dataclass(frozen=True, kw_only=True)
class PretrainReport:
    """What a run did.

    Attributes:
        before, after: perplexity on each test set of `test_sets`; the sets that there was nothing for are left out.
        seconds: of training alone.
        read: documents read of each kind.
        trained_parameters: how many numbers were trained, of `parameters`.
    """

    before: Mapping[str, Perplexity]
    after: Mapping[str, Perplexity]
    steps: int
    seconds: float
    read: Mapping[str, int]
    trained_parameters: int
    parameters: int


def folder(workspace: Workspace, *, tested: bool = False) -> Path:
    """The run folder of stage 1, or of a run that is there to be tested by `probe`; the model is `model/` in it."""
    return workspace.language / ("pretrain-held-out" if tested else "pretrain")


def pretrain(
    workspace: Workspace, config: PretrainConfig, progress: Progress = lambda what, done, total: None
) -> PretrainReport:
    """Train a model on the history part of a workspace; the finished model is `folder(workspace, ...)` / "model".

    A run that holds whole categories out is one that is there to be tested. The same configuration on the same
    documents goes on where it was interrupted, and does nothing once it is finished.
    Under `torchrun` all processes call this.

    Raises:
        TrainingError, CorpusError, GeneralTextError, ModelError: see there.
    """
    corpus = read_corpus(workspace, config.corpus)
    base = model_identity(config.model, config.revision)
    tested = bool(config.corpus.hold_out.categories)
    run = Run(folder(workspace, tested=tested), {"config": config, "base": base, "corpus": _digest(corpus)})
    if run.finished:
        return from_plain(PretrainReport, run.result)
    tunable = _loaded(config.model, config.revision, config, run)
    rows = add_tokens(tunable, corpus.tokens)
    task = Mixture(corpus, tunable.tokenizer, config.mixture)
    sets = test_sets(corpus, tunable.tokenizer, config)
    before = run.once("before", lambda: _tested(tunable, sets, config, progress))
    module = _trainable(tunable, rows, config)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    tune(module, task, config.tune, run, progress)
    if run.processes.first:
        merge_and_save(module.model, tunable.tokenizer, run.model, _note(config, base, corpus), seed=config.tune.seed)
    # The finished folder is tested, as others will read it: what saving lost would show.
    after = run.once("after", lambda: _tested(_loaded(str(run.model), "main", config, run), sets, config, progress))
    if run.processes.first:
        _write_samples(run, corpus, before["samples"], after["samples"])
    return from_plain(
        PretrainReport,
        run.finish(
            PretrainReport(
                before=before["perplexity"],
                after=after["perplexity"],
                steps=config.tune.steps,
                seconds=run.losses()[-1]["seconds"] if run.processes.first else 0.0,
                read={kind: count * config.tune.steps for kind, count in config.mixture.composition().items()},
                trained_parameters=trained,
                parameters=sum(p.numel() for p in tunable.model.parameters()),
            )
        ),
    )


def test_sets(corpus: Corpus, tokenizer: Any, config: PretrainConfig) -> dict[str, list[Example]]:
    """What perplexity is measured on.

    held_out_pois, conditional: POIs that training never names, in its families and in the conditional form.
    held_out_family: POIs of training in words that it never uses.
    histories: of users that training never reads; general: passages that it never reads.
    """
    most, families = config.test_documents, corpus.families
    documents: dict[str, Sequence[Document]] = {
        "held_out_pois": [
            place_document(facts, families[i % len(families)]) for i, facts in enumerate(corpus.held_out_places[:most])
        ],
        "conditional": [corpus.conditional(facts) for facts in _predictable(corpus.held_out_places, corpus)[:most]],
        "held_out_family": [place_document(facts, corpus.config.held_out_family) for facts in corpus.places[:most]],
        "histories": corpus.held_out_histories[:most],
        "general": corpus.held_out_general[:most],
    }
    return {name: [encode(d, tokenizer, config.mixture.max_length) for d in some] for name, some in documents.items()}


def _trainable(tunable: Tunable, rows: Sequence[int], config: PretrainConfig) -> NextToken:
    """The same initial adapters whenever the run starts, so that one that is killed early starts where it did."""
    with torch.random.fork_rng():
        torch.manual_seed(config.tune.seed)
        return NextToken(with_lora(tunable, config.lora, rows) if config.lora else fully(tunable))


def _note(config: PretrainConfig, base: str, corpus: Corpus) -> Provenance:
    before = Provenance.read(model_folder(config.model, config.revision))
    return Provenance(
        stage="pretrain",
        base=base,
        available_at=seen_until(before, corpus.available_at),
        config=json.loads(json.dumps(to_plain(config), default=str)),
        before=before,
    )


def _loaded(model: str, revision: str, config: PretrainConfig, run: Run) -> Tunable:
    """A model that is to be sharded may be too large for one GPU: it is loaded and tested in main memory."""
    tunable = load(model, revision=revision, full=config.lora is None)
    if run.processes.size == 1 or config.tune.sharding != "fsdp":
        tunable.model.to(run.processes.device)
    return tunable


def _tested(
    tunable: Tunable, sets: Mapping[str, Sequence[Example]], config: PretrainConfig, progress: Progress
) -> dict[str, Any]:
    """Perplexity on every test set that has documents, and samples."""
    found = {}
    for done, (name, examples) in enumerate(sets.items()):
        progress(f"perplexity: {name.replace('_', ' ')}", done, len(sets))
        if examples:
            found[name] = perplexity(tunable.model, examples, TEST_TOKENS)
    progress("samples", len(sets), len(sets))
    written = [completion(tunable.model, tunable.tokenizer, e) for e in sets["conditional"][: config.samples]]
    return {"perplexity": found, "samples": written}


def _write_samples(run: Run, corpus: Corpus, before: Sequence[str], after: Sequence[str]) -> None:
    """What the model wrote of held-out POIs before and after, beside the truth. A file of this run's alone."""
    for facts, first, last in zip(_predictable(corpus.held_out_places, corpus), before, after, strict=False):
        document = corpus.conditional(facts)
        given = "".join(span.text for span in document if not span.target)
        truth = "".join(span.text for span in document if span.target).strip()
        run.sample(f"given   {given}\nbefore  {first}\nafter   {last}\ntruth   {truth}")


def _predictable(places: Sequence[Facts], corpus: Corpus) -> list[Facts]:
    """Those of which something is known that can be predicted."""
    return [facts for facts in places if set(facts) & set(corpus.config.predicted)]


def _digest(corpus: Corpus) -> str:
    """Changes with every word of every document."""
    return hashlib.sha256(repr(corpus).encode()).hexdigest()[:16]
