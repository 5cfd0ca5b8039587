"""What a comparison's page shows of the images: sentences, accuracy by class, images that set models apart.

`compare.py` chooses the two sides, each a model or the seeds of a configuration; `table.py` puts
`image_sections` into `compare.html`. The images that one side gets right and the other wrong are the
discordant pairs that McNemar's test counts, see `paired.py`.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from harness.analysis.charts import MOST_CLASSES, classes_chart
from harness.analysis.layout import percent, span
from harness.analysis.page import MOST_ROWS, Part, Picture
from harness.analysis.paired import ImagesReport
from harness.analysis.predictions import Predictions
from harness.errors import HarnessError, first_line

MOST_SHOWN = 24  # images in each direction
SIDE_PX = 112  # of a shown image, as in `page.html.jinja`

Gather = Callable[[np.ndarray], np.ndarray]  # places in the split -> uint8 images (B, H, W, 3)


@dataclass(frozen=True)
class Side:
    """A model, or the models that one configuration gave with several seeds, and what they answered."""

    name: str
    runs: tuple[Predictions, ...]

    @property
    def who(self) -> str:
        """The side as the subject of a sentence."""
        return self.name if len(self.runs) == 1 else f"each of {len(self.runs)} seeds of {self.name}"

    @property
    def num_right(self) -> np.ndarray:
        """How many of the runs are right on each image: int64 (N,)."""
        return np.sum([run.correct for run in self.runs], axis=0)

    @property
    def true_probability(self) -> np.ndarray:
        """The probability of each image's true class, mean over the runs: float64 (N,)."""
        return np.asarray(np.mean([np.exp(-run.loss.astype(np.float64)) for run in self.runs], axis=0))

    def class_accuracies(self) -> np.ndarray:
        """Return the mean accuracy in each class: float64 (K,), NaN for a class without images."""
        return np.asarray(np.mean([run.class_accuracies for run in self.runs], axis=0))

    def answer(self, place: int) -> str:
        """Return what is answered to an image: with its probability, or how often by how many runs."""
        answers = Counter(run.class_names[run.predicted[place]] for run in self.runs)
        if len(self.runs) == 1:
            return f"{percent(float(softmax(self.runs[0].logits[place]).max()))} {answers.popitem()[0]}"
        return ", ".join(f"{number}/{len(self.runs)} {name}" for name, number in answers.most_common())


@dataclass(frozen=True)
class Discordant:
    """Two sides that answered the same images, and where these can be seen.

    Args:
        gather: raises a HarnessError where the images are not at hand.
    """

    first: Side
    second: Side
    gather: Gather

    @property
    def is_of_configurations(self) -> bool:
        """Whether one of the sides is a configuration with several seeds."""
        return len(self.first.runs) > 1 or len(self.second.runs) > 1

    def sections(self) -> list[Part]:
        """Return a section for each direction; where the images are gone, one that says so."""
        try:
            return [self._section(self.first, self.second), self._section(self.second, self.first)]
        except (HarnessError, OSError) as error:
            title = f"Images on which {self.first.name} and {self.second.name} differ"
            return [Part(title, [f"The images cannot be shown: {first_line(error)}"])]

    def _section(self, right: Side, wrong: Side) -> Part:
        some = right.runs[0]
        found = discordant_images(right, wrong)
        title = f"Images that {right.who} gets right and {wrong.who} wrong"
        if not len(found):
            return Part(title, [f"There is none among the {len(some):,} images."])
        chosen = found[:MOST_SHOWN]
        shown = f"{len(found):,} of {len(some):,} images."
        if len(chosen) < len(found):
            shown += f" {MOST_SHOWN} are shown, {len(found) - MOST_SHOWN:,} left out."
        note = f"{shown} They are sorted by how much the probability of the true class differs."
        pictures = [
            Picture(
                image_source(image),
                f"image {some.index[place]}",
                (
                    ("true", some.class_names[some.labels[place]]),
                    ("right", f"✓ {right.answer(place)}"),
                    ("wrong", f"✗ {wrong.answer(place)}"),
                ),
            )
            for place, image in zip(chosen.tolist(), self.gather(chosen), strict=True)
        ]
        return Part(title, [note], pictures=pictures)


def image_sections(images: ImagesReport, discordant: Discordant | None) -> list[Part]:
    """Return the sections of a page on models that answered the same images."""
    head, *apart = images.apart()
    more = f"the first {MOST_ROWS} of {len(apart):,}; images.csv has all"
    return [
        Part(
            images.title,
            [*images.of_the_best(), images.meaning],
            note=images.left_out("compare.md"),
        ),
        _by_class(images, discordant),
        *([] if discordant is None else discordant.sections()),
        Part(
            "Images that some of the models get right and others wrong",
            head=head,
            rows=apart[:MOST_ROWS],
            note=more if len(apart) > MOST_ROWS else "",
        ),
    ]


def _by_class(images: ImagesReport, discordant: Discordant | None) -> Part:
    """Return the accuracy in each class: of the two sides if these are configurations, else of all models."""
    accuracies = {name: one.class_accuracies for name, one in images.predictions.items()}
    seeds = ""
    if discordant is not None and discordant.is_of_configurations:
        accuracies = {side.name: side.class_accuracies() for side in (discordant.first, discordant.second)}
        seeds = "Means over seeds. "
    first, second = list(accuracies)[:2]
    some = next(iter(images.predictions.values()))
    sizes = np.bincount(some.labels, minlength=len(some.class_names))
    left_out = np.count_nonzero(sizes) - MOST_CLASSES
    in_each = span(sizes[sizes > 0].tolist(), ",")
    classes = (
        f"The {MOST_CLASSES} classes that differ most; {left_out:,} others are left out, compare.md has "
    )
    notes = [
        f"{seeds}{classes + 'all. ' if left_out > 0 else ''}At the top, {first} leads {second} most. A class "
        f"has {in_each} images, and no single class is tested: a few images make a wide gap in a small one."
    ]
    if absent := np.count_nonzero(sizes == 0):
        notes.append(f"{absent:,} classes have none of the images.")
    return Part("Accuracy by class", [" ".join(notes)], figure=classes_chart(some.class_names, accuracies))


def discordant_images(right: Side, wrong: Side) -> np.ndarray:
    """Return the places of the images that all of one side's runs get right and all of the other's wrong.

    Returns:
        int64, those first where the probability of the true class differs most.
    """
    found = np.flatnonzero((right.num_right == len(right.runs)) & (wrong.num_right == 0))
    gap = right.true_probability[found] - wrong.true_probability[found]
    return found[np.argsort(-gap, kind="stable")]


def image_source(image_HWC: np.ndarray) -> str:
    """Return an image as an address that holds it; one larger than it is shown is reduced."""
    from PIL import Image

    image = Image.fromarray(image_HWC)
    image.thumbnail((2 * SIDE_PX, 2 * SIDE_PX), Image.Resampling.LANCZOS)  # twice: for screens of fine pixels
    file = io.BytesIO()
    image.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
