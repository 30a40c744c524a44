"""One training run's folder: what was asked for, how far it came, what it lost on the way, and the model it ended in.

config.json               what was asked for; the same again goes on, anything else starts anew
losses.jsonl, losses.png  a line a logged step, and all of them as a picture
<name>.json               numbers that are computed once a run (`Run.once`)
samples.txt               what the model writes
checkpoint/               where an unfinished run stands (one safetensors file that holds its JSON, too)
result.json               the report; it exists if and only if the run is finished
model/                    the finished model; that of an earlier run stays until the new one is complete
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainers.language.processes import Processes
from trainers.plain import to_plain

STATE = "state"  # the entry of a safetensors file's metadata that holds a checkpoint's JSON


@dataclass(frozen=True)
class Checkpoint:
    """A moment of training.

    Attributes:
        step: steps done.
        tensors: by name.
        state: everything else, as plain data.
    """

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


class Run:
    """The folder of one training run.

    Of several processes (`Processes`) only the first one reads and writes; all of them call the same methods.

    Args:
        folder: of this run alone.
        config: all that decides what the run ends in (a frozen dataclass or plain data). A folder that holds a run of
            another configuration is emptied, except for its finished model.
    """

    def __init__(self, folder: Path, config: object) -> None:
        self.folder, self.processes = folder, Processes.join()
        self._config = json.dumps(to_plain(config), indent=1, sort_keys=True, default=str) + "\n"
        if self.processes.first and not self._is_mine():
            self._start_anew()

    @property
    def finished(self) -> bool:
        return self.processes.agree((self.folder / "result.json").is_file())

    @property
    def result(self) -> dict[str, Any]:
        """The report of a finished run."""
        return self.processes.agree(self._read("result.json") or {})

    @property
    def model(self) -> Path:
        """Where the finished model goes."""
        return self.folder / "model"

    def once(self, name: str, compute: Callable[[], object]) -> dict[str, Any]:
        """`compute()` the first time, in the first process, as plain data kept in `<name>.json`; afterwards what is
        kept there."""
        kept = self._read(f"{name}.json")
        if self.processes.first and kept is None:
            kept = self._keep(f"{name}.json", compute())
        return self.processes.agree(kept or {})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line to the losses."""
        if self.processes.first:
            with (self.folder / "losses.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": step, **values}) + "\n")

    def losses(self) -> list[dict[str, float]]:
        """All logged lines; one that a kill cut short is left out."""
        path = self.folder / "losses.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []
        return [json.loads(line) for line in lines]

    def sample(self, text: str) -> None:
        """Add a paragraph to what the model writes."""
        if self.processes.first:
            with (self.folder / "samples.txt").open("a") as stream:
                stream.write(text.rstrip() + "\n\n")

    def save(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint in the place of the one before it."""
        if not self.processes.first:
            return
        target = self._checkpoint
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
        state = {"step": checkpoint.step, **to_plain(checkpoint.state)}
        save_file(tensors, staged, metadata={STATE: json.dumps(state)})
        os.replace(staged, target)

    def resume(self) -> Checkpoint | None:
        """Where the run stands; losses that were logged after that are forgotten. None: at its beginning.

        The other processes are told by whoever calls this: they get None.
        """
        if not self.processes.first:
            return None
        found = self._read_checkpoint()
        step = found.step if found else 0
        kept = [json.dumps(line) + "\n" for line in self.losses() if line["step"] <= step]
        self._write(self.folder / "losses.jsonl", "".join(kept))
        return found

    def finish(self, result: object) -> dict[str, Any]:
        """Keep the report, draw the losses, drop the checkpoint: the same run will do nothing from now on."""
        kept: dict[str, Any] = {}
        if self.processes.first:
            if self.losses():
                plot(self.losses(), self.folder / "losses.png")
            kept = self._keep("result.json", result)
            shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        return self.processes.agree(kept)

    def _read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of this folder; None where it is not there, and for all but the first process."""
        path = self.folder / name
        if not self.processes.first or not path.is_file():
            return None
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def _keep(self, name: str, value: object) -> dict[str, Any]:
        """Write plain data as a JSON file. Returns them as they are read back."""
        text = json.dumps(to_plain(value), indent=1, default=str) + "\n"
        self._write(self.folder / name, text)
        content: dict[str, Any] = json.loads(text)
        return content

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint" / "checkpoint.safetensors"

    def _read_checkpoint(self) -> Checkpoint | None:
        if not self._checkpoint.is_file():
            return None
        with safe_open(self._checkpoint, framework="pt") as file:
            state = json.loads(file.metadata()[STATE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        return Checkpoint(state.pop("step"), tensors, state)

    def _is_mine(self) -> bool:
        path = self.folder / "config.json"
        return path.is_file() and path.read_text() == self._config

    def _start_anew(self) -> None:
        """Empty the folder but for the model. The configuration comes last: without it nothing here counts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir() and path != self.model:
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()
        self._write(self.folder / "config.json", self._config)

    def _write(self, path: Path, text: str) -> None:
        """All or nothing."""
        if self.processes.first:
            staged = path.with_name(f".{path.name}.{os.getpid()}")
            staged.write_text(text)
            os.replace(staged, path)


def plot(losses: list[dict[str, float]], path: Path) -> None:
    """Every loss over the steps, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    beside = {"step", "seconds", "tokens_per_second", "learning_rate", "gradient"}
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name in [name for name in losses[-1] if name not in beside]:
        axes.plot([line["step"] for line in losses], [line[name] for line in losses], label=name)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
