"""The probe on a street: its questions by hand, and embedders whose answers are known."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo.workspace import Workspace
from trainers.language.adapters import LoraConfig
from trainers.language.clicks import ClickConfig, HoldOut, PairError
from trainers.language.contrast import ContrastConfig, contrast
from trainers.language.draws import DrawConfig
from trainers.language.encoder import TEMPLATES, EncoderConfig
from trainers.language.heads import HeadConfig
from trainers.language.model import ModelError, Provenance
from trainers.language.pairs import PairConfig
from trainers.language.probe import BARE, Candidate, candidates, hold_out_of, probe, references
from trainers.language.questions import ProbeConfig, ask, halves
from trainers.language.tuning import TuneConfig
from trainers.plain import to_plain

OFFERS = {"rain": ("soup", "ramen", "stew", "broth"), "clear": ("cake", "ice cream", "lemonade", "sorbet")}
PLACES = [
    (f"{offer} {n}", weather, f"Number {n} is a shop. It sells {offer}.", offer)
    for weather, offers in OFFERS.items()
    for offer in offers
    for n in (1, 2, 3)
]
HELD = HoldOut(pois=0.4, seed=3)
Street = Callable[..., Workspace]


def log() -> list[tuple[Any, ...]]:
    """One of four users is shown a place for rain and one for clear days, and clicks the one that suits the weather."""
    rng = np.random.default_rng(0)
    shown: list[tuple[Any, ...]] = []
    for step in range(90):
        user, weather = f"u{rng.integers(4)}", ("rain", "clear")[rng.integers(2)]
        for suits, first in (("rain", 0), ("clear", 12)):
            shown.append((step / 4, user, PLACES[first + int(rng.integers(12))][0], suits == weather, weather))
    return shown


def tuned(workspace: Workspace, model: Path, hold_out: HoldOut = HELD) -> EncoderConfig:
    """The tiny model after some steps, read by the mean over bare texts."""
    config = ContrastConfig(
        model=str(model),
        templates=BARE,
        pooling="mean",
        pairs=PairConfig(clicks=ClickConfig(bucket=("weather",), hold_out=hold_out)),
        draws=DrawConfig(
            pairs={"user_poi": 16, "poi_poi": 16},
            weights={"user_poi": 1.0, "poi_poi": 1.0},
            exposed=1,
            temperature=0.2,
        ),
        heads=HeadConfig(width=32),
        lora=LoraConfig(rank=4, first_layer=1),
        tune=TuneConfig(steps=60, learning_rate=1e-3, learning_rates={"heads": 10.0}, warmup_steps=3),
    )
    return EncoderConfig(model=contrast(workspace, config).model, project=True)


def test_what_is_asked(street: Street) -> None:
    workspace = street(PLACES, log())
    asked = ask(workspace, ProbeConfig(hold_out=HELD))
    assert len(asked.held_out.pois) == len(asked.poi_P) == round(0.4 * 24)
    texts = {place[2]: place for place in PLACES}
    for number, category in zip(asked.poi_P, asked.category_P, strict=True):
        place = texts[asked.log.texts[number].text]
        assert place[0] in asked.held_out.pois and place[1] == category
    clicks = [row for row in log() if row[3] and row[2] in asked.held_out.pois]
    assert [texts[asked.log.texts[asked.poi_P[p]].text][0] for p in asked.poi_Q] == [row[2] for row in clicks]
    assert len(ask(workspace, ProbeConfig(hold_out=HELD, moments=5)).click_Q) == 5
    assert asked.halves[0][0].startswith("Number") and asked.halves[0][1].startswith("It sells")
    with pytest.raises(PairError, match="0 POIs are held out"):
        ask(workspace, ProbeConfig(hold_out=HoldOut()))


def test_halves_of_sentences() -> None:
    assert halves("One. Two! Three?") == ("One.", "Two! Three?")
    assert halves("The 3.5 star place") is None


def test_a_chain_that_was_seen_is_not_asked_about(street: Street) -> None:
    """Two POIs with one text, of which one is held out."""
    places = [
        ("p1", "cafe", "A cafe of the chain."),
        ("p2", "cafe", "A cafe of the chain."),
        ("p3", "pub"),
        ("p4", "pub"),
    ]
    shown = [(n / 2, "u1", f"p{n % 4 + 1}") for n in range(12)]
    workspace = street(places, shown)
    for seed in range(6):
        held = HoldOut(pois=0.5, seed=seed)
        try:
            asked = ask(workspace, ProbeConfig(hold_out=held))
        except PairError:
            continue
        hidden = sum(poi in asked.held_out.pois for poi in ("p1", "p2"))
        assert any("chain" in asked.log.texts[n].text for n in asked.poi_P) == (hidden == 2)


def test_a_tuned_embedder_beats_chance_where_an_untuned_one_does_not(street: Street, tiny_model: Path) -> None:
    workspace = street(PLACES, log())
    config = ProbeConfig(hold_out=HELD, depths=(1, 5), neighbours=3)
    raw = EncoderConfig(model=str(tiny_model), templates=BARE, pooling="mean")
    tested = [Candidate(name="raw", encoder=raw), Candidate(name="tuned", encoder=tuned(workspace, tiny_model))]
    report = probe(workspace, tested, config)
    rows = {row.name: row.numbers for row in report.rows}
    assert list(rows) == ["chance", "number of clicks (no text)", "raw", "tuned"]
    assert rows["chance"]["moment @5"].mean == pytest.approx(5 / 10)
    assert rows["tuned"]["chosen over shown"].low > 0.8
    assert rows["raw"]["chosen over shown"].low < 0.5
    assert rows["tuned"]["moment @5"].low > 0.55  # guessing: 0.5
    raw_purity, purity = (rows[name]["purity @3, seen categories"].mean for name in ("raw", "tuned"))
    assert purity > raw_purity + 0.2
    assert "purity @3, unseen categories" not in rows["tuned"]  # no category is held out
    written = json.loads((workspace.language / "probe" / "probe.json").read_text())
    assert written["rows"][3]["numbers"]["chosen over shown"]["mean"] == rows["tuned"]["chosen over shown"].mean
    assert "| tuned | " in (workspace.language / "probe" / "probe.md").read_text()


def test_answers_are_kept_while_nothing_changes(street: Street, tiny_model: Path) -> None:
    workspace = street(PLACES, log())
    config = ProbeConfig(hold_out=HELD)
    one = Candidate(name="one", encoder=EncoderConfig(model=str(tiny_model)))
    first = probe(workspace, [one], config)
    (kept,) = [p for p in (workspace.language / "probe").glob("*.json") if p.name != "probe.json"]
    changed = json.loads(kept.read_text())
    changed["numbers"]["category"]["mean"] = 0.125
    kept.write_text(json.dumps(changed))
    again = probe(workspace, [dataclasses.replace(one, name="another name")], config)
    assert (again.rows[-1].name, again.rows[-1].numbers["category"].mean) == ("another name", 0.125)
    other = probe(workspace, [one], dataclasses.replace(config, neighbours=2))
    assert other.rows[-1].numbers["category"] == first.rows[-1].numbers["category"]


def test_an_embedder_that_has_seen_the_answers_is_refused(street: Street, tiny_model: Path) -> None:
    workspace = street(PLACES, log())
    model = tuned(workspace, tiny_model)
    assert hold_out_of(workspace) == HELD
    other = ProbeConfig(hold_out=dataclasses.replace(HELD, seed=9))
    with pytest.raises(ModelError, match="tune one that holds the same out"):
        probe(workspace, [Candidate(name="stage 2", encoder=model)], other)


@pytest.mark.parametrize("asked", ["stage 1", "stage 2 upon it"])
def test_what_stage_1_has_read_counts_too(street: Street, tiny_model: Path, tmp_path: Path, asked: str) -> None:
    workspace = street(PLACES, log())
    read, cut = dataclasses.replace(HELD, seed=9), datetime(2026, 3, 3, tzinfo=UTC)
    corpus, pairs = {"corpus": {"hold_out": to_plain(read)}}, {"pairs": {"clicks": {"hold_out": to_plain(HELD)}}}
    first = Provenance(stage="pretrain", base="b", available_at=cut, config=corpus)
    second = Provenance(stage="contrast", base="c", available_at=cut, config=pairs, before=first)  # its folder is gone
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (first if asked == "stage 1" else second).write(model)
    with pytest.raises(ModelError, match=r"stage pretrain was tuned with .*seed=9"):
        probe(workspace, [Candidate(name=asked, encoder=EncoderConfig(model=str(model)))], ProbeConfig(hold_out=HELD))


def test_candidates_are_what_was_tuned_here(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    untuned = ["raw, last token", "raw, mean", "raw, one word", "all-MiniLM-L6-v2"]
    assert [c.name for c in candidates(workspace)] == untuned
    assert hold_out_of(workspace) is None
    alone = Workspace(tmp_path / "alone")
    held_out: dict[str, Any] = {"corpus": {"hold_out": {"pois": 0.2}}}
    (alone.language / "pretrain-held-out" / "model").mkdir(parents=True)
    note = Provenance(stage="pretrain", base="b", available_at=datetime(2026, 3, 3, tzinfo=UTC), config=held_out)
    note.write(alone.language / "pretrain-held-out" / "model")
    assert hold_out_of(alone) == HoldOut(pois=0.2)
    for run in ("pretrain", "pretrain-held-out", "contrast-held-out-token"):
        stage = run.split("-")[0]
        model = tmp_path / "language" / run / "model"
        model.mkdir(parents=True)
        held = {"pairs": {"clicks": {"hold_out": {"pois": 0.3}}}}
        cut = datetime(2026, 3, 3, tzinfo=UTC)
        Provenance(stage=stage, base="b", available_at=cut, config=held).write(model)  # type: ignore[arg-type]
    tuned = ["stage 1, one word", "stage 2, special token", "stage 2, special token, projected"]
    assert [c.name for c in candidates(workspace)] == [*untuned, *tuned]
    assert [c.encoder.project for c in candidates(workspace)][-2:] == [False, True]
    assert hold_out_of(workspace) == HoldOut(pois=0.3)


def test_popularity_knows_how_often_each_place_is_clicked(street: Street) -> None:
    """p1 is clicked twice, p2 once: all look for p1 first."""
    places = [("p1", "pub"), ("p2", "pub"), ("p3", "pub")]
    workspace = street(places, [(0, "u1", "p1"), (1, "u2", "p1"), (2, "u3", "p2")])
    asked = ask(workspace, ProbeConfig(hold_out=HoldOut(pois=0.99)))
    chance, popular = references(asked, ProbeConfig(depths=(1,)))
    assert chance.numbers["moment @1"].mean == pytest.approx(1 / 3)
    assert popular.numbers["moment @1"].mean == pytest.approx(2 / 3)
    assert set(TEMPLATES) == set(BARE)
