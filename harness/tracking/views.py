"""Views of a sweep in MLflow's pages: its trials sorted by score, a column per searched setting, and charts.

A saved view is a tag of the experiment, which MLflow 3.17's page lists under "Views". The sweep's coordinator
saves one per sweep (`RunStore.keep_view`), and `harness ui` prints its addresses: as a table, and as charts.

MLflow would draw a chart for each of some forty metrics before the first image, and each final score as a
line. So the view lays out what is worth a look and folds the rest: scores as bars, curves as lines, the
galleries of the trials (`harness.training.pictures`) side by side.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from harness.tracking import names

# In an address; without it, MLflow's pages open in the mode for language models.
MODEL_TRAINING = "workflowType=machine_learning"
CHARTS = "compareRunsMode=CHART"  # likewise: the charts in place of the table
MOST_RUNS = 20  # in a chart
CURVES = ("val/accuracy", "val/loss", "train/loss", "lr")
IMAGES = tuple(f"pictures/val/{name}" for name in ("examples", "confident_mistakes", "examples_by_epoch"))
# Sections that MLflow adds for all other metrics and images: what stands before the last "/" of their names.
FOLDED = ("best/val", "val", "train", "test", "pictures/val", "Model metrics", "System metrics")
SECTION = {"isReordered": True, "deleted": False, "isGenerated": False}
OURS = {"deleted": False, "isGenerated": False}  # MLflow would turn bars that it generated into lines
LINES = {
    "xAxisKey": "step",
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "lineSmoothness": 0,
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "selectedXAxisMetricKey": "",
    "range": {},
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}
PARALLEL = {"showAllRuns": False}
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
        **_charts(_score_of(tags), named),
        "isAccordionReordered": True,  # the order of the sections is ours
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


def _charts(score: str, paths: Sequence[str]) -> dict[str, Any]:
    """Return the part of a view's state that lays out its charts.

    Args:
        score: the metric by which the trials are sorted.
        paths: of the parameters that were searched.
    """
    bars = dict.fromkeys([score, f"{names.BEST}val/accuracy", f"{names.BEST}val/loss", names.TRAINED_SECONDS])
    shown: dict[
        str, tuple[int, int, list[dict[str, Any]]]
    ] = {  # columns, height of a chart in pixels, charts
        "Scores": (3, 300, [{"type": "BAR", "metricKey": name} for name in bars]),
        "Curves": (2, 320, [{"type": "LINE", "metricKey": name, **LINES} for name in CURVES]),
        "Images": (
            1,
            600,
            [{"type": "IMAGE", "imageKeys": [key], "step": 0, "showRunParams": False} for key in IMAGES],
        ),
        "Settings": (
            1,
            400,
            [{"type": "PARALLEL", "selectedParams": list(paths), "selectedMetrics": [score], **PARALLEL}],
        ),
    }
    sections = [
        {"uuid": name, "name": name, "display": True, "columns": columns, "cardHeight": height}
        for name, (columns, height, _) in shown.items()
    ]
    folded = [{"uuid": name, "name": name, "display": False} for name in FOLDED]
    cards = [
        {"uuid": f"{name}-{place}", "metricSectionId": name, "runsCountToCompare": MOST_RUNS, **OURS, **chart}
        for name, (_, _, charts) in shown.items()
        for place, chart in enumerate(charts)
    ]
    return {
        "compareRunCharts": cards,
        "compareRunSections": [{**SECTION, **section} for section in [*sections, *folded]],
    }


def _key(run_id: str) -> str:
    return f"harness{run_id}"


def _trials_of(run_id: str) -> str:
    return f"tags.`{names.PARENT}` = '{run_id}'"


def _score_of(tags: Mapping[str, str]) -> str:
    """Return the metric that holds a trial's score; earlier versions recorded no `best/…` metrics."""
    return names.BEST + tags[names.METRIC] if names.METRIC in tags else names.VAL_ACCURACY


def _is_ascending(tags: Mapping[str, str]) -> bool:
    return tags.get(names.DIRECTION) == "minimize"
