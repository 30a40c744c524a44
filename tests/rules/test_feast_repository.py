"""What Feast sees of the feature repository: one file that names every object, and nothing else."""

from __future__ import annotations

from pathlib import Path

from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView, RequestSource

from feature_repo import columns

REPOSITORY = Path(__file__).resolve().parents[2] / "feature_repo"
NOT_IGNORED = {"definitions.py"}
MODULES = ("entities", "users", "pois", "scenarios", "knowledge", "on_demand", "services")


def test_feastignore_hides_every_module_but_the_definitions():
    lines = (REPOSITORY / ".feastignore").read_text().split()
    modules = {path.name for path in REPOSITORY.glob("*.py")} - NOT_IGNORED
    folders = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert sorted(lines) == sorted(modules | folders)


def test_definitions_export_every_feast_object(city):
    import importlib

    from feature_repo import definitions

    kinds = (Entity, FeatureView, OnDemandFeatureView, FeatureService, RequestSource)
    declared = {
        id(value): f"{module}.{name}"
        for module in MODULES
        for name, value in vars(importlib.import_module(f"feature_repo.{module}")).items()
        if isinstance(value, kinds)
    }
    named = {name: getattr(definitions, name) for name in definitions.__all__}
    kept = {id(value) for value in named.values() if value is not None}
    assert sorted(name for key, name in declared.items() if key not in kept) == []
    # The city keeps the usual statistics and no language model was asked about it; the views of all else that can be
    # kept or asked for are None, and nothing else is.
    others = {f"{owner}_stats" for owner in columns.STATISTICS.keys() - set(columns.USUAL_STATISTICS)}
    others |= {"user_like_minded", *columns.PROMPTED, "llm4msr"}
    assert {name for name, value in named.items() if value is None} == others
    assert len(kept) + len(others) == len(named) == len(definitions.__all__)
