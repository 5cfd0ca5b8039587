"""Configuration: what every key means, and how `configs/` and the command line become a checked object.

compose.py          read this first: turns files and overrides into a `RunConfig` or `SweepPlan`
schema.py           every key of a run: type, unit, range, default
sweep.py            every key of a sweep, with the sections below
    space.py, sampling.py, objectives.py, executor.py
finetune.py         the finetuning policies, a class each: which tensors train, and at what rate
selection.py        which training images train, with which labels, how often; folds
monitor.py          the metric that decides which epoch is kept, when to stop and how trials rank
multilabel.py       what images with several labels each refuse, and their metric
base.py             `Section`, the base class of every section: immutable, strict

overrides.py        the grammar of the command line
space_overrides.py  what the command line does to a sweep's space
arms.py             keys that only some trials of a sweep have
hydra_adapter.py    composes with Hydra, and turns its errors into ours
yaml_files.py       the config folder: its groups, and faults in a file, with their line
validation.py       pydantic's errors as one line that names the key and the nearest fix
dotted_paths.py     what the schema allows at a path such as `optim.lr`
provenance.py       the resolved configuration as YAML, with where each value came from
"""

from harness.config.schema import RunConfig
from harness.config.sweep import SweepConfig

__all__ = ["RunConfig", "SweepConfig"]
