"""Files of an artefact that anybody may have made: read within limits, and refused unless they hold what was declared.

Hashes say that files are as somebody wrote them, not that whoever wrote them meant well. So nothing is read that is
larger than its kind may be, no network is built of sizes that no network has, and tensors are taken as they are or
refused: of the declared names, types and shapes, every number finite.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor, nn

MANIFEST_BYTES = 16 * 2**20
JSON_BYTES = 512 * 2**20
TABLE_BYTES = 4 * 2**30  # of weights, vectors, an index
LARGEST_SIZE = 8192  # of a width, a number of layers or experts: the largest networks published stay below


class Untrusted(ValueError):
    """A file is not what an artefact holds. The message says why."""


def content_of(path: Path, limit: int) -> bytes:
    """A plain file's content. Raises Untrusted for a link, a device, and more than `limit` bytes, before reading it."""
    try:
        # Not to wait where it is a pipe, and not to follow it where it is a link.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Untrusted(f"absent, or not a plain file ({error.strerror})") from error
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Untrusted("absent, or not a plain file")
        if status.st_size > limit:
            raise Untrusted(f"has {status.st_size} bytes, at most {limit} are read")
        return file.read(limit)


def json_of(content: bytes) -> Any:
    """What JSON says. Raises Untrusted for what is no JSON, is nested deeper than Python reads, or says NaN."""
    try:
        return json.loads(content.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Untrusted(f"is no JSON that this program reads: {error}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def check_sizes(config: object, place: str) -> None:
    """Every whole number of a configuration is a network's size. Raises Untrusted naming the first that is none."""
    if is_dataclass(config):
        for one in fields(config):
            check_sizes(getattr(config, one.name), f"{place}.{one.name}")
    elif isinstance(config, tuple):
        for at, item in enumerate(config):
            check_sizes(item, f"{place}[{at}]")
    elif type(config) is int and not 0 <= config <= LARGEST_SIZE:
        raise Untrusted(f"{place}: is {config}; a network's sizes lie in 0 .. {LARGEST_SIZE}")
    elif type(config) is float and not math.isfinite(config):
        raise Untrusted(f"{place}: is {config}, which is no finite number")


@dataclass(frozen=True)
class Declared:
    """What a tensor must be; None in the shape: of any length."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]

    def fits(self, tensor: Tensor) -> bool:
        if tensor.dtype != self.dtype or tensor.dim() != len(self.shape):
            return False
        return all(is_ in (None, has) for is_, has in zip(self.shape, tensor.shape, strict=True))


def state_of(network: nn.Module) -> dict[str, Declared]:
    """What a network's weights must be; it may be on the device `meta`, without memory.

    What has no entries in a fresh network may have any number: it was counted from data.
    """
    return {
        name: Declared(fresh.dtype, (None,) if tuple(fresh.shape) == (0,) else tuple(fresh.shape))
        for name, fresh in network.state_dict().items()
    }


def tensors_of(content: bytes, declared: Mapping[str, Declared]) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises Untrusted for what is none, for other tensors than declared, and for a number that is not finite.
    """
    try:
        found = safetensors.torch.load(content)
    except Exception as error:  # its own error, and whatever else a header brings about that no writer writes
        raise Untrusted(f"is no safetensors file: {error}") from error
    if found.keys() != declared.keys():
        surplus, missing = sorted(found.keys() - declared.keys()), sorted(declared.keys() - found.keys())
        raise Untrusted(f"holds unknown tensors {surplus[:5]}, lacks tensors {missing[:5]}")
    for name, tensor in found.items():
        if not declared[name].fits(tensor):
            raise Untrusted(f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, needed is {declared[name]}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Untrusted(f"tensor {name} holds a number that is not finite")
    return found
