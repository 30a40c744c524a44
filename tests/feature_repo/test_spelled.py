"""A function's text changes with all that it computes by, and with nothing else, and is the same in every process."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_repo import scenes, spelled

FILES = {
    "__init__.py": "",
    "moods.py": """
import math as numbers
from tried_moods import tables
from tried_moods.bands import band as banded
from .units import SCALE
from .guarded import rough
from .starry import starred
LOWEST = HIGHEST = 3
def mood(x):
    return banded(min(x, LOWEST), tables.BORDERS)
def filled(x):
    return tables.FILLED[x], near(x)
def near(x):
    return SCALE - x
def shade(tables):
    return tables.BORDERS
other = lambda x: shade(x)
""",
    "bands.py": """
from functools import cache
import tried_moods.units
def spread(x): return x
@cache
def band(x, borders):
    return next((word for end, word in borders if scaled(x) < end), "high")
def scaled(x):
    return x * tried_moods.units.SCALE
""",
    "tables.py": """
STEP = 2
BORDERS = tuple((at, str(at)) for at in range(0, 9, STEP))
OTHERS = {1: "one"}
FILLED = {}
FILLED[0] = "none"
for at in (1, 2):
    FILLED[at] = "few"
FILLED.update({3: "more"})
""",
    "units.py": "SCALE: int = 10\n",
    "guarded.py": """
try:
    from .units import SCALE as GRAIN
except ImportError:
    GRAIN = 1
if GRAIN:
    def coarse(x):
        return x // GRAIN
def rough(x):
    return coarse(x)
""",
    "starry.py": """
from .units import *
def starred(x):
    return max(x, SCALE)
""",
}
Told = Callable[..., str]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """What is told of a function of a package in which some words of a file are others."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "tried_moods"
    folder.mkdir()

    def text(function: str, file: str = "moods.py", before: str = "", after: str = "") -> str:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tried_moods"]:
            monkeypatch.delitem(sys.modules, name)
        spelled._read.cache_clear()
        assert before in FILES[file]
        for name, source in FILES.items():
            (folder / name).write_text(source.replace(before, after) if name == file else source)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return spelled.spelled(getattr(importlib.import_module("tried_moods.moods"), function))

    return text


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("moods.py", "min(x", "max(x"),
        ("moods.py", "LOWEST = HIGHEST = 3", "LOWEST = HIGHEST = 4"),
        ("bands.py", '"high"', '"higher"'),
        ("bands.py", "@cache\n", ""),
        ("bands.py", "x * tried", "x + tried"),
        ("tables.py", "range(0, 9", "range(1, 9"),
        ("tables.py", "STEP = 2", "STEP = 3"),
        ("units.py", "= 10", "= 20"),
    ],
)
def test_what_a_value_is_computed_by_changes_the_text(told: Told, file: str, before: str, after: str) -> None:
    assert told("mood") != told("mood", file, before, after)


@pytest.mark.parametrize(
    ("function", "file", "before", "after"),
    [
        ("mood", "tables.py", '"one"', '"two"'),
        ("mood", "bands.py", "def spread(x): return x", "def spread(x): return -x"),
        ("mood", "moods.py", "lambda x: shade(x)", "lambda x: None"),
        ("shade", "tables.py", "STEP = 2", "STEP = 3"),  # its `tables` is an argument
    ],
)
def test_nothing_else_does(told: Told, function: str, file: str, before: str, after: str) -> None:
    assert told(function) == told(function, file, before, after)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("tables.py", '"none"', '"no"'),
        ("tables.py", '"few"', '"a few"'),
        ("tables.py", '"more"', '"many"'),
        ("units.py", "= 10", "= 20"),  # by an import that is relative
    ],
)
def test_a_table_that_is_filled_later_is_read_whole(told: Told, file: str, before: str, after: str) -> None:
    assert told("filled") != told("filled", file, before, after)


@pytest.mark.parametrize(
    ("file", "before", "after"), [("guarded.py", "x // GRAIN", "x % GRAIN"), ("units.py", "= 10", "= 20")]
)
def test_helpers_and_imports_within_if_and_try_are_followed(told: Told, file: str, before: str, after: str) -> None:
    assert told("rough") != told("rough", file, before, after)


def test_what_a_star_may_bring_is_refused(told: Told) -> None:
    with pytest.raises(ValueError, match=r"tried_moods\.starry: `import \*` hides where 'SCALE' comes from"):
        told("starred")
    assert told("starred", "starry.py", "import *", "import SCALE")


def test_a_lambda_rests_on_what_it_names(told: Told) -> None:
    assert told("other") != told("other", "moods.py", "return tables.BORDERS", "return tables.OTHERS")


def test_what_has_no_helper_is_its_own_source_and_the_part_of_the_day_is_more() -> None:
    assert spelled.spelled(scenes.hour) == inspect.getsource(scenes.hour)
    assert inspect.getsource(scenes.daypart_of_hour).strip() in spelled.spelled(scenes.daypart)


def test_a_closure_is_refused() -> None:
    def later(than: int) -> Callable[[int], str | None]:
        return lambda hour: "late" if hour > than else None

    feature = scenes.SceneFeature(name="late", inputs=("hour",), value=later(22), sentence="It is {value}.")
    with pytest.raises(ValueError, match="must be a function of a module"):
        feature.fingerprint()


def test_every_process_finds_the_same() -> None:
    program = "from feature_repo.scenes import FEATURES; print([f.fingerprint() for f in FEATURES])"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{[f.fingerprint() for f in scenes.FEATURES]}\n"}
