"""Facts in words: what the slots of prompts say, and the short plain text that a person is shown beside a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from feature_repo.datasets.schema import Schema
from trainers.language.facts import Facts, Place, ScenarioFacts, UserFacts

# What the data sets at hand come from; a person can say it better (`--platform`).
PLATFORMS: Mapping[str, str] = {
    "city": "A city guide for places to eat and drink",
    "foursquare": "An app in which people check in where they eat and drink",
    "kuairand": "An app of short videos",
    "movielens-1m": "A website that recommends films",
}
ANY_PLATFORM = "An app that recommends things to people"
NOTHING = "nothing yet"


def platform_of(schema: Schema) -> str:
    return PLATFORMS.get(schema.dataset, ANY_PLATFORM)


def scenario_words(facts: Facts, scenario: ScenarioFacts, platform: str) -> dict[str, str]:
    """What every slot of a scenario prompt says."""
    return {
        "platform": platform,
        "scenarios": "\n".join(f"- {s.name}: {s.description} {statistics(s)}" for s in facts.scenarios),
        "name": scenario.name,
        "description": scenario.description,
        "statistics": statistics(scenario),
        "shared": f"As elsewhere, people choose {listed(scenario.shared)}." if scenario.shared else "",
        "different": different(scenario),
    }


def user_words(facts: Facts, user: UserFacts, platform: str) -> dict[str, str]:
    """What every slot of a user prompt says. Scenarios in which nothing is known of the user are not mentioned."""
    named = {scenario.id: scenario.name for scenario in facts.scenarios}
    return {
        "platform": platform,
        "scenarios": listed([*named.values()]),
        "profile": user.profile,
        "history": "\n".join(_history(user, named)) or f"- {NOTHING}",
        "liked": _places([place for scenario in named for place in user.liked.get(scenario, ())]),
        "left": _places([place for scenario in named for place in user.left.get(scenario, ())]),
        "interests": "\n".join(_interests(user, named)) or f"- {NOTHING}",
        "likes": listed(user.likes),
        "specialties": listed(user.specialties),
    }


def scenario_text(scenario: ScenarioFacts) -> str:
    """What a person is shown of a scenario."""
    return " ".join(part for part in (statistics(scenario), different(scenario)) if part)


def user_text(facts: Facts, user: UserFacts) -> str:
    """What a person is shown of a user."""
    named = {scenario.id: scenario.name for scenario in facts.scenarios}
    seen = f"Chose {user.clicked} of {user.shown} in {_counted(user.requests, 'request')}"
    if not user.clicked:
        return f"{seen}."
    kinds = "; ".join(f"{name}: {listed(user.kinds[s])}" for s, name in named.items() if s in user.kinds)
    most = listed([*user.likes, *user.specialties])
    return f"{seen}; most of all {most}. {kinds}."


def statistics(scenario: ScenarioFacts) -> str:
    """
    >>> statistics(ScenarioFacts(id="s", name="search", description="", requests=1204, shown=100, clicked=14))
    '1,204 requests, 14 of 100 shown are chosen.'
    """
    if not scenario.shown:
        return "Nobody was there yet."
    rate = round(100 * scenario.clicked / scenario.shown)
    most = f", most of all {listed(scenario.kinds)}" if scenario.kinds else ""
    return f"{_counted(scenario.requests, 'request')}, {rate} of 100 shown are chosen{most}."


def different(scenario: ScenarioFacts) -> str:
    """What is chosen more there than elsewhere, and less."""
    if not scenario.more:
        return ""
    ratio = scenario.clicked / scenario.shown / scenario.elsewhere
    habit = "more often than" if ratio > 1.05 else "less often than" if ratio < 0.95 else "as often as"
    less = f" and less {listed(scenario.less)}" if scenario.less else ""
    return f"People choose {habit} elsewhere, more {listed(scenario.more)}{less}."


def listed(words: Sequence[str]) -> str:
    """
    >>> listed(["pub", "cafe", "kiosk"]), listed([])
    ('pub, cafe and kiosk', 'nothing yet')
    """
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part) or NOTHING


def _history(user: UserFacts, named: Mapping[str, str]) -> list[str]:
    lines = []
    for scenario, name in named.items():
        chosen, left = user.liked.get(scenario, ()), user.left.get(scenario, ())
        said = [f"chose {_places(chosen)}"] if chosen else []
        said += [f"passed over {_places(left)}"] if left else []
        lines += [f"- {name}: {'; '.join(said)}"] if said else []
    return lines


def _interests(user: UserFacts, named: Mapping[str, str]) -> list[str]:
    return [f"- {name}: {listed(user.kinds[scenario])}" for scenario, name in named.items() if scenario in user.kinds]


def _places(places: Sequence[Place]) -> str:
    return ", ".join(f"{p.name} ({p.category}{f', {p.specialty}' if p.specialty else ''})" for p in places) or NOTHING


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
