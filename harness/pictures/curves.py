"""Learning curves: loss and accuracy of each epoch, with the learning rate below.

`run.py` draws them from the history that `harness.training.callbacks.EpochRecorder` keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis.figures import OKABE_ITO
from harness.pictures.style import DPI, QUIET

TRAINING, VALIDATION = (OKABE_ITO[1], "--"), (OKABE_ITO[0], "-")
FEW_EPOCHS = 40  # up to so many, each epoch is marked by a dot


def learning_curves(history: Sequence[Mapping[str, float]], best_epoch: int, monitor: str) -> Figure:
    """Draw loss, accuracy (of multi-label images mAP) and learning rate over the epochs.

    Args:
        history: the metrics of each epoch ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "lr"),
            of at least one epoch. A metric that no epoch has is left out.
        best_epoch: the epoch whose weights are kept (0-based); it is marked.
        monitor: the metric that chose it, for the legend.
    """
    figure = Figure(figsize=(9, 6.2), dpi=DPI)
    grid = figure.add_gridspec(
        2, 2, height_ratios=(3, 1), left=0.08, right=0.98, top=0.94, bottom=0.08, wspace=0.16, hspace=0.28
    )
    loss = figure.add_subplot(grid[0, 0])
    accuracy = figure.add_subplot(grid[0, 1], sharex=loss)
    rate = figure.add_subplot(grid[1, :])
    of_labels = "mAP" if any("val/mAP" in metrics for metrics in history) else "accuracy"
    for axes, metric in ((loss, "loss"), (accuracy, of_labels)):
        for split, name, (color, line) in (
            ("train", "training", TRAINING),
            ("val", "validation", VALIDATION),
        ):
            _draw(axes, history, f"{split}/{metric}", color, line, name)
        axes.set_title(metric, fontsize=11)
    _draw(rate, history, "lr", OKABE_ITO[2], "-", None)
    rate.set_title("learning rate (of the epoch's last step)", fontsize=10)
    rate.set_ylim(bottom=0)
    label = f"epoch {best_epoch}, kept ({monitor})"
    for axes in (loss, accuracy, rate):
        axes.axvline(best_epoch, color=QUIET, linewidth=1, linestyle=":", label=label)
        axes.set_xlim(-0.5, max(len(history) - 0.5, 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(fontsize=8, edgecolor="none", framealpha=0.9)
    rate.set_xlabel("epoch (the first is 0)")
    return figure


def _draw(
    axes: Axes, history: Sequence[Mapping[str, float]], metric: str, color: str, line: str, name: str | None
) -> None:
    points = [(epoch, metrics[metric]) for epoch, metrics in enumerate(history) if metric in metrics]
    if points:
        marker = "o" if len(history) <= FEW_EPOCHS else ""
        axes.plot(*zip(*points, strict=True), line, color=color, marker=marker, markersize=3.5, label=name)
