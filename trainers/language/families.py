"""The ways in which a document speaks of a POI: families of templates that differ in order and in wording.

A model that reads one fact in several wordings learns the fact rather than the wording; a family that training never
uses shows whether it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainers.language.attributes import CATEGORY, DESCRIPTION, HOURS, LOCATION, NAME, OFFERS, label_of

REST = "rest"  # in a family: every attribute that has no place of its own
VALUE, LABEL = "{value}", "{label}"


@dataclass(frozen=True, kw_only=True)
class Family:
    """
    Args:
        order: attributes as they follow each other; `REST` stands for those that are not named.
        words: what is said of an attribute, around `{value}`; `{label}` is its name. Without an entry: the bare value.
    """

    order: tuple[str, ...]
    words: Mapping[str, str] = field(default_factory=dict)

    def ordered(self, attributes: Sequence[str]) -> list[str]:
        """
        >>> Family(order=(OFFERS, REST, NAME)).ordered([NAME, "price_level", OFFERS])
        ['offers', 'price_level', 'name']
        """
        rest = [a for a in attributes if a not in self.order]
        places = ([a] if a != REST else rest for a in (self.order if REST in self.order else (*self.order, REST)))
        return [a for place in places for a in place if a in attributes]

    def around(self, attribute: str) -> tuple[str, str]:
        """What stands before and after a value."""
        words = self.words.get(attribute, self.words.get(REST, VALUE) if attribute not in self.order else VALUE)
        before, _, after = words.replace(LABEL, label_of(attribute)).partition(VALUE)
        return before, after


FAMILIES: Mapping[str, Family] = {
    "record": Family(order=(NAME, LOCATION, CATEGORY, REST, HOURS, OFFERS, DESCRIPTION)),
    "guide": Family(
        order=(NAME, CATEGORY, LOCATION, DESCRIPTION, OFFERS, HOURS, REST),
        words={
            NAME: "This is {value}.",
            CATEGORY: "What it is: {value}.",
            LOCATION: "It is found at {value}.",
            OFFERS: "Known for {value}.",
            HOURS: "Open {value}.",
            REST: "Its {label} is {value}.",
        },
    ),
    "questions": Family(
        order=(CATEGORY, OFFERS, LOCATION, HOURS, REST, NAME, DESCRIPTION),
        words={
            NAME: "What is it called? {value}.",
            CATEGORY: "What kind is it? {value}.",
            LOCATION: "Where is it? {value}.",
            DESCRIPTION: "What is there to say? {value}",
            OFFERS: "What does it offer? {value}.",
            HOURS: "When is it open? {value}.",
            REST: "What is its {label}? {value}.",
        },
    ),
    "notes": Family(
        order=(DESCRIPTION, OFFERS, REST, HOURS, CATEGORY, LOCATION, NAME),
        words={
            NAME: "Name: {value}.",
            CATEGORY: "Kind: {value}.",
            LOCATION: "Place: {value}.",
            DESCRIPTION: "In short: {value}",
            OFFERS: "On offer: {value}.",
            HOURS: "Hours: {value}.",
            REST: "{label}: {value}.",
        },
    ),
    "letter": Family(
        order=(LOCATION, NAME, OFFERS, CATEGORY, DESCRIPTION, REST, HOURS),
        words={
            NAME: "there I came upon {value},",
            CATEGORY: "as one may expect of a {value}.",
            LOCATION: "On my way past {value},",
            DESCRIPTION: "Let me tell you more: {value}",
            OFFERS: "where they recommended {value},",
            HOURS: "You can go there {value}.",
            REST: "As to the {label}, I would say {value}.",
        },
    ),
}
