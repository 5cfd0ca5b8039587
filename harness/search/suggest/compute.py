"""Equal compute: how long each trial trains so that all take equally many operations.

A trial's process calls `with_compute`, which sets `data.samples_per_epoch`; the number of epochs stays as it
is. The coordinator decides how many operations a trial may take (`coordinator/compute.py`, from
`sweep.compute_per_trial`), and shows the lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.schema import RunConfig
from harness.data import load_splits
from harness.data.epochs import images_in_pass
from harness.errors import ConfigError


@dataclass(frozen=True)
class TrialLength:
    """How long a trial trains.

    Args:
        samples_per_epoch: Images in an epoch.
        num_images: In all epochs, each as often as it comes.
        passes: The same, as passes over the training images.
        share: Of the compute that a trial may take; below 1 where `sweep.max_passes` ends it earlier.
    """

    samples_per_epoch: int
    num_images: int
    passes: float
    share: float


def trial_length(config: RunConfig, pflop: float, max_passes: float | None) -> TrialLength:
    """Return how long a trial trains that may take so many operations.

    Args:
        pflop: 10^15 operations.
        max_passes: Over the training images; the trial ends there, whatever it may still take. None: as many
            as it has epochs.

    Raises:
        ConfigError: The run has `data.samples_per_epoch` already, or cannot take a batch in each epoch.
        ModelError: The operations of the network cannot be counted.
    """
    # Imported only here: it imports torch and timm, which takes seconds.
    from harness.training.flops import PFLOP, count_image_flops
    from harness.training.image_views import views_to_cache

    if config.data.samples_per_epoch is not None:
        raise ConfigError(
            "sweep.compute_per_trial sets data.samples_per_epoch of every trial: leave out "
            f"data.samples_per_epoch={config.data.samples_per_epoch}, or set sweep.compute_per_trial=null"
        )
    splits, epochs = load_splits(config.data), config.trainer.max_epochs
    flops = count_image_flops(config, len(splits.class_names), views_to_cache(config))
    count, in_a_pass = len(splits.train), images_in_pass(splits.train.labels, config.data.sampling)
    most = (max_passes or epochs) * in_a_pass
    affordable = flops.affordable(pflop * PFLOP, count)
    samples = int(min(affordable, most) / epochs + 1e-6)  # against rounding below a whole number
    if samples < config.data.batch_size:
        least = flops.total(config.data.batch_size * epochs, count) / PFLOP
        what = (
            f"sweep.compute_per_trial={pflop:.3g} PFLOP"
            if affordable < most
            else describe_cap(max_passes, epochs)
        )
        raise ConfigError(
            f"{what} is less than one batch of {config.data.batch_size} images in each of {epochs} epochs "
            f"({least:.3g} PFLOP): raise it, or lower data.batch_size or trainer.max_epochs"
        )
    num_images = samples * epochs
    return TrialLength(
        samples, num_images, num_images / in_a_pass, flops.total(num_images, count) / (pflop * PFLOP)
    )


def describe_cap(max_passes: float | None, epochs: int) -> str:
    """Return in words how many passes a trial of so many epochs may make, and which setting says so."""
    setting = "trainer.max_epochs" if max_passes is None else "sweep.max_passes"
    return f"{max_passes or epochs:g} passes over the training images ({setting})"


def with_compute(config: RunConfig, pflop: float, max_passes: float | None) -> RunConfig:
    """Return the run of a trial with the length that `trial_length` gives it."""
    samples = trial_length(config, pflop, max_passes).samples_per_epoch
    data = config.data.model_copy(update={"samples_per_epoch": samples})
    return config.model_copy(update={"data": data})
