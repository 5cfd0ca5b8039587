"""What a sweep cost: device-hours, images, operations, parameters; the report and MLflow's page show it."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config.compose import SweepPlan
from harness.config.schema import DataConfig
from harness.errors import ConfigError
from harness.search.report.compute import IMAGES, PFLOP
from harness.search.study.trials import TrialRow

PARAMETERS = "params_millions"


def cost_lines(plan: SweepPlan, rows: Sequence[TrialRow], num_train: int | None) -> list[tuple[str, str]]:
    """Return what the trials cost, in pairs of name and value; it says of how many trials something is known.

    Args:
        num_train: training images; None: not known.
    """
    begun = [row for row in rows if row.seconds is not None]
    if not begun:
        return []
    seconds = sum(row.seconds or 0.0 for row in begun)
    devices = plan.sweep.devices_per_trial
    of_each = f" ({devices} devices a trial)" if devices > 1 else ""
    lines = [
        ("trials that have run", str(len(begun))),
        ("training time of all trials", _hours(seconds)),
        (
            "device-hours",
            f"{device_hours(plan, rows):.3g}{of_each}",
        ),
        ("epochs", f"{sum(row.epochs_done for row in rows):,}"),
    ]
    counted = [row.costs[IMAGES] for row in begun if IMAGES in row.costs]
    if counted:
        lines.append(("training images, repeats included", f"{sum(counted):,.0f}{_of(counted, begun)}"))
    elif (images := images_seen(plan, rows, num_train)) is not None:
        lines.append(("training images, repeats included", f"{images:,} (epochs × images of an epoch)"))
    flops = [row.costs[PFLOP] for row in begun if PFLOP in row.costs]
    if flops:
        lines.append(("operations of training", f"{sum(flops):.3g} PFLOP{_of(flops, begun)}"))
    sizes = sorted({row.costs[PARAMETERS] for row in begun if PARAMETERS in row.costs})
    if sizes:
        span = f"{sizes[0]:.3g}" if len(sizes) == 1 else f"{sizes[0]:.3g} to {sizes[-1]:.3g}"
        lines.append(("parameters of the models", f"{span} million"))
    return lines


def device_hours(plan: SweepPlan, rows: Sequence[TrialRow]) -> float:
    """Return the hours for which the trials trained, all attempts, times the devices of each."""
    return plan.sweep.devices_per_trial * sum(row.seconds or 0.0 for row in rows) / 3600


def _visits_each_once(data: DataConfig, base: DataConfig) -> bool:
    """Tell whether a trial's epochs take each of the sweep's training images once, but for a limit."""
    subsets = [(one.images_per_class, one.imbalance_factor) for one in (data, base)]
    return data.sampling == "natural" and subsets[0] == subsets[1]


def _of(known: Sequence[float], begun: Sequence[TrialRow]) -> str:
    return "" if len(known) == len(begun) else f" (of {len(known)} of {len(begun)} trials)"


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} hours"


def images_seen(plan: SweepPlan, rows: Sequence[TrialRow], num_train: int | None) -> int | None:
    """Return how many training images all trials have seen, each as often as it was; None: not known."""
    if num_train is None:
        return None
    known: dict[tuple[str, ...], int] = {}
    total = 0
    for row in (row for row in rows if row.epochs_done and row.params):
        own = [f"{path}={value}" for path, value in row.params.items() if path.startswith("data.")]
        key = (*plan.arm_of(row.params), *own)
        try:
            if key not in known:
                data = plan.compose_trial(row.params).data
                if data.samples_per_epoch is None and not _visits_each_once(data, plan.base.data):
                    return None
                known[key] = data.samples_per_epoch or min(num_train, data.max_train_samples or num_train)
        except ConfigError:  # files that have changed since
            return None
        total += row.epochs_done * known[key]
    return total
