"""How often what is said of users is what is true of them, where a simulation knows the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TasteReport:
    """Attributes:
    users: of whom something was said and the truth is known.
    kinds: how many different things are true of them.
    said: share of users of whom the truth was said.
    chance: the share that chance alone would bring: what is said, dealt out to the users at random.
    clicked: share of users whose category clicked most is the true one; what the log lets anybody see.
    """

    users: int
    kinds: int
    said: float
    chance: float
    clicked: float


def knowledge_report(
    said: Mapping[str, str], truth: Mapping[str, str], clicked: Mapping[str, str]
) -> TasteReport | None:
    """
    Args:
        said, truth, clicked: a category of each user: what the model's words say, what is planted, what was clicked
            most. Users without truth are left out; None where nobody is left.

    >>> knowledge_report({"a": "pub", "b": "pub"}, {"a": "pub", "b": "cafe"}, {"b": "cafe"})
    TasteReport(users=2, kinds=2, said=0.5, chance=0.5, clicked=0.5)
    """
    users = [user for user in said if user in truth]
    if not users:
        return None
    count = len(users)
    true, spoken = Counter(truth[user] for user in users), Counter(said[user] for user in users)
    return TasteReport(
        users=count,
        kinds=len(true),
        said=sum(said[user] == truth[user] for user in users) / count,
        chance=sum(spoken[kind] * true[kind] for kind in true) / count**2,
        clicked=sum(clicked.get(user) == truth[user] for user in users) / count,
    )
