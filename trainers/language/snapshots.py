"""One question for each scenario and each user a snapshot: what is known of them, put into the words of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from feature_repo.workspace import Workspace
from trainers.knowledge import MISSING_ROW, VectorMatrix
from trainers.language.facts import Facts, FactsConfig, History
from trainers.language.prompts import LEVELS, Level, Prompt
from trainers.language.wording import scenario_text, scenario_words, user_text, user_words

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Progress = Callable[[str, int, int], None]  # what, done, total


class Question(NamedTuple):
    """What a model is told of one scenario or user.

    Attributes:
        time_us: from when on its answer is available.
        prompt: all that the model reads.
        text: the facts of the prompt, in few words for a person.
        tell: the prompt after which the model may write freely; empty where it shall not.
        clicked_most: of a user, the category.
    """

    key: str
    time_us: int
    prompt: str
    text: str
    tell: str = ""
    clicked_most: str = ""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How questions are put.

    Args:
        prompts: of each level. tell: likewise, to write freely after; empty for none.
        platform: what kind of service this is.
        pois: the vectors whose mean is asked for, in place of prompts.
    """

    prompts: Mapping[Level, Prompt]
    tell: Mapping[Level, Prompt]
    platform: str
    pois: VectorMatrix | None = None

    def questions(self, facts: Facts, level: Level) -> list[Question]:
        """Of one snapshot, dated by it."""
        found = self._of_scenarios(facts) if level == "scenario" else self._of_users(facts)
        return [question for question in found if question.prompt]  # no POI that was clicked had a vector yet

    def _of_scenarios(self, facts: Facts) -> list[Question]:
        time_us = _microseconds(facts.time)
        questions = []
        for scenario in facts.scenarios:
            words = scenario_words(facts, scenario, self.platform)
            prompt = self._prompt("scenario", words, scenario.recent, time_us)
            tell = self.tell["scenario"].fill(words) if self.tell else ""
            questions.append(Question(scenario.id, time_us, prompt, scenario_text(scenario), tell))
        return questions

    def _of_users(self, facts: Facts) -> list[Question]:
        time_us = _microseconds(facts.time)
        questions = []
        for user in facts.users:
            words = user_words(facts, user, self.platform)
            prompt = self._prompt("user", words, user.recent, time_us)
            tell = self.tell["user"].fill(words) if self.tell else ""
            most = user.likes[0] if user.likes else ""
            questions.append(Question(user.id, time_us, prompt, user_text(facts, user), tell, most))
        return questions

    def _prompt(self, level: Level, words: Mapping[str, str], recent: Sequence[str], time_us: int) -> str:
        if self.pois is None:
            return self.prompts[level].fill(words)
        rows = self.pois.rows_at(list(recent), np.full(len(recent), time_us))
        return " ".join(str(row) for row in rows.tolist() if row != MISSING_ROW)


def read_questions(
    workspace: Workspace, config: FactsConfig, wording: Wording, model_us: int, progress: Progress
) -> dict[Level, list[Question]]:
    """The questions of all snapshots, oldest first.

    Args:
        model_us: from when on the model was there; of the snapshots before, the newest is the only one that is asked.
    Raises:
        TextError: there are no source tables, or the log is too short for a snapshot.
    """
    asked: dict[Level, list[Question]] = {level: [] for level in LEVELS}
    with History(workspace, config) as history:
        times = history.times()
        for number, time in enumerate(times):
            progress("facts of each snapshot", number, len(times))
            facts = history.as_of(time)
            for level in LEVELS:
                asked[level] += wording.questions(facts, level)
        for facts in history.own():
            asked["user"] += wording.questions(facts, "user")
    return {level: _available(questions, model_us) for level, questions in asked.items()}


def _available(questions: Sequence[Question], model_us: int) -> list[Question]:
    """One for each key and time from which an answer is there, oldest first."""
    newest: dict[tuple[str, int], Question] = {}
    for question in sorted(questions, key=lambda q: (q.time_us, q.key)):
        available_us = max(question.time_us, model_us)
        newest[question.key, available_us] = question._replace(time_us=available_us)
    return sorted(newest.values(), key=lambda q: (q.time_us, q.key))


def _microseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)
