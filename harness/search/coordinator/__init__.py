"""Runs a sweep's trials on one machine; `sweep.py` and `worker.py` call it.

    scheduler.py            the loop: claims trials, starts their processes, records how they ended
    slots.py                how many trials train at a time, and on which devices
    measure_slots.py        on a CPU: measures how many trials to train at a time
    completion.py           when a sweep needs no further trial
    stop.py                 `harness sweep --stop`
    checkpoint_cleanup.py   removes checkpoints that exceed their budget, and checks the free disk space
    evaluate_best.py        the last step: evaluates the best trial's checkpoint on the test split
    follow.py               a second command for a running sweep: shows its progress

Read `scheduler.py` first.
"""
