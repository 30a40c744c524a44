"""Slices of the test part by what training knew: values of the moment and POIs that it never, rarely or often saw.

unseen / rare / frequent scene   the least known value of the row's moment occurred in no training request, in at
                                 most `RARE_REQUESTS`, or each in more (a partition)
unseen <feature>                 this feature's value occurred in no training request
new / rare / known POI           the POI was shown in no training row, in at most `RARE_ROWS`, or in more
untold                           an unseen or rare scene, or a new POI: where ids say least
short history                    the user clicked at most `FEW_CLICKS` times in training
scenario <id>                    the row is in this scenario
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns

ALL = "all"
RARE_REQUESTS = 10
RARE_ROWS = 100
FEW_CLICKS = 5
# Slices that every data set has, in which AUCs are bootstrapped.
BOOTSTRAPPED = (
    ALL,
    "unseen scene",
    "rare scene",
    "frequent scene",
    "new POI",
    "rare POI",
    "known POI",
    "untold",
    "short history",
)
OFTEN = np.iinfo(np.int64).max


def slices(train: pa.Table, test: pa.Table, features: Sequence[str]) -> dict[str, np.ndarray]:
    """Masks over the test rows, bool (n,) each; empty slices of single features are left out.

    Args:
        features: scene features that count, by name.
    """
    masks = {ALL: np.ones(len(test), dtype=bool)}
    seen = scene_counts(train, test, features)
    least = np.min(np.stack([np.full(len(test), OFTEN), *seen.values()]), axis=0)
    rows = counts_of(train[columns.POI_ID], test[columns.POI_ID])
    masks |= {
        "unseen scene": least == 0,
        "rare scene": (least > 0) & (least <= RARE_REQUESTS),
        "frequent scene": least > RARE_REQUESTS,
        "new POI": rows == 0,
        "rare POI": (rows > 0) & (rows <= RARE_ROWS),
        "known POI": rows > RARE_ROWS,
        "untold": (least <= RARE_REQUESTS) | (rows == 0),
    }
    clicks = train.filter(pc.greater(train[columns.CLICK], 0))
    masks["short history"] = counts_of(clicks[columns.USER_ID], test[columns.USER_ID]) <= FEW_CLICKS
    scenario = test[columns.SCENARIO_ID].to_numpy()
    masks |= {f"scenario {name}": scenario == name for name in sorted(set(scenario))}
    return masks | {f"unseen {name}": count == 0 for name, count in seen.items() if (count == 0).any()}


def scene_counts(train: pa.Table, test: pa.Table, features: Sequence[str]) -> Mapping[str, np.ndarray]:
    """For each feature, in how many training requests the value of each test row occurred; `OFTEN` for no value."""
    first = np.unique(train[columns.REQUEST_ID].to_numpy(), return_index=True)[1]
    requests = train.select([columns.scene(name) for name in features]).take(pa.array(first))
    return {name: counts_of(requests[columns.scene(name)], test[columns.scene(name)]) for name in features}


def counts_of(known: pa.ChunkedArray, asked: pa.ChunkedArray) -> np.ndarray:
    """How often each asked value is among the known ones, int64 (n,); `OFTEN` for a null."""
    counted = pc.drop_null(known.cast(pa.string()).combine_chunks()).value_counts()
    at = pc.index_in(asked.cast(pa.string()), value_set=counted.field("values"))
    counts = pc.fill_null(counted.field("counts").take(at.combine_chunks()), 0)
    found: np.ndarray = pc.if_else(pc.is_null(asked), OFTEN, counts).to_numpy()
    return found.astype(np.int64)
