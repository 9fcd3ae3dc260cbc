"""`magistral-mlx eval`: benchmarks of answers, beside the published figures."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.api.options import Options
from magistral_mlx.cli.eval_models import check_options, open_asked, sampling_of, say_what_fits
from magistral_mlx.cli.generation import ANSWERING
from magistral_mlx.cli.loading import loading_options
from magistral_mlx.cli.params import FILE, INTEGER, MODEL, SectionedCommand, declared, option
from magistral_mlx.cli.plots import check_plot
from magistral_mlx.errors import EvaluationError, InvalidOption
from magistral_mlx.files import user_path
from magistral_mlx.option_spec import Integer
from magistral_mlx.option_spec import option as declare
from magistral_mlx.requirements import check_extra
from magistral_mlx.runtime.generation_request import SEEDS

if TYPE_CHECKING:
    from inspect_ai.model import Model

    from magistral_mlx.evaluation.run import Questions

_ANSWERING = ("max_tokens", "temperature", "top_p", "seed", "thinking")
_SEED = declare(
    None,
    Integer(0, SEEDS - 1),
    "Seed of the first epoch's sampling; each epoch has the next one.",
    unset="0; none for a server",
)


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
@click.argument("names", metavar="TASK…", nargs=-1, type=FILE)
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
    type=FILE,
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
@option("--plot", type=FILE, metavar="FILE", help="Draw the scores into a .png, .svg or .pdf file.")
@declared(Options, *_ANSWERING, section="Answers", own=ANSWERING | {"seed": _SEED})
@option(
    "-c",
    "--context",
    type=INTEGER(Integer(1)),
    metavar="N",
    section="Loading",
    help="Tokens that prompt and answer may have together.  [default: 131,072, as far as the model "
    "and memory allow]",
)
@loading_options(without=("context",))
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
    check_options(specs, options)
    from magistral_mlx.evaluation.run import choose_questions

    chosen = [choose_questions(spec, options["samples"]) for spec in specs]
    with ExitStack() as stack:
        model, facts = open_asked(specs, options, stack)
        _check_fits(chosen, model, options)
        say_what_fits(facts)
        _run(chosen, model, facts, options)


def _check_fits(chosen: list[Questions], model: Model, options: dict[str, Any]) -> None:
    """Raises InvalidOption for a context shorter than a task needs, or images that none sees."""
    from magistral_mlx.evaluation.fitting import check_fits
    from magistral_mlx.evaluation.provider import MagistralProvider

    if isinstance(model.api, MagistralProvider):
        for questions in chosen:
            check_fits(questions, model.api.model, options["max_tokens"])


def _run(
    chosen: list[Questions], model: Model, facts: dict[str, Any], options: dict[str, Any]
) -> None:
    from inspect_ai.model import GenerateConfig

    from magistral_mlx.cli.eval_progress import progress_of
    from magistral_mlx.cli.process import kept_awake
    from magistral_mlx.evaluation.folders import answered, run_folder
    from magistral_mlx.evaluation.run import AnswerLimit, run

    sampling = sampling_of(options)
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
            answers=AnswerLimit(options["limit"], on_answer),
            local_sandbox=options["run_code_here"],
        )
    _report(folder, chosen, facts | {"sampling": sampling}, complete, options)


def _report(
    folder: Path,
    chosen: list[Questions],
    settings: dict[str, Any],
    complete: bool,
    options: dict[str, Any],
) -> None:
    from magistral_mlx.cli import eval_report as report
    from magistral_mlx.evaluation.summary import summarise_run

    found = {facts["task"]: facts for facts in summarise_run(folder)}
    tasks = [found[each.spec.name] for each in chosen if each.spec.name in found]
    failed = [facts for facts in tasks if facts["failed"]]
    if failed and not any(facts["answers"] for facts in tasks):
        raise EvaluationError(
            f"every answer failed: {failed[0]['failure'].rstrip('.')}. The same command asks again."
        )
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
