"""Prompt files and what stands in their slots."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_repo.workspace import Workspace
from trainers.language import telling, wording
from trainers.language.facts import Facts, FactsConfig, History
from trainers.language.prompts import FOLDER, LEVELS, SLOTS, Level, PromptError, names, read_prompt
from trainers.language.wording import different, scenario_text, scenario_words, user_text, user_words

PLACES = [("p1", "bakery", "", "rye bread"), ("p2", "noodles", "", "ramen"), ("p3", "bar", "")]
SHOWN = [
    (0.0, "u1", "p1", True),
    (0.0, "u1", "p3", False),
    (1.0, "u1", "p2", True, "clear", 0.01, "search"),
    (2.0, "u2", "p1", False),
]


@pytest.fixture
def facts(street: Callable[..., Workspace]) -> Facts:
    with History(street(PLACES, SHOWN), FactsConfig()) as history:
        return history.as_of(datetime(2026, 3, 3, tzinfo=UTC))


def test_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(wording).failed == doctest.testmod(telling).failed == 0


def test_every_level_has_several_prompts_and_each_ends_in_a_question() -> None:
    assert names("scenario") == ["brief", "contrast", "facts", "tell"]
    assert names("user") == ["history", "interests", "sentences", "tell"]
    for level in LEVELS:
        for name in names(level):
            text = read_prompt(level, name).text
            assert text.endswith(
                "that" if name == "tell" and level == "scenario" else "likes" if name == "tell" else ' "'
            )
            assert ("In one word" in text) == (name != "tell")


def test_what_users_are_described_by(facts: Facts) -> None:
    user, newcomer = facts.users
    words = user_words(facts, user, "A town")
    assert words == {
        "platform": "A town",
        "scenarios": "Home and Search",
        "profile": "This is u1.",
        "history": "- Home: chose p1 (bakery, rye bread); passed over p3 (bar)\n- Search: chose p2 (noodles, ramen)",
        "liked": "p1 (bakery, rye bread), p2 (noodles, ramen)",
        "left": "p3 (bar)",
        "interests": "- Home: bakery\n- Search: noodles",
        "likes": "noodles and bakery",
        "specialties": "ramen and rye bread",
    }
    assert set(words) == set(SLOTS["user"])
    assert user_text(facts, user) == (
        "Chose 2 of 3 in 2 requests; most of all noodles, bakery, ramen and rye bread. Home: bakery; Search: noodles."
    )
    assert user_text(facts, newcomer) == "Chose 0 of 1 in 1 request."
    assert user_words(facts, newcomer, "A town")["interests"] == "- nothing yet"


def test_what_scenarios_are_described_by(facts: Facts) -> None:
    home, search = facts.scenarios
    words = scenario_words(facts, home, "A town")
    assert words == {
        "platform": "A town",
        "scenarios": "- Home: The first page. 2 requests, 33 of 100 shown are chosen, most of all bakery.\n"
        "- Search: What was asked for. 1 request, 100 of 100 shown are chosen, most of all noodles.",
        "name": "Home",
        "description": "The first page.",
        "statistics": "2 requests, 33 of 100 shown are chosen, most of all bakery.",
        "shared": "As elsewhere, people choose bakery.",
        "different": "People choose less often than elsewhere, more bakery and less noodles.",
    }
    assert set(words) == set(SLOTS["scenario"])
    assert different(search) == "People choose more often than elsewhere, more noodles and less bakery."
    assert scenario_text(home) == f"{words['statistics']} {words['different']}"


def test_a_scenario_that_nobody_saw_yet(facts: Facts) -> None:
    from trainers.language.facts import ScenarioFacts

    nothing = ScenarioFacts(id="s", name="Map", description="Pins.")
    assert scenario_text(nothing) == "Nobody was there yet."
    filled = read_prompt("scenario", "facts").fill(scenario_words(facts, nothing, "A town"))
    assert filled == (
        'A town has a part called "Map". Pins. Nobody was there yet. In one word, people come to this part for "'
    )


def test_braces_in_the_words_of_a_slot_are_no_slots(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{likes}, {profile}: \n\n")
    prompt = read_prompt("user", str(path))
    assert prompt.fill({"likes": "{profile} food", "profile": "Ann"}) == "{profile} food, Ann: "


def test_the_prompts_that_come_along_are_what_an_editor_starts_from(tmp_path: Path) -> None:
    original = FOLDER / "user" / "interests.txt"
    copy = tmp_path / "interests.txt"
    copy.write_text(original.read_text())
    assert read_prompt("user", str(copy)).digest == read_prompt("user", "interests").digest
    copy.write_text(original.read_text().replace("likes most", "wants most"))
    assert read_prompt("user", str(copy)).digest != read_prompt("user", "interests").digest


@pytest.mark.parametrize(
    ("level", "text", "told"),
    [
        (
            "user",
            'Likes {dishes}: "',
            r"mine\.txt: there is no slot \{dishes\}; a user prompt can have \{platform\}, .*\{likes\}",
        ),
        ("user", "Likes {}: ", r"mine\.txt: there is no slot \{\}"),
        ("scenario", "{liked} in {name}", r"no slot \{liked\}; a scenario prompt can have .*\{different\}"),
        ("user", "{platform}. {profile}", r"mine\.txt: slot \{history\} or \{liked\} or .* is missing, so every user"),
        ("scenario", "", r"slot \{name\} or \{description\} is missing, .*can have \{platform\}"),
    ],
)
def test_wrong_slots_are_named_with_those_that_exist(tmp_path: Path, level: Level, text: str, told: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(PromptError, match=told):
        read_prompt(level, str(path))


def test_a_prompt_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(PromptError, match="no user prompt 'haiku': neither a file nor one of history, interests"):
        read_prompt("user", "haiku")
