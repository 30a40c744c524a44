"""How well embedders tell places apart that they were never tuned on: retrieval and neighbourhoods of held-out POIs.

Every embedder reads the same texts and is asked the same questions; a tuned one is refused unless exactly these POIs,
categories and scene values were kept from its pairs. Sides of a click are compared as a tuned embedder was trained to
compare them; all else is centred by group first, as the common part of texts of a sort would drown everything else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_repo.datasets.schema import Schema
from feature_repo.files import write_whole
from feature_repo.scenes import fingerprints
from feature_repo.workspace import Workspace
from trainers.language import pretrain
from trainers.language.answers import Number, above, number, purity, r_precision, recall
from trainers.language.clicks import NONE, POIS, SPACES, HeldOut, HoldOut, SpaceText
from trainers.language.contrast import run_folder
from trainers.language.encoder import SLOT, TEMPLATES, EncoderConfig, TextEncoder
from trainers.language.heads import Groups
from trainers.language.model import MINILM, SMOLLM2, ModelError, Provenance, sha256
from trainers.language.questions import ProbeConfig, Questions, ask
from trainers.plain import from_plain, to_plain

Progress = Callable[[str, int, int], None]  # what, done, total
BARE = dict.fromkeys(TEMPLATES, SLOT)
METHOD = 2  # changes with what the numbers mean: answers of another method are not taken up


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An embedder to be tested, and what the table calls it."""

    name: str
    encoder: EncoderConfig


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    numbers: Mapping[str, Number]


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """All embedders on the same questions, after what guessing and popularity give."""

    rows: tuple[Row, ...]
    held_out: HeldOut

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.numbers))

    def cells(self, row: Row) -> list[str]:
        return [str(row.numbers.get(name, "")) for name in self.columns]

    def markdown(self) -> str:
        lines = [["embedder", *self.columns], ["---", *["---:"] * len(self.columns)]]
        lines += [[row.name, *self.cells(row)] for row in self.rows]
        held = self.held_out
        about = (
            f"Held out: {len(held.pois)} POIs, {len(held.categories)} whole categories among them "
            f"({', '.join(held.categories)}), and {len(held.scene_values)} scene values. Means with 95 % intervals."
        )
        return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", about, ""])


def candidates(workspace: Workspace, model: str = SMOLLM2.name) -> tuple[Candidate, ...]:
    """The untuned language model in three ways, a sentence encoder, and what was tuned in this workspace."""
    untuned = {
        "raw, last token": EncoderConfig(model=model, templates=BARE, pooling="last"),
        "raw, mean": EncoderConfig(model=model, templates=BARE, pooling="mean"),
        "raw, one word": EncoderConfig(model=model),
        "all-MiniLM-L6-v2": EncoderConfig(model=MINILM.name),
    }
    runs = {
        "stage 1, one word": (pretrain.folder(workspace, tested=True), False),
        **{
            f"stage 2{pooling}{vectors}": (run_folder(workspace, tested=True, token=token), project)
            for token, pooling in ((False, ""), (True, ", special token"))
            for project, vectors in ((False, ""), (True, ", projected"))
        },
    }
    tuned = {
        name: EncoderConfig(model=str(run / "model"), project=project)
        for name, (run, project) in runs.items()
        if (run / "model").is_dir()
    }
    return tuple(Candidate(name=name, encoder=encoder) for name, encoder in {**untuned, **tuned}.items())


def hold_out_of(workspace: Workspace) -> HoldOut | None:
    """What the tuned models of a workspace that are there to be tested hold out; None where there is none."""
    runs = [run_folder(workspace, tested=True, token=token) for token in (False, True)]
    notes = (Provenance.read(run / "model") for run in (*runs, pretrain.folder(workspace, tested=True)))
    return next((_hold_out(note) for note in notes if note), None)


def probe(
    workspace: Workspace,
    tested: Sequence[Candidate],
    config: ProbeConfig,
    progress: Progress = lambda what, done, total: None,
) -> ProbeReport:
    """Ask every embedder; answers are kept, so that a run that was interrupted goes on with the next one.

    Writes `probe.json` and `probe.md` below `<workspace>/language/probe`. Raises ModelError for a tuned embedder that
    has seen what is asked, and PairError where nobody clicked a held-out POI.
    """
    for candidate in tested:
        _refuse_seen(candidate, config)
    questions = ask(workspace, config)
    folder = workspace.language / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    tables = [sha256(workspace.source(name)) for name in ("impressions", "users", "pois")]
    features = fingerprints(Schema.load(workspace.schema))
    rows = list(references(questions, config))
    for done, candidate in enumerate(tested):
        progress(f"ask {candidate.name}", done, len(tested))
        versions = [candidate.encoder.version(space) for space in SPACES]
        key = json.dumps([METHOD, versions, to_plain(config), tables, features], sort_keys=True)
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not path.is_file():
            row = Row(name=candidate.name, numbers=answer(candidate.encoder, questions, config))
            write_whole(path, json.dumps(to_plain(row)))
        rows.append(from_plain(Row, {**json.loads(path.read_text()), "name": candidate.name}))
    progress("ask", len(tested), len(tested))
    report = ProbeReport(rows=tuple(rows), held_out=questions.held_out)
    write_whole(folder / "probe.json", json.dumps({"config": to_plain(config), **to_plain(report)}, indent=1))
    write_whole(folder / "probe.md", report.markdown())
    return report


def answer(embedder: EncoderConfig, questions: Questions, config: ProbeConfig) -> dict[str, Number]:
    """The numbers of one embedder.

    moment @k: the user's side of a click finds the POI among all held-out ones. chosen over shown: it scores that POI
    above one that was shown beside it and left. half text @1: one half of a POI's text finds the other. category: its
    name finds its POIs (R-precision). purity @k: neighbours are of the same category.
    """
    read = _Reading(embedder, questions.groups)
    log = questions.log
    sides_QK, shown_QE = log.side_CK[questions.click_Q], log.exposed_CE[questions.click_Q]
    # All POIs are read, as the mean of their space is taken over them.
    pois = [number for number, text in enumerate(log.texts) if text.space == POIS]
    numbers = np.setdiff1d(np.concatenate([sides_QK.ravel(), np.array(pois)]), [NONE])
    vector_TD = read([log.texts[n] for n in numbers])
    side_QD = _unit((vector_TD[_at(numbers, sides_QK)] * (sides_QK != NONE)[:, :, None]).sum(1))
    poi_PD = _unit(vector_TD[_at(numbers, questions.poi_P)])
    shown_QED = _unit(vector_TD[_at(numbers, shown_QE)])
    users_Q = log.user_C[questions.click_Q]
    score_QP = side_QD @ poi_PD.T
    among_PD = _unit(vector_TD[_at(numbers, questions.poi_P)] - vector_TD[_at(numbers, np.array(pois))].mean(0))
    own_Q = np.take_along_axis(score_QP, questions.poi_Q[:, None], axis=1)[:, 0]
    there_QE = shown_QE != NONE
    over_Q = above(own_Q, np.einsum("qd,qed->qe", side_QD, shown_QED), there_QE)
    return {
        **_moments(score_QP, questions, config),
        **({"chosen over shown": number(over_Q, users_Q[there_QE.any(1)])} if len(over_Q) else {}),
        **_about_texts(read, among_PD, questions),
        **_purities(among_PD @ among_PD.T, questions, config),
    }


def references(questions: Questions, config: ProbeConfig) -> tuple[Row, Row]:
    """What guessing gives on the questions of retrieval, and what knowing how often each POI is clicked gives."""
    guesses = {f"moment @{k}": min(1.0, k / len(questions.poi_P)) for k in config.depths}
    chance = {name: Number(mean=mean, low=mean, high=mean, n=0) for name, mean in guesses.items()}
    chance["chosen over shown"] = Number(mean=0.5, low=0.5, high=0.5, n=0)
    clicks_P = np.bincount(questions.log.poi_C, minlength=len(questions.log.texts))[questions.poi_P]
    popular = _moments(np.broadcast_to(clicks_P, (len(questions.click_Q), len(clicks_P))), questions, config)
    return Row(name="chance", numbers=chance), Row(name="number of clicks (no text)", numbers=popular)


class _Reading:
    """An embedder's vectors in a form that can be compared."""

    def __init__(self, embedder: EncoderConfig, groups: Groups) -> None:
        self._encoder, self._groups = TextEncoder(embedder), groups
        read = embedder.embedder()
        self._tuned = read.heads if read.project else {}

    def __call__(self, texts: Sequence[SpaceText], *, centred: bool = False) -> np.ndarray:
        """As trained where it was trained, else (or if `centred`) less the mean of each group: float32 (n, width)."""
        parts: dict[int, np.ndarray] = {}
        for space in dict.fromkeys(text.space for text in texts):
            at = [n for n, text in enumerate(texts) if text.space == space]
            words = [texts[n].text for n in at]
            vectors = self._encoder.encode(words, space)
            if centred or space not in self._tuned:
                group = self._groups.of(space, words)
                for each in np.unique(group):
                    vectors[group == each] -= vectors[group == each].mean(0)
            parts |= dict(zip(at, vectors, strict=True))
        return np.stack([parts[n] for n in range(len(texts))])


def _moments(score_QP: np.ndarray, questions: Questions, config: ProbeConfig) -> dict[str, Number]:
    users_Q = questions.log.user_C[questions.click_Q]
    return {f"moment @{k}": number(recall(score_QP, questions.poi_Q, k), users_Q) for k in config.depths}


def _about_texts(read: _Reading, poi_PD: np.ndarray, questions: Questions) -> dict[str, Number]:
    found: dict[str, Number] = {}
    if questions.halves:
        sides = ([SpaceText(POIS, half[i]) for half in questions.halves] for i in (0, 1))
        first, second = (_unit(read(side, centred=True)) for side in sides)
        found["half text @1"] = number(recall(first @ second.T, np.arange(len(first)), 1))
    kinds = sorted(set(questions.category_P))
    named = _unit(read([SpaceText(POIS, f"A {kind}.") for kind in kinds], centred=True))
    return {**found, "category": number(r_precision(named @ poi_PD.T, np.array(kinds), questions.category_P))}


def _purities(score_PP: np.ndarray, questions: Questions, config: ProbeConfig) -> dict[str, Number]:
    share_P = purity(score_PP, questions.category_P, config.neighbours)
    unseen_P = np.isin(questions.category_P, list(questions.held_out.categories))
    parts = {"seen": share_P[~unseen_P], "unseen": share_P[unseen_P]}
    known = {name: shares[~np.isnan(shares)] for name, shares in parts.items()}
    return {
        f"purity @{config.neighbours}, {n} categories": number(shares) for n, shares in known.items() if len(shares)
    }


def _at(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of text numbers among the ones that were read; any for `NONE`."""
    return np.searchsorted(numbers, wanted).clip(max=len(numbers) - 1)


def _unit(vector_ND: np.ndarray) -> np.ndarray:
    return np.asarray(vector_ND / np.linalg.norm(vector_ND, axis=-1, keepdims=True).clip(min=1e-12))


def _refuse_seen(candidate: Candidate, config: ProbeConfig) -> None:
    note = candidate.encoder.provenance()
    while note is not None:
        if (hidden := _hold_out(note)) != config.hold_out:
            raise ModelError(
                f"{candidate.name} ({candidate.encoder.model}): stage {note.stage} was tuned with {hidden}, and is "
                f"asked about {config.hold_out}; tune one that holds the same out: `--test`, and the same `--seed`"
            )
        note = note.before  # what it was tuned from may have seen what it did not


def _hold_out(note: Provenance) -> HoldOut:
    of = note.config["pairs"]["clicks"] if note.stage == "contrast" else note.config["corpus"]
    return from_plain(HoldOut, of["hold_out"])
