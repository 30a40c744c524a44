"""What the verbs of the command line share: the options that several of them take, and how they end on a mistake."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from feature_repo.workspace import DEFAULT, ENVIRONMENT_VARIABLE, Workspace, activate
from serving.logs import LogFormat, LogLevel

WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", "-w", help=f"Folder of one dataset's files [{ENVIRONMENT_VARIABLE}].")
]
ModelOption = Annotated[str, typer.Option(help="ple, ple_scene_ids, larr, llm4msr or larr_llm4msr.")]
BundleOption = Annotated[
    str, typer.Option("--bundle", "--model", help="A bundle of the workspace: its name in WORKSPACE/bundles.")
]
SizeOption = Annotated[str, typer.Option(help="Of the city: small or default.")]
UsersOption = Annotated[
    int | None, typer.Option(help="Users of the city; of KuaiRand and mapped logs: how many to keep.")
]
LanguageModelOption = Annotated[str, typer.Option(help="smollm2 or minilm (embedded), a folder, or a Hugging Face id.")]
BesideOption = Annotated[
    bool,
    typer.Option("--beside", help="Leave the version in use; have this one served beside it, by a view of its own."),
]
LogFormatOption = Annotated[LogFormat, typer.Option(help="Of what the server says of itself.")]
LogLevelOption = Annotated[LogLevel, typer.Option(help="debug: a line a request too.")]
TraceOption = Annotated[
    bool, typer.Option("--trace", help="Send spans where OTEL_EXPORTER_OTLP_ENDPOINT says; wants the extra `trace`.")
]
FromOption = Annotated[Path | None, typer.Option("--from", help="Raw file or folder; a mapping file for `mapping`.")]


def root_of(path: Path | None, name: str = DEFAULT.name) -> Path:
    """The folder of the workspace that a verb works in: the option, the environment, or `.scenerank/<name>`."""
    return path or Path(os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT.with_name(name)))


def workspace_of(path: Path | None, name: str = DEFAULT.name) -> Workspace:
    """The same, as the workspace of this process."""
    return activate(root_of(path, name))


@contextmanager
def explained() -> Iterator[None]:
    """A user's mistake, and a file that cannot be read or written, ends a verb with its message; anything else keeps
    its trace."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def utc(moment: datetime | None) -> datetime | None:
    """A moment that names no zone is UTC."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def gathered(**parts: Callable[..., object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb's parameter of this name comes from options of its own: those that its maker takes.

    >>> def place(latitude: float = 60.0, longitude: float = 25.0) -> str:
    ...     return f"{latitude} N, {longitude} E"
    >>> @gathered(where=place)
    ... def say(where: str, twice: bool = False) -> None:
    ...     print(where, "twice" if twice else "once")
    >>> str(inspect.signature(say))
    '(*, latitude: float = 60.0, longitude: float = 25.0, twice: bool = False) -> None'
    >>> say(latitude=61.5, longitude=24.0, twice=True)
    61.5 N, 24.0 E twice
    """
    fields = {name: inspect.signature(maker, eval_str=True).parameters for name, maker in parts.items()}

    def wrapped(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb, eval_str=True)
        options = [o for p in own.parameters.values() for o in (fields[p.name].values() if p.name in fields else [p])]

        @wraps(verb)
        def called(**given: Any) -> None:
            with explained():
                made = {name: maker(**{f: given.pop(f) for f in fields[name]}) for name, maker in parts.items()}
            verb(**given, **made)

        by_name = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
        called.__signature__ = own.replace(parameters=by_name)  # type: ignore[attr-defined]  # what Typer reads
        called.__annotations__ = {option.name: option.annotation for option in options}
        return called

    return wrapped
