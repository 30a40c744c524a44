"""The verbs of language models: prepare one, tune it on a workspace, let it read the texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.options import LanguageModelOption, WorkspaceOption, explained, workspace_of


def model(language_model: LanguageModelOption = "smollm2") -> None:
    """Prepare the language model: find it, check it, convert it once."""
    from serving import screen
    from trainers.language.model import model_folder

    with explained(), screen.stage(f"language model {language_model}"):
        folder = model_folder(language_model)
    screen.console.print(str(folder))


def pretrain(
    language_model: LanguageModelOption = "smollm2",
    steps: Annotated[int | None, typer.Option(help="Of training; 100 take about seven minutes on two cores.")] = None,
    documents: Annotated[int, typer.Option(help="Read in a step, by all processes together.")] = 8,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of adapters.")] = False,
    general: Annotated[float, typer.Option(help="Share of plain English among the documents.")] = 0.25,
    general_text: Annotated[
        Path | None, typer.Option(help="A text file or a folder of *.txt; Python's documentation by default.")
    ] = None,
    hold_out: Annotated[float, typer.Option(help="Share of the POIs that only the test of the model reads.")] = 0.1,
    sharding: Annotated[str, typer.Option(help="Of several processes: ddp (whole model each) or fsdp.")] = "ddp",
    seed: Annotated[int, typer.Option(help="Of what is held out, drawn and initialised.")] = 0,
    workspace: WorkspaceOption = None,
) -> None:
    """Stage 1 of LARR: a language model goes on learning from the texts and clicks of a workspace's history.

    It reads POIs as documents with a special token before each attribute, writes their descriptions from name and
    location, reads what users clicked, and plain English so that it forgets nothing. An interrupted run goes on where
    it stood; a finished one is not run again. The model, its losses and samples are in WORKSPACE/language/pretrain;
    any verb that takes a language model takes its folder `model`.

    On several processes or machines: torchrun --nproc-per-node 2 -m serving.cli pretrain ...
    """
    from serving import screen, stages

    with explained():
        options = stages.PretrainOptions(
            model=language_model,
            steps=steps,
            documents=documents,
            full=full,
            general=general,
            general_text=general_text,
            hold_out=hold_out,
            sharding=sharding,
            seed=seed,
        )
        target = workspace_of(workspace)
        with screen.one_of_many(), screen.stage(f"pretrain {language_model}") as report:
            done = stages.pretrain(target, options, report)
        with screen.one_of_many():
            screen.console.print(screen.perplexity_table(done))
            screen.console.print(str(target.language / "pretrain" / "model"))


def embed(
    language_model: LanguageModelOption = "smollm2",
    endpoint: Annotated[
        str | None, typer.Option(help="Of a server that has the model (vLLM ...), such as http://gpu-1:8000/v1.")
    ] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="What that server calls the model.")] = None,
    ray: Annotated[int, typer.Option(help="Encode in so many workers of Ray Data.")] = 0,
    ray_gpus: Annotated[int, typer.Option(help="Of each worker.")] = 0,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running cluster [RAY_ADDRESS, or this machine].")
    ] = None,
    unit_length: Annotated[bool, typer.Option("--unit-length", help="Vectors of length 1.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Texts of POIs, users, scenarios and scene values -> vectors; texts embedded before are not again.

    A folder that was tuned is read as it was tuned, and its vectors are available from its cut-off on. Where the model
    runs does not change its vectors. An endpoint's bearer token is read from SCENERANK_ENDPOINT_TOKEN.
    """
    from serving import screen, stages

    with explained(), screen.stage("embed texts") as report:
        options = stages.EmbedOptions(
            model=language_model,
            unit_length=unit_length,
            endpoint=endpoint,
            endpoint_model=endpoint_model,
            ray=ray,
            ray_gpus=ray_gpus,
            ray_address=ray_address,
        )
        stages.embed(workspace_of(workspace), options, report)


VERBS = (model, pretrain, embed)
