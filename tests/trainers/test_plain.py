from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from trainers import recipes
from trainers.plain import PlainDataError, from_plain, to_plain
from trainers.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    widths: tuple[int, ...] = ()
    inner: Inner | None = None
    names: Mapping[str, float] = field(default_factory=dict)
    at: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    anything: Any = None


@dataclass(frozen=True, kw_only=True)
class Square:
    side: float = 1.0
    kind: Literal["square"] = "square"


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float = 1.0
    kind: Literal["circle"] = "circle"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Square | Circle | None = None


EVERY = (recipes.ple, recipes.ple_scene_ids, recipes.larr, recipes.llm4msr, recipes.larr_llm4msr)


@pytest.mark.parametrize("recipe", EVERY)
@pytest.mark.parametrize("size", ["tiny", "default", "reference"])
def test_every_recipe_survives_json(recipe: Any, size: recipes.Size) -> None:
    assert from_plain(Recipe, json.loads(json.dumps(to_plain(recipe(size))))) == recipe(size)


def test_values_of_every_kind_survive() -> None:
    value = Outer(count=1, widths=(2, 3), inner=Inner(rate=0.25, kind="b"), names={"x": 1.5}, anything={"y": [None]})
    assert from_plain(Outer, json.loads(json.dumps(to_plain(value)))) == value


def test_defaults_may_be_absent_and_integers_are_floats() -> None:
    assert from_plain(Outer, {"count": 1, "inner": {"rate": 1}}) == Outer(count=1, inner=Inner(rate=1.0))


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"count": 1, "colour": 2}, r"Outer: unknown entries \['colour'\]"),
        ({}, r"missing entries \['count'\]"),
        ({"count": "1"}, "count: expected int, got '1'"),
        ({"count": True}, "count: expected int, got True"),
        ({"count": 1.0}, "count: expected int"),
        ({"count": 1, "widths": [1, "2"]}, r"widths\[1\]: expected int"),
        ({"count": 1, "widths": 3}, "widths: expected a list"),
        ({"count": 1, "inner": {"kind": "c"}}, r"inner.kind: expected one of \('a', 'b'\), got 'c'"),
        ({"count": 1, "inner": {"size": 1}}, r"inner: unknown entries \['size'\]"),
        ({"count": 1, "names": {"x": "y"}}, "names.x: expected float"),
        ([1], "expected an object"),
    ],
)
def test_what_does_not_fit_is_refused_by_place(plain: object, message: str) -> None:
    with pytest.raises(PlainDataError, match=message):
        from_plain(Outer, plain)


def test_the_kind_says_which_member_of_a_union_is_meant() -> None:
    assert from_plain(Drawing, {"shape": {"kind": "square", "side": 2}}) == Drawing(shape=Square(side=2.0))
    assert from_plain(Drawing, {"shape": {"radius": 3}}) == Drawing(shape=Circle(radius=3.0))
    with pytest.raises(PlainDataError, match=r"shape: unknown entries \['radius'\]"):
        from_plain(Drawing, {"shape": {"kind": "square", "radius": 2}})
    with pytest.raises(PlainDataError, match=r"shape.kind: expected one of \['square', 'circle'\], got 'line'"):
        from_plain(Drawing, {"shape": {"kind": "line"}})
