"""The data sets: one module for each, with a function `load` that returns a decoded set.

    cifar10.py   verified by content; cifar10_files.py reads its formats, cifar10_download.py fetches it
    digits.py    scikit-learn's digits
    folder.py    any tree of class folders: scan.py lists it, layout.py says what it means

`harness.data.load` picks the module; each writes and opens a `decoded_cache`.
"""
