"""Cached activations of frozen backbones; `harness.training.cached_features` decides whether they are used.

    cache.py       the folder of all entries: find one, make one, stay below the size limit
    entry.py       one entry: its files, its chunks, their checksums
    datamodule.py  batches of activations for Lightning

An entry is computed once and memory-mapped by every trial that needs it.
"""
