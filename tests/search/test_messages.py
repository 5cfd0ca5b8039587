"""What a sweep says of its trials."""

from __future__ import annotations

from dataclasses import replace

from harness.search.messages import describe_repeats
from tests.search.test_disk import row


def test_trials_that_repeat_another_are_named() -> None:
    values = [{"a": 1}, {"a": True}, {"a": 1, "b": "x"}, {"b": "x", "a": 1}, {}, {}, {"a": 1}]
    rows = [replace(row(number), params=params) for number, params in enumerate(values)]

    said = "note: a configuration is no evidence twice: trial 3 that of 2, 6 that of 0 (the space is small)"
    assert describe_repeats(rows) == said
    assert describe_repeats(rows[:3]) is None
