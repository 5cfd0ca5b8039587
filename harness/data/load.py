"""Loads the splits that the section `data` of a configuration describes, from any of the sources.

Training and search call `load_splits`. Only `held_out.py` loads the test split.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from harness.config.schema import AutoData, Cifar10Data, DataConfig, DigitsData, FolderData
from harness.data.decoded_cache import DecodedSet
from harness.data.duplicates import alike_in_validation, describe_duplicates
from harness.data.messages import warn_once
from harness.data.splits import ImageArrays, ImageSplits, build_splits
from harness.errors import DataError, DownloadError

OFFLINE_VARIABLE = "HARNESS_OFFLINE"
FALLBACK_NOTICE = """
────────────────────────────────────────────────────────────────────────────
  NOT CIFAR-10: training on scikit-learn's handwritten digits instead.
  %s
  (data=auto falls back to the digits; data=cifar10 never does.)
────────────────────────────────────────────────────────────────────────────"""
NamedData = Cifar10Data | DigitsData | FolderData
log = logging.getLogger(__name__)
_seen: set[str] = set()  # digests of the splits that were searched for duplicates
_found: dict[tuple[str, str], str] = {}  # kind that `auto` stands for, by data.dir and data.cache_dir


def load_splits(config: DataConfig) -> ImageSplits:
    """Load the training and validation splits of a run.

    Raises:
        DataError: If the images are missing, damaged or too few.
        DownloadError: If CIFAR-10 is neither on disk nor reachable.
        ConfigError: If a batch would be larger than the training split.
    """
    named = resolve_auto(config)
    is_fallback = config.kind == "auto" and named.kind == "digits"
    decoded = load_decoded(named)
    splits = build_splits(decoded, named, held_out_fraction(named), is_fallback)
    if splits.digest not in _seen:  # comparing takes time
        _seen.add(splits.digest)
        lines = [*describe_duplicates(decoded), *_look_alikes(splits, Path(named.cache_dir))]
        warn_once([f"{splits.name}: {line}" for line in lines], of=splits.digest)
    return splits


def find_validation(config: DataConfig, digest: str) -> ImageArrays:
    """Return the validation images of a recorded run, to be looked at; nothing is downloaded.

    Args:
        config: the run's section `data`.
        digest: of the images (`ImageArrays.digest`).

    Raises:
        DataError: the images are not at hand, or they are others now.
    """
    if not isinstance(config, DigitsData | FolderData):
        config = config.model_copy(update={"download": False})
    named = resolve_auto(config)
    found = build_splits(load_decoded(named), named, held_out_fraction(named), is_fallback=False).val
    if found.digest != digest:
        raise DataError(f"the validation images of {named.kind} in {named.dir} are not those of the runs")
    return found


def _look_alikes(splits: ImageSplits, cache_dir: Path) -> list[str]:
    if not len(splits.val):
        return []
    return alike_in_validation(splits.val.side, splits.train.side, cache_dir, splits.row_digest)


def as_loaded(config: DataConfig, splits: ImageSplits) -> NamedData:
    """Return the data section with `auto` resolved and the measured `pixel_range` filled in.

    A run that is resumed with it gets the same splits, because nothing is looked for or measured again.
    """
    named = resolve_auto(config)
    if isinstance(named, FolderData):
        return named.model_copy(update={"pixel_range": dict(splits.pixel_range)})
    return named


def resolve_auto(config: DataConfig) -> NamedData:
    """Return the data set that `auto` stands for on this machine; any other section is returned as it is.

    `auto` is CIFAR-10, or the digits if that is neither on disk nor can be downloaded. A damaged copy of
    CIFAR-10 raises an error.
    """
    if not isinstance(config, AutoData):
        return config
    fields = config.model_dump(exclude={"kind"})
    cifar10 = Cifar10Data(**fields)
    if (config.dir, config.cache_dir) not in _found:  # one attempt and one notice for these folders
        try:
            load_decoded(cifar10)
            remember_auto(config, "cifar10")
        except DownloadError as error:
            log.warning(FALLBACK_NOTICE, error)
            remember_auto(config, "digits")
    if _found[config.dir, config.cache_dir] == "cifar10":
        return cifar10
    return DigitsData(**{key: value for key, value in fields.items() if key != "download"})


def remember_auto(config: DataConfig, kind: str) -> None:
    """Remember the kind of data set that `auto` was resolved to, by this process or by another one.

    So all processes of a sweep, and all ranks of a run, train on the same data set.
    """
    if isinstance(config, AutoData):
        _found[config.dir, config.cache_dir] = kind


def load_decoded(config: NamedData) -> DecodedSet:
    """Open a named data set's decoded images, decoding them first where no process has yet."""
    from harness.data.sources import cifar10, digits, folder

    cache_dir = Path(config.cache_dir)
    match config:
        case Cifar10Data():
            may_download = config.download and not is_offline()
            return cifar10.load(Path(config.dir), cache_dir, may_download)
        case DigitsData():
            return digits.load(cache_dir)
        case FolderData():
            return folder.load(config)


def held_out_fraction(config: NamedData) -> float:
    """Return the fraction of images to hold out for the test if a source has no test images of its own."""
    from harness.data.sources import digits

    match config:
        case FolderData():
            return config.test_fraction
        case DigitsData():
            return digits.TEST_FRACTION
        case Cifar10Data():
            return 0.0


def is_offline() -> bool:
    """Tell whether the environment forbids downloads."""
    return os.environ.get(OFFLINE_VARIABLE, "").lower() not in ("", "0", "false", "no")
