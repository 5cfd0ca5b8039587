"""The same image more than once: no score is of images that were trained on, and nothing of it is silent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.config.schema import AugmentConfig, DigitsData, FolderData
from harness.data import ImageSplits, load_splits
from harness.data.decoded_cache import DecodedSet, Description, Part, hash_images, pixel_facts
from harness.data.duplicates import alike_in_validation, describe_duplicates
from harness.data.held_out import load_test
from harness.data.load import load_decoded
from harness.data.splits import ImageArrays, build_splits, build_test
from harness.data.summary import summarise
from harness.errors import DataError

Tree = Callable[..., Path]


def config_of(root: Path, **changes: object) -> FolderData:
    fields = {"dir": str(root), "cache_dir": str(root.parent / "cache"), "decode_size": 16, "batch_size": 1}
    return FolderData.model_validate({**fields, **changes})


def images_in(arrays: ImageArrays) -> set[bytes]:
    return {image.tobytes() for image in arrays.gather(slice(None))}


def test_copies_go_to_one_side_when_the_harness_splits(
    image_tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_tree({"cat": 20, "dog": 20})
    for number in range(20):  # half of them other files of the same pixels
        Image.open(root / "cat" / f"{number}.png").save(root / "cat" / f"again-{number}.bmp")
    config = config_of(root, val_fraction=0.3, test_fraction=0.3)
    splits, test = load_splits(config), load_test(config)
    assert len(splits.train) + len(splits.val) + len(test) == 60
    sides = [images_in(part) for part in (splits.train, splits.val, test)]
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert "20 exact copies of other images, kept on one side of any split: cat/0.png = " in caplog.text


def test_copies_of_given_validation_and_test_images_are_left_out_of_training(
    image_tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_tree({f"{split}/{kind}": 6 for split in ("train", "val", "test") for kind in ("cat", "dog")})
    shutil.copy(root / "test/cat/0.png", root / "train/cat/leak.png")
    shutil.copy(root / "val/dog/1.png", root / "train/dog/leak.png")
    shutil.copy(root / "test/dog/2.png", root / "val/dog/leak.png")
    config = config_of(root)
    splits, test = load_splits(config), load_test(config)
    assert (len(splits.train), len(splits.val), len(test)) == (12, 12, 12)
    assert "3 images are exact copies of images of another split (2 of train and 1 of val)" in caplog.text
    assert "train/cat/leak.png = test/cat/0.png" in caplog.text


def test_one_image_under_two_labels_is_named(image_tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = image_tree({"cat": 9, "dog": 9})
    shutil.copy(root / "cat/3.png", root / "dog/cat.png")
    load_splits(config_of(root))
    assert "1 image stands under more than one class: cat/3.png = dog/cat.png" in caplog.text


def test_a_class_of_copies_alone_is_refused(image_tree: Tree) -> None:
    root = image_tree({"train/cat": 3, "train/dog": 3, "test/cat": 3, "test/dog": 3})
    for path in (root / "train" / "dog").iterdir():
        shutil.copy(root / "test" / "dog" / path.name, path)
    with pytest.raises(DataError, match="'dog' has no readable training image besides copies"):
        load_splits(config_of(root))


def test_look_alikes_are_counted_where_people_look(
    image_tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {f"{split}/{kind}": 4 for split in ("train", "test") for kind in ("cat", "dog")}
    root = image_tree(counts, size=(64, 64))
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((64, 64))
    smooth.save(root / "train/cat/smooth.png")
    smooth.resize((90, 90)).save(root / "test/cat/anew.jpg", quality=60)
    text = str(summarise(config_of(root, decode_size=32), tmp_path / "out", augment=AugmentConfig()))
    assert "1 test image of 9 looks like a training image: test/cat/anew.jpg ~ train/cat/smooth.png" in text
    assert "exact cop" not in text
    assert caplog.text == "", "what is shown is not logged too"


def test_training_is_warned_of_look_alikes_in_validation_and_compares_them_once(
    image_tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {f"{split}/{kind}": 4 for split in ("train", "val", "test") for kind in ("cat", "dog")}
    root = image_tree(counts, size=(64, 64))
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth.resize((64, 64)).save(root / "train/cat/smooth.png")
    smooth.resize((90, 90)).save(root / "val/cat/anew.jpg", quality=60)
    splits = load_splits(config_of(root, decode_size=32))
    load_splits(config_of(root, decode_size=32))
    line = "1 val image of 9 looks like a training image: val/cat/anew.jpg ~ train/cat/smooth.png"
    assert caplog.text.count(line) == 1

    (kept,) = (root.parent / "cache" / "look-alikes-2").iterdir()
    decoded = load_decoded(config_of(root, decode_size=32))
    val = decoded.parts["val"], splits.val.indices
    train = decoded.parts["train"], splits.train.indices
    kept.write_text(json.dumps({"alike": []}))  # what is kept is believed: nothing is compared again
    assert alike_in_validation(val, train, root.parent / "cache", splits.row_digest) == []
    kept.write_text("{")
    (told,) = alike_in_validation(val, train, root.parent / "cache", splits.row_digest)
    assert told == line
    assert len(json.loads(kept.read_text())["alike"]) == 1
    assert alike_in_validation(val, train, root.parent / "cache", splits.row_digest, most_pairs=80) == []


def test_without_copies_the_splits_are_what_they_always_were(tmp_path: Path) -> None:
    """The digits' digest, as it was before copies were looked for."""
    splits = load_splits(DigitsData(cache_dir=str(tmp_path)))
    assert splits.digest == "f7d16086ba074416930d6a0a172456f85d8fbb68bb5208b534c7b7cd6714c8d6"


# ── any copies ────────────────────────────────────────────────────────────────────────────────────


def part_of(contents: list[int], labels: list[int]) -> Part:
    """Return a part whose images are equal where their contents are."""
    images = np.stack([np.full((8, 8, 3), content, np.uint8) for content in contents])
    return Part(images, np.array(labels, dtype=np.int64), *pixel_facts(images))


ROWS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=60)


def check_any_copies(parts: dict[str, list[tuple[int, int]]]) -> None:
    decoded = DecodedSet(
        Description("any", ("a", "b", "c"), "a test"),
        {name: part_of(*map(list, zip(*rows, strict=True))) for name, rows in parts.items()},  # type: ignore[misc, arg-type]
    )
    try:
        splits: ImageSplits = build_splits(decoded, DigitsData(batch_size=1, val_fraction=0.3), 0.3, False)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    sides = [set(map(bytes, hash_images(side.gather(slice(None))))) for side in (splits.train, splits.val)]
    sides.append(set(map(bytes, hash_images(build_test(decoded, 0.3).gather(slice(None))))))
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert all(sides)
    everything = [content for rows in parts.values() for content, _ in rows]
    kept = set().union(*sides)
    assert len(kept) == len(set(everything)), "an image is left out only where its copy is kept"
    assert bool(describe_duplicates(decoded)) == (len(set(everything)) < len(everything))


PARTS = st.fixed_dictionaries({"train": ROWS}, optional={"val": ROWS, "test": ROWS})


@given(PARTS)
@settings(max_examples=50, deadline=None)
def test_copies_never_lie_on_both_sides_of_any_split(parts: dict[str, list[tuple[int, int]]]) -> None:
    check_any_copies(parts)


@pytest.mark.slow
@given(PARTS)
@settings(max_examples=2000, deadline=None)
def test_copies_never_lie_on_both_sides_of_thousands_of_splits(
    parts: dict[str, list[tuple[int, int]]],
) -> None:
    check_any_copies(parts)
