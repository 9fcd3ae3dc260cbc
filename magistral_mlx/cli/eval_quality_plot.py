"""Chart of `magistral-mlx eval quality`: divergence by position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from magistral_mlx.cli.plots import figure_of, save_figure

if TYPE_CHECKING:
    from magistral_mlx.evaluation.quality.measure import ComparedPair

_BINS = 24  # of positions, evenly spaced on a logarithmic axis
_INK = "#30343f"


def draw_quality(against: str, pairs: Sequence[ComparedPair], file: Path) -> None:
    """Draw the mean divergence and the agreement by position into `file`, whole or not at all.

    Raises what `save_figure` does.
    """
    figure, (divergence, agreement) = figure_of((11, 4), 1, 2)
    for pair in pairs:
        # The first figure of a sequence is that of its second token.
        positions = np.concatenate([1 + np.arange(len(f.divergence)) for f in pair.figures])
        edges = np.unique(np.geomspace(1, positions.max() + 1, _BINS + 1).astype(int))
        bins = np.digitize(positions, edges) - 1
        counts = np.bincount(bins, minlength=len(edges) - 1)
        middles = np.sqrt(edges[:-1] * edges[1:])
        for axes, name in ((divergence, "divergence"), (agreement, "agrees")):
            values = np.concatenate([getattr(figures, name) for figures in pair.figures])
            means = np.bincount(bins, values, len(edges) - 1) / np.maximum(counts, 1)
            axes.plot(middles[counts > 0], means[counts > 0], label=pair.model.label)
    divergence.set(title="Mean KL divergence", ylabel="nats", ylim=(0, None))
    agreement.set(title="Same likeliest token", ylim=(None, 1.005))
    for axes in (divergence, agreement):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("position in the sequence", color=_INK)
    divergence.legend(frameon=False, fontsize=8)
    figure.suptitle(f"against {against}")
    save_figure(figure, file)
