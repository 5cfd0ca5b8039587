"""Looks at the test split: each is kept, and said."""

from __future__ import annotations

import json

from harness.tracking.readings import count_readings, describe_reading, next_reading


def test_no_reading_takes_the_place_of_another() -> None:
    tags = {"harness.sweep": "s"}
    for number in range(3):
        reading = next_reading(tags, "run", "harness evaluate")
        assert (reading.before, count_readings(tags)) == (number, number)
        tags |= reading.to_tag()

    assert count_readings(tags) == 3
    kept = [json.loads(value) for key, value in tags.items() if key.startswith("harness.reading.")]
    assert [(entry["run"], entry["split"], entry["before"]) for entry in kept] == [
        ("run", "test", n) for n in range(3)
    ]
    assert next_reading(None, "run", "harness train").before is None


def test_which_reading_a_figure_is_of_is_said() -> None:
    assert describe_reading(1, 1, "run") == "the test split was read once for this run"
    assert describe_reading(2, 3, "sweep").endswith("read 3 times for this sweep; this is reading 2")
