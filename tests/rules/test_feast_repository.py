"""What Feast sees of the feature repository: one file that names every object, and nothing else."""

from __future__ import annotations

from pathlib import Path

from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView, RequestSource

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
    exported = {id(getattr(definitions, name)) for name in definitions.__all__}
    assert sorted(name for key, name in declared.items() if key not in exported) == []
    assert len(exported) == len(definitions.__all__) == len(set(definitions.__all__))
