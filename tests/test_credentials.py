"""Passwords of addresses are shown nowhere, however the address is written."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.config.compose import compose_sweep
from harness.config.provenance import annotate
from harness.credentials import shown
from harness.errors import ConfigError, TrackingError, first_line
from harness.logs import show_messages
from harness.search.database.storage import storage_url

URL_SAFE = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_characters="@/"), min_size=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:s3cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("sweep.storage=postgresql://me:s3 cr@t'x@host/db", "sweep.storage=postgresql://me:***@host/db"),
        ("postgresql//me:s3cret@host/db: write …", "postgresql//me:***@host/db: write …"),
        (
            "see http://me:pw@host:5000/a, or http://x:5000/",
            "see http://me:***@host:5000/a, or http://x:5000/",
        ),
        ("http://token@host/", "http://***@host/"),
        ("sqlite:////a.db?password=abc&x=1", "sqlite:////a.db?password=***&x=1"),
        ("postgresql://h/d?sslpassword=q", "postgresql://h/d?sslpassword=***"),
        ("connect with host=h password=abc", "connect with host=h password=***"),
        ("ask me@example.org at 12:30", "ask me@example.org at 12:30"),
        ("sqlite:////runs/my folder/a.db", "sqlite:////runs/my folder/a.db"),
    ],
)
def test_an_address_is_shown_without_its_secrets(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(URL_SAFE, st.sampled_from(["", "sweep.storage=", "the database ", "cannot read '"]))
@example("p@ss", "")
def test_no_password_is_shown_whatever_stands_around_it(password: str, before: str) -> None:
    if password.isspace() or password in before + "postgresql://me:***@host/db":
        return
    text = shown(f"{before}postgresql://me:{password}@host/db")
    assert password not in text
    assert text.endswith("@host/db")


@pytest.mark.parametrize("mistyped", ["postgresql//me:s3cret@host/db", "postgresql://me:s3cret@host:port/db"])
def test_a_mistyped_database_is_named_without_its_password(mistyped: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep.storage=postgresql:?//me:\*\*\*@host") as error:
        storage_url("runs", mistyped)
    assert "s3cret" not in str(error.value)


def test_no_error_of_ours_says_a_password() -> None:
    assert str(TrackingError("the run store http://me:s3cret@host:9 is away")) == (
        "the run store http://me:***@host:9 is away"
    )
    assert first_line(OSError("http://me:s3cret@host:9 refused\nmore")) == "http://me:***@host:9 refused"
    with pytest.raises(ConfigError) as error:
        compose_sweep(["sweep.storage=postgresql://me:s3cret@host/db", "sweep.num_trials=none"])
    assert "s3cret" not in str(error.value)
    with pytest.raises(ConfigError) as error:
        compose_sweep(["sweep.storage=[postgresql://me:s3cret@host/db"])
    assert "s3cret" not in str(error.value)


def test_the_configuration_is_printed_without_a_password() -> None:
    text = annotate({"sweep": {"storage": "postgresql://me:s3cret@host/db"}}, {})
    assert "s3cret" not in text
    assert "postgresql://me:***@host/db" in text


def test_no_library_logs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("harness"), "level", logging.INFO)
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    show_messages()
    try:
        raise OSError("http://me:s3cret@host:9 refused")
    except OSError:
        logging.getLogger("a.library").exception("%s failed", "postgresql://me:s3cret@host/db")
    assert "Traceback" in stream.getvalue()
    assert "s3cret" not in stream.getvalue()
