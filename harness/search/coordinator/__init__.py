"""What one machine does for a sweep; `sweep.py` and `worker.py` call it.

    scheduler.py            the loop: take a trial, place it, see what became of it
    slots.py                how many trials train at a time, and on which devices
    measure_slots.py        the same on a CPU, measured
    completion.py           when a sweep has its answer
    stop.py                 signals, and `--stop` from elsewhere
    checkpoint_cleanup.py   removes checkpoints beyond the budget, watches the disk
    evaluate_best.py        the end: the best trial's checkpoint on the test split
    follow.py               a second call of the same sweep, which looks on

Read `scheduler.py` first.
"""
