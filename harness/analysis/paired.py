"""What two trained models answer to the same images: exact McNemar test, interval, classes, the images apart.

`compare.py` calls `compare_images` with the recorded predictions of the best runs. McNemar's test is about
two models as they were trained, on images like these; whether their *configurations* differ is asked over
several seeds, in `seeds.py`: a lucky seed is a better model, but no better configuration.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.analysis.layout import markdown_table, wrapped
from harness.analysis.predictions import Predictions
from harness.analysis.seeds import LEVEL, holm, p_texts
from harness.errors import TrackingError

NUM_RESAMPLES = 9_999
NUM_CLASSES_NAMED = 3  # in a sentence; the files hold all


@dataclass(frozen=True)
class PairedModels:
    """Two models on the same images; the one that is right more often is the first."""

    first: str
    second: str
    count: int  # images
    first_alone: np.ndarray  # int64, rows (`Predictions.index`) of the images that only the first gets right
    second_alone: np.ndarray  # int64
    low: float  # of the 95 % interval for the difference of accuracies, by a paired bootstrap over images
    high: float
    p_value: float  # of the exact McNemar test
    corrected: float  # by Holm's method, over all pairs that were compared
    by_class: np.ndarray  # float64 (K,), difference of accuracies; NaN where a class has no image

    @property
    def difference(self) -> float:
        """The first's accuracy less the second's."""
        return (len(self.first_alone) - len(self.second_alone)) / self.count

    @property
    def is_found(self) -> bool:
        """Whether the difference is more than the choice of images explains, after the correction."""
        return self.corrected < 1 - LEVEL


@dataclass(frozen=True)
class ImagesReport:
    """What the predictions of several models on the same images show, the most accurate model first."""

    predictions: Mapping[str, Predictions]
    pairs: tuple[PairedModels, ...]
    note: str = ""  # on which models are compared

    @property
    def class_names(self) -> tuple[str, ...]:
        return next(iter(self.predictions.values())).class_names

    def sentences(self) -> list[tuple[PairedModels, str]]:
        """Return each pair with a sentence about it."""
        return [(pair, describe_models(pair, self.class_names)) for pair in self.pairs]

    def to_text(self, width: int | None = None) -> str:
        """Return how the most accurate model compares with each of the others."""
        lines = [f"{self.title}:", *wrapped([*self.of_the_best(), self.meaning], width)]
        return "\n".join([*lines, *filter(None, [self.left_out("the files")])])

    def of_the_best(self) -> list[str]:
        """Return the sentences about the most accurate model."""
        best = next(iter(self.predictions))
        return [sentence for pair, sentence in self.sentences() if best in (pair.first, pair.second)]

    def left_out(self, where: str) -> str:
        """Return a line on the pairs that `of_the_best` leaves out."""
        hidden = len(self.pairs) - len(self.predictions) + 1
        return f"{hidden} more pairs of models are in {where}" if hidden else ""

    def to_markdown(self) -> str:
        """Return every sentence, and the accuracy of each class as a table."""
        lines = [f"**{self.title}**", "", *(f"- {sentence}" for _, sentence in self.sentences())]
        return "\n".join([*lines, f"- {self.meaning}", "", self._table_of_classes()])

    def to_csv(self) -> str:
        """Return the images that some models get right and others wrong, with what each answers."""
        output = io.StringIO()
        csv.writer(output, lineterminator="\n").writerows(self.apart())
        return output.getvalue()

    def apart(self) -> list[list[str]]:
        """Return the rows of that table, the first of which is its head."""
        rows = [["index", "class", *self.predictions]]
        every = list(self.predictions.values())
        right = np.array([one.correct for one in every])
        names = self.class_names
        for row in np.flatnonzero(right.any(axis=0) & ~right.all(axis=0)):
            answers = [names[one.predicted[row]] for one in every]
            rows.append([str(every[0].index[row]), names[every[0].labels[row]], *answers])
        return rows

    @property
    def title(self) -> str:
        return f"the same {self._count:,} {self._split} images{self.note}"

    @property
    def _count(self) -> int:
        return len(next(iter(self.predictions.values())))

    @property
    def _split(self) -> str:
        split = next(iter(self.predictions.values())).split
        return "validation" if split == "val" else split

    @property
    def meaning(self) -> str:
        chosen = (
            "; the epochs, and a sweep's best trial, were chosen on these images, which favours the leader"
            if self._split == "validation"
            else ""
        )
        return (
            "McNemar's test is about these trained models, not about their configurations: several seeds "
            f"tell those apart{chosen}"
        )

    def _table_of_classes(self) -> str:
        labels = next(iter(self.predictions.values())).labels
        counts = np.bincount(labels, minlength=len(self.class_names))
        accuracies = np.stack([one.class_accuracies for one in self.predictions.values()], axis=1)
        rows = [
            [name, f"{count:,}", *("-" if np.isnan(share) else f"{share:.4f}" for share in shares)]
            for name, count, shares in zip(self.class_names, counts, accuracies, strict=True)
        ]
        return markdown_table(["class", "images", *self.predictions], rows)


def compare_images(predictions: Mapping[str, Predictions], note: str = "") -> ImagesReport | None:
    """Compare every two models on the same images.

    Args:
        predictions: by the model's name, of one split.
        note: on which models these are, for the report's title.

    Returns:
        None for fewer than two models.

    Raises:
        TrackingError: the images are not the same.
    """
    if len(predictions) < 2:
        return None
    check_same_images(predictions)
    accuracies = {name: one.correct.mean() for name, one in predictions.items()}
    best_first = {name: predictions[name] for name in sorted(accuracies, key=lambda n: -accuracies[n])}
    pairs = [_pair(*two, predictions) for two in itertools.combinations(best_first, 2)]
    corrected = holm([pair.p_value for pair in pairs])
    pairs = [replace(pair, corrected=value) for pair, value in zip(pairs, corrected, strict=True)]
    return ImagesReport(best_first, tuple(pairs), note)


def bootstrap_difference(first_alone: int, second_alone: int, count: int) -> tuple[float, float]:
    """Return the percentile interval of a paired bootstrap for the difference of two accuracies.

    Resampling images only redraws how many of them the one, the other or neither model gets right alone, so
    the three counts are drawn from their multinomial distribution, instead of the images one by one.

    Args:
        first_alone: the number of images that only the first gets right.
    """
    shares = np.array([first_alone, count - first_alone - second_alone, second_alone]) / count
    counts = np.random.default_rng(0).multinomial(count, shares, NUM_RESAMPLES)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile((counts[:, 0] - counts[:, 2]) / count, [tail, 100 - tail])
    return float(low), float(high)


def describe_models(pair: PairedModels, class_names: Sequence[str]) -> str:
    """Return a comparison as one sentence."""
    alone, other = len(pair.first_alone), len(pair.second_alone)
    shown = (
        f"right where the other is wrong on {alone:,}, the reverse on {other:,} ({pair.difference:+.2%}, "
        f"95 % interval {pair.low:+.2%} to {pair.high:+.2%}; exact McNemar "
        f"{p_texts(pair.p_value, pair.corrected)})"
    )
    if not alone + other:
        return f"{pair.first} and {pair.second} are right on the same images"
    if not pair.is_found:
        return f"these images do not tell {pair.first} from {pair.second}: {shown}"
    gaps = {name: float(gap) for name, gap in zip(class_names, pair.by_class, strict=True) if gap}
    widest = sorted(gaps, key=lambda name: -abs(np.nan_to_num(gaps[name])))[:NUM_CLASSES_NAMED]
    named = ", ".join(f"class {name} {gaps[name]:+.1%}" for name in widest)
    return f"{pair.first} is a better model than {pair.second}: {shown}; the widest gaps, untested: {named}"


def _pair(first: str, second: str, predictions: Mapping[str, Predictions]) -> PairedModels:
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = predictions[first].correct, predictions[second].correct
    count = len(a)
    both, alone, other = int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum())
    low, high = bootstrap_difference(alone, other, count)
    p_value = float(mcnemar([[both, alone], [other, count - both - alone - other]], exact=True).pvalue)
    return PairedModels(
        first=first,
        second=second,
        count=count,
        first_alone=predictions[first].index[a & ~b],
        second_alone=predictions[first].index[b & ~a],
        low=low,
        high=high,
        p_value=p_value,
        corrected=p_value,
        by_class=predictions[first].class_accuracies - predictions[second].class_accuracies,
    )


def check_same_images(predictions: Mapping[str, Predictions]) -> None:
    """Refuse to pair the answers to different images.

    Raises:
        TrackingError: digests, labels or classes differ.
    """
    (name, first), *others = predictions.items()
    for other_name, other in others:
        if (
            first.digest != other.digest
            or first.class_names != other.class_names
            or not np.array_equal(first.labels, other.labels)
            or not np.array_equal(first.index, other.index)
        ):
            raise TrackingError(
                f"{name} and {other_name} were evaluated on different images, so their answers cannot be "
                "paired: name runs of one data set and one split"
            )
