"""Open what a server answers with: a bundle and an index, verified against the store that it reads from."""

from __future__ import annotations

import logging
from pathlib import Path

from feast import FeatureStore

from feature_repo.store import open_store, view_of
from feature_repo.workspace import Workspace
from serving import certificate
from serving.attribution import signer_of
from serving.explain import KnowledgeTexts
from serving.exploration import Exploration
from serving.features import FeatureReader
from serving.guard import StoreGuard
from serving.keeper import Keeper
from serving.newcomers import Newcomers
from serving.online import ServiceMismatch, is_local
from serving.pipeline import READS, Pipeline
from serving.retriever import Retriever
from serving.scorer import Scorer
from serving.served import ServedLog
from trainers import bundle as bundles
from trainers.knowledge import served_from, version_in
from trainers.wanted import WantedList

log = logging.getLogger(__name__)


def open_pipeline(
    workspace: Workspace,
    bundle: Path,
    index: Path | None,
    *,
    unproven: bool = False,
    served_share: float = 0.0,
    poi_age_s: float = 0.0,
    explore: float = 0.0,
) -> Pipeline:
    """Load and verify a bundle and, where there is one, an index, over the workspace's store.

    Args:
        poi_age_s: how old values of POIs may be that are kept in this process; 0: each is read with its request.
        unproven: take a bundle without a valid certificate too; every answer then says so.
        served_share: of the answers whose values are kept in `workspace.served`.
        explore: temperature that orders are drawn with; 0: they are those of the scores.

    Raises BundleError, IndexArtefactError, Unproven or another ServiceMismatch where one of them cannot be used.
    """
    loaded = bundles.load(bundle)
    store = open_store(workspace)
    files = _knowledge_files(workspace, store, loaded)
    proven = _is_proven(bundle, loaded, unproven)
    retriever = None if index is None else Retriever.load(index)
    keepers: list[Keeper] = [Newcomers(loaded, files, WantedList(workspace, files))]
    if served_share:
        keepers.append(ServedLog(workspace.served, served_share, loaded.manifest.version, loaded.schema))
    reader, signer = FeatureReader(store, loaded, poi_age_s=poi_age_s), signer_of(workspace.attribution_key)
    exploration = Exploration(explore) if explore else None
    return Pipeline(
        reader,
        Scorer(loaded),
        retriever,
        proven=proven,
        signer=signer,
        exploration=exploration,
        guard=StoreGuard(READS, is_local=is_local(store)),
        texts=KnowledgeTexts(workspace, loaded.manifest.knowledge_versions),
        keepers=keepers,
    )


def _is_proven(folder: Path, bundle: bundles.Bundle, unproven: bool) -> bool:
    try:
        certificate.check(folder, bundle)
    except certificate.Unproven as error:
        if not unproven:
            raise
        log.warning("%s", error)
        return False
    return True


def _knowledge_files(workspace: Workspace, store: FeatureStore, bundle: bundles.Bundle) -> dict[str, Path]:
    """Where the vectors of each space that a bundle reads come from.

    Raises ServiceMismatch if another encoder than the bundle's made the workspace's knowledge, and its own version does
    not stand beside it."""
    files = {}
    for space, version in bundle.manifest.knowledge_versions.items():
        is_beside = view_of(store, space, version) != space
        path = files[space] = served_from(workspace, space, version if is_beside else None)
        if not is_beside and path.exists() and (found := version_in(path, space)) != version:
            raise ServiceMismatch(
                f"{space}: the bundle was trained on version {version}, the workspace holds {found}: train again, or "
                "put the bundle's version beside it (`--beside` of the verb that made it, then `scenerank apply` and "
                "`scenerank materialize`)"
            )
    return files
