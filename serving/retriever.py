"""Retrieval: the POIs nearest to a request by inner product; the search itself obeys scenario, distance, opening hours.

`Retriever` turns one request into a vector and asks a `VectorSearch`, which is exact or approximate.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import pyarrow as pa
import torch

from feature_repo import columns, geo, hours
from serving.observe import stage
from trainers.index import FAISS, IndexArtefact, SearchPlan, load

GPU_MAX_RESULTS = 2048  # FAISS' limit on k there


class RetrievalError(ValueError):
    """A question to the retriever makes no sense; the message names the argument, its value and the rule."""


@dataclass(frozen=True)
class Neighbours:
    """POIs by falling score; as many as were asked for, or all that passed the filters where these are fewer."""

    poi_ids: tuple[str, ...]
    scores: np.ndarray  # float32 (len(poi_ids),), inner products

    def __len__(self) -> int:
        return len(self.poi_ids)


class VectorSearch(Protocol):
    """Rows and inner products of the best vectors for one query, both (n,), by falling inner product.

    n = min(k, number of allowed rows); an approximate search may miss better rows, never return fewer.
    """

    def search(self, query_E: np.ndarray, k: int, allowed_P: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """`allowed_P`: bool, which rows may be returned; None: all."""


class ExactSearch:
    """Every vector is compared. Unfiltered questions go to a GPU where FAISS sees one (it has no filters there)."""

    def __init__(self, index: faiss.Index) -> None:
        self.index = index
        self._gpu: Any = None
        if FAISS.get_num_gpus() > 0:
            self._resources = FAISS.StandardGpuResources()
            self._gpu = FAISS.index_cpu_to_gpu(self._resources, 0, index)
        self._gpu_lock = threading.Lock()  # a GPU index serves one thread at a time

    def search(self, query_E: np.ndarray, k: int, allowed_P: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if allowed_P is not None:
            parameters = FAISS.SearchParameters(sel=_selector(allowed_P))
            return _top(self.index, query_E, _at_most(k, allowed_P), parameters)
        k = min(k, self.index.ntotal)
        if self._gpu is None or k > GPU_MAX_RESULTS:
            return _top(self.index, query_E, k, None)
        with self._gpu_lock:
            return _top(self._gpu, query_E, k, None)


class ApproximateSearch:
    """The lists nearest to the query are compared; the rarer the allowed rows, the more lists.

    Where these lists hold too few allowed rows, all are compared: a filter never costs results.
    """

    def __init__(self, index: Any, probes: int) -> None:
        self.index = index
        self.probes = probes

    def search(self, query_E: np.ndarray, k: int, allowed_P: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        everything = self.index.nlist
        selector, probes, wanted = None, self.probes, min(k, self.index.ntotal)
        if allowed_P is not None:
            wanted = _at_most(k, allowed_P)
            selector = _selector(allowed_P)
            probes = min(everything, round(probes * len(allowed_P) / max(int(allowed_P.sum()), 1)))
        rows, scores = self._probe(query_E, wanted, probes, selector)
        if len(rows) < wanted:
            rows, scores = self._probe(query_E, wanted, everything, selector)
        return rows, scores

    def _probe(self, query_E: np.ndarray, k: int, probes: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
        parameters = FAISS.SearchParametersIVF(nprobe=probes, sel=selector)
        return _top(self.index, query_E, k, parameters)


class Retriever:
    """Candidates for one request, from an index artefact. Threads may share one."""

    def __init__(self, artefact: IndexArtefact) -> None:
        self.artefact = artefact
        self.search = vector_search(artefact.index, artefact.manifest.plan)
        self._ids = artefact.pois[columns.POI_ID].to_numpy(zero_copy_only=False)

    @staticmethod
    def load(folder: Path) -> Retriever:
        """Raises `trainers.index.IndexArtefactError` for a damaged or mismatched artefact."""
        return Retriever(load(folder))

    @property
    def version(self) -> str:
        return self.artefact.manifest.version

    def __len__(self) -> int:
        return len(self._ids)

    @stage("retrieve")
    def retrieve(
        self,
        table: pa.Table,
        k: int,
        *,
        near: tuple[float, float, float] | None = None,
        open_hour_of_week: int | None = None,
    ) -> Neighbours:
        """The k best of the POIs that the request's scenario may show.

        Args:
            table: one row with the columns of user, scenario, scene, recent POIs and place; absent ones are unknown. An
                unknown scenario may show what every one may.
            k: >= 1; more than there are POIs means all.
            near: latitude, longitude (degrees) and radius (km); POIs without coordinates do not pass.
            open_hour_of_week: 0 (Monday 00:00) .. 167 local; only POIs known to be closed then do not pass.
        Raises:
            RetrievalError: not exactly one row, or an argument out of its range.
        """
        if len(table) != 1:
            raise RetrievalError(f"the table must have one row, the request; it has {len(table)}")
        if k < 1:
            raise RetrievalError(f"k must be at least 1, got {k}")
        scenario_id = table[columns.SCENARIO_ID][0].as_py() if columns.SCENARIO_ID in table.column_names else None
        allowed_P = self.allowed(scenario_id, near, open_hour_of_week)
        rows, scores = self.search.search(self.embed(table)[0], k, allowed_P)
        return Neighbours(tuple(self._ids[rows].tolist()), scores)

    def embed(self, table: pa.Table) -> np.ndarray:
        """n requests -> unit vectors, float32 (n, E)."""
        with torch.inference_mode():
            return self.artefact.tower(self.artefact.inputs.query(table)).numpy()

    def allowed(
        self, scenario_id: str | None, near: tuple[float, float, float] | None, open_hour_of_week: int | None
    ) -> np.ndarray | None:
        """Which POIs the scenario may show and the filters let pass, bool (P,); None: all, without a filter."""
        shown_P = self._shown_by_scenario.get(scenario_id, self._shown_by_scenario[None])
        masks = [] if shown_P is None else [shown_P]
        if near is not None:
            masks.append(self._within(*near))
        if open_hour_of_week is not None:
            if not 0 <= open_hour_of_week < hours.HOURS_A_WEEK:
                raise RetrievalError(f"open_hour_of_week must be 0 .. 167, got {open_hour_of_week}")
            byte, bit = divmod(open_hour_of_week, 8)
            masks.append((self._open_bits_P21[:, byte] >> (7 - bit)) & 1 == 1)
        return np.logical_and.reduce(masks) if masks else None

    def _within(self, latitude: float, longitude: float, radius_km: float) -> np.ndarray:
        """Which POIs lie within the radius. A band of latitudes first: it costs a hundredth of a great circle."""
        if not (abs(latitude) <= 90 and abs(longitude) <= 180 and radius_km >= 0):
            raise RetrievalError(
                f"near must be latitude -90 .. 90, longitude -180 .. 180 and a radius >= 0 km, "
                f"got {(latitude, longitude, radius_km)}"
            )
        poi_latitude, poi_longitude = self._places
        # The margin keeps rounding from losing a POI on the border.
        band = np.degrees(radius_km / geo.EARTH_RADIUS_KM) * (1 + 1e-9) + 1e-9
        candidates = np.flatnonzero(np.abs(poi_latitude - latitude) <= band)
        here = np.array([latitude]), np.array([longitude])
        distance_km = geo.distance_km(*here, poi_latitude[candidates], poi_longitude[candidates])
        inside = np.zeros(len(poi_latitude), dtype=bool)
        inside[candidates] = distance_km <= radius_km
        return inside

    @cached_property
    def _shown_by_scenario(self) -> Mapping[str | None, np.ndarray | None]:
        """Which POIs a scenario may show, bool (P,), or None for all; under None, one that no POI names."""
        shown_in_P = self.artefact.pois[columns.SHOWN_IN].combine_chunks()
        if shown_in_P.null_count == len(shown_in_P):
            return {None: None}
        ids = shown_in_P.flatten().dictionary_encode()
        scenarios = [*ids.dictionary.to_pylist(), None]
        shown_SP = np.tile(shown_in_P.is_null().to_numpy(zero_copy_only=False), (len(scenarios), 1))
        shown_SP[ids.indices.to_numpy(), shown_in_P.value_parent_indices().to_numpy()] = True
        return {name: None if shown_P.all() else shown_P for name, shown_P in zip(scenarios, shown_SP, strict=True)}

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        pois = self.artefact.pois
        return pois[columns.POI_LATITUDE].to_numpy(), pois[columns.POI_LONGITUDE].to_numpy()

    @cached_property
    def _open_bits_P21(self) -> np.ndarray:
        """Opening hours packed as `feature_repo.hours` packs them; all open where they are unknown."""
        unknown = b"\xff" * (hours.HOURS_A_WEEK // 8)
        texts = self.artefact.pois[columns.OPEN_HOURS].to_pylist()
        packed = b"".join(np.packbits(hours.decode(text)).tobytes() if text else unknown for text in texts)
        return np.frombuffer(packed, dtype=np.uint8).reshape(len(texts), -1)


def vector_search(index: faiss.Index, plan: SearchPlan) -> VectorSearch:
    """The search that a plan names."""
    return ExactSearch(index) if plan.kind == "exact" else ApproximateSearch(index, plan.probes)


def _selector(allowed_P: np.ndarray) -> Any:
    return FAISS.IDSelectorBitmap(np.packbits(allowed_P, bitorder="little"))


def _at_most(k: int, allowed_P: np.ndarray) -> int:
    return min(k, int(allowed_P.sum()))


def _top(index: Any, query_E: np.ndarray, k: int, parameters: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores. FAISS refuses k = 0, and pads with row -1 what it does not find: those are no results."""
    if k == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    scores_1K, rows_1K = index.search(query_E[None], k, params=parameters)
    found = rows_1K[0] >= 0
    return rows_1K[0][found], scores_1K[0][found]
