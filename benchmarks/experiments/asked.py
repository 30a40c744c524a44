"""What a language model is asked of a world's users and scenarios: as production asks, and two controls.

`PoiClicks` asks nothing of users: the POIs that they clicked last stand in a prompt's place. `Leaky` asks what nobody
can know: its users' prompts hold the whole log, the test part too. It is here to show what that would fake, and works
by dating what was learned at the end of the log back to every snapshot, which nothing outside experiments can do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from trainers.knowledge import POI_SPACE, load_matrix
from trainers.language.facts import FactsConfig, History
from trainers.language.prompts import Level, read_prompt
from trainers.language.snapshots import Question, Wording, read_questions
from trainers.language.wording import platform_of


@dataclass(frozen=True, kw_only=True)
class PromptChoice:
    """Prompts of `scenerank knowledge`, by name, of each level.

    Args:
        facts: what they are made of, and how often; None: as usual.
    """

    scenario: str = "contrast"
    user: str = "interests"
    facts: FactsConfig | None = None

    @property
    def digests(self) -> dict[Level, str]:
        """Of the prompts' texts, which a person may edit."""
        return {
            "scenario": read_prompt("scenario", self.scenario).digest,
            "user": read_prompt("user", self.user).digest,
        }

    def questions(self, workspace: Workspace) -> dict[Level, list[Question]]:
        """All snapshots of each level, oldest first. Reads the workspace's source tables."""
        return self.read(workspace, self.wording(workspace))

    def read(self, workspace: Workspace, wording: Wording) -> dict[Level, list[Question]]:
        facts = self.facts or FactsConfig()
        return read_questions(workspace, facts, wording, 0, lambda what, done, total: None)

    def wording(self, workspace: Workspace) -> Wording:
        return Wording(
            prompts={"scenario": read_prompt("scenario", self.scenario), "user": read_prompt("user", self.user)},
            tell={},
            platform=platform_of(Schema.load(workspace.schema)),
        )


@dataclass(frozen=True, kw_only=True)
class PoiClicks(PromptChoice):
    """In place of a user's prompt: the texts of the POIs clicked last, one a click, as a list in JSON.

    Reads the knowledge file of POIs' texts as well. Snapshots at which a user has clicked nothing are left out.
    """

    kind: Literal["poi clicks"] = "poi clicks"

    def questions(self, workspace: Workspace) -> dict[Level, list[Question]]:
        pois = workspace.knowledge / f"{POI_SPACE}.parquet"
        row, text = (columns.knowledge(POI_SPACE, name) for name in (columns.ROW, columns.TEXT))
        table = pq.read_table(pois, columns=[row, text])
        text_of = dict(zip(map(str, table[row].to_pylist()), table[text].to_pylist(), strict=True))
        plain = self.wording(workspace)
        clicked = self.read(workspace, Wording(prompts={}, tell={}, platform=plain.platform, pois=load_matrix(pois)))
        users = [q._replace(prompt=json.dumps([text_of[row] for row in q.prompt.split()])) for q in clicked["user"]]
        return {"scenario": self.read(workspace, plain)["scenario"], "user": users}


@dataclass(frozen=True, kw_only=True)
class Leaky(PromptChoice):
    """Every snapshot says of every user what the whole log says, of those who come later too: a leak."""

    kind: Literal["leaky"] = "leaky"

    def questions(self, workspace: Workspace) -> dict[Level, list[Question]]:
        wording = self.wording(workspace)
        clean = self.read(workspace, wording)
        with History(workspace, self.facts or FactsConfig()) as history:
            # Outcomes of the last impressions come after the end.
            everything = history.as_of(Schema.load(workspace.schema).split.end + timedelta(days=1))
        users = wording.questions(everything, "user")
        times = sorted({question.time_us for question in clean["user"]})
        return {**clean, "user": [user._replace(time_us=time) for time in times for user in users]}
