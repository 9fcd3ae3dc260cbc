"""Charts of `magistral-mlx eval`: scores with their intervals, beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magistral_mlx.cli.plots import figure_of, save_figure

_INK, _HERE, _OTHER = "#30343f", "#e4572e", "#8d99ae"


def draw(facts: dict[str, Any], file: Path) -> None:
    """Draw a run's scores into `file`, whole or not at all. Raises what `save_figure` does."""
    tasks = [task for task in facts["tasks"] if task["pass_at_1"] is not None]
    figure, axes = figure_of((1.6 + 1.6 * max(1, len(tasks)), 4.5))
    for x, task in enumerate(tasks):
        mean, low, high = (100 * task[name] for name in ("pass_at_1", "low", "high"))
        axes.errorbar(
            x, mean, [[mean - low], [high - mean]], fmt="o", color=_HERE, capsize=4,
            label="here" if x == 0 else None,
        )  # fmt: skip
        for model, style in (("Small 1.2", "_"), ("Medium 1.2", "x")):
            if model in task["published"]:
                axes.plot(x, task["published"][model], style, color=_INK, markersize=14)
                axes.annotate(model, (x + 0.1, task["published"][model]), fontsize=8, color=_INK)
    axes.set_xticks(range(len(tasks)), [task["task"] for task in tasks])
    axes.set(ylim=(0, 102), ylabel="pass@1, %", title=facts["settings"]["model"])
    axes.margins(x=0.2)
    save_figure(figure, file)


def draw_comparison(facts: dict[str, Any], file: Path) -> None:
    """Draw how far two runs are apart into `file`. Raises what `save_figure` does."""
    tasks = facts["tasks"]
    figure, axes = figure_of((7, 1.5 + 0.6 * len(tasks)))
    for y, task in enumerate(tasks):
        mean, low, high = (100 * task[name] for name in ("difference", "low", "high"))
        axes.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", color=_HERE, capsize=4)
    axes.axvline(0, color=_OTHER, linewidth=1)
    axes.set_yticks(range(len(tasks)), [task["task"] for task in tasks])
    axes.set(xlabel="B - A, points of pass@1", title=f"A: {facts['first']}\nB: {facts['second']}")
    save_figure(figure, file)
