"""One trial's process, from its spec to what it tells the study.

run.py             read this first; the whole, in order: open the study, prepare, train, tell
__main__.py        `python -m harness.search.trial SPEC.json`, as clusters start it
attempt.py         what a trial asks of the study and the run store, and what it tells them
spec.py            what the process is given, and how it hears that it should stop
outcomes.py        what an exception says about a trial: infeasible, failed, or to be started again
exit_codes.py      how the process tells the scheduler
replicates.py      a configuration that is drawn again is trained with another seed
memory_limit.py    what ran out of memory is not tried again
multi_device.py    one trial over several devices
"""
