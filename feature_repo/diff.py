"""What an apply would change: declared objects against registered ones, field by field.

`feast plan` reports every view as updated on a SQL registry, because sources carry the time of their registration. Here
only what a definition says is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# What Feast fills in by itself when it registers an object.
_BOOKKEEPING = {
    "body",  # the pickled form of what bodyText says
    "meta",
    "project",
    "entityColumns",
    "materializationIntervals",
    "createdTimestamp",
    "lastUpdatedTimestamp",
    "currentVersionNumber",
    "lastFeatureViewVersion",
}


@dataclass(frozen=True)
class Change:
    """One difference: an object that is new, gone, or has a field with another value."""

    kind: str
    name: str
    field: str
    before: str
    after: str

    def __str__(self) -> str:
        if self.field:
            return f"~ {self.kind} {self.name}.{self.field}: {self.before} -> {self.after}"
        return f"{'+' if self.after else '-'} {self.kind} {self.name}"


def changes(store: Any) -> list[Change]:
    """Every difference between `definitions` and the store's registry, in order of kind and name.

    Services that are registered but no longer declared are not named: bundles may still use them.
    """
    declared, registered = _declared(), _registered(store)
    found: list[Change] = []
    for key in sorted(declared.keys() | registered.keys()):
        kind, name = key
        if key not in registered:
            found.append(Change(kind, name, "", "", "declared"))
        elif key not in declared:
            if kind != "FeatureService":
                found.append(Change(kind, name, "", "registered", ""))
        else:
            found.extend(Change(kind, name, *d) for d in _differences(registered[key], declared[key], ""))
    return found


def _declared() -> dict[tuple[str, str], Any]:
    from feature_repo.store import declared

    return {(type(o).__name__, o.name): _spec(o) for o in declared()}


def _registered(store: Any) -> dict[tuple[str, str], Any]:
    objects = [
        *store.list_entities(),
        *store.list_batch_feature_views(),
        *store.list_on_demand_feature_views(),
        *store.list_feature_services(),
    ]
    return {(type(o).__name__, o.name): _spec(o) for o in objects}


def _spec(declared: Any) -> Any:
    from google.protobuf.json_format import MessageToDict

    return _clean(MessageToDict(declared.to_proto())["spec"])


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items() if k not in _BOOKKEEPING}
    return [_clean(v) for v in value] if isinstance(value, list) else value


def _differences(before: Any, after: Any, path: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for at, pair in enumerate(zip(before, after, strict=True)):
            yield from _differences(*pair, f"{path}[{at}]")
    elif before != after:
        yield path, _short(before), _short(after)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
