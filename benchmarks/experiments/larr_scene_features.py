"""How many scene features pay: from none to fifteen, in quality and in time.

The city declares twelve. Three more are made of the clock, as request fields that are scene features as they stand;
they say nothing that the twelve do not, so they show what a feature costs that is of no use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import CityWorld, Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from feature_repo import columns
from feature_repo.datasets import city
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.schema import Dataset, RequestField
from trainers import recipes

# Those that a client would send first come first.
ORDER = (
    *("daypart", "weather", "place_kind", "company", "weekday"),
    *("temperature_band", "occasion", "landmark", "last_category", "last_specialty"),
    *("hour", "since_last_order", "week_part", "month_part", "rush"),
)
DECLARED, FURTHER = ORDER[:12], ORDER[12:]
COUNTS = (2, 5, 10, 12, 15)


@dataclass(frozen=True, kw_only=True)
class WiderCity(CityWorld):
    """The same city, whose requests say three more things."""

    def choice(self) -> Choice:
        return Choice(self, lambda progress: widened(city.build(self.config, progress)), ())


def widened(dataset: Dataset) -> Dataset:
    """The data set with `FURTHER` as request fields and scene features."""
    schema = dataset.schema
    impressions = dataset.tables["impressions"]
    clock = pd.DatetimeIndex(impressions[columns.EVENT_TIMESTAMP].to_pandas()).tz_convert(schema.timezone)
    working, hour = np.asarray(clock.dayofweek < 5), np.asarray(clock.hour)
    words = {
        "week_part": np.where(working, "a working day", "the weekend"),
        "month_part": np.array(["the beginning", "the middle", "the end"])[np.minimum((clock.day - 1) // 10, 2)],
        "rush": np.where(working & np.isin(hour, (7, 8, 16, 17)), "rush hour", "quiet hours"),
    }
    for name in FURTHER:
        impressions = impressions.append_column(name, pa.array(words[name].tolist(), pa.string()))
    fields = (*schema.request_fields, *(RequestField(name=name) for name in FURTHER))
    schema = replace(schema, request_fields=fields, scene_fields=(*schema.scene_fields, *FURTHER))
    return Dataset(schema=schema, tables={**dataset.tables, "impressions": impressions})


def experiment(scale: Scale) -> Experiment:
    def wider(cell: Cell, count: int | None = None) -> Cell:
        assert isinstance(cell.world, CityWorld)
        world = WiderCity(config=cell.world.config)
        return replace(cell, world=world, slots=None if count is None else ORDER[:count])

    def ple(seed: int) -> Cell:
        return wider(scale.ple(seed))

    arms = {f"{n} features": lambda seed, n=n: wider(scale.cell(seed, recipes.larr(scale.size)), n) for n in COUNTS}
    names = ["none (PLE)", *arms]
    return Experiment(
        name="larr_scene_features",
        question="How many scene features are worth their time?",
        arms={"none (PLE)": ple, **arms},
        seeds=scale.seeds,
        comparisons=tuple(Comparison(ours=b, reference=a) for a, b in pairwise(names)),
    )


if __name__ == "__main__":
    main(experiment)
