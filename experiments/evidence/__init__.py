"""Whether the statistics of `harness compare` keep what they promise: `python -m experiments.evidence`."""
