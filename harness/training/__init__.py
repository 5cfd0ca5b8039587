"""Trains one run, from its configuration to its record.

train.py             read this first: the whole of a run
fit.py               sets up and runs Lightning's loop
module.py            loss and metrics of a batch, and the hooks that Lightning calls
callbacks.py         what happens after an epoch: record, report, checkpoint
record.py            records a run's configuration, environment and results in MLflow
pictures.py          records the pictures of a run (harness.pictures)
continued.py         a trained model whose weights the run begins with; what is forgotten of it
teacher.py           a network that the run learns from (distillation)
trained_model.py     finds and loads the model of a run or a bundle, for these two
result.py            the reports that a run returns to its caller
optim.py, muon.py    optimisers, learning rates, schedules
tta.py               test-time augmentation
evaluate.py          a checkpoint's metrics on a split; the only file here that reads the test split

checkpoint.py        what a checkpoint holds, and how a model is rebuilt from it
checkpoint_io.py     writes a checkpoint to disk
resume_point.py      finds the checkpoint from which an interrupted run goes on

cached_features.py   activations of a frozen backbone, computed once per image
image_views.py       decides when activations may be cached
launch_ranks.py      starts a process (a rank) for each device; collectives.py lets them communicate
machine.py           decides device, precision and threads
costs.py             a model's size and latency
machine_load.py      load, memory and energy of the machine; nvml.py reads NVIDIA's GPUs
benchmark_step.py    the speed and memory of a training step

cross_validate.py    `harness cross-validate`: a run for each fold, and what they amount to
ensemble.py          `harness ensemble`: several models as one; soup.py averages their weights

rerun.py             `harness rerun`; rerun_setup.py: its code and settings; rerun_child.py: its process

command.py           `harness train`; resume_run.py is `--resume`, dry_run.py `--dry-run`
doctor.py            `harness doctor`: describes this machine
"""
