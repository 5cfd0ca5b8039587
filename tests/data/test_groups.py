"""`data.group_by`: whole groups on one side of every split, as stratified as groups allow."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from sklearn.model_selection import StratifiedGroupKFold

from harness.config.schema import FolderData
from harness.data import load_splits
from harness.data.decoded_cache import Part
from harness.data.groups import joined_groups, set_aside_groups
from harness.data.held_out import count_known, load_test
from harness.data.load import load_decoded
from harness.data.summary import summarise
from harness.errors import DataError
from tests.data.test_folder import config_of

Write = Callable[[dict[str, int]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes ``name of files → how many`` below a root; each image is another one."""

    def files(counts: dict[str, int]) -> Path:
        root, rng = tmp_path / "tree", np.random.default_rng(0)
        for stem, count in counts.items():
            for number in range(count):
                path = root / f"{stem}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        return root

    return files


def sides(config: FolderData) -> dict[str, set[str]]:
    """Return the names of the files in each split."""
    splits = load_splits(config)
    parts = {"train": splits.train, "val": splits.val, "test": load_test(config)}
    rows_of = {name: arrays.side for name, arrays in parts.items()}
    return {name: {part.names[row] for row in rows} for name, (part, rows) in rows_of.items()}


def patients(names: set[str]) -> set[str]:
    return {name.split("/")[-1].split("_")[0] for name in names}


PATIENTS = {f"{kind}/p{number}_": 3 + number % 4 for kind in ("ill", "well") for number in range(12)}


def test_a_patient_is_on_one_side_of_every_split(write: Write) -> None:
    """Patients p0 … p11 have images in both classes."""
    config = config_of(write(PATIENTS), group_by=r"(p\d+)_", val_fraction=0.2, test_fraction=0.25)
    split = sides(config)
    assert sum(map(len, split.values())) == sum(PATIENTS.values())
    of = {name: patients(files) for name, files in split.items()}
    assert not of["train"] & of["val"]
    assert not of["train"] & of["test"]
    assert not of["val"] & of["test"]
    assert all(of.values())

    ungrouped = sides(config.model_copy(update={"group_by": None}))
    assert patients(ungrouped["train"]) & patients(ungrouped["val"])  # so the test can fail


def test_the_same_seed_gives_the_same_split_another_one_another(write: Write) -> None:
    config = config_of(write(PATIENTS), group_by=r"(p\d+)_", val_fraction=0.2)
    digests = [load_splits(config.model_copy(update={"split_seed": seed})).digest for seed in (0, 0, 1, 2, 3)]
    assert digests[0] == digests[1]
    assert len(set(digests)) > 2
    tests = [
        load_test(config.model_copy(update={"split_seed": seed, "val_fraction": 0.1 + seed / 10}))
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(tests[0].indices, tests[1].indices)
    assert load_splits(config.model_copy(update={"group_by": None})).digest not in digests


def test_the_folder_below_the_class_is_a_group_whatever_lies_deeper(write: Write) -> None:
    counts = {f"zip/{kind}/clip{n}/{take}/": 2 for kind in "ab" for n in range(6) for take in ("x", "y")}
    split = sides(config_of(write(counts), group_by="folder", val_fraction=0.2))
    clips = [{name.split("/")[2] for name in files} for files in split.values()]
    assert sum(map(len, clips)) == 6
    assert all(clips)


def test_groups_that_share_a_copy_of_an_image_keep_together(write: Write, tmp_path: Path) -> None:
    root = write(PATIENTS)
    shutil.copy(root / "ill/p0_0.png", root / "ill/p1_copy.png")
    shutil.copy(root / "well/p1_0.png", root / "well/p2_copy.png")
    for seed in range(6):
        split = sides(config_of(root, group_by=r"(p\d+)_", val_fraction=0.2, split_seed=seed))
        holders = [name for name, files in split.items() if patients(files) & {"p0", "p1", "p2"}]
        assert len(holders) == 1
    text = str(summarise(config_of(root, group_by=r"(p\d+)_"), tmp_path / "out"))
    assert "groups     12 groups (" in text
    assert "; 3 of them are joined by copies of an image" in text


def test_images_in_no_group_are_told_and_are_groups_of_their_own(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(PATIENTS | {"ill/other": 2})
    config = config_of(root, group_by=r"(p\d+)_")
    with caplog.at_level(logging.WARNING):
        load_splits(config)
    told = [record.message for record in caplog.records if "in no group" in record.message]
    assert len(told) == 1
    assert "2 images are in no group by data.group_by='(p\\\\d+)_', each a group of its own" in told[0]
    assert "ill/other0.png" in told[0]
    summary = summarise(config, tmp_path / "out")
    assert summary.groups is not None
    assert (summary.groups.num_groups, summary.groups.num_alone, summary.groups.largest) == (14, 2, 12)
    assert "2 images in none" in str(summary)
    assert summarise(config_of(root), tmp_path / "out").groups is None


def test_a_group_in_two_given_splits_is_told(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    counts = {f"{part}/{kind}/p{n}_": 2 for part in ("train", "test") for kind in "ab" for n in range(3)}
    with caplog.at_level(logging.WARNING):
        load_splits(config_of(write(counts), group_by=r"(p\d+)_", val_fraction=0.3))
    assert "3 groups lie in both train and test" in caplog.text


@pytest.mark.parametrize(
    ("counts", "pattern", "message"),
    [
        (
            {"a/p1_": 9, "b/p1_": 9, "b/p2_": 9, "b/p3_": 9},
            r"(p\d)",
            "class 'a' without test images: its 9 im",
        ),
        (
            {"a/p1_": 9, "a/p2_": 9, "b/p3_": 9, "b/p4_": 9, "b/p5_": 9},
            r"(p\d)",
            "2 groups .p1, p2., and train",
        ),
        ({"a/p1_": 9, "b/p1_": 9}, r"(p\d)", "puts all 18 images into one group, 'p1'"),
        ({"a/p1_": 9, "b/p1_": 9}, r"(q\d)", "matches no image's path, such as a/p1_0.png"),
        ({"a/p1_": 9, "b/p1_": 9}, "folder", "no image lies in a folder below its class"),
    ],
)
def test_groups_that_cannot_be_split_are_refused_in_a_line(
    write: Write, counts: dict[str, int], pattern: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_splits(config_of(write(counts), group_by=pattern))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("p\\d+", "has 0 groups"), ("(p)(q)", "has 2 groups"), ("(p", "no regular expression")],
)
def test_a_pattern_needs_one_group(pattern: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FolderData(group_by=pattern)


# ── the rule itself ───────────────────────────────────────────────────────────────────────────────


def part_of(labels: np.ndarray, groups: np.ndarray) -> Part:
    """Return a part of different images, of which only labels and groups matter."""
    hashes = np.zeros((len(labels), 32), dtype=np.uint8)
    hashes[:, :4] = np.arange(1, len(labels) + 1, dtype="<u4").view(np.uint8).reshape(-1, 4)
    empty = np.empty((len(labels), 0))
    names = tuple(f"{row}.png" for row in range(len(labels)))
    return Part(empty, labels, hashes, empty, empty, names, tuple(f"g{group}" for group in groups))


@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from([0.1, 0.2, 0.3]))
def test_whole_groups_of_every_class_are_picked_and_left(
    seed: int, num_classes: int, fraction: float
) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 20 * num_classes, 300)
    labels = (groups % num_classes).astype(np.int64)
    part, rows = part_of(labels, groups), np.arange(300)
    names = tuple(map(str, range(num_classes)))
    picked = set_aside_groups(part, rows, fraction, seed, names, ("training", "validation"))
    left = np.setdiff1d(rows, picked)
    assert not set(groups[picked]) & set(groups[left])
    assert set(labels[picked]) == set(labels[left]) == set(range(num_classes))
    largest = np.bincount(groups).max()
    share = np.bincount(labels[picked], minlength=num_classes)
    assert (np.abs(share - fraction * np.bincount(labels)) <= largest).all()


def test_the_shares_are_no_further_off_than_scikit_learns() -> None:
    """On average, over data sets of 40 groups whose images are of several classes."""
    ours, theirs = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, 40, 600)
        labels = ((groups + (rng.random(600) < 0.3)) % 4).astype(np.int64)
        wanted = 0.2 * np.bincount(labels)
        picked = set_aside_groups(
            part_of(labels, groups), np.arange(600), 0.2, seed, tuple("abcd"), ("training", "validation")
        )
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        _, fold = next(splitter.split(labels, labels, groups))
        for rows, errors in ((picked, ours), (fold, theirs)):
            errors.append(np.abs(np.bincount(labels[rows], minlength=4) - wanted).mean())
    assert np.mean(ours) <= 1.1 * np.mean(theirs)


def test_joining_is_transitive() -> None:
    part = part_of(np.zeros(6, dtype=np.int64), np.array([0, 0, 1, 1, 2, 3]))
    part.hashes[2] = part.hashes[1]  # joins groups 0 and 1
    part.hashes[4] = part.hashes[3]  # joins groups 1 and 2
    assert len(set(joined_groups(part, np.arange(6)).tolist())) == 2


def test_splits_that_train_on_a_validation_folder_are_described_and_known(
    write: Write, tmp_path: Path
) -> None:
    sizes = {"train": 6, "val": 3, "test": 2}
    root = write({f"{side}/{kind}/{side}": size for side, size in sizes.items() for kind in "ab"})
    config = config_of(root, group_by="(train|val|test)[0-9]", train_on_val=True)
    summary = summarise(config, tmp_path / "pictures")
    assert summary.groups is not None
    assert summary.groups.by_split == {"train": 2, "val": 0, "test": 1}
    assert summary.groups.num_joined == 0
    validation = load_decoded(config).parts["val"].hashes
    assert count_known(config, validation) == {"training": 6, "validation": 0, "test": 0}
