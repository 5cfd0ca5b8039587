"""Trains one run, from its configuration to its record.

train.py             read this first: the whole of a run
prepare.py           what is done to a model before its first step
fit.py               sets up and runs Lightning's loop
module.py            loss and metrics of a batch, and the hooks that Lightning calls
callbacks.py         what happens after an epoch: record, report, checkpoint
record.py            records a run's configuration, environment and results in MLflow
pictures.py          records the pictures of a run (harness.pictures)
result.py            the reports that a run returns to its caller

continued.py         a trained model whose weights the run begins with; what is forgotten of it
teacher.py           a network that the run learns from (distillation)
cached_features.py   activations of a frozen backbone, computed once per image
image_views.py       decides when activations may be cached
evaluate.py          a checkpoint's metrics on a split; the only file here that reads the test split
record_evaluation.py what an evaluation leaves with its run
tta.py               test-time augmentation
costs.py             a model's size and latency; flops.py counts operations
benchmark_step.py    the speed and memory of a training step
command.py           `harness train`

optimisation/        losses, optimisers, schedules, averages of the weights
devices/             the machine, and several processes that train together
checkpoints/         what is written to disk, and found again
commands/            the other commands: cross-validate, ensemble, finalize, rerun, lr-find, …
"""
