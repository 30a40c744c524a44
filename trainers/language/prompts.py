"""Prompts as files that a person can edit: a text with named slots, read from `prompts/<level>/<name>.txt`.

A slot is a name in braces, such as `{platform}`. A prompt ends where the model has to go on: its vector is the state of
the last token, so the last line asks for one word and opens the quotation that the word would stand in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["scenario", "user"]
LEVELS: tuple[Level, ...] = ("scenario", "user")
FOLDER = Path(__file__).with_name("prompts")
SLOT = re.compile(r"\{([^{}]*)\}")
# The slots of each level (`wording` fills them), and those of which a prompt needs one: without, all would be alike.
SLOTS: Mapping[Level, tuple[str, ...]] = {
    "scenario": ("platform", "scenarios", "name", "description", "statistics", "shared", "different"),
    "user": ("platform", "scenarios", "profile", "history", "liked", "left", "interests", "likes", "specialties"),
}
TELLING: Mapping[Level, tuple[str, ...]] = {
    "scenario": ("name", "description"),
    "user": ("history", "liked", "interests", "likes", "specialties"),
}


class PromptError(ValueError):
    """A prompt cannot be used. The message names the file, the slot and the slots that exist."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt file: where it is, and its text with slots."""

    level: Level
    path: Path
    text: str

    @property
    def digest(self) -> str:
        """Changes with the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, words: Mapping[str, str]) -> str:
        """The prompt with every slot replaced; several blanks in a row, where a slot had nothing to say, become one."""
        return re.sub(r" {2,}", " ", SLOT.sub(lambda found: words[found[1]], self.text))


def names(level: Level) -> list[str]:
    """The prompts that come with the project."""
    return sorted(path.stem for path in (FOLDER / level).glob("*.txt"))


def read_prompt(level: Level, name: str) -> Prompt:
    """A prompt of the project by name, or any file by its path.

    Raises PromptError for one that is not there, is empty, names a slot that does not exist, or none that tells one
    user (or scenario) from another.
    """
    path = FOLDER / level / f"{name}.txt" if name in names(level) else Path(name).expanduser()
    if not path.is_file():
        raise PromptError(f"no {level} prompt {name!r}: neither a file nor one of {', '.join(names(level))}")
    text = path.read_text().rstrip("\n")  # editors end files with a line break; the model must go on before it
    existing = "a {level} prompt can have {slots}".format(
        level=level, slots=", ".join(f"{{{slot}}}" for slot in SLOTS[level])
    )
    found = SLOT.findall(text)
    if unknown := [slot for slot in found if slot not in SLOTS[level]]:
        raise PromptError(f"{path}: there is no slot {{{unknown[0]}}}; {existing}")
    if not set(found) & set(TELLING[level]):
        needed = " or ".join(f"{{{slot}}}" for slot in TELLING[level])
        raise PromptError(f"{path}: slot {needed} is missing, so every {level} would get the same prompt; {existing}")
    return Prompt(level=level, path=path, text=text)
