"""Variants of the world: moments that mean nothing, other words that mean what these do, scenarios more or less alike.

`concepts=n` draws a world whose concept words, dishes and kinds of place come from a reserve that the default world
does not use, and whose moments want what other moments of the same kind want by default (rain may want what sun wants).
Its spread of tastes is the default's, its words are new.

`PlantedScenarios` moves all scenarios towards their mean, or away from it, in what people want there. What they are
called, who opens them when, what is shown in them and how much positions matter stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from feature_repo.datasets.city import world
from feature_repo.datasets.city.world import Dish, Rule, World

PERSONAL = frozenset(("age_band", "household", "diet"))  # tastes of people follow the meaning that their words have
SCENARIO = "scenario"  # the attribute of the rules that say what a scenario is about
# What `ScenarioRules` say of what people want: logits, and factors of terms.
ADDED = ("base", "order_base")
FACTORS = ("semantics", "distance", "price")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Which world.

    Args:
        semantics: False switches every scene x POI term off; personal taste weighs more instead, so that clicks stay
            about as predictable.
        concepts: None is the default world; a number draws another one from the reserve words.
    """

    semantics: bool = True
    concepts: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlantedScenarios(Variant):
    """The same with scenarios that are more, or less, like each other.

    Args:
        spread: how far a scenario lies from the mean of all, as a factor: 0, all want the same; 1, as they are. Factors
            move on a scale of logarithms, so they stay positive.
    Raises:
        ValueError: a negative spread.
    """

    spread: float

    def __post_init__(self) -> None:
        if self.spread < 0:
            raise ValueError(f"PlantedScenarios.spread must not be negative, got {self.spread}")


def tables(variant: Variant) -> World:
    """The word tables of a variant."""
    made = world.default() if variant.concepts is None else _drawn(world.default(), variant.concepts)
    if isinstance(variant, PlantedScenarios):
        made = _spread(made, variant.spread)
    if variant.semantics:
        return made
    return replace(made, semantics=0.0, taste=world.COEFFICIENTS.without_semantics_taste)


def _spread(made: World, by: float) -> World:
    """Every scenario's numbers and theme, `by` times as far from the mean over scenarios."""
    moved: dict[str, dict[str, Any]] = {name: {} for name in made.scenarios}
    for term in (*ADDED, *FACTORS):
        numbers = np.array([getattr(rules, term) for rules in made.scenarios.values()])
        scale = np.log(numbers) if term in FACTORS else numbers
        scale = scale.mean() + by * (scale - scale.mean())
        for name, number in zip(moved, np.exp(scale) if term in FACTORS else scale, strict=True):
            moved[name][term] = float(number)
    themes = np.stack([made.rule(SCENARIO, name) for name in made.scenarios])
    themes = themes.mean(axis=0) + by * (themes - themes.mean(axis=0))
    rules = [
        Rule(when={SCENARIO: frozenset([name])}, weights=dict(zip(made.concepts, theme.tolist(), strict=True)))
        for name, theme in zip(made.scenarios, themes, strict=True)
    ]
    others = [rule for rule in made.rules if rule.attributes != {SCENARIO}]
    scenarios = {name: replace(rules, **moved[name]) for name, rules in made.scenarios.items()}
    return replace(made, rules=(*others, *rules), scenarios=scenarios)


def _drawn(made: World, seed: int) -> World:
    rng = np.random.default_rng(seed)
    reserve = [row["word"] for row in world.rows("tables/reserve.csv") if row["used as"] == "concept"]
    nouns = [row["word"] for row in world.rows("tables/reserve.csv") if row["used as"] == "noun"]
    words = rng.permutation(reserve)[: len(made.concepts)]
    new = dict(zip(made.concepts, (str(w) for w in words), strict=True))
    return World(
        concepts=tuple(sorted(new.values())),
        dishes=_dishes(made, new, nouns),
        rules=tuple(_rename(rule, new) for rule in _exchange(made.rules, rng)),
        categories=_categories(made, new),
    )


def _dishes(made: World, new: Mapping[str, str], nouns: list[str]) -> tuple[Dish, ...]:
    """Each dish is called by its new concepts and a noun: `smoky minty bowl`. Equal names get another noun."""
    seen: Counter[str] = Counter()
    dishes = []
    for dish in made.dishes:
        concepts = tuple(new[c] for c in dish.concepts)
        called = " ".join(concepts)
        dishes.append(Dish(name=f"{called} {nouns[seen[called]]}", category=dish.category, concepts=concepts))
        seen[called] += 1
    return tuple(dishes)


def _categories(made: World, new: Mapping[str, str]) -> dict[str, str]:
    """A category is called by the concepts that its dishes have most: `smoky and minty kitchen`."""
    names: dict[str, str] = {}
    for category in made.categories:
        counts = Counter(c for dish in made.dishes if dish.category == category for c in dish.concepts)
        leading = [new[c] for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        size = next(n for n in range(2, len(leading) + 1) if _kitchen(leading[:n]) not in names.values())
        names[category] = _kitchen(leading[:size])
    return names


def _kitchen(words: list[str]) -> str:
    return f"{' and '.join(words)} kitchen"


def _exchange(rules: tuple[Rule, ...], rng: np.random.Generator) -> list[Rule]:
    """Rules on the same attributes swap what they want; what people's own words mean stays."""
    groups: dict[frozenset[str], list[int]] = {}
    for number, rule in enumerate(rules):
        groups.setdefault(rule.attributes, []).append(number)
    made = list(rules)
    for attributes, members in groups.items():
        if not attributes & PERSONAL:
            for number, other in zip(members, rng.permutation(members), strict=True):
                made[number] = replace(rules[number], weights=rules[other].weights)
    return made


def _rename(rule: Rule, new: Mapping[str, str]) -> Rule:
    return replace(rule, weights={new[concept]: weight for concept, weight in rule.weights.items()})
