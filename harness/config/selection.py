"""Which of the training images train a run, with which labels, and how often each class comes in an epoch.

`schema.py` puts these settings into the section `data`; `harness.data.subsets` and `harness.data.epochs`
carry them out. They leave validation and test images as they are. `data.split_seed` decides what is drawn.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.config.base import Section
from harness.config.optim import PositiveInt

# How often the images of each class come: as often as all others; as often as those of the largest class,
# repeated; or as often as those of the smallest, others in each pass.
Sampling = Literal["natural", "over", "under"]


class Folds(Section):
    """Cross-validation: the images that are not for the test are divided into folds, one of which validates.

    Folds take the place of `val_fraction`. `harness cross-validate` trains them all.
    """

    folds: Annotated[int, Field(ge=2)] | None = None  # None: val_fraction sets validation images aside
    fold: Annotated[int, Field(ge=0)] = 0  # the one that validates; the others train

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> Self:
        if self.fold >= (self.folds or 1):
            asked = "there are no folds" if self.folds is None else f"data.folds={self.folds} counts from 0"
            raise ValueError(f"fold={self.fold}: {asked}; set data.folds higher, or data.fold lower")
        return self


class TrainingSelection(Section):
    """A subset of the training images, wrong labels for some of them, and the sampling of an epoch.

    The subsets are taken one after the other: `images_per_class`, `imbalance_factor`, `max_train_samples`.
    """

    images_per_class: PositiveInt | None = None  # a few-shot subset: so many of each class; None = all
    # A long-tailed subset: the first class has so many times as many images as the last, the others lie
    # between on an exponential curve (Cui et al., 2019, https://arxiv.org/abs/1901.05555); 1 = all images.
    imbalance_factor: Annotated[float, Field(ge=1.0)] = 1.0
    label_noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # share of each class that gets a wrong label
    # The wrong label of each class's images, such as {cat: dog, dog: cat}; classes that are missing keep
    # their labels. Empty: any other class, all equally likely.
    label_noise_pairs: dict[str, str] = Field(default_factory=dict)
    sampling: Sampling = "natural"

    @property
    def takes_subset(self) -> bool:
        """Whether a few-shot or a long-tailed subset trains."""
        return self.images_per_class is not None or self.imbalance_factor > 1

    @field_validator("label_noise_pairs")
    @classmethod
    def _pairs_differ(cls, pairs: dict[str, str]) -> dict[str, str]:
        for name, wrong in pairs.items():
            if name == wrong:
                raise ValueError(
                    f"{name!r} would keep its label: pair it with another class, or leave it out"
                )
        return pairs

    @model_validator(mode="after")
    def _pairs_have_a_share(self) -> Self:
        if self.label_noise_pairs and not self.label_noise:
            raise ValueError(
                "label_noise_pairs changes no label while label_noise is 0: set data.label_noise, or leave "
                "the pairs out"
            )
        return self
