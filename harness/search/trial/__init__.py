"""One trial's process, from its spec to what it tells the study.

run.py             read this first; all steps in order: open the study, prepare, train, tell the result
__main__.py        `python -m harness.search.trial SPEC.json`, the command that clusters run
attempt.py         what a trial reads from and writes to the study and the run store
spec.py            what the process is given, and how it learns that it should stop
outcomes.py        what an exception means for a trial: infeasible, failed, or to be started again
exit_codes.py      the exit codes of the process, which the scheduler reads
replicates.py      a configuration that is drawn again is trained with another seed
memory_limit.py    rejects a trial that needs as much memory as one that ran out of it
multi_device.py    a trial that trains on several devices
"""
