"""Charts of traced answers: time and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magistral_mlx.cli.plots import check_plot, figure_of, save_figure
from magistral_mlx.percentiles import known, percentiles
from magistral_mlx.server.traces import TraceFolder

if TYPE_CHECKING:
    from magistral_mlx.evaluation.traces import AnswerTrace, EvaluationTrace

_BINS = 30
_INK, _THINKING, _ANSWER = "#30343f", "#8d99ae", "#e4572e"


def draw(recorded: TraceFolder, file: Path) -> None:
    """Draw four panels into `file`, whole or not at all.

    Raises:
        InvalidOption: a file of another kind.
        MissingExtra: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    check_plot(file)
    figure, ((first, speed), (tokens, share)) = figure_of((11, 7), 2, 2)
    traces = recorded.traces
    _histogram(first, known(t.first_token for t in traces), "Time to first token", "seconds")
    _histogram(speed, [t.decode_speed for t in traces if t.decode_speed], "Decode", "tokens/s")
    _tokens(tokens, recorded)
    shares = [
        t.thinking_tokens / (t.thinking_tokens + t.answer_tokens)
        for t in traces
        if t.thinking_tokens + t.answer_tokens
    ]
    _histogram(share, [100 * each for each in shares], "Thinking", "% of an answer's tokens")
    share.set_xlim(0, 100)
    figure.suptitle(f"{len(traces):,} answers in {recorded.exchanges:,} exchanges")
    save_figure(figure, file)


def draw_evaluation(traces: Sequence[EvaluationTrace], file: Path) -> None:
    """Draw the thinking of right and wrong answers into `file`, whole or not at all.

    Raises what `draw` raises.
    """
    check_plot(file)
    answers = [each for trace in traces for each in trace.answers]
    figure, (lengths, reached) = figure_of((11, 4), 1, 2)
    for axes, title, unit, value in (
        (lengths, "Thinking", "tokens", _thinking_tokens),
        (reached, "Answer first stated", "% of the thinking", _percent_reached),
    ):
        axes.set(title=title, xlabel=unit, ylabel="answers")
        groups = [
            known(value(each) for each in answers if each.answer.right is is_right)
            for is_right in (True, False)
        ]
        axes.hist(groups, bins=_BINS, stacked=True, color=(_THINKING, _ANSWER))
        names = zip(("right", "wrong"), groups, strict=True)
        axes.legend([f"{name} {len(some):,}" for name, some in names], frameon=False)
    figure.suptitle(", ".join(dict.fromkeys(f"{trace.task}, {trace.model}" for trace in traces)))
    save_figure(figure, file)


def _thinking_tokens(trace: AnswerTrace) -> float | None:
    return trace.answer.thinking_tokens


def _percent_reached(trace: AnswerTrace) -> float | None:
    return None if trace.reached is None else 100 * trace.reached


def _histogram(axes: Any, values: list[float], title: str, unit: str) -> None:
    axes.set(title=title, xlabel=unit, ylabel="answers")
    if not values:
        return
    axes.hist(values, bins=_BINS, color=_THINKING)
    for (name, value), style in zip(percentiles(values).items(), ("-", "--", ":"), strict=True):
        axes.axvline(value, color=_INK, linestyle=style, linewidth=1, label=f"{name} {value:.3g}")
    axes.legend(frameon=False)


def _tokens(axes: Any, recorded: TraceFolder) -> None:
    """Tokens of each answer, in order of time."""
    axes.set(title="Tokens", xlabel="answers in order", ylabel="tokens")
    thinking = [trace.thinking_tokens for trace in recorded.traces]
    answer = [trace.answer_tokens for trace in recorded.traces]
    positions = range(len(thinking))
    axes.bar(positions, thinking, width=1.0, color=_THINKING, label="thinking")
    axes.bar(positions, answer, width=1.0, bottom=thinking, color=_ANSWER, label="answer")
    axes.legend(loc="lower right")
