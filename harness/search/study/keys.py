"""The user attributes that we keep in a sweep's database, of studies and of trials.

Every module that reads or writes one imports its name from here. The names are a format: databases of earlier
versions are read by them. Optuna's own attributes stand in `optuna_private.py`.
"""

# ── of a study: what a later call must know ───────────────────────────────────────────────────────

# A random id: it tells this sweep from an earlier one of the same name whose database is gone.
SWEEP_ID = "identity"
IDENTITY = "question"  # flat settings that must not change, see identity.py
CODE = "code"  # source file -> digest, see identity.py
PLAN = "plan"  # what workers compose the plan from, see parent_run.plan_facts
SLOTS = "slots"  # trials at a time and their threads, and what was measured to choose them
PARENT_RUN_ID = "parent_run_id"  # of the sweep's run in MLflow
CALLED = "called"  # when a command last ran the sweep, in seconds since 1970
STOP_REQUESTED = "stop_requested"  # another value with every request to stop
EXTENSIONS = "extensions"  # by --extend: what was changed, when, after how many trials
TEST = "test"  # the best trial's number, its metrics on the test split, and which reading that was
CLOSED = "closed"  # the state in which everything was recorded, see parent_run.closing_state

# ── of a trial ────────────────────────────────────────────────────────────────────────────────────

OWNER = "owner"  # the process that works on it, a ProcessId as JSON; absent: the trial is free
ATTEMPT = "attempt"  # how often it was begun; a process with an older number has lost the trial
# Why the trial is to be failed, stored before its process is asked to stop. If the coordinator dies before it
# fails the trial, the process that claims it next does.
TO_FAIL = "to_fail"
OVERRIDES = "overrides"  # its configuration as overrides, without the seed
SEED = "seed"  # with which it trains, see replicates.py
MAX_EPOCHS = "max_epochs"
RUN_ID = "run_id"  # in MLflow
CHECKPOINT = "checkpoint"  # path of the best epoch's
BEST_EPOCH = "best_epoch"  # 0-based
SECONDS = "seconds"  # of training, over all attempts
COSTS = "costs"  # by name, see harness.config.objectives.Cost
REASON = "reason"  # why it failed
INFEASIBLE = "infeasible"  # why it can have no score; it ends as pruned, not as failed
OUT_OF_MEMORY = "out_of_memory"  # the footprint that did not fit, see memory_limit.py
DEATHS = "deaths"  # how often its process died
