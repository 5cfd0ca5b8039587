"""A tracker that keeps a run in memory, for tests of training and of whatever else writes to a tracker."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.tracking.tracker import RunStatus, flatten

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


@dataclass
class RecordingTracker:
    """Everything one run was told, as plain Python."""

    run_id: str = "in-memory"
    params: dict[str, str] = field(default_factory=dict)
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    images: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # by key and step
    data: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    status: str = "RUNNING"

    def log_params(self, config: Mapping[str, Any]) -> None:
        self.params = flatten(config) | self.params

    def log_epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > max(self.epochs, default=-1):
            self.epochs[step] = dict(metrics)

    def log_summary(self, metrics: Mapping[str, float], *, replaces: bool = False) -> None:
        self.summary = self.summary | dict(metrics) if replaces else dict(metrics) | self.summary
        self.summary = {key: value for key, value in self.summary.items() if not math.isnan(value)}

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        self.tags.update({key: value for key, value in tags.items() if value is not None})
        for gone in [key for key, value in tags.items() if value is None]:
            self.tags.pop(gone, None)

    def log_text(self, text: str, name: str) -> None:
        self.artifacts[name] = text.encode()

    def log_dict(self, content: Mapping[str, Any], name: str) -> None:
        self.log_text(json.dumps(content, indent=2, ensure_ascii=False), name)

    def log_bytes(self, content: bytes, name: str) -> None:
        self.artifacts[name] = content

    def log_figure(self, figure: Figure, name: str) -> None:
        picture = BytesIO()
        figure.savefig(picture, format=Path(name).suffix.lstrip("."))
        self.artifacts[name] = picture.getvalue()

    def log_image(self, image: np.ndarray, key: str, step: int) -> None:
        self.images.setdefault((key, step), image)

    def log_data(
        self, *, name: str, digest: str, source: str, num_rows: int, class_names: Sequence[str], context: str
    ) -> None:
        record = {"name": name, "digest": digest, "source": source, "num_rows": num_rows, "context": context}
        record["class_names"] = list(class_names)
        if record not in self.data:
            self.data.append(record)

    def log_model(
        self,
        checkpoint_path: Path,
        *,
        input_example: np.ndarray,
        class_names: Sequence[str],
        metrics: Mapping[str, float],
    ) -> None:
        record = {
            "checkpoint": checkpoint_path.read_bytes(),
            "input_shape": input_example.shape,
            "class_names": list(class_names),
            "metrics": dict(metrics),
        }
        if record not in self.models:
            self.models.append(record)

    def finish(self, status: RunStatus) -> None:
        self.status = status
