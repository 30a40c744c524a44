"""Keys that were asked for: each once, on disk when told to, and never more than are allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from feature_repo.workspace import Workspace
from trainers import wanted
from trainers.wanted import WantedList

SPACE = "scene_text"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_a_key_is_written_once_with_its_first_moment(workspace: Workspace) -> None:
    first = WantedList(workspace, [SPACE])
    first.add(SPACE, ["weather=hail", "weather=hail", 'weather=a "b"\n'], 7)
    first.add(SPACE, ["weather=hail"], 9)
    assert wanted.read(workspace, SPACE) == {}
    first.write()
    first.write()
    # One that started before the first one wrote; and one that starts now and knows what is there.
    second = WantedList(Workspace(workspace.root / "none"), [SPACE])
    second._workspace = workspace
    second.add(SPACE, ["weather=hail"], 3)
    second.write()
    third = WantedList(workspace, [SPACE])
    third.add(SPACE, ["weather=hail"], 1)
    third.write()
    assert wanted.read(workspace, SPACE) == {"weather=hail": 3, 'weather=a "b"\n': 7}
    assert len(wanted.path_of(workspace, SPACE).read_text().strip().splitlines()) == 3


def test_a_key_may_hold_what_ends_lines_in_other_alphabets(workspace: Workspace) -> None:
    keys = ["weather=a\u2028b", "weather=c\x85d", "weather=räntä"]
    list_ = WantedList(workspace, [SPACE])
    list_.add(SPACE, keys, 1)
    list_.write()
    assert wanted.read(workspace, SPACE) == dict.fromkeys(keys, 1)


def test_callers_cannot_fill_it_without_end(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted, "MOST", 2)
    list_ = WantedList(workspace, [SPACE])
    list_.add(SPACE, ["x" * (wanted.LONGEST + 1), "a", "b", "c"], 1)
    list_.write()
    assert set(wanted.read(workspace, SPACE)) == {"a", "b"}
    list_.arrived(SPACE, pa.array(["a", "z"]))  # what has a vector makes room
    list_.add(SPACE, ["c", "d"], 2)
    list_.write()
    assert set(wanted.read(workspace, SPACE)) == {"a", "b", "c"}


def test_what_could_not_be_written_is_written_the_next_time(workspace: Workspace) -> None:
    list_ = WantedList(workspace, [SPACE])
    list_.add(SPACE, ["a"], 1)
    workspace.knowledge.mkdir()
    wanted.folder(workspace).write_text("in the way")
    with pytest.raises(OSError, match="wanted"):
        list_.write()
    os.remove(wanted.folder(workspace))
    list_.add(SPACE, ["b"], 2)
    list_.write()
    assert wanted.read(workspace, SPACE) == {"a": 1, "b": 2}


def test_a_line_that_a_crash_cut_off_is_left_out(workspace: Workspace) -> None:
    list_ = WantedList(workspace, [SPACE])
    list_.add(SPACE, ["a", "b"], 1)
    list_.write()
    path = wanted.path_of(workspace, SPACE)
    path.write_text(path.read_text()[:-5])
    assert wanted.read(workspace, SPACE) == {"a": 1}
