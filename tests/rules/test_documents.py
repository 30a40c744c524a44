"""What the documents type is what the command line takes: each option by the name that its help says first."""

from __future__ import annotations

import re
from typing import Any

import typer

from serving.cli import app
from tests.conftest import ROOT

ROOT_COMMAND: Any = typer.main.get_command(app)
OPERATIONS = ROOT / "docs" / "operations.md"


def names(command: Any) -> set[str]:
    return {option.opts[0] for option in command.params if not getattr(option, "hidden", False)}


def test_options_of_commands_are_named_as_in_their_help() -> None:
    seen, wrong = 0, []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for line in path.read_text().replace("\\\n", " ").splitlines():
            for words in (typed.split() for typed in re.findall(r"scenerank ([a-z][^`#|;>&]*)", line)):
                command = ROOT_COMMAND
                while words and words[0] in getattr(command, "commands", {}):
                    command = command.commands[words.pop(0)]
                options = [re.match(r"--[a-z-]+", word) for word in words if command is not ROOT_COMMAND]
                named = {option[0] for option in options if option}
                seen += len(named)
                wrong += [f"{path.name}: {line}" for name in named - names(command)]
    assert not wrong
    assert seen > 80


def test_the_table_of_serve_has_all_its_options() -> None:
    rows = re.findall(r"^\| ((?:`--[a-z-]+`(?:, )?)+) \|", OPERATIONS.read_text(), re.MULTILINE)
    assert set(re.findall(r"--[a-z-]+", "".join(rows))) == names(ROOT_COMMAND.commands["serve"])
