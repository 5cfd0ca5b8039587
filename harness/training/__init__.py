"""Trains one run, from its configuration to its record.

- The run: `train.py` (read first) prepares model and data, `fit.py` runs Lightning's loop, `module.py` holds
  loss and metrics, `callbacks.py` what happens after an epoch, `record.py` what a run leaves behind.
- Commands: `command.py` (`harness train`), `resume_run.py` (`--resume`), `dry_run.py`, `doctor.py`.
- Learning: `optim.py` and `muon.py` (optimisers, learning rates), `tta.py` (test-time augmentation).
- Checkpoints: `checkpoint.py` (content), `checkpoint_io.py` (bytes on disk), `resume_point.py` (which one a
  run goes on from).
- A frozen backbone's activations: `image_views.py` (when they may be cached), `cached_features.py`.
- Several devices: `launch_ranks.py` starts one process per device, `collectives.py` is how they communicate.
- Measurements: `evaluate.py` (a split), `costs.py` (size, latency), `benchmark_step.py` (speed and memory).
- `machine.py` decides device, precision and threads; `result.py` holds what a run reports.
"""
