"""The pictures of one run: what its model gets wrong, where it looks, and what it has learnt.

`harness.training.pictures` records what `run.py` draws; nothing here reads or writes a run.

    run.py                      every picture of a run, by the name of its file
    galleries.py, examples.py   images with their predictions, and which images are worth a look
    gradcam.py                  the parts of an image that speak for a class
    layers.py                   filters and feature maps; which layer of a network has a map at all
    curves.py, embedding.py     loss, accuracy and learning rate over epochs; a map of the features
    tiles.py, style.py          a grid of images with texts; colours and sizes
"""
