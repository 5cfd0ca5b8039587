"""Looks up what the schema allows at a dotted path such as `optim.momentum`.

A section can be of several kinds (`optim` is sgd, adam, …); a path is valid if any kind has it.
`overrides.py` asks whether a key takes text, `arms.py` which kinds have a key, and `validation.py` which keys
there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from harness.config.base import tags_of
from harness.config.schema import RunConfig
from harness.config.sweep import SweepConfig


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def annotations_at(path: str) -> list[Any]:
    """Return the annotation of a run's path, or of `sweep.…`, in every kind of section that has it."""
    steps = path.split(".")
    here: list[Any] = [SweepConfig if steps[0] == "sweep" else RunConfig]
    for step in steps[1:] if steps[0] == "sweep" else steps:
        mappings = [get_args(annotation)[1] for annotation in here if get_origin(annotation) is dict]
        models = [model for annotation in here for model in models_in(annotation)]
        fields = [model.model_fields[step] for model in models if step in model.model_fields]
        here = mappings or [field.annotation for field in fields]
    return here


def is_text(path: str) -> bool:
    """Return whether a key takes any string; then `2026_11_25` must not be read as the number 20261125."""
    return any(str in _alternatives(annotation) for annotation in annotations_at(path))


def kinds_with(path: str) -> set[str]:
    """Return the kinds of a section that have a path, such as {"partial"} of finetune.trainable_groups."""
    section, _, key = path.partition(".")
    models = [model for annotation in annotations_at(section) for model in models_in(annotation)]
    return {tag for model in models if key.split(".")[0] in model.model_fields for tag in tags_of(model)}


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [kind for argument in get_args(annotation) for kind in _alternatives(argument)]
    return [annotation]


def short_names(paths: Sequence[str]) -> list[str]:
    """Return each path's last part, such as `lr`; the whole path where another one ends the same."""
    last = [path.rpartition(".")[2] for path in paths]
    return [part if last.count(part) == 1 else path for path, part in zip(paths, last, strict=True)]
