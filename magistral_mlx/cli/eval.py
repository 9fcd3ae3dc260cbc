"""`magistral-mlx eval`: benchmarks of answers, beside the published figures."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.options import Options
from magistral_mlx.cli.loading import load_bar, load_options, loading_options, open_model
from magistral_mlx.cli.params import INTEGER, MODEL, SectionedCommand, declared, given, option
from magistral_mlx.cli.plots import check_plot
from magistral_mlx.cli.terminal import say
from magistral_mlx.errors import InvalidOption, OutOfMemory
from magistral_mlx.files import user_path
from magistral_mlx.option_spec import Integer
from magistral_mlx.requirements import check_extra

if TYPE_CHECKING:
    from inspect_ai.model import Model

    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.evaluation.run import Questions
    from magistral_mlx.evaluation.tasks import TaskSpec

_CARD_TOKENS = 131_072  # that an answer may have, by the model card
_ANSWERING = ("max_tokens", "temperature", "top_p", "seed", "thinking")


class _EvalCommand(SectionedCommand):
    """`eval TASK…`; `eval quality A B` is a command of its own."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args[:1] == ["quality"]:
            from magistral_mlx.cli.eval_quality import quality

            return quality.make_context(f"{info_name} quality", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_EvalCommand)
@click.argument("names", metavar="TASK…", nargs=-1)
@option(
    "-m",
    "--model",
    type=MODEL,
    metavar="NAME_OR_DIR",
    help="A model of this machine, mistral/magistral-medium-2509 for Mistral's API, or with --url "
    "the name there.  [default: your 4-bit conversion, else one found]",
)
@option("--url", metavar="URL", help="An OpenAI-compatible server, as http://localhost:1234/v1.")
@option(
    "--api-key-env", metavar="VARIABLE", help="Environment variable that holds the server's key."
)
@option(
    "--samples",
    type=INTEGER(Integer(1)),
    metavar="N",
    help="Questions of each task, drawn at random, the same for every model.  [default: all]",
)
@option(
    "--limit",
    type=INTEGER(Integer(1)),
    metavar="N",
    help="Answers to ask for in this call; the same command goes on later.  [default: all]",
)
@option(
    "--epochs",
    type=INTEGER(Integer(1)),
    default=1,
    metavar="K",
    help="Answers to each question.  [default: 1]",
)
@option(
    "--logs",
    metavar="DIR",
    default="evals",
    help="Folder that keeps the runs, for `inspect view` as well.  [default: evals]",
)
@option(
    "--run-code-here",
    is_flag=True,
    help="Run the model's code on this machine without Docker, unprotected.",
)
@option("--compare", is_flag=True, help="Compare two runs by question: give their folders.")
@option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@option("--plot", metavar="FILE", help="Draw the scores into a .png, .svg or .pdf file.")
@declared(Options, *_ANSWERING, section="Answers", defaults={"seed": "0"})
@loading_options()
def eval(names: tuple[str, ...], **options: Any) -> None:
    """Ask a model the questions of benchmarks, and show its scores beside the published ones.

    TASKS are aime24, aime25, gpqa, livecodebench, livecodebench6, ifeval, mmmu, docvqa, mathvista
    and demo. Ctrl-C keeps what was answered, and the same command goes on. `eval quality A B`
    compares two models on the same text without a benchmark.
    """
    if options["plot"]:
        check_plot(user_path(options["plot"]))
    if options["compare"]:
        _compare(names, options)
        return
    from magistral_mlx.evaluation.tasks import task_specs

    specs = task_specs(names)
    check_extra("eval", "eval", "inspect_ai", "inspect_evals")
    _check(specs, options)
    with ExitStack() as stack:
        model, facts = _open(specs, options, stack)
        chosen = _questions(specs, options, model)
        _run(chosen, model, facts, options)


def _check(specs: list[TaskSpec], options: dict[str, Any]) -> None:
    """Raises InvalidOption for options that do not go together, or Docker that is missing."""
    if _remote(options):
        loading = [f"--{name.replace('_', '-')}" for name in given(options, LoadOptions)]
        loading = [name for name in loading if name != "--parallel"]
        loading += ["--thinking"] * (options["thinking"] is not None)
        if loading:
            raise InvalidOption(
                f"{loading[0]} is for models that this process loads; leave it out for a server."
            )
    elif options["api_key_env"]:
        raise InvalidOption("--api-key-env is the key of a server; give its address with --url.")
    if any(spec.sandbox for spec in specs) and not options["run_code_here"]:
        from magistral_mlx.evaluation.sandbox import check_docker

        check_docker()


def _remote(options: dict[str, Any]) -> bool:
    model = options["model"]
    hosted = model is not None and model.startswith("mistral/") and not user_path(model).exists()
    return options["url"] is not None or hosted


def _key(options: dict[str, Any]) -> str | None:
    variable = options["api_key_env"]
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InvalidOption(f"--api-key-env is {variable}, which is not set. Set it to the key.")
    return key


def _open(
    specs: list[TaskSpec], options: dict[str, Any], stack: ExitStack
) -> tuple[Model, dict[str, Any]]:
    """Open the model, and say with which settings it answers."""
    from magistral_mlx.evaluation.models import hosted_model, local_model, server_model

    if options["url"] is not None:
        model = server_model(options["url"], options["model"], _key(options))
        return model, {"model": model.api.model_name.partition("/")[2], "server": options["url"]}
    if _remote(options):
        model = hosted_model(options["model"], _key(options))
        return model, {"model": options["model"], "server": "Mistral's API"}
    loaded = stack.enter_context(_load(specs, options))
    plan = loaded.plan
    facts = {
        "model": loaded.name,
        "bytes": plan.peak.weights,
        "context": loaded.context,
        "kv": plan.scheme.name,
        **{
            name: str(value)
            for name, value in given(options, LoadOptions).items()
            if name in ("dtype", "adapter", "tokenizer")
        },
    }
    if loaded.context < _CARD_TOKENS:
        say(
            f"answers may have what a context of {loaded.context:,} tokens leaves; the model card "
            f"allows {_CARD_TOKENS:,}."
        )
    return local_model(loaded, loaded.name, facts), facts


def _load(specs: list[TaskSpec], options: dict[str, Any]) -> Magistral:
    """Load the model with the context of the model card, or with the longest that fits."""
    from magistral_mlx.api.models import download_progress
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.library import locate

    with load_bar() as on_progress:
        folder = locate(options["model"], on_progress=download_progress(on_progress))
    name = options["model"]
    needs_images = any(spec.images for spec in specs)
    loading = load_options(options)
    if not needs_images and options["images"] is None:
        loading = replace(loading, images=0)
    if loading.context is not None:
        return open_model(name, loading)
    longest = Checkpoint.open(folder).config.text.max_position_embeddings
    try:
        return open_model(name, replace(loading, context=min(longest, _CARD_TOKENS)))
    except OutOfMemory:
        return open_model(name, loading)


def _questions(specs: list[TaskSpec], options: dict[str, Any], model: Model) -> list[Questions]:
    """Make the tasks, and check that the model can take them.

    Raises:
        EvaluationError: data that cannot be had.
        InvalidOption: a context shorter than a task needs, or images for a model without eyes.
    """
    from magistral_mlx.evaluation.fitting import check_fits
    from magistral_mlx.evaluation.provider import MagistralProvider
    from magistral_mlx.evaluation.run import choose_questions

    chosen = [choose_questions(spec, options["samples"]) for spec in specs]
    if isinstance(model.api, MagistralProvider):
        for questions in chosen:
            check_fits(questions, model.api.model, options["max_tokens"])
    return chosen


def _run(
    chosen: list[Questions], model: Model, facts: dict[str, Any], options: dict[str, Any]
) -> None:
    from inspect_ai.model import GenerateConfig

    from magistral_mlx.cli.eval_progress import progress_of
    from magistral_mlx.cli.process import kept_awake
    from magistral_mlx.evaluation.folders import answered, run_folder
    from magistral_mlx.evaluation.run import Sitting, run

    sampling = _sampling(options)
    folder = run_folder(user_path(options["logs"]), facts | {"sampling": sampling})
    config = GenerateConfig(**sampling, max_connections=options["parallel"])
    total = sum(len(questions.ids) for questions in chosen) * options["epochs"]
    done = answered(folder, chosen, options["epochs"])
    with kept_awake(), progress_of(total, done, options["limit"]) as on_answer:
        complete = run(
            chosen,
            model,
            config,
            folder,
            epochs=options["epochs"],
            at=Sitting(options["limit"], on_answer),
            local_sandbox=options["run_code_here"],
        )
    _report(folder, chosen, facts | {"sampling": sampling}, complete, options)


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    """The sampling of the model card, as far as options do not change it, for Inspect."""
    card = Options()
    changes = given(options, Options)
    sampling: dict[str, Any] = {
        "temperature": changes.get("temperature", card.temperature),
        "top_p": changes.get("top_p", card.top_p),
    }
    if "max_tokens" in changes:
        sampling["max_tokens"] = changes["max_tokens"]
    if not _remote(options):
        sampling["seed"] = options["seed"]
    thinking = changes.get("thinking")
    if thinking == "off":
        sampling["reasoning_effort"] = "none"
    elif isinstance(thinking, int):
        sampling["reasoning_tokens"] = thinking
    return sampling


def _report(
    folder: Path,
    chosen: list[Questions],
    settings: dict[str, Any],
    complete: bool,
    options: dict[str, Any],
) -> None:
    from magistral_mlx.cli import eval_report as report
    from magistral_mlx.evaluation.summary import summarise_run

    wanted = {questions.spec.name for questions in chosen}
    tasks = [facts for facts in summarise_run(folder) if facts["task"] in wanted]
    facts = {"run": str(folder), "complete": complete, "settings": settings, "tasks": tasks}
    if options["plot"]:
        from magistral_mlx.cli.eval_plot import draw

        draw(facts, user_path(options["plot"]))
    click.echo(json.dumps(facts)) if options["as_json"] else report.show(facts)


def _compare(names: tuple[str, ...], options: dict[str, Any]) -> None:
    if len(names) != 2:
        raise InvalidOption(
            "--compare needs two runs: give the folders that `eval` named, as in "
            "--compare evals/A evals/B."
        )
    check_extra("eval --compare", "eval", "inspect_ai")
    from magistral_mlx.cli import eval_report as report
    from magistral_mlx.evaluation.summary import compare_runs

    compared = compare_runs(*(user_path(name) for name in names))
    facts = {"first": names[0], "second": names[1], "tasks": compared}
    if options["plot"]:
        from magistral_mlx.cli.eval_plot import draw_comparison

        draw_comparison(facts, user_path(options["plot"]))
    click.echo(json.dumps(facts)) if options["as_json"] else report.show_comparison(facts)
