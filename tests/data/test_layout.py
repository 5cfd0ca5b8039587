"""What a folder's layout means: every file is in one class and one split, or named as passed over."""

from __future__ import annotations

import io
import os
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.data.sources.layout import Layout, part_named, read_layout
from harness.errors import DataError


def picture(kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, kind)
    return stream.getvalue()


PNG, JPEG = picture(), picture("JPEG")


def plant(root: Path, *paths: str) -> Path:
    """Write an image at each path; one that ends in a slash is an empty folder."""
    for path in paths:
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(PNG)
    return root


def counted(layout: Layout) -> Counter[tuple[str, str]]:
    return Counter((file.part, file.class_name) for file in layout.files)


def reasons(layout: Layout) -> dict[str, str]:
    return {one.path: one.why for one in layout.passed_over}


# ── the names of splits ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Val", "Test"),
        ("TRAINING", "Validation", "Testing"),
        ("train", "dev", "Test"),
        ("trn", "valid", "tst"),
        ("train_set", "val-images", "Test Data"),
        ("training set", "eval", "testset"),
    ],
)
def test_splits_are_known_in_any_case_and_spelling(tmp_path: Path, train: str, val: str, test: str) -> None:
    paths = [f"{split}/{kind}/1.png" for split in (train, val, test) for kind in ("cat", "dog")]
    layout = read_layout(plant(tmp_path, *paths, f"{train}/cat/2.png"))
    once = dict.fromkeys([(p, k) for p in ("train", "val", "test") for k in ("cat", "dog")], 1)
    assert counted(layout) == {**once, ("train", "cat"): 2}
    assert f"{train}/ (training), {val}/ (validation), {test}/ (test)" in layout.layout


@pytest.mark.parametrize(
    "name", ["trains", "steam train", "contest", "value", "latest", "develop", "trainer"]
)
def test_what_only_begins_like_a_split_is_a_class(name: str) -> None:
    assert part_named(name) is None


@pytest.mark.parametrize(
    ("paths", "seen"),
    [
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "dev/a/1.png"], "dev/ and val/, which both mean"),
        (["train/steam/1.png", "train/diesel/1.png", "car/1.png", "bus/1.png"], "train/, which are named"),
        (["train/a/1.png", "train/b/1.png", "train/x.png", "masks/1.png"], "beside masks/, which hold"),
        (["train/1.png", "test/1.png", "masks/1.png"], "no class folders, beside masks/"),
        (["train/1.png", "test/1.png"], "train holds 1 image but no class folders"),
        (["a/train/1.png", "a/test/1.png", "b/train/1.png"], "split folders inside of class folders (a/"),
        (["a/train/1.png", "b/train/1.png"], "split folders inside of class folders (a/train/)"),
        (["val/a/1.png", "test/a/1.png"], "test/, val/ but no train/"),
        (["train/Cat/1.png", "train/dog/1.png", "val/cat/1.png"], "did you mean 'Cat'?"),
        (["1.png", "2.png"], "seen: 2 images in no class folder"),
        (["a/", "b/"], "there are no images in the class folders"),
    ],
)
def test_what_can_be_meant_in_two_ways_is_refused_with_what_was_seen(
    tmp_path: Path, paths: list[str], seen: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_layout(plant(tmp_path / "set", *paths))
    assert seen in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_be_called_like_a_split_and_that_is_said(tmp_path: Path, name: str) -> None:
    layout = read_layout(plant(tmp_path, f"{name}/1.png", "car/1.png", "bus/1.png"))
    assert layout.class_names == tuple(sorted((name, "car", "bus")))
    assert {file.part for file in layout.files} == {"train"}
    assert f"{name}/ beside bus/, car/ is taken for a class" in layout.notices[0]


# ── wrappers, empty and loose ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wrapper", ["dataset", "dataset/images", "archive/data/v2"])
@pytest.mark.parametrize("inside", ["", "train/"])
def test_a_zips_wrapper_is_seen_through(tmp_path: Path, wrapper: str, inside: str) -> None:
    layout = read_layout(plant(tmp_path, *[f"{wrapper}/{inside}{kind}/1.png" for kind in ("cat", "dog")]))
    assert counted(layout) == {("train", "cat"): 1, ("train", "dog"): 1}
    assert layout.layout.startswith(f"below {wrapper}/: class folders")


def test_a_wrapper_inside_of_the_splits_is_seen_through(tmp_path: Path) -> None:
    paths = [f"{split}/images/{kind}/1.png" for split in ("train", "val") for kind in ("cat", "dog")]
    assert counted(read_layout(plant(tmp_path, *paths))).total() == 4
    assert read_layout(tmp_path).class_names == ("cat", "dog")


def test_empty_and_unlabelled_splits_are_said(tmp_path: Path) -> None:
    layout = read_layout(
        plant(tmp_path, "train/a/1.png", "train/b/1.png", "val/", "test/1.png", "test/2.png")
    )
    assert counted(layout) == {("train", "a"): 1, ("train", "b"): 1}
    assert reasons(layout) == dict.fromkeys(("test/1.png", "test/2.png"), "in no class folder")
    assert "validation and test images are set aside from training" in layout.layout
    assert any("test/ holds 2 images in no class folder" in notice for notice in layout.notices)
    assert any("val/ holds no images" in notice for notice in layout.notices)


def test_folders_without_images_are_no_classes_and_their_files_are_named(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "annotations/")
    (tmp_path / "annotations" / "all.json").write_text("{}")
    layout = read_layout(tmp_path)
    assert layout.class_names == ("a", "b")
    assert reasons(layout) == {"annotations/all.json": "no image"}


# ── which files ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "suffix",
    [".jfif", ".jpe", ".avif", ".pnm", ".tga", ".JPG", ".Jpeg", ".webp", ".jp2", ".ico", ".qoi", ".pcx"],
)
def test_images_are_known_by_every_suffix_of_pillow(tmp_path: Path, suffix: str) -> None:
    assert len(read_layout(plant(tmp_path, f"a/1{suffix}", "b/1.png")).files) == 2


def test_images_are_known_without_a_suffix_or_with_a_wrong_one(tmp_path: Path) -> None:
    plant(tmp_path, "a/1", "a/2.dat", "b/n01440764.10026")
    (tmp_path / "b" / "photo").write_bytes(JPEG)
    (tmp_path / "b" / "header").write_text("#define x_width 16 and no picture at all")
    (tmp_path / "b" / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    layout = read_layout(tmp_path)
    assert counted(layout) == {("train", "a"): 2, ("train", "b"): 2}
    assert reasons(layout) == {"b/header": "no image", "b/drawing.eps": "no image"}


def test_masks_beside_images_are_pointed_out_and_can_be_left_out(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png", "a/1_mask.png", "b/1.png", "b/1_mask.png", "b/x/2.png")
    assert "2 images look like masks" in read_layout(tmp_path).notices[0]
    assert "data.exclude='*_mask*'" in read_layout(tmp_path).notices[0]
    layout = read_layout(tmp_path, exclude=("*_mask*",))
    assert counted(layout) == {("train", "a"): 1, ("train", "b"): 2}
    assert reasons(layout) == dict.fromkeys(("a/1_mask.png", "b/1_mask.png"), "left out by data.exclude")
    assert layout.notices == ()


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ((), ("x",), {"a/1.png", "b/1.png", "b/2.jpg"}),
        ((), ("b/x",), {"a/1.png", "b/1.png", "b/2.jpg"}),
        ((), ("*.jpg", "b/x/*"), {"a/1.png", "b/1.png"}),
        (("*.png",), (), {"a/1.png", "b/1.png", "b/x/3.png"}),
        (("a", "b/*.jpg"), (), {"a/1.png", "b/2.jpg"}),
    ],
)
def test_patterns_fit_names_or_paths(
    tmp_path: Path, include: tuple[str, ...], exclude: tuple[str, ...], left: set[str]
) -> None:
    plant(tmp_path, "a/1.png", "b/1.png", "b/2.jpg", "b/x/3.png")
    assert {file.path for file in read_layout(tmp_path, include, exclude).files} == left


def test_a_pattern_that_leaves_nothing_out_is_said(tmp_path: Path) -> None:
    layout = read_layout(plant(tmp_path, "a/1.png", "b/1.png"), exclude=("*_masks",))
    assert layout.notices == ("data.exclude=['*_masks'] leaves nothing out",)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert reasons(read_layout(tmp_path)) == {"a/pipe.png": "no regular file"}


# ── links ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", ["..", ".", "../..", "up"])
def test_links_that_lead_back_are_followed_not_once(tmp_path: Path, target: str) -> None:
    root = plant(tmp_path / "set", "a/1.png", "b/1.png")
    (root / "a" / "up").symlink_to(target)
    layout = read_layout(root)
    assert counted(layout) == {("train", "a"): 1, ("train", "b"): 1}
    assert list(reasons(layout)) == ["a/up"]


def test_folders_that_link_to_one_another_are_read_a_bounded_number_of_times(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(12)]
    for name in names:
        plant(tmp_path, f"{name}/1.png")
        for other in names:
            (tmp_path / name / f"to-{other}").symlink_to(f"../{other}")
    assert len(read_layout(tmp_path).files) == 12 * 12


def test_linked_classes_are_read(tmp_path: Path) -> None:
    plant(tmp_path, "store/x/1.png", "store/y/1.png", "set/train/")
    for name, place in (("cat", "x"), ("dog", "y")):
        (tmp_path / "set" / "train" / name).symlink_to(tmp_path / "store" / place)
    assert counted(read_layout(tmp_path / "set")) == {("train", "cat"): 1, ("train", "dog"): 1}


# ── names ─────────────────────────────────────────────────────────────────────────────────────────


def test_one_text_in_two_normal_forms_is_one_class_and_that_is_said(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "žába") for form in ("NFC", "NFD")]
    layout = read_layout(
        plant(tmp_path, f"train/{forms[0]}/1.png", f"train/{forms[1]}/2.png", "train/b/1.png")
    )
    assert layout.class_names == ("b", forms[0])
    assert counted(layout)["train", forms[0]] == 2
    assert "2 folders" in layout.notices[0]
    assert "different Unicode forms" in layout.notices[0]


def test_a_class_is_found_whatever_form_each_split_spells_it_in(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "žába") for form in ("NFC", "NFD")]
    layout = read_layout(plant(tmp_path, f"train/{forms[1]}/1.png", "train/b/1.png", f"val/{forms[0]}/2.png"))
    assert counted(layout)["val", forms[0]] == 1


def test_names_that_are_no_utf_8_become_distinct_printable_classes(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"caf\xe8", b"two\nlines"):
        folder = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - bytes
        os.mkdir(folder)  # noqa: PTH102
        (Path(os.fsdecode(folder)) / "1.png").write_bytes(PNG)
    assert read_layout(tmp_path).class_names == ("caf\\xe8", "caf\\xe9", "two\\nlines")


# ── any tree ──────────────────────────────────────────────────────────────────────────────────────

SPLITS = ["train", "Training", "val", "dev", "test", "TEST"]
OTHERS = ["cat", "dog", "images", "masks", ".git", "__MACOSX", "žába", "z\u030caba", "a b", "new\nline"]
LETTERS = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
ANY_NAMES = st.text(LETTERS, min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
FOLDERS = st.sampled_from(SPLITS + OTHERS) | ANY_NAMES
FILES = st.sampled_from(
    ["1.png", "2.JPG", "3.jfif", "bare", "notes.txt", ".hidden.png", "1_mask.png", "Thumbs.db"]
)
PATHS = st.tuples(st.lists(FOLDERS, max_size=4), FILES)
TREES = st.lists(PATHS, min_size=1, max_size=12)
LINKS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["..", "../..", ".", "nowhere"])), max_size=2)


def check_any_tree(paths: list[tuple[list[str], str]], links: list[tuple[int, str]]) -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "set"
        root.mkdir()
        for number, (folders, name) in enumerate(paths):
            folder = root.joinpath(*folders)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(b"text" if name.endswith("txt") else PNG)
            except (FileExistsError, NotADirectoryError, IsADirectoryError, OSError):
                continue
            for at, target in links:
                if at == number and not (folder / "link").is_symlink():
                    (folder / "link").symlink_to(target)
        on_disk = {
            str(Path(parent, name).relative_to(root))
            for parent, inside, names in os.walk(root)
            for name in [*names, *(one for one in inside if Path(parent, one).is_symlink())]
        }
        try:
            layout = read_layout(root)
        except DataError as error:
            lines = str(error).encode("utf-8").split(b"\n")
            return len(lines) == 1
    taken, unused = Counter(file.path for file in layout.files), reasons(layout)
    assert set(taken.values()) <= {1}
    for path in on_disk:
        ways = {path, *map(str, Path(path).parents)}
        assert (path in taken) + bool(ways & set(unused)) == 1, path
    assert set(taken) <= on_disk
    for file in layout.files:
        assert file.class_name in layout.class_names
        assert file.class_name.isprintable() or not any(ord(sign) < 32 for sign in file.class_name)
        file.class_name.encode("utf-8")
    return True


@given(TREES, LINKS)
@settings(max_examples=60, deadline=None)
def test_every_file_of_any_tree_is_in_one_class_and_split_or_named(
    paths: list[tuple[list[str], str]], links: list[tuple[int, str]]
) -> None:
    assert check_any_tree(paths, links), "a refusal is one line"


@pytest.mark.slow
@given(TREES, LINKS)
@settings(max_examples=3000, deadline=None)
def test_every_file_of_thousands_of_trees_is_in_one_class_and_split_or_named(
    paths: list[tuple[list[str], str]], links: list[tuple[int, str]]
) -> None:
    assert check_any_tree(paths, links), "a refusal is one line"
