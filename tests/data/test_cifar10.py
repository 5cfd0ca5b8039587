"""CIFAR-10 from every form it comes in, and everything that can be wrong with one."""

from __future__ import annotations

import io
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests

from harness.config.schema import AutoData, Cifar10Data
from harness.data import load_splits, remember_auto, resolve_auto
from harness.data.decoded_cache import DecodedSet
from harness.data.held_out import load_test
from harness.data.sources import cifar10, cifar10_download, cifar10_files
from harness.errors import DataError, DownloadError

from .conftest import Labelled, batch_pickles, png_bytes, write_archive, write_parquet

ARCHIVE = "cifar-10-python.tar.gz"


def load(data_dir: Path, cache_dir: Path) -> DecodedSet:
    return cifar10.load(data_dir, cache_dir, may_download=False)


def as_set(images: np.ndarray, labels: np.ndarray) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


# ── the forms ─────────────────────────────────────────────────────────────────────────────────────


def write_batches_folder(data_dir: Path, parts: dict[str, Labelled]) -> None:
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in batch_pickles(parts).items():
        (folder / name).write_bytes(content)


def test_every_form_gives_the_same_arrays(tmp_path: Path, mini_cifar10: dict[str, Labelled]) -> None:
    write_parquet(tmp_path / "hub", mini_cifar10)
    write_archive(tmp_path / "tar" / ARCHIVE, batch_pickles(mini_cifar10))
    write_batches_folder(tmp_path / "dir", mini_cifar10)
    sets = [load(tmp_path / form, tmp_path / "cache" / form) for form in ("hub", "tar", "dir")]
    for part, (images, labels) in mini_cifar10.items():
        first = sets[0].parts[part]
        assert as_set(first.images, first.labels) == as_set(images, labels)
        for other in sets[1:]:
            np.testing.assert_array_equal(other.parts[part].images, first.images)
            np.testing.assert_array_equal(other.parts[part].labels, first.labels)


def test_shuffled_rows_give_the_same_arrays(tmp_path: Path, mini_cifar10: dict[str, Labelled]) -> None:
    order = np.random.default_rng(5).permutation(100)
    images, labels = mini_cifar10["train"]
    write_parquet(tmp_path / "one", mini_cifar10)
    write_parquet(tmp_path / "two", {**mini_cifar10, "train": (images[order], labels[order])})
    one, two = (load(tmp_path / name, tmp_path / "cache" / name) for name in ("one", "two"))
    np.testing.assert_array_equal(one.parts["train"].images, two.parts["train"].images)


def test_the_cache_comes_first(tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]) -> None:
    write_parquet(tmp_path, mini_cifar10)
    before = load(tmp_path, cache_dir)
    after = load(tmp_path / "nothing here", cache_dir)
    np.testing.assert_array_equal(before.parts["test"].images, after.parts["test"].images)
    assert isinstance(after.parts["train"].images, np.memmap)


# ── damage ────────────────────────────────────────────────────────────────────────────────────────


def assert_refused(data_dir: Path, cache_dir: Path, names: str) -> None:
    with pytest.raises(DataError) as caught:
        load(data_dir, cache_dir)
    message = str(caught.value)
    assert not isinstance(caught.value, DownloadError)
    assert names in message
    assert "delete it" in message
    assert "\n" not in message


def test_truncated_parquet(tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]) -> None:
    path = write_parquet(tmp_path, mini_cifar10) / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-500])
    assert_refused(tmp_path, cache_dir, path.name)


def test_parquet_with_a_flipped_pixel(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]
) -> None:
    images, labels = mini_cifar10["test"]
    altered = images.copy()
    altered[3, 4, 5, 0] ^= 1
    write_parquet(tmp_path, {**mini_cifar10, "test": (altered, labels)})
    assert_refused(tmp_path, cache_dir, "plain_text")


def test_parquet_with_two_labels_swapped(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]
) -> None:
    images, labels = mini_cifar10["train"]
    write_parquet(tmp_path, {**mini_cifar10, "train": (images, np.roll(labels, 1))})
    assert_refused(tmp_path, cache_dir, "plain_text")


def test_parquet_with_a_broken_png(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.data.conftest.png_bytes", lambda image: png_bytes(image)[:40])
    write_parquet(tmp_path, mini_cifar10)
    assert_refused(tmp_path, cache_dir, "plain_text")


def test_parquet_without_the_test_part(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]
) -> None:
    write_parquet(tmp_path, {"train": mini_cifar10["train"]})
    assert_refused(tmp_path, cache_dir, "test")


def test_parquet_without_the_columns(tmp_path: Path, cache_dir: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        pq.write_table(pa.table({"other": [1]}), folder / f"{part}-00000-of-00001.parquet")
    assert_refused(tmp_path, cache_dir, "train-00000-of-00001.parquet")


@pytest.mark.parametrize("keep", [0, 10, 20_000, -200])
def test_truncated_archive(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled], keep: int
) -> None:
    path = write_archive(tmp_path / ARCHIVE, batch_pickles(mini_cifar10))
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(tmp_path, cache_dir, ARCHIVE)


def test_archive_with_an_altered_byte(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]
) -> None:
    contents = batch_pickles(mini_cifar10)
    altered = bytearray(contents["data_batch_2"])
    altered[5000] ^= 1
    write_archive(tmp_path / ARCHIVE, {**contents, "data_batch_2": bytes(altered)})
    assert_refused(tmp_path, cache_dir, ARCHIVE)


def test_archive_without_a_batch(tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]) -> None:
    contents = batch_pickles(mini_cifar10)
    del contents["data_batch_4"]
    write_archive(tmp_path / ARCHIVE, contents)
    assert_refused(tmp_path, cache_dir, "data_batch_4")


class Runs:
    """Pickles into a call of os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_unrun(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]
) -> None:
    hostile = pickle.dumps({b"data": Runs(tmp_path / "ran"), b"labels": []}, protocol=2)
    write_archive(tmp_path / ARCHIVE, {**batch_pickles(mini_cifar10), "test_batch": hostile})
    assert_refused(tmp_path, cache_dir, ARCHIVE)
    assert not (tmp_path / "ran").exists()


def test_the_unpickler_reads_what_python_2_wrote() -> None:
    """Old numpy's module path and Python 2's byte strings, spelt out opcode by opcode."""
    old = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
        b"K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x00\x01\x02\x03\x04\x05tb"
        b"U\x06labelsq\x07]q\x08(K\x06K\x09eu."
    )
    batch = cifar10_files.ArrayUnpickler(io.BytesIO(old), encoding="bytes").load()
    np.testing.assert_array_equal(batch[b"data"], np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert batch[b"labels"] == [6, 9]


def test_auto_does_not_fall_back_from_a_damaged_copy(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled]
) -> None:
    write_archive(tmp_path / ARCHIVE, {})
    with pytest.raises(DataError, match="truncated, altered"):
        load_splits(AutoData(dir=str(tmp_path), cache_dir=str(cache_dir), batch_size=8))


# ── without a copy ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def refuse(url: str, **kwargs: object) -> None:
        asked.append(url)
        raise requests.ConnectionError("no route to host")

    monkeypatch.delenv("HARNESS_OFFLINE", raising=False)
    monkeypatch.setattr(requests, "get", refuse)
    return asked


def test_no_network_is_one_clear_line(tmp_path: Path, cache_dir: Path, no_network: list[str]) -> None:
    config = Cifar10Data(dir=str(tmp_path / "data"), cache_dir=str(cache_dir))
    with pytest.raises(DownloadError, match="cannot be downloaded") as caught:
        load_splits(config)
    assert "\n" not in str(caught.value)
    assert len(no_network) == 2  # the original site, then the hub
    leftovers = [path for path in (tmp_path / "data").iterdir() if path.name != ".cifar10.lock"]
    assert leftovers == []


@pytest.mark.parametrize("how", ["environment", "config"])
def test_downloads_that_are_off_are_not_tried(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("HARNESS_OFFLINE", "1")
    config = Cifar10Data(dir=str(tmp_path), cache_dir=str(tmp_path / "c"), download=how == "environment")
    with pytest.raises(DownloadError, match="downloads are off"):
        load_splits(config)
    assert no_network == []


def test_auto_falls_back_loudly(
    tmp_path: Path, cache_dir: Path, no_network: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = AutoData(dir=str(tmp_path), cache_dir=str(cache_dir))
    splits = load_splits(config)
    assert splits.is_fallback
    assert splits.name == "digits"
    assert "NOT CIFAR-10" in caplog.text
    assert len(load_test(config)) + len(splits.train) + len(splits.val) == 1797


def test_one_attempt_and_one_notice_whatever_else_is_asked(
    tmp_path: Path, cache_dir: Path, no_network: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As `harness sweep` does: the sweep's data, then those of its heaviest run, then the test split."""
    config = AutoData(dir=str(tmp_path), cache_dir=str(cache_dir))
    with caplog.at_level(logging.INFO):
        load_splits(config)
        load_splits(config.model_copy(update={"batch_size": 64, "max_train_samples": 100}))
        load_test(config)
    assert caplog.text.count("NOT CIFAR-10") == caplog.text.count("downloading CIFAR-10") == 1
    assert len(no_network) == 2  # the original site, then the hub


def test_what_a_sweep_found_is_taken_without_another_attempt(
    tmp_path: Path, cache_dir: Path, no_network: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = AutoData(dir=str(tmp_path), cache_dir=str(cache_dir))
    remember_auto(config, "digits")
    splits = load_splits(config)
    assert (splits.name, splits.is_fallback) == ("digits", True)
    assert no_network == []
    assert "NOT CIFAR-10" not in caplog.text


def test_auto_finds_cifar10(
    tmp_path: Path, cache_dir: Path, no_network: list[str], mini_cifar10: dict[str, Labelled]
) -> None:
    write_parquet(tmp_path, mini_cifar10)
    config = AutoData(dir=str(tmp_path), cache_dir=str(cache_dir), batch_size=8)
    assert not load_splits(config).is_fallback
    assert resolve_auto(config).kind == "cifar10"
    assert no_network == []


# ── downloads ─────────────────────────────────────────────────────────────────────────────────────


def serve(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """Let pooch's downloader find `files` by the end of the URL."""

    def fetch(self: object, url: str, output_file: str, pooch_: object) -> None:
        name = url.rpartition("/")[2]
        if name not in files:
            raise requests.ConnectionError(url)
        Path(output_file).write_bytes(files[name])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fetch)


def test_download_from_the_original_site(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(tmp_path / "there" / ARCHIVE, batch_pickles(mini_cifar10))
    serve(monkeypatch, {ARCHIVE: archive.read_bytes()})
    known_hash = "md5:" + pooch.file_hash(str(archive), alg="md5")
    monkeypatch.setattr(cifar10_download, "ARCHIVE_HASH", known_hash)
    decoded = cifar10.load(tmp_path / "here", cache_dir, may_download=True)
    assert len(decoded.parts["train"].images) == 100
    assert (tmp_path / "here" / ARCHIVE).read_bytes() == archive.read_bytes()


def test_a_wrong_checksum_goes_on_to_the_hub(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_parquet(tmp_path / "there", mini_cifar10)
    served = {path.name: path.read_bytes() for path in folder.iterdir()}
    serve(monkeypatch, {**served, ARCHIVE: b"a captive portal's page"})
    decoded = cifar10.load(tmp_path / "here", cache_dir, may_download=True)
    assert len(decoded.parts["train"].images) == 100
    assert not (tmp_path / "here" / ARCHIVE).exists()
    found = cifar10_files.find(tmp_path / "here")
    assert found is not None
    assert found.layout == "parquet"


def test_a_download_that_is_not_cifar10_is_not_kept(
    tmp_path: Path, cache_dir: Path, mini_cifar10: dict[str, Labelled], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = mini_cifar10["train"]
    folder = write_parquet(tmp_path / "there", {**mini_cifar10, "train": (255 - images, labels)})
    serve(monkeypatch, {path.name: path.read_bytes() for path in folder.iterdir()})
    with pytest.raises(DownloadError):
        cifar10.load(tmp_path / "here", cache_dir, may_download=True)
    assert cifar10_files.find(tmp_path / "here") is None


# ── the real one ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_real_cifar10(tmp_path: Path, shared_cifar10: Path) -> None:
    config = Cifar10Data(dir=str(shared_cifar10), cache_dir=str(tmp_path), download=False)
    splits = load_splits(config)
    assert np.bincount(splits.train.labels).tolist() == [4500] * 10
    assert np.bincount(splits.val.labels).tolist() == [500] * 10
    assert np.bincount(load_test(config).labels).tolist() == [1000] * 10
    whole = np.asarray(splits.train.images).reshape(-1, 3) / 255
    np.testing.assert_allclose(whole.mean(axis=0), (0.49139968, 0.48215841, 0.44653091), atol=1e-7)
    np.testing.assert_allclose(whole.std(axis=0), (0.24703223, 0.24348513, 0.26158784), atol=1e-7)
    assert load_splits(config).digest == splits.digest
