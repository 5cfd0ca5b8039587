"""Any name becomes text on one line that everything can hold; equal letters are equal text."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import unicodedata

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.metrics import per_class_table
from harness.data.messages import printable
from harness.errors import first_few

NAMES = st.text(min_size=1, max_size=20) | st.binary(min_size=1, max_size=20).map(os.fsdecode)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name", "plain name"),
        ("žába 狗 🐕 \u3000", "žába 狗 🐕 \u3000"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("a\nb\x1b[31m\u2028", "a\\nb\\x1b[31m\\u2028"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        (unicodedata.normalize("NFD", "é"), "é"),
    ],
)
def test_names_as_they_are_shown(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_long_lists_say_how_many_more() -> None:
    assert first_few(["a", "b"]) == "a, b"
    assert first_few(list("abcdefg")) == "a, b, c, d, e and 2 more"


def check_any_name(name: str) -> None:
    shown = printable(name)
    assert len(f"x{shown}x".splitlines()) == 1
    assert shown.encode("utf-8").decode("utf-8") == shown == unicodedata.normalize("NFC", shown)
    assert printable(shown) == shown
    for form in ("NFC", "NFD"):
        if not any(0xD800 <= ord(letter) < 0xE000 for letter in name):
            assert printable(unicodedata.normalize(form, name)) == shown
    assert json.loads(json.dumps({shown: shown}, ensure_ascii=False)) == {shown: shown}
    assert yaml.safe_load(yaml.safe_dump({"name": shown}, allow_unicode=True)) == {"name": shown}
    with sqlite3.connect(":memory:") as database:
        assert database.execute("select ?", (shown,)).fetchone() == (shown,)
    for encoding in ("ascii", "latin-1", "utf-8"):
        with io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace") as stream:
            print(shown, file=stream)
    table = per_class_table(np.array([0, 1]), np.array([0, 1]), (shown, "other"), [{}, {}])
    assert json.loads(json.dumps([str(row) for row in table]))


@given(NAMES)
@settings(max_examples=60, deadline=None)
def test_any_name_can_be_printed_and_recorded(name: str) -> None:
    check_any_name(name)


@pytest.mark.slow
@given(NAMES)
@settings(max_examples=5000, deadline=None)
def test_thousands_of_names_can_be_printed_and_recorded(name: str) -> None:
    check_any_name(name)
