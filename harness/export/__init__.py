"""From a finished run to a bundle that can be given away, and from a bundle to class names.

Importing this needs no torch, and neither does predicting; `export_run` imports it when it is called.
"""

from harness.export.predict import Bundle, Prediction, Predictions, load_bundle, predict_files
from harness.export.run import export_run

__all__ = ["Bundle", "Prediction", "Predictions", "export_run", "load_bundle", "predict_files"]
