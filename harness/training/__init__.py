"""Training one run: the module, optimisers and schedules, checkpoints, evaluation."""
