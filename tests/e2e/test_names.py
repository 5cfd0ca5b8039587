"""Names of any kind, through data, train, record, export and predict, whatever the terminal's encoding is."""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.main import main
from harness.config.schema import TrackingConfig
from harness.tracking.runs import get_run

NAMES = (b"caf\xe9", "žába".encode(), "狗 \U0001f415".encode(), b"two\nlines", "\u202ereversed".encode())
CLASSES = ("caf\\xe9", "two\\nlines", "žába", "\\u202ereversed", "狗 🐕")


@pytest.fixture
def odd_tree(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        folder = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"t\xe9e", name))  # noqa: PTH118 - bytes
        Path(folder).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{unicodedata.normalize('NFD', 'é')}{number}.png")
    os.mkfifo(Path(folder) / "pipe")
    return tmp_path / os.fsdecode(b"t\xe9e")


def latin_1(monkeypatch: pytest.MonkeyPatch, name: str) -> io.BytesIO:
    """Have a stream be what PYTHONIOENCODING=latin-1 makes of it: strict, without what it lacks."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding="latin-1", write_through=True))
    return written


def test_data_are_described_on_a_terminal_that_lacks_their_letters(
    odd_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linked").symlink_to(odd_tree)
    out, errors = latin_1(monkeypatch, "stdout"), latin_1(monkeypatch, "stderr")
    assert main(["data", "data=folder", f"data.dir={tmp_path / 'linked'}", "data.decode_size=8"]) == 0
    for name in CLASSES:
        assert name.encode("latin-1", errors="backslashreplace") in out.getvalue()
    assert rb"\u202ereversed/pipe: no regular file" in out.getvalue()
    assert b"Traceback" not in errors.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("made_store")
def test_classes_of_any_name_are_trained_exported_and_predicted_on_any_terminal(
    odd_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(odd_tree)
    out, _ = latin_1(monkeypatch, "stdout"), latin_1(monkeypatch, "stderr")
    data = ["data=folder", f"data.dir={linked}", "data.decode_size=32", "data.batch_size=4"]
    assert main(["train", *data, "model=lenet", "trainer.max_epochs=1"]) == 0
    run_id = re.search(rb"run (\w{32})", out.getvalue())
    assert run_id is not None
    record = get_run(TrackingConfig(dir=os.environ["MLRUNS_DIR"]), run_id[1].decode())
    assert record.status == "FINISHED"
    assert not list(Path(os.environ["MLRUNS_DIR"]).rglob("*.jsonl")), "nothing waits in a spool"
    assert main(["export", "--run", record.run_id, "--output", str(tmp_path / "exports")]) == 0
    (bundle,) = (tmp_path / "exports").iterdir()
    before = len(out.getvalue())
    assert main(["predict", str(bundle), str(odd_tree), "--top", "5"]) == 0
    table = out.getvalue()[before:].decode("latin-1").splitlines()
    assert len(table) == 4 * len(NAMES) + 1
    assert "1 no regular file" in table[-1]
    assert all(
        name.encode("latin-1", errors="backslashreplace").decode("latin-1") in table[0] for name in CLASSES
    )


@pytest.mark.parametrize("by", ["override", "variable"])
def test_a_folder_given_by_a_name_that_is_no_utf_8_gets_one_line(
    odd_tree: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    errors = latin_1(monkeypatch, "stderr")
    latin_1(monkeypatch, "stdout")
    given = [f"data.dir={odd_tree}"] if by == "override" else []
    monkeypatch.setenv("DATA_DIR", str(odd_tree))
    assert main(["train", "data=folder", "model=lenet", *given]) == 2
    (line,) = errors.getvalue().decode("latin-1").splitlines()
    assert line.startswith("error: ")
