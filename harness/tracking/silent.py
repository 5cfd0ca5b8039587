"""A tracker that records nothing, for the ranks above 0: when several train one model, rank 0 records."""

from __future__ import annotations

from typing import Any


class SilentTracker:
    """Takes every call of :class:`harness.tracking.Tracker` and does nothing."""

    run_id = ""

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    log_params = log_epoch = log_summary = set_tags = log_text = log_dict = _nothing
    log_figure = log_data = log_model = finish = _nothing
