"""`harness export` writes a bundle of a run's best checkpoint; `harness predict` classifies images with one.

    run.py                       finds the run and its validation images
    bundle.py                    writes the bundle and checks it
    onnx_graph.py, weights.py    its ONNX file and its weights
    manifest.py, card.py         its `config.json` and its README.md
    parity.py, checksums.py      the checks: same logits, unaltered files
    int8.py                      a quantised ONNX file, and what it loses
    predict.py, runners.py       classify images with a bundle

Neither importing this package nor predicting needs torch; `export_run` imports it when it is called.
"""

from harness.export.predict import Bundle, Prediction, Predictions, load_bundle, predict_files
from harness.export.run import export_run

__all__ = ["Bundle", "Prediction", "Predictions", "export_run", "load_bundle", "predict_files"]
