"""The names of the user attributes that we store in a sweep's database, of studies and of trials.

Every module that reads or writes one imports its name from here. The names must not change, because existing
databases use them. The attributes that Optuna itself writes are named in `optuna_private.py`.
"""

# ── of a study ────────────────────────────────────────────────────────────────────────────────────

# A random id. It distinguishes this sweep from an earlier one of the same name whose database is gone.
SWEEP_ID = "identity"
IDENTITY = "question"  # flat settings that must not change, see identity.py
CODE = "code"  # source file -> digest, see identity.py
PLAN = "plan"  # overrides from which workers compose the plan, and more: parent_run.plan_facts
SLOTS = "slots"  # trials at a time and their threads, and what was measured to choose them
COMPUTE = "compute"  # of each trial in 10^15 operations (pflop), and what sweep.compute_per_trial asked for
PARENT_RUN_ID = "parent_run_id"  # of the sweep's run in MLflow
CALLED = "called"  # when a command last ran the sweep, in seconds since 1970
STOP_REQUESTED = "stop_requested"  # another value with every request to stop
EXTENSIONS = "extensions"  # by --extend: what was changed, when, after how many trials
TEST = "test"  # the best trial's number, its metrics on the test split, and which reading that was
PICTURED = "pictured"  # the number of the trial whose pictures were drawn when it was the best one
AUDIT = "audit"  # what limits the answer, as plain values of findings.Finding
DESCRIBED = "described"  # numbers of the trials whose pages in MLflow have their text
OPTIMISM = "optimism"  # of the best score, see report/optimism.py
CLOSED = "closed"  # for which state all results were recorded, see parent_run.closing_state

# ── of a trial ────────────────────────────────────────────────────────────────────────────────────

OWNER = "owner"  # the process that works on it, a ProcessId as JSON; absent: the trial is free
ATTEMPT = "attempt"  # how often it was begun; a process with an older number has lost the trial
# Why the trial is to be failed, stored before its process is asked to stop. If the coordinator dies before it
# fails the trial, the process that claims it next does.
TO_FAIL = "to_fail"
OVERRIDES = "overrides"  # the trial's configuration as overrides, without the seed
SEED = "seed"  # with which it trains, see replicates.py
REPLICATE_OF = "replicate_of"  # the number of the trial whose configuration it repeats with a fresh seed
SPLIT_SEED = "split_seed"  # of a replicate with validation images of its own
MAX_EPOCHS = "max_epochs"
RUN_ID = "run_id"  # in MLflow
CHECKPOINT = "checkpoint"  # path of the kept epoch's checkpoint
BEST_EPOCH = "best_epoch"  # 0-based
PLAIN_ACCURACY = "accuracy_no_tta"  # of the kept epoch, where a score has test-time augmentation
SECONDS = "seconds"  # of training, over all attempts
SPANS = "spans"  # of each attempt, by its number: begin and (where it was stopped) end since 1970, and host
COSTS = "costs"  # by name, see harness.config.objectives.Cost
REASON = "reason"  # why it failed
INFEASIBLE = "infeasible"  # why the trial can have no score; it ends as pruned, not as failed
OUT_OF_MEMORY = "out_of_memory"  # the footprint that did not fit, see memory_limit.py
DEATHS = "deaths"  # how often its process died
