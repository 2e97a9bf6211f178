"""Names in figures: what is written is what is drawn."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from ffcv_train.analysis.figures import texts
from ffcv_train.analysis.figures.confusion import draw_confusion
from ffcv_train.analysis.figures.features import draw_features
from ffcv_train.analysis.figures.style import save_figure
from ffcv_train.metrics.features import FeatureMetrics
from ffcv_train.metrics.per_class import ClassResults

NAMES = ("US$_note_20$", r"$\frac$", "猫", "猫 2", "Katze", "\x1b[31mred", "na\udcffme")


@pytest.fixture(autouse=True)
def no_memory() -> None:
    """What was looked up and said before."""
    texts._family_with.cache_clear()
    texts._say_what_lacks.cache_clear()


def results() -> ClassResults:
    ones = np.ones(len(NAMES), np.int64)
    errors = np.array([[i, (i + 1) % len(NAMES), 1] for i in range(len(NAMES))])
    return ClassResults(NAMES, 2 * ones, 2 * ones, ones, ones, ones.astype(float), errors)


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_dollars_are_dollars_and_unknown_scripts_stay_apart(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = draw_confusion(results())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of glyphs that are missing
        save_figure(figure, tmp_path / f"confusion.{kind}")
        save_figure(figure, tmp_path / f"again.{kind}")
    shown = written(figure)
    assert {"US$_note_20$", r"$\frac$", "[732B]", "[732B] 2", "Katze"} <= set(shown) and "猫" not in shown
    assert {"[1B][31mred", "na[DCFF]me"} <= set(shown)
    assert capsys.readouterr().err.count("note: no font here has some characters") == 1


def test_a_font_of_the_system_draws_what_ours_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def characters(name: str) -> set[str]:
        path = font_manager.findfont(name)
        return set(map(chr, font_manager.get_font(path).get_charmap()))

    lacking = sorted(c for c in characters("STIXGeneral") - characters("DejaVu Sans") if c.isprintable())[0]
    figure = Figure()
    text = figure.text(0.5, 0.5, lacking)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "f.png")
    assert text.get_text() == lacking and len(text.get_fontfamily()) == 2
    assert not capsys.readouterr().err


def test_labels_of_inputs_are_text_and_numbers_of_axes_stay(tmp_path: Path) -> None:
    figure = draw_features([("a$_b$ $", FeatureMetrics(0.1, 0.2, 0.5, 10, 2, 5, 0))])
    figure.axes[0].set_xscale("log")
    save_figure(figure, tmp_path / "f.png")
    assert "a$_b$ $" in written(figure)
    assert any(text.startswith("$\\mathdefault{10^") for text in written(figure))
    numbers = [t for t in figure.axes[0].get_xticklabels() if t.get_text()]
    assert all(number.get_parse_math() for number in numbers)
