"""A research harness for image classification: from a question to a defended answer."""

__version__ = "0.1.0"
