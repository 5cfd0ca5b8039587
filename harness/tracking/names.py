"""The names of tags, metrics, parameters and artifacts in the run store that more than one module uses.

Training and search write them; compare, export, evaluate and ui read them. A name that changes here makes the
runs of earlier versions unreadable.
"""

from __future__ import annotations

# tags
KIND = "harness.kind"  # train | trial | sweep | final | ensemble | soup | cross-validation | fold
BELOW_SWEEP = ("trial", "final", "ensemble", "soup")  # kinds of runs that may have a sweep as their parent
COMBINES = "harness.combines"  # on an ensemble or a soup: a digest of what was asked for
SWEEP = "harness.sweep"  # the sweep's name, on the parent and on every trial
STUDY = "harness.study"  # on the parent: an id, as several sweeps may have one name
TRIAL = "harness.trial"  # the logical trial's number
CHECKPOINT = "harness.checkpoint"  # path of best.ckpt, or the next text
CHECKPOINT_REMOVED = "checkpoint removed (sweep.checkpoint_gb)"
BEST_RUN = "harness.best_run_id"  # on a sweep's parent: its best trial's run when its last call ended
TESTED_RUN = "harness.tested_run_id"  # on a sweep's parent: the run whose checkpoint gave its test metrics
REPLICATE_OF = "harness.replicate_of"  # on a trial: the trial whose configuration it repeats, fresh seed
FINAL = "harness.final"  # on a sweep's parent: what `harness finalize` has found, as JSON, see final.py
FINAL_OF = "harness.final_of"  # on a run of kind "final": the id of the run that it trains again
FORGETTING = "harness.forgetting"  # in words; metrics "forgetting", "old_val/…", see training/continued.py
RERUN_OF = "harness.rerun_of"  # on a run of `harness rerun`: the id of the run that it trains again
RERUN_CODE = "harness.rerun_code"  # with it: which code that was done with, in words
WEIGHTS = "harness.weights"  # which weights were kept: "trained", or their average, "ema" or "swa"
PRUNED = "harness.pruned"  # "true" on a run that the pruner stopped
METRIC, DIRECTION = "harness.metric", "harness.direction"  # on a sweep's parent: its objective
SPACE = "harness.space"  # on a sweep's parent: the paths that it searches, separated by commas
CALLED_AT, ACTIVE_AT = "harness.called_at", "harness.active_at"  # on a parent, in seconds since 1970
OUTCOME = "harness.outcome"  # on a trial: complete | pruned | infeasible | failed, as its sweep judged it
SCORE = "harness.score"  # on a complete trial: the score that its sweep received, with every digit
CHANGED = "harness.changed."  # followed by a parameter: its new value, if a resume has changed it
READING = "harness.reading."  # followed by a time: one reading of the test split, see readings.py
ENERGY = "harness.energy"  # what of a run's energy is measured, in words
FOLDS = "harness.folds"  # on the parent of cross-validation: what it depends on, as a hash
FOLD = "harness.fold"  # on a run of kind "fold": the number of the fold that validates it, from 0
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # the description on a run's page, in Markdown

# metrics
EPOCH = "epoch"  # logged together with each epoch's metrics: tells a resumed run what is already recorded
BEST_EPOCH = "best_epoch"  # 0-based
VAL_ACCURACY = "val/accuracy"
BEST = "best/"  # before a metric's name: its value in the epoch whose checkpoint is kept
TEMPERATURE = "best/val/temperature"  # that calibrates the kept checkpoint, fitted on the validation images
NOISE = "noise/"  # before the sweep's metric, on its parent: standard deviation of a run over seeds
CORRECTED = "corrected/"  # before the sweep's metric, on its parent: the best score less its optimism
DEVICE_HOURS = "device_hours"  # on a sweep's parent: of all its trials
TRAINED_SECONDS = "trained_seconds"  # all attempts of the run together

# params
TRAINABLE_PARAMETERS = "parameters.trainable"

# artifacts
CONFIG_FILE = "config.yaml"  # the configuration as it ran
ENVIRONMENT_FILE = "environment.json"  # code, packages and machine, see environment.py
PATCH_FILE = "uncommitted.patch"  # what the code differed in from its commit
RERUN_FILE = "rerun.json"  # of a rerun: how its metrics compare with those of the run that it repeats
CHANGED_LABELS = "changed_labels.csv"  # by data.label_noise: see harness.data.splits, `changed_labels`
PREDICTIONS = "predictions/{split}.npz"  # per image, see harness.analysis.predictions
THRESHOLDS = "val/thresholds.json"  # of each label, of a multi-label run
