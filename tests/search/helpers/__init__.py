"""Shared by the tests of sweeps: stand-ins for training, processes that run sweeps, promises to check."""
