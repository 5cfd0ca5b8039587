"""Every attribute that a sweep's database holds: the names under which Optuna keeps our facts, and its own.

Whoever reads or writes one imports its name from here. Names and meanings are a format: a database that an
earlier version wrote is read by them.
"""

# ── of a study: what a later call must know ───────────────────────────────────────────────────────

IDENTITY = "identity"  # tells a sweep from another one of its name, whose database is gone
QUESTION = "question"  # flat settings that must not change, see identity.py
CODE = "code"  # source file -> digest, see code.py
PLAN = "plan"  # what workers compose the plan from, see parent_run.plan_facts
SLOTS = "slots"  # trials at a time and their threads, and what was measured to choose them
PARENT_RUN_ID = "parent_run_id"  # of the sweep's run in MLflow
CALLED = "called"  # when a command last ran the sweep, in seconds since 1970
STOP_REQUESTED = "stop_requested"  # another value with every request to stop
EXTENSIONS = "extensions"  # of the question: what was changed, when, after how many trials
TEST = "test"  # the best trial's number, its metrics on the test split, and which reading that was
CLOSED = "closed"  # the state in which everything was recorded, see parent_run.closing_state

# ── of a trial ────────────────────────────────────────────────────────────────────────────────────

OWNER = "owner"  # the process that works on it (process_id.py); absent: free to be taken
ATTEMPT = "attempt"  # how often it was begun; who holds an older number has lost it
TO_FAIL = "to_fail"  # why it must not go on, decided while it runs; who finds it free ends it
OVERRIDES = "overrides"  # what makes its configuration
SEED = "seed"  # that it trains with, see replicates.py
MAX_EPOCHS = "max_epochs"
RUN_ID = "run_id"  # in MLflow
CHECKPOINT = "checkpoint"  # path of the best epoch's
BEST_EPOCH = "best_epoch"  # 0-based
SECONDS = "seconds"  # of training, over all attempts
COSTS = "costs"  # by name, see harness.config.objectives.Cost
REASON = "reason"  # why it failed
INFEASIBLE = "infeasible"  # why it can have no score: an answer, not an accident
OUT_OF_MEMORY = "out_of_memory"  # the footprint that did not fit, see memory_limit.py
DEATHS = "deaths"  # times that its process ended without a word

# ── Optuna's own, in a trial's system attributes ──────────────────────────────────────────────────

FIXED_PARAMS = "fixed_params"  # the point that a trial was enqueued with; empty: it was withdrawn
CONSTRAINT_PREFIX = "constraints:"  # a constraint's text follows; the value is how far it is exceeded
CMA_ES_PATTERN = "cma:%"  # the state of CMA-ES, as SQL's LIKE finds it
