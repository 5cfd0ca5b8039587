"""The report of a sweep: one HTML file that opens from disk, without a network.

    page.py               collects what the page says and fills in the template
    report.html.jinja     the template, with its styles
    charts.py             one style for all charts; scores, curves, the Pareto front
    settings_charts.py    charts of the searched settings: parallel coordinates, slices, importances, a map
    timeline.py           which slot worked on which trial, and when

`parent_run.py` writes the report at the end of every command, `write.py` on request.
"""
