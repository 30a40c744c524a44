"""Words for vectors: a prior that would hide everything, lists of words, and the model's head."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feature_repo.workspace import Workspace
from trainers.language import tastes
from trainers.language.encoder import EncoderConfig
from trainers.language.local import CausalModel
from trainers.language.tastes import knowledge_report
from trainers.language.texts import TextError
from trainers.language.verbaliser import Verbaliser, forget_usual_words, words_of

WORDS = ("pub", "cafe", "bakery", "kiosk")


def test_the_prior_is_taken_off() -> None:
    """Every prompt wants the pub most, by far; what tells them apart is planted beneath."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(16, 4)))[0].T.astype(np.float32)
    planted = np.array([1, 2, 3, 1, 2, 3])
    states = 9 * directions[0] + directions[planted] + 0.01 * rng.normal(size=(6, 16)).astype(np.float32)
    verbaliser = Verbaliser(WORDS, directions)
    assert (np.argmax(states @ directions.T, axis=1) == 0).all()
    scores = verbaliser.scores(states)
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-6)
    assert verbaliser.best_of(scores, WORDS) == [WORDS[word] for word in planted]
    assert verbaliser.best_of(scores, ("pub", "kiosk"))[2] == "kiosk"
    said = verbaliser.say(scores)
    assert [text.split(" ")[0] for text in said] == [WORDS[word] for word in planted]
    assert said[0].startswith("cafe 0.6") and len(said[0].split(", ")) == 4
    with pytest.raises(KeyError, match="ramen"):
        verbaliser.best_of(scores, ("ramen",))


def test_a_single_prompt_has_nothing_to_be_compared_with() -> None:
    verbaliser = Verbaliser(WORDS, np.eye(4, dtype=np.float32))
    assert verbaliser.say(verbaliser.scores(np.ones((1, 4), np.float32))) == [""]


def test_directions_are_the_rows_of_the_models_head(tiny: EncoderConfig) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    head = model.lm_head.weight.detach().numpy()
    found = CausalModel(tiny).directions(["soup", "warm bread"])
    for word, direction in zip(["soup", "warm bread"], found, strict=True):
        bare, after = (head[tokenizer(spelling)["input_ids"]].mean(0) for spelling in (word, f" {word}"))
        np.testing.assert_allclose(direction, (bare + after) / 2, atol=1e-6)


def test_the_usual_words_are_the_kinds_of_pois_and_may_be_edited(town: Workspace) -> None:
    assert words_of(town, None) == ("bakery", "noodles", "rye bread")
    path = town.knowledge / "words.txt"
    assert path.read_text().startswith("# Words that may describe")
    path.write_text("# mine\nsweet\n\n salty \nsweet\n")
    assert words_of(town, None) == ("sweet", "salty")
    other = town.root / "other.txt"
    other.write_text("a\nb\n")
    assert words_of(town, other) == ("a", "b")
    other.write_text("# nothing\na\n")
    with pytest.raises(TextError, match=r"other\.txt: at least two words expected, one a line, found \['a'\]"):
        words_of(town, other)
    with pytest.raises(TextError, match=r"none\.txt: no such file of words"):
        words_of(town, Path("none.txt"))


def test_the_usual_words_go_with_their_pois_and_edited_ones_stay(town: Workspace) -> None:
    words_of(town, None)
    path = town.knowledge / "words.txt"
    forget_usual_words(town)
    assert not path.exists()
    forget_usual_words(town)
    path.write_text("sweet\nsalty\n")
    forget_usual_words(town)
    assert words_of(town, None) == ("sweet", "salty")


def test_words_are_held_against_the_truth_and_against_chance() -> None:
    assert doctest.testmod(tastes).failed == 0
    said = {"a": "pub", "b": "pub", "c": "cafe", "d": "kiosk", "stranger": "pub"}
    truth = {"a": "pub", "b": "cafe", "c": "cafe", "d": "pub", "silent": "pub"}
    report = knowledge_report(said, truth, {"a": "pub", "b": "cafe", "c": "pub"})
    assert report is not None
    assert (report.users, report.kinds, report.said, report.clicked) == (4, 2, 0.5, 0.5)
    assert report.chance == (2 * 2 + 1 * 2) / 16
    assert knowledge_report({"a": "pub"}, {}, {}) is None
