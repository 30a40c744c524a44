"""Bundle: a trained ranker on disk with everything that answering needs, and nothing that runs code on load.

    manifest.json             what it is, and the SHA-256 of every other file
    encoding.json schema.json vocabularies, scalers; what the data set has
    weights.safetensors       the ranker's state; its network is rebuilt from the recipe in the manifest
    vectors/<space>.safetensors, vectors/<space>.keys.json    each vector space that the ranker reads
    certificate.json          beside the content, once `prove` was run: what was proved of this version

The version is the hash of the manifest, so of all content: same training, same version. Loading reads JSON and
safetensors only, and refuses a folder of which one bit, one file or one name is not as written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.files import replacing
from trainers.encoding import Encoding
from trainers.knowledge import SCENE_SPACE, VectorMatrix
from trainers.models.embedding import InputSizes
from trainers.models.ranker import Ranker
from trainers.plain import PlainDataError, from_plain, to_plain
from trainers.recipes import Recipe

FORMAT = 1
MANIFEST = "manifest.json"
CERTIFICATE = "certificate.json"
FILE_NAME = re.compile(r"(encoding\.json|schema\.json|weights\.safetensors|vectors/[a-z_]+\.(safetensors|keys\.json))")


class BundleError(ValueError):
    """A bundle cannot be used. The message names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle is and what it needs.

    Attributes:
        version: hash of all else in the manifest, and so of every file.
        service: the FeatureService whose columns the ranker reads. features: their references, `view:feature`.
        scene_fingerprints: of each scene feature's declaration at training time.
        knowledge_versions: of each vector space that the ranker reads.
        trained_until: no training row is later; what a ranker knows is as old as this.
        metrics: of the test part, evaluated once.
    """

    format: int = FORMAT
    version: str = ""
    model: str
    service: str
    features: tuple[str, ...]
    scene_fingerprints: Mapping[str, str]
    knowledge_versions: Mapping[str, str]
    dataset: str
    trained_until: datetime
    seed: int
    recipe: Recipe
    metrics: Mapping[str, Any]
    runtime: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)

    def content_hash(self) -> str:
        plain = to_plain(replace(self, version=""))
        return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A ranker in eval mode with all that it takes to feed it."""

    manifest: Manifest
    encoding: Encoding
    schema: Schema
    ranker: Ranker
    matrices: Mapping[str, VectorMatrix]

    @staticmethod
    def of(
        manifest: Manifest, encoding: Encoding, schema: Schema, ranker: Ranker, matrices: Mapping[str, VectorMatrix]
    ) -> Bundle:
        """Close a bundle: hash its files and set its version."""
        manifest = from_plain(Manifest, to_plain(manifest))  # as it will be read: 0 and 0.0 hash differently
        draft = Bundle(manifest=manifest, encoding=encoding, schema=schema, ranker=ranker.eval(), matrices=matrices)
        files = {name: hashlib.sha256(content).hexdigest() for name, content in draft._files().items()}
        closed = replace(manifest, files=files)
        return replace(draft, manifest=replace(closed, version=closed.content_hash()))

    def save(self, folder: Path) -> None:
        """Write to `folder` at once: there is the whole bundle or, after a failure, what was there before."""
        with replacing(folder) as staging:
            for name, content in self._files().items():
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_bytes(content)
            text = json.dumps(to_plain(self.manifest), indent=1, ensure_ascii=False)
            (staging / MANIFEST).write_text(text + "\n")

    def _files(self) -> dict[str, bytes]:
        """The content of every file but the manifest, the same bytes for the same bundle."""
        files = {
            "encoding.json": self.encoding.to_json().encode(),
            "schema.json": json.dumps(asdict(self.schema), indent=1, default=datetime.isoformat).encode(),
            "weights.safetensors": safetensors.torch.save(
                {name: value.contiguous() for name, value in self.ranker.state_dict().items()}
            ),
        }
        for space, vectors in self.matrices.items():
            arrays = {"matrix": vectors.matrix, "rows": vectors.rows, "available_at": vectors.available_at}
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
            files[f"vectors/{space}.safetensors"] = safetensors.torch.save(tensors)
            files[f"vectors/{space}.keys.json"] = json.dumps(vectors.keys.to_pylist(), ensure_ascii=False).encode()
        return files


def input_sizes(encoding: Encoding) -> InputSizes:
    """The tensor sizes of an encoding's batches, for the networks."""
    return InputSizes(
        cardinalities=encoding.cardinalities(encoding.categorical_columns),
        user_fields=len(encoding.user_columns),
        numbers=len(encoding.scalers),
        scene_cardinalities=encoding.cardinalities([columns.scene(name) for name in encoding.scene_features]),
        text_spaces=encoding.text_spaces,
        scene_space=SCENE_SPACE,
    )


def spaces_of(config: Ranker.Config) -> tuple[str, ...]:
    """The vector spaces that a ranker of this configuration reads."""
    scene = (SCENE_SPACE,) if config.reads_scene_vectors else ()
    known = config.knowledge.spaces if config.knowledge else ()
    return tuple(dict.fromkeys((*config.features.text_spaces, *scene, *known)))


def build_ranker(config: Ranker.Config, encoding: Encoding, matrices: Mapping[str, VectorMatrix]) -> Ranker:
    """A ranker with fresh weights. Raises ValueError where a vector space that it reads is absent."""
    tensors: dict[str, Tensor] = {space: torch.from_numpy(vectors.matrix) for space, vectors in matrices.items()}
    return Ranker(config, input_sizes(encoding), tensors)


def load(folder: Path) -> Bundle:
    """Read and verify a bundle. Raises BundleError naming file and reason; runs no code from the folder."""
    manifest = _manifest(folder)
    contents = {name: _verified(folder, name, digest) for name, digest in manifest.files.items()}
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
    surplus = sorted(present - set(contents) - {MANIFEST, CERTIFICATE})
    if surplus:
        raise BundleError(f"{folder}: files that the manifest does not name: {surplus}")
    spaces = sorted(manifest.knowledge_versions)
    wanted = {"encoding.json", "schema.json", "weights.safetensors"}
    wanted |= {f"vectors/{space}.{ending}" for space in spaces for ending in ("safetensors", "keys.json")}
    if wanted != set(contents):
        raise BundleError(f"{folder / MANIFEST}: names files {sorted(contents)} where {sorted(wanted)} are needed")
    try:
        encoding = Encoding.from_json(contents["encoding.json"].decode())
        schema = Schema.from_json(contents["schema.json"].decode())
        matrices = {space: _matrix(space, manifest.knowledge_versions[space], contents) for space in spaces}
        ranker = build_ranker(manifest.recipe.model, encoding, matrices)
        ranker.load_state_dict(safetensors.torch.load(contents["weights.safetensors"]))
    except (ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise BundleError(f"{folder}: the parts do not fit together: {error}") from error
    return Bundle(manifest=manifest, encoding=encoding, schema=schema, ranker=ranker.eval(), matrices=matrices)


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"{path}: no such file; a bundle is a folder with a manifest")
    try:
        plain = json.loads(path.read_text())
        found = plain.get("format") if isinstance(plain, dict) else None
        if found != FORMAT:
            raise BundleError(f"{path}: format {found!r}, this program reads format {FORMAT}; train again or upgrade")
        manifest = from_plain(Manifest, plain)
    except (UnicodeDecodeError, json.JSONDecodeError, PlainDataError) as error:
        raise BundleError(f"{path}: damaged: {error}") from error
    unsafe = [name for name in manifest.files if not FILE_NAME.fullmatch(name)]
    if unsafe:
        raise BundleError(f"{path}: names files that no bundle has: {unsafe}")
    if manifest.content_hash() != manifest.version:
        raise BundleError(f"{path}: damaged: its content has hash {manifest.content_hash()}, not {manifest.version}")
    return manifest


def _verified(folder: Path, name: str, digest: str) -> bytes:
    path = folder / name
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        raise BundleError(f"{path}: absent, or not a plain file")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise BundleError(f"{path}: damaged: SHA-256 {found}, the manifest says {digest}")
    return content


def _matrix(space: str, version: str, contents: Mapping[str, bytes]) -> VectorMatrix:
    arrays = {name: t.numpy() for name, t in safetensors.torch.load(contents[f"vectors/{space}.safetensors"]).items()}
    return VectorMatrix(
        space=space,
        version=version,
        matrix=arrays["matrix"],
        keys=pa.array(json.loads(contents[f"vectors/{space}.keys.json"]), pa.string()),
        rows=arrays["rows"],
        available_at=arrays["available_at"],
    )
