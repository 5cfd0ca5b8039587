from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from harness.analysis.figures import confusion_matrix_figure
from tests.helpers.drawing import drawn


def all_texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    return [text.get_text() for text in labels]


@pytest.mark.parametrize("num_classes", [2, 10, 24])
def test_nothing_is_cut_off(num_classes: int) -> None:
    counts = 12345 * np.eye(num_classes, dtype=int)
    picture = drawn(confusion_matrix_figure(counts, [f"a rather long name {i}" for i in range(num_classes)]))
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == 255).all()
    assert max(picture.shape) < 4000


def test_counts_and_names_are_written() -> None:
    texts = all_texts(confusion_matrix_figure(np.array([[7, 0], [2, 31]]), ["cat", "dog"]))
    assert texts.count("cat") == 2  # on both axes
    assert {"7", "2", "31"} <= set(texts)
    assert "0" not in texts


def test_colour_is_the_share_of_the_true_class() -> None:
    figure = confusion_matrix_figure(np.array([[1, 3], [0, 0]]), ["a", "b"])
    assert figure.axes[0].images[0].get_array().tolist() == [[0.25, 0.75], [None, None]]


@pytest.mark.parametrize("name", ["猫 的", "собака", "$x_1$ {", "naïve café", "🐈", "tab\tand\nline"])
def test_any_script_is_drawn_without_a_warning(name: str) -> None:
    figure = confusion_matrix_figure(np.eye(2, dtype=int), [name, "plain"])
    drawn(figure)
    assert "plain" in all_texts(figure)


def test_a_name_without_a_font_becomes_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"DejaVu Sans": mpl.get_data_path() + "/fonts/ttf/DejaVuSans.ttf"}
    monkeypatch.setattr("harness.analysis.figures._upright_fonts", lambda: only)
    texts = all_texts(confusion_matrix_figure(np.eye(2, dtype=int), ["cat", "猫"]))
    assert "#1" in texts
    assert "cat" in texts


def test_no_global_state() -> None:
    import matplotlib.pyplot as plt

    confusion_matrix_figure(np.eye(3, dtype=int), ["a", "b", "c"])
    assert plt.get_fignums() == []
