"""Results: metrics of a split, figures of them, and tables of runs.

    predictions.py       a model's answers image by image, and their file
    metrics.py           called after each epoch (`harness/training/module.py`) and after training
    calibration.py       calibration error, temperature scaling, the bins of a reliability diagram
    evaluation.py        everything that is measured of a split after training, and its summary
    multilabel.py, multilabel_metrics.py   the same of images with several labels each
    figures.py           the confusion matrix; confusion_page.py: the same as a page to point at
    curves.py            ROC, precision-recall, reliability, most confused pairs
    compare.py           `harness compare`: the rows and columns of a table of runs
    table.py             its layout as text, CSV and Markdown
    paired.py            which of two trained models is better, on the same images
    discordant.py        the images on which two of them differ, and accuracy by class, as parts of a page
    sweeps.py            `harness compare --sweeps`; best_of.py: what some of a sweep's trials would find
    repetition.py        `harness rerun`: the metrics of a run and of its repetition, to the last bit
    layout.py            Markdown tables, wrapped sentences; page.py, charts.py: a comparison as a page
    folds.py             the mean over the folds of cross-validation
    seeds.py             whether one configuration is better than another, over several seeds

`compare.py` and `sweeps.py` read recorded runs, so `harness.training`, a layer below, must not import
them; it may import the others.
"""
