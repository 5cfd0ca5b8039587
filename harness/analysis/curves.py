"""Draws an evaluation: ROC and precision-recall curves, the reliability diagram, the most confused pairs.

`harness.training.evaluate` records the figures with a run. Each is readable from 2 to 1,000 classes: with
more than seven, the curves show the mean, the spread, and the weakest classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from harness.analysis.calibration import NUM_BINS, ReliabilityBins, answer_bins, reliability_bins
from harness.analysis.evaluation import LONG_NAMES, Evaluation
from harness.analysis.figures import DPI, OKABE_ITO, drawable_names
from harness.analysis.multilabel import MultiLabelEvaluation

MEAN, FIRST, SECOND = OKABE_ITO[7], OKABE_ITO[0], OKABE_ITO[5]
WEAKEST = 5  # classes that are named where not all can be
MOST_PAIRS = 20
GRID = np.linspace(0.0, 1.0, 401)  # of the horizontal axis, where curves of several classes are averaged
Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (is the class, its probability) -> heights over GRID


def roc_figure(evaluation: Evaluation | MultiLabelEvaluation) -> Figure:
    """Draw the one-vs-rest ROC curve of each class, or label."""
    figure, axes = _figure(f"{_title(evaluation)}: one-vs-rest ROC")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    _draw_curves(axes, evaluation, _roc_heights, "auc", "AUC")
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    return figure


def precision_recall_figure(evaluation: Evaluation | MultiLabelEvaluation) -> Figure:
    """Draw the one-vs-rest precision-recall curve of each class, or label."""
    figure, axes = _figure(f"{_title(evaluation)}: one-vs-rest precision and recall")
    _draw_curves(axes, evaluation, _precision_heights, "average_precision", "AP")
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    return figure


def _roc_heights(is_class_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    false_positive, true_positive, _ = roc_curve(is_class_N, scores_N)
    return np.asarray(np.interp(GRID, false_positive, true_positive))


def _precision_heights(is_class_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """Return the precision at each recall of the grid: a staircase, as average precision sums it."""
    precision, recall, _ = precision_recall_curve(is_class_N, scores_N)
    # From 0 to 1, and without the last point, (0, 1), which scikit-learn adds: no image is named there.
    rising, heights = recall[-2::-1], precision[-2::-1]
    first = np.searchsorted(rising, GRID - 1e-12)  # the first recall that reaches the grid's
    return np.asarray(heights[first.clip(max=len(rising) - 1)])


def _draw_curves(
    axes: Axes, evaluation: Evaluation | MultiLabelEvaluation, curve: Curve, area: str, short: str
) -> None:
    predictions = evaluation.predictions
    areas = {k: row[area] for k, row in enumerate(evaluation.per_class) if row[area] is not None}
    if not areas:
        axes.text(0.5, 0.5, "not defined: all images are of one class", ha="center", va="center")
        return
    probabilities_NK = predictions.probabilities
    heights = {k: curve(predictions.has(k), probabilities_NK[:, k]) for k in areas}
    names, font = drawable_names(predictions.class_names)
    font.set_size(8.0)
    shown = list(areas)
    if len(areas) > len(OKABE_ITO) - 1:
        every = np.stack(list(heights.values()))
        low, high = np.quantile(every, (0.1, 0.9), axis=0)
        axes.fill_between(GRID, low, high, color="0.85", linewidth=0, label="middle 80 % of the classes")
        shown = sorted(areas, key=lambda k: areas[k])[:WEAKEST]
    for colour, k in zip(OKABE_ITO, shown, strict=False):
        axes.plot(GRID, heights[k], color=colour, linewidth=1.3, label=f"{names[k]}  {short} {areas[k]:.3f}")
    mean = np.mean(list(areas.values()))
    kinds = "classes" if isinstance(evaluation, Evaluation) else "labels"
    label = f"mean of {len(areas)} {kinds}  {short} {mean:.3f}"
    axes.plot(GRID, np.mean(list(heights.values()), axis=0), color=MEAN, linewidth=2.0, label=label)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    _legend(axes, font, f"all {kinds}" if len(shown) == len(areas) else f"the {WEAKEST} weakest {kinds}")


def _legend(axes: Axes, font: FontProperties, title: str) -> None:
    """Write the legend right of the axes, where it covers no curve."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, 1.0), prop=font, title=title, title_fontsize=8, frameon=False
    )


def reliability_figure(evaluation: Evaluation) -> Figure:
    """Draw accuracy against confidence in bins, before temperature scaling and, if there is a T, after it."""
    predictions = evaluation.predictions
    panels = [("as trained", "ece", np.exp(predictions.log_probabilities))]
    if evaluation.temperature is not None:
        scaled = f"temperature {evaluation.temperature:.2f}"
        if evaluation.split == "val":
            scaled += ", fitted on these images"
        panels.append((scaled, "ece_calibrated", evaluation.calibrated_probabilities))
    figure = Figure(figsize=(1.2 + 4.2 * len(panels), 5.4), dpi=DPI, layout="constrained")
    figure.suptitle(f"{_title(evaluation)}: reliability over {NUM_BINS} bins", fontsize=11)
    grid = figure.subplots(2, len(panels), sharex=True, squeeze=False, height_ratios=(3, 1))
    for column, (name, metric, probabilities_NK) in enumerate(panels):
        bins = reliability_bins(probabilities_NK, predictions.labels)
        _draw_reliability(grid[0, column], grid[1, column], bins)
        grid[0, column].set_title(f"{name}\nECE {evaluation.metrics[metric]:.3f}", fontsize=9)
    grid[0, 0].set_ylabel("share that is right")
    grid[1, 0].set_ylabel("share of images")
    grid[0, 0].legend(fontsize=8, loc="upper left", frameon=False)
    return figure


def answers_reliability_figure(evaluation: MultiLabelEvaluation) -> Figure:
    """Draw the share of yes against the probability of yes, over all multi-label answers, in bins."""
    figure = Figure(figsize=(5.4, 5.4), dpi=DPI, layout="constrained")
    figure.suptitle(f"{_title(evaluation)}: reliability over {NUM_BINS} bins", fontsize=11)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    predictions = evaluation.predictions
    _draw_reliability(above, below, answer_bins(predictions.probabilities, predictions.labels))
    above.set_title(f"all answers, image by label\nECE {evaluation.metrics['ece']:.3f}", fontsize=9)
    above.set_ylabel("share of yes")
    below.set_ylabel("share of answers")
    below.set_xlabel("probability of yes")
    handles = above.get_legend_handles_labels()[0]
    above.legend(
        handles,
        ["at the mean probability", "perfectly calibrated", "share of yes"],
        fontsize=8,
        frameon=False,
    )
    return figure


def _draw_reliability(above: Axes, below: Axes, bins: ReliabilityBins) -> None:
    centres, width = (np.arange(NUM_BINS) + 0.5) / NUM_BINS, 0.9 / NUM_BINS
    filled = bins.counts > 0
    above.bar(centres[filled], bins.accuracy[filled], width, color=FIRST, alpha=0.8, label="accuracy")
    above.plot(
        bins.confidence[filled],
        bins.accuracy[filled],
        "o",
        color=SECOND,
        markersize=4,
        label="at the mean confidence",
    )
    above.plot([0, 1], [0, 1], color="0.4", linewidth=1, linestyle="--", label="perfectly calibrated")
    above.set_ylim(0, 1.02)
    above.set_xlim(0, 1)
    below.bar(centres, bins.counts / max(bins.counts.sum(), 1), width, color="0.5")
    below.set_xlabel("confidence: probability of the predicted class")


def confused_figure(evaluation: Evaluation) -> Figure:
    """Draw the most confused pairs of classes as bars."""
    rows = evaluation.confused[:MOST_PAIRS]
    figure = Figure(figsize=(8.5, 1.3 + 0.27 * max(len(rows), 2)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(
        f"{_title(evaluation)}: most confused pairs ({len(rows)} of {len(evaluation.confused)})", fontsize=11
    )
    if not rows:
        axes.text(0.5, 0.5, "every image is right", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    names, font = drawable_names([name for row in rows for name in (row["true"], row["predicted"])])
    font.set_size(8.0)
    labels = [f"{true}  taken for  {other}" for true, other in zip(names[::2], names[1::2], strict=True)]
    bars = axes.barh(range(len(rows)), [row["images"] for row in rows], color=FIRST)
    shares = [f" {row['images']:,}  ({row['share_of_true']:.0%} of the true class)" for row in rows]
    axes.bar_label(bars, shares, fontsize=8, padding=2)
    axes.set_yticks(range(len(rows)), labels, fontproperties=font)
    axes.set_xlim(0, rows[0]["images"] * 1.45)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("images")
    return figure


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, 5.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _title(evaluation: Evaluation | MultiLabelEvaluation) -> str:
    return f"{LONG_NAMES.get(evaluation.split, evaluation.split)}, {len(evaluation.predictions):,} images"
