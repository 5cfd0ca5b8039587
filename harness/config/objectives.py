"""Costs of a trial (parameters, latency, time) as constraints or as the second objective of a sweep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from harness.config.base import Section
from harness.errors import did_you_mean

# harness.training.costs measures them in every run: the number of all parameters, in millions; the time of
# a prediction for one image, on the run's device and in its precision; the time of all epochs with their
# validation; the operations of the training in 10^15 (harness.training.flops); the images that it trained on,
# each as often as it came.
Cost = Literal["params_millions", "latency_ms", "train_seconds", "train_pflop", "train_images"]
COSTS: tuple[str, ...] = get_args(Cost)

CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*", re.IGNORECASE)
SMALLEST_BOUND = 1e-9  # the smallest divisor of an excess, for a bound of 0


class SecondObjective(Section):
    """A cost as the second objective beside the sweep's metric; the result is then a Pareto front."""

    metric: Cost
    direction: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class Constraint:
    """A bound on a cost: a trial that violates it is infeasible, however good its score."""

    cost: str
    is_upper: bool
    bound: float

    def excess(self, value: float) -> float:
        """Return how far a value is beyond the bound, as a share of the bound; 0 or less if it holds."""
        beyond = value - self.bound if self.is_upper else self.bound - value
        return beyond / max(abs(self.bound), SMALLEST_BOUND)

    def __str__(self) -> str:
        return f"{self.cost} {'<=' if self.is_upper else '>='} {self.bound:g}"


def parse_constraint(text: str) -> Constraint:
    """Return what `params_millions <= 5` means.

    Raises:
        ValueError: it is not of this form, or no cost of this name is measured.
    """
    match = CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError(f"cannot read the constraint {text!r}: write it like 'params_millions <= 5'")
    cost, comparison, bound = match.groups()
    if cost not in COSTS:
        raise ValueError(f"the constraint {text!r} is about an unknown cost{did_you_mean(cost, COSTS)}")
    return Constraint(cost, comparison == "<=", float(bound))
