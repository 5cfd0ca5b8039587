"""`data=multilabel`: the CSV file in both forms, what is refused in it, splits that keep labels' shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.config.schema import MultiLabelData
from harness.data import load_splits
from harness.data.decoded_cache import Part
from harness.data.groups import set_aside_groups
from harness.data.held_out import load_test
from harness.data.labelled_folder import load_labelled_folder
from harness.data.load import load_decoded
from harness.data.summary import summarise
from harness.errors import DataError

Folder = Callable[[str], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return a function that writes labels.csv beside twelve images a0.png … a11.png; each is another one."""

    def write(text: str) -> Path:
        root, rng = tmp_path / "images", np.random.default_rng(0)
        root.mkdir(exist_ok=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"a{number}.png")
        (root / "labels.csv").write_text(text, encoding="utf-8")
        return root

    return write


def config_of(root: Path, **changes: object) -> MultiLabelData:
    fields = {"dir": str(root), "cache_dir": str(root.parent / "cache"), "decode_size": 8, "batch_size": 2}
    return MultiLabelData.model_validate({**fields, **changes})


def table(*columns: str, row: Callable[[int], str], count: int = 12) -> str:
    return "\n".join([",".join(["file", *columns]), *(f"a{n}.png,{row(n)}" for n in range(count))]) + "\n"


COLUMNS = table("cat", "dog", row=lambda n: f"{n % 2},{int(n % 3 == 0)}")
LISTS = table("tags", row=lambda n: "|".join(["cat"] * (n % 2) + ["dog"] * (n % 3 == 0)))


@pytest.mark.parametrize("text", [COLUMNS, LISTS], ids=["columns", "lists"])
def test_both_forms_give_the_same_labels(folder: Folder, text: str) -> None:
    config = config_of(folder(text), test_fraction=0.3, val_fraction=0.3)
    splits, test = load_splits(config), load_test(config)
    assert (splits.class_names, splits.is_multilabel) == (("cat", "dog"), True)
    for arrays in (splits.train, splits.val, test):
        part, rows = arrays.side
        assert arrays.labels.dtype == np.float32
        numbers = [int(part.names[row][1:-4]) for row in rows]
        assert arrays.labels.tolist() == [[n % 2, n % 3 == 0] for n in numbers]
        assert arrays.labels.any(axis=0).all()
    assert sum(map(len, (splits.train, splits.val, test))) == 12
    counts = summarise(config, Path(config.dir).parent / "summary").counts
    assert {name: sum(of) for name, of in counts.items()} == {"cat": 6, "dog": 4}


def test_labels_are_read_anew_and_pixels_are_not(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.data.sources import folder as source

    before = load_splits(config_of(folder(COLUMNS)))
    monkeypatch.setattr(source, "decode_image", None)
    root = Path(before.source.split(" under ")[1])
    (root / "labels.csv").write_text(COLUMNS.replace("cat", "bird").replace("a4.png,0,0", "a4.png,1,0"))
    after = load_splits(config_of(root))
    assert after.class_names == ("bird", "dog")
    assert after.digest != before.digest
    assert after.train.labels.sum() + after.val.labels.sum() + load_test(config_of(root)).labels.sum() == 11


def test_a_column_gives_the_splits(folder: Folder) -> None:
    part_of = {0: "test", 1: "test", 2: "val", 3: "val"}
    rows = table("cat", "dog", "split", row=lambda n: f"{n % 2},{int(n % 2 == 0)},{part_of.get(n, 'train')}")
    config = config_of(folder(rows))
    splits, test = load_splits(config), load_test(config)
    assert [len(splits.train), len(splits.val), len(test)] == [8, 2, 2]


def test_chosen_columns_leave_the_others_out(folder: Folder) -> None:
    rows = table("width", "cat", "dog", row=lambda n: f"640,{n % 2},{int(n % 3 == 0)}")
    config = config_of(folder(rows), label_columns=["dog", "cat"])
    assert load_splits(config).class_names == ("dog", "cat")
    assert "columns that are not used: width" in "".join(load_decoded(config).about.notices)


def test_a_folder_of_other_images_gets_the_runs_order_of_labels(folder: Folder, tmp_path: Path) -> None:
    config = config_of(folder(COLUMNS))
    found = load_labelled_folder(Path(config.dir), config, ("dog", "cat"))
    assert found.images.labels.tolist() == [[n % 3 == 0, n % 2] for n in (0, 1, 10, 11, *range(2, 10))]
    with pytest.raises(DataError, match="has dog, which the run does not know"):
        load_labelled_folder(Path(config.dir), config, ("cat", "cow"))


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {}, "holds nothing: a header is needed"),
        ("file,cat,dog\n", {}, "holds only the line file, cat, dog"),
        (COLUMNS, {"labels_csv": "other.csv"}, "there is no file .*other.csv: set data.labels_csv"),
        (COLUMNS + "b.png,0,1\n", {}, "1 file of .* not found among the 12 images of data.dir: b.png"),
        (COLUMNS.replace("a4.png,0,0\n", ""), {}, "1 image of data.dir without a row in .*: a4.png"),
        (COLUMNS + "./a3.png,0,1\n", {}, "line 14: a3.png has a row already, line 5"),
        (COLUMNS.replace("a4.png,0,0", "a4.png,0,2"), {}, "line 6: dog is '2' in place of 0 or 1"),
        (COLUMNS.replace("a4.png,0,0", "a4.png,0"), {}, "line 6: 2 values for 3 columns"),
        (COLUMNS, {"label_columns": ["cat", "dgo"]}, "no column 'dgo' .* did you mean 'dog'"),
        (COLUMNS, {"file_column": "fil"}, "no column 'fil' .* did you mean 'file'"),
        (COLUMNS.replace("file,", "id,"), {}, "the columns id, cat, dog: name the one of the files"),
        (COLUMNS.replace("cat,dog", "cat,cat"), {}, "several columns called 'cat'"),
        (table("cat", row=lambda n: str(n % 2)), {}, r"1 label \('cat'\): two are the least"),
        (table(row=lambda n: "").replace(".png,", ".png"), {}, "no column of labels"),
        (table("cat", "dog", row=lambda n: f"{n % 2},0"), {}, "1 label has no readable training image .dog"),
        (table("cat", "dog", row=lambda n: f"{n % 2},{n // 10}"), {}, "label 'dog' has too few .* 2, copies"),
        (table("cat", "dog", "split", row=lambda n: f"1,{n % 2},{n}"), {}, "split is '0'; use train, val"),
        (
            table("cat", "dog", "split", row=lambda n: f"1,{int(n > 2)},{'val' if n < 2 else 'train'}"),
            {},
            "1 label has no readable validation image .dog",
        ),
        ("file;cat\n\xff\x00", {}, "is no CSV file|columns file;cat"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(
    folder: Folder, text: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_splits(config_of(folder(text), **changes))
    assert "\n" not in str(caught.value)


# ── stratification ────────────────────────────────────────────────────────────────────────────────


def part_of(targets: np.ndarray, groups: tuple[str, ...] = (), copies: int = 1) -> Part:
    count = len(targets)
    hashes = np.zeros((count, 32), dtype=np.uint8)
    hashes[:, :4] = (np.arange(count, dtype=">u4") // copies).view(np.uint8).reshape(count, 4) + 1
    return Part(
        images=np.zeros((count, 1, 1, 3), dtype=np.uint8),
        labels=np.zeros(count, dtype=np.int64),
        hashes=hashes,
        moments=np.zeros((count, 2, 3), dtype=np.int64),
        phashes=np.zeros((count, 8), dtype=np.uint8),
        names=tuple(map(str, range(count))),
        groups=groups,
        targets=targets.astype(np.uint8),
    )


def test_every_label_keeps_its_share_also_a_rare_one() -> None:
    """Each label is within one image of its share; a random tenth is not (Sechidis et al., 2011)."""
    targets = np.random.default_rng(0).random((3000, 12)) < np.geomspace(0.4, 0.005, 12)
    rows = np.arange(3000)
    names = [str(k) for k in range(12)]
    picked = set_aside_groups(part_of(targets), rows, 0.1, 0, names, ("training", "validation"))
    assert len(picked) == pytest.approx(300, abs=1)
    off = np.abs(targets[picked].sum(axis=0) - 0.1 * targets.sum(axis=0))
    assert off.max() <= 1
    by_chance = np.random.default_rng(1).permutation(3000)[:300]
    assert np.abs(targets[by_chance].sum(axis=0) - 0.1 * targets.sum(axis=0)).max() > 3
    other = set_aside_groups(part_of(targets), rows, 0.1, 1, names, ("training", "validation"))
    assert len(np.intersect1d(picked, other)) < 100, "another seed gives another split"


@pytest.mark.parametrize("grouped", [False, True])
def test_copies_and_groups_stay_on_one_side(grouped: bool) -> None:
    targets = np.repeat(np.random.default_rng(0).random((100, 4)) < 0.3, 3, axis=0)
    groups = tuple(f"patient {row // 6}" for row in range(300)) if grouped else ()
    part = part_of(targets, groups, copies=3)
    picked = set_aside_groups(part, np.arange(300), 0.2, 0, list("abcd"), ("training", "validation"))
    together = 6 if grouped else 3
    assert 40 <= len(picked) <= 80
    assert (np.bincount(picked // together) % together == 0).all()
