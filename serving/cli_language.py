"""The verbs of language models: prepare one, tune it on a workspace, let it read the texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.options import BesideOption, LanguageModelOption, WorkspaceOption, explained, workspace_of

PairsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Pairs of a kind in a step; may be repeated.", show_default="user_user=12, poi_poi=12, user_poi=40"
    ),
]
WeightOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Of the loss of a kind; may be repeated.", show_default="user_user=0.3, poi_poi=0.3, user_poi=1.0"
    ),
]
ExposedOption = Annotated[
    int | None, typer.Option(help="Places shown and left, against each user_poi pair.", show_default="4")
]
BucketOption = Annotated[
    list[str] | None,
    typer.Option(help="Scene features that make moments alike; may be repeated.", show_default="daypart"),
]


def model(language_model: LanguageModelOption = "smollm2") -> None:
    """Prepare the language model: find it, check it, convert it once."""
    from serving import screen
    from trainers.language.model import model_folder

    with explained(), screen.stage(f"language model {language_model}"):
        folder = model_folder(language_model)
    screen.console.print(str(folder))


def pretrain(
    language_model: LanguageModelOption = "smollm2",
    steps: Annotated[
        int | None, typer.Option(help="Of training; so many take seven minutes on two cores.", show_default="100")
    ] = None,
    documents: Annotated[int, typer.Option(help="Read in a step, by all processes together.")] = 8,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of adapters.")] = False,
    general: Annotated[float, typer.Option(help="Share of plain English among the documents.")] = 0.25,
    general_text: Annotated[
        Path | None, typer.Option(help="A text file or a folder of *.txt; Python's documentation by default.")
    ] = None,
    hold_out: Annotated[float, typer.Option(help="Share of the POIs that only the test of the model reads.")] = 0.1,
    test: Annotated[bool, typer.Option("--test", help="Hold places and categories out, for `probe`.")] = False,
    sharding: Annotated[str, typer.Option(help="Of several processes: ddp (whole model each) or fsdp.")] = "ddp",
    seed: Annotated[int, typer.Option(help="Of what is held out, drawn and initialised.")] = 0,
    workspace: WorkspaceOption = None,
) -> None:
    """Stage 1 of LARR: a language model goes on learning from the texts and clicks of a workspace's history.

    It reads POIs as documents with a special token before each attribute, writes their descriptions from name and
    location, reads what users clicked, and plain English so that it forgets nothing. An interrupted run goes on where
    it stood; a finished one is not run again. The model, its losses and samples are in WORKSPACE/language/pretrain;
    any verb that takes a language model takes its folder `model`. With `--test` it goes to pretrain-held-out/model,
    which `scenerank probe` looks at and nothing else should use.

    On several processes or machines: torchrun --nproc-per-node 2 -m serving.cli pretrain ...
    """
    from serving import screen, stages_language
    from trainers.language.pretrain import folder

    with explained():
        options = stages_language.PretrainOptions(
            model=language_model,
            steps=steps,
            documents=documents,
            full=full,
            general=general,
            general_text=general_text,
            hold_out=hold_out,
            test=test,
            sharding=sharding,
            seed=seed,
        )
        target = workspace_of(workspace)
        with screen.one_of_many(), screen.stage(f"pretrain {language_model}") as report:
            done = stages_language.pretrain(target, options, report)
        with screen.one_of_many():
            screen.console.print(screen.perplexity_table(done))
            screen.console.print(str(folder(target, tested=test) / "model"))


def contrast(
    language_model: LanguageModelOption = "smollm2",
    steps: Annotated[
        int | None, typer.Option(help="Of training; so many take 13 minutes on two cores.", show_default="80")
    ] = None,
    pairs: PairsOption = None,
    weight: WeightOption = None,
    exposed: ExposedOption = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the cosines.", show_default="0.1")] = None,
    pooling: Annotated[str, typer.Option(help="last or mean token, or a special token that is trained.")] = "last",
    user_side: Annotated[
        str, typer.Option(help="aspects: profile and scene values read one by one; profile; whole: in one text.")
    ] = "aspects",
    users: Annotated[
        str, typer.Option(help="user_user pairs: companions at one place, or halves of one history.")
    ] = "companions",
    bucket: BucketOption = None,
    reading: Annotated[
        str, typer.Option(help="What asymmetric scoring means: projectors of each side's own, or directions: one.")
    ] = "projectors",
    width: Annotated[int | None, typer.Option(help="Of the projections that are compared.", show_default="128")] = None,
    project: Annotated[
        bool, typer.Option("--project", help="The model's vectors are the projections, not the states behind them.")
    ] = False,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Adapted ones, from the last down; the rest is frozen.", show_default="8")
    ] = None,
    cached_gradients: Annotated[
        bool, typer.Option("--cached-gradients", help="Large steps in little memory, a third slower.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Hold places, categories and scene values out, for `probe`.")
    ] = False,
    sharding: Annotated[str, typer.Option(help="Of several processes: ddp (whole model each) or fsdp.")] = "ddp",
    seed: Annotated[int, typer.Option(help="Of what is held out, drawn and initialised.")] = 0,
    workspace: WorkspaceOption = None,
) -> None:
    """Stage 2 of LARR: a language model becomes a text embedder, by contrast.

    From the clicks of the history part alone come three kinds of pairs: user_user, poi_poi and user_poi, a user in a
    moment with the place that was clicked in it. The user's side is the sum of its texts, so that later every scene
    value can be looked up by itself. What else a step drew, and what was shown and left, is pushed away.

    An interrupted run goes on where it stood; a finished one is not run again. The model is in
    WORKSPACE/language/contrast/model: `scenerank embed --language-model` that folder. It starts from `smollm2`, or from
    stage 1: `--language-model WORKSPACE/language/pretrain/model`. With `--test` it goes to contrast-held-out/model,
    which `scenerank probe` looks at and nothing else should use.

    On several processes or machines, with the pairs of a step for each of them, all of which are negatives:
    torchrun --nproc-per-node 2 -m serving.cli contrast ...
    """
    from serving import screen, stages_language

    with explained():
        options = stages_language.ContrastOptions(
            model=language_model,
            steps=steps,
            pairs={name: int(value) for name, value in _numbers(pairs).items()},
            weights=_numbers(weight),
            exposed=exposed,
            temperature=temperature,
            pooling=pooling,
            user_side=user_side,
            users=users,
            bucket=tuple(bucket or ["daypart"]),
            reading=reading,
            width=width,
            project=project,
            layers=layers,
            cached_gradients=cached_gradients,
            test=test,
            sharding=sharding,
            seed=seed,
        )
        target = workspace_of(workspace)
        with screen.one_of_many(), screen.stage(f"contrast {language_model}") as report:
            done = stages_language.contrast(target, options, report)
        with screen.one_of_many():
            screen.console.print(screen.contrast_table(done))
            screen.console.print(done.model)


def probe(
    language_model: LanguageModelOption = "smollm2",
    moments: Annotated[int, typer.Option(help="Clicks of held-out places that are asked for.")] = 1000,
    workspace: WorkspaceOption = None,
) -> None:
    """Test embedders on places that they were never tuned on; `--test` of `pretrain` and `contrast` makes such models.

    Compared are the untuned model (last token, mean, one-word prompt), what `pretrain --test` and `contrast --test`
    left in this workspace, and a small sentence encoder. In the table, from 0 to 1:

    - **moment @k**: user and moment of a click find the place that was clicked among all held-out ones;
    - **chosen over shown**: that place scores above one that was shown beside it and left;
    - **half text @1**: one half of a place's text finds the other half;
    - **category**: the name of a category finds its places (R-precision);
    - **purity @4**: the nearest places are of the same category, for categories seen in tuning and for unseen ones.

    Answers are kept: a run that was interrupted goes on. All of it is in WORKSPACE/language/probe.
    """
    from serving import screen, stages_language

    with explained():
        target = workspace_of(workspace)
        with screen.stage("probe embedders") as report:
            done = stages_language.probe(target, language_model, moments, report)
        screen.console.print(screen.probe_table(done))
        screen.console.print(str(target.language / "probe" / "probe.md"))


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
    beside: BesideOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Texts of POIs, users, scenarios and scene values -> vectors; texts embedded before are not again.

    A folder that was tuned is read as it was tuned, and its vectors are available from its cut-off on. Where the model
    runs does not change its vectors. An endpoint's bearer token is read from SCENERANK_ENDPOINT_TOKEN.

    Another model makes another version. Servers of bundles that were trained on the version in use go on with it where
    it was put beside the new one before: `--beside` with the old model, `scenerank apply`, `scenerank materialize`.
    """
    from serving import screen, stages_language

    with explained(), screen.stage("embed texts") as report:
        options = stages_language.EmbedOptions(
            model=language_model,
            unit_length=unit_length,
            beside=beside,
            endpoint=endpoint,
            endpoint_model=endpoint_model,
            ray=ray,
            ray_gpus=ray_gpus,
            ray_address=ray_address,
        )
        stages_language.embed(workspace_of(workspace), options, report)


def knowledge(
    action: Annotated[
        str | None,
        typer.Argument(
            help="Ask nothing. `status`: show coverage, versions and ages; `drop`: serve a version no more."
        ),
    ] = None,
    version: Annotated[str | None, typer.Argument(help="Of `drop`: one that stands beside those in use.")] = None,
    language_model: LanguageModelOption = "smollm2",
    pooling: Annotated[
        str, typer.Option(help="last token of the prompt, generated-last, generated-mean, or poi-mean (no prompt).")
    ] = "last",
    scenario_prompt: Annotated[str, typer.Option(help="contrast, brief, facts or tell, or a file.")] = "contrast",
    user_prompt: Annotated[str, typer.Option(help="interests, history, sentences or tell, or a file.")] = "interests",
    every: Annotated[int, typer.Option(help="Days between snapshots.")] = 7,
    liked: Annotated[int, typer.Option(help="Newest places of a user that were clicked.")] = 8,
    left: Annotated[int, typer.Option(help="Newest places of a user that were shown and left.")] = 4,
    platform: Annotated[str | None, typer.Option(help="What service this is: 'A city guide for ...'.")] = None,
    words: Annotated[
        Path | None, typer.Option(help="File of words that may describe people and parts [knowledge/words.txt].")
    ] = None,
    tokens: Annotated[int, typer.Option(help="At most, of what the model writes.")] = 32,
    tell: Annotated[bool, typer.Option("--tell", help="Also let the model write freely, for people to read.")] = False,
    max_length: Annotated[int, typer.Option(help="Tokens of a prompt; nothing of it is ever cut.")] = 1024,
    beside: BesideOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Step 1 of LLM4MSR: ask a frozen language model about every scenario and every user, once a week of the log.

    A prompt tells what is known at that time and nothing later: of a scenario its description, its statistics and how
    it differs from the others; of a user what was clicked, and shown and left, in each scenario. Its vector is a
    feature from then on. Prompts are files with named slots (trainers/language/prompts): copy one, edit it, and name
    its path. What the model was told before is never put to it again; an interrupted run goes on.

    Beside each vector stands what a person can be shown: words that the model finds apt, and the facts of the prompt.
    Then: `scenerank apply`, and the service `llm4msr` is there.
    """
    from serving import screen, stages_language

    if action is not None:
        _without_asking(action, version, workspace)
        return
    with explained():
        options = stages_language.KnowledgeOptions(
            model=language_model,
            pooling=pooling,
            scenario_prompt=scenario_prompt,
            user_prompt=user_prompt,
            every=every,
            liked=liked,
            left=left,
            platform=platform,
            words=words,
            tokens=tokens,
            tell=tell,
            max_length=max_length,
            beside=beside,
        )
        target = workspace_of(workspace)
        with screen.stage(f"ask {language_model} about scenarios and users") as report:
            done = stages_language.knowledge(target, options, report)
        screen.console.print(screen.knowledge_table(done))
        screen.console.print(screen.examples_table(done))
        if done.tastes is not None:
            screen.console.print(screen.tastes_line(done.tastes), highlight=False)


def _without_asking(action: str, version: str | None, workspace: Path | None) -> None:
    """What `knowledge status` says, as of the end of the log, and what `knowledge drop` does."""
    from feature_repo.datasets.schema import Schema
    from serving import coverage, screen, stages_language

    with explained():
        target = workspace_of(workspace)
        if action == "status" and version is None:
            at = Schema.load(target.schema).split.end
            screen.console.print(screen.coverage_table(list(coverage.measure(target, at)), at))
        elif action == "drop" and version is not None:
            screen.console.print("no longer served:", ", ".join(stages_language.drop(target, version)))
        else:
            told = " ".join(word for word in (action, version) if word)
            raise ValueError(
                f"knowledge {told}: no such action; say `status`, `drop VERSION`, or nothing to ask the model"
            )


def _numbers(settings: list[str] | None) -> dict[str, float]:
    """`name=number` settings. Raises ValueError for anything else."""
    found = {}
    for setting in settings or []:
        name, _, number = setting.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise ValueError(f"{setting!r} is not kind=number, such as user_poi=40") from None
    return found


VERBS = (model, pretrain, contrast, probe, embed, knowledge)
