"""Views of a sweep in MLflow's pages: its trials sorted by score, with a column per searched setting.

A saved view is a tag of the experiment, which MLflow 3.17's page lists under "Views". The sweep's coordinator
saves one per sweep (`RunStore.keep_view`), and `harness ui` prints its address.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from harness.tracking import names

# In an address; without it, MLflow's pages open in the mode for language models.
MODEL_TRAINING = "workflowType=machine_learning"
VIEW_TAG = "mlflow.sharedViewState."  # followed by the view's key


def trials_page(run_id: str, tags: Mapping[str, str]) -> str:
    """Return the query of an address that opens a sweep's trials, the best first.

    Args:
        run_id: of the sweep's parent run.
        tags: of the same run. A sweep of an earlier version has no view: its trials are sorted, but the page
            shows no metric.
    """
    if names.METRIC in tags:
        return f"{MODEL_TRAINING}&viewStateShareKey={_key(run_id)}"
    parts = {
        "orderByKey": f"metrics.`{_score_of(tags)}`",
        "orderByAsc": str(_is_ascending(tags)).lower(),
        "searchFilter": _trials_of(run_id),
    }
    return "&".join([MODEL_TRAINING, *(f"{key}={quote(value, safe='')}" for key, value in parts.items())])


def sweep_view(run_id: str, tags: Mapping[str, str], paths: Sequence[str]) -> tuple[str, str]:
    """Return the experiment tag, name and value, that keeps a view of a sweep's trials.

    Args:
        run_id: of the sweep's parent run.
        tags: of the same run.
        paths: of the settings that it searches, a column each.
    """
    # A run records a group (`finetune`) by its kind and name; MLflow leaves out a column that no run has.
    named = [
        name for path in paths for name in ([path] if "." in path else [path, f"{path}.kind", f"{path}.name"])
    ]
    columns = [f"metrics.`{_score_of(tags)}`", *(f"params.`{name}`" for name in named)]
    state = {
        "searchFilter": _trials_of(run_id),
        "orderByKey": f"metrics.`{_score_of(tags)}`",
        "orderByAsc": _is_ascending(tags),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, "metrics.`best_epoch`", "attributes.`Duration`"],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    view = {
        "name": tags.get(names.SWEEP, ""),
        "createdAt": now,
        "updatedAt": now,
        "state": f"deflate;{packed}",
    }
    return VIEW_TAG + _key(run_id), json.dumps(view)


def _key(run_id: str) -> str:
    return f"harness{run_id}"


def _trials_of(run_id: str) -> str:
    return f"tags.`{names.PARENT}` = '{run_id}'"


def _score_of(tags: Mapping[str, str]) -> str:
    """Return the metric that holds a trial's score; earlier versions recorded no `best/…` metrics."""
    return names.BEST + tags[names.METRIC] if names.METRIC in tags else names.VAL_ACCURACY


def _is_ascending(tags: Mapping[str, str]) -> bool:
    return tags.get(names.DIRECTION) == "minimize"
