"""The data sets: one module for each, with a function `load` that returns a decoded set.

    cifar10.py   CIFAR-10; cifar10_files.py reads its formats, cifar10_download.py fetches it
    digits.py    scikit-learn's digits
    folder.py    any tree of class folders: scan.py lists the files, layout.py finds classes and splits;
                 labels_csv.py reads the labels of images that have several

`harness.data.load` picks the module; each keeps its decoded images in a cache (`decoded_cache.py`).
"""
