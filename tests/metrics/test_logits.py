"""Statistics of logits: values known by hand, float64 NumPy, and the figures' bins."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ffcv_train.analysis.figures.logits import (
    draw_distributions,
    draw_logit_density,
    draw_near_zero,
    logit_table,
    share_edges,
)
from ffcv_train.metrics.logits import (
    LogitStatistics,
    logit_statistics,
    margin,
    near_zero_share,
    statistics_of,
    summarise_logits,
)
from ffcv_train.metrics.logits_file import LogitsFile
from ffcv_train.system.errors import UserError


def cases(count: int, classes: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = scale * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


def test_known_values() -> None:
    logits = torch.tensor([[3.0, 0.0, 4.0, 0.0], [0.009, -0.009, 0.01, -0.01], [1.0, 1.0, 1.0, 1.0]])
    labels = torch.tensor([2, 0, 0])
    found = logit_statistics(logits, labels, threshold=0.0099)
    np.testing.assert_allclose(found.near_zero, [0.5, 0.5, 0.0])
    np.testing.assert_allclose(found.max_logit, [4, 0.01, 1], rtol=1e-6)
    np.testing.assert_allclose(found.norm[0], 5)
    np.testing.assert_allclose(found.margin, [1, 0.001, 0], atol=1e-7)
    # Of equal logits the first is the prediction.
    assert found.correct.tolist() == [True, False, True]
    assert found.confidence[0] == pytest.approx(math.exp(4) / (math.exp(4) + math.exp(3) + 2))
    assert found.confidence[2] == pytest.approx(0.25)
    assert found.metrics["top_1"] == pytest.approx(2 / 3)


def test_the_threshold_is_exclusive_and_symmetric() -> None:
    logits = torch.tensor([[0.5, -0.5, 0.25, -0.25]])
    assert near_zero_share(logits, 0.5).tolist() == [0.5]
    assert near_zero_share(logits, 0.51).tolist() == [1.0]
    assert margin(torch.tensor([[1.0, 5.0, 3.0]])).tolist() == [2.0]


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (1e-3, 5.0), (300.0, -1e3), (0.0, 0.7)])
def test_all_logits_are_in_the_density(scale: float, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = cases(300, 7)
    logits = scale * logits.double() + shift
    monkeypatch.setattr(
        "ffcv_train.metrics.logits.row_blocks", lambda n, k: (slice(i, min(i + 64, n)) for i in range(0, n, 64))
    )
    found = logit_statistics(logits, labels)
    assert found.logit_counts.sum() == logits.numel()
    assert len(found.logit_counts) <= 200
    widths = np.diff(found.logit_edges)
    np.testing.assert_allclose(widths, widths[0])
    if scale:
        assert len(found.logit_counts) >= 35  # widths are 1, 2 or 5 times a power of 10
        inside = ((logits >= found.logit_edges[9]) & (logits < found.logit_edges[20])).sum().item()
        assert found.logit_counts[9:20].sum() == inside
    (curve,) = draw_logit_density([("one", found)]).axes[0].patches
    values, edges, _ = curve.get_data()  # type: ignore[attr-defined]
    assert (values * np.diff(edges)).sum() == pytest.approx(1)


def test_equals_numpy_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = cases(500, 7)
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "ffcv_train.metrics.logits.row_blocks", lambda n, k: (slice(i, min(i + 64, n)) for i in range(0, n, 64))
    )
    found = logit_statistics(logits, labels, 0.3, lambda done, of: shown.append((done, of)))
    z, y = logits.double().numpy(), labels.numpy()
    order = np.sort(z, axis=1)
    exponentials = np.exp(z)
    np.testing.assert_allclose(found.near_zero, (np.abs(z) < 0.3).mean(axis=1))
    np.testing.assert_allclose(found.confidence, (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1))
    np.testing.assert_allclose(found.norm, np.sqrt((z**2).sum(axis=1)))
    np.testing.assert_allclose(found.margin, order[:, -1] - order[:, -2])
    np.testing.assert_array_equal(found.correct, z.argmax(axis=1) == y)
    assert found.metrics["count"] == 500
    assert found.metrics["top_1"] == found.correct.mean()
    assert shown[-1] == (500, 500)
    assert len(shown) == 8


def test_summary_keeps_right_and_wrong_apart() -> None:
    logits, labels = cases(400, 5)
    found = logit_statistics(logits, labels)
    summary = summarise_logits(found)
    for part, mask in (("right", found.correct), ("wrong", ~found.correct), ("all", np.ones(400, dtype=bool))):
        assert summary[part]["count"] == mask.sum()
        assert summary[part]["max_logit"]["mean"] == pytest.approx(found.max_logit[mask].mean())
        assert summary[part]["norm"]["std"] == pytest.approx(found.norm[mask].std())
        assert summary[part]["margin"]["quartiles"][1] == pytest.approx(np.median(found.margin[mask]))
    assert summary["right"]["count"] + summary["wrong"]["count"] == 400
    labels = logits.argmax(dim=1)
    summary = summarise_logits(logit_statistics(logits, labels))
    assert summary["wrong"] is None
    table = logit_table([("a|b", summary)])
    assert "wrong" not in table
    assert r"a\|b" in table
    assert "100.00" in table


def test_refusals(tmp_path: Path) -> None:
    logits, labels = cases(20, 3)
    logits[13, 1] = torch.inf
    file = LogitsFile(tmp_path / "L.pt", logits, labels)
    with pytest.raises(UserError, match=r"sample 13 are not finite in .*L\.pt"):
        statistics_of(file, 0.01)
    with pytest.raises(UserError, match="has 1 class"):
        statistics_of(LogitsFile(tmp_path / "L.pt", logits[:, :1], labels * 0), 0.01)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_bins_hold_every_share_and_none_is_empty_for_want_of_values(classes: int) -> None:
    logits, labels = cases(300, classes, scale=0.5)
    found = logit_statistics(logits, labels, 0.2)
    edges = share_edges([found])
    assert np.histogram(found.near_zero, edges)[0].sum() == 300
    assert len(edges) <= 51
    widths = np.diff(edges) * classes
    np.testing.assert_allclose(widths, np.round(widths[0]))
    possible = np.arange(classes + 1) / classes
    held = np.histogram(possible, edges)[0]
    assert (held == round(widths[0])).all() or held.sum() == classes + 1


def named(*scales: float) -> list[tuple[str, LogitStatistics]]:
    return [(f"s{scale:g}", logit_statistics(*cases(300, 12, scale=scale), 0.3)) for scale in scales]


def test_the_figures_show_the_numbers_on_shared_axes() -> None:
    inputs = named(0.5, 3.0)
    figure = draw_near_zero(inputs)
    upper, lower = figure.axes[:2], figure.axes[2:4]
    edges = share_edges([s for _, s in inputs])
    for axes, (label, s) in zip(upper, inputs, strict=True):
        heights = axes.patches[0].get_data().values
        np.testing.assert_allclose(heights, np.histogram(s.near_zero, edges)[0] / 3)
        assert axes.get_title().startswith(label)
    for axes, (_, s) in zip(lower, inputs, strict=True):
        density = axes.collections[0].get_array()
        assert float(density.sum()) == pytest.approx(100)
        expected = np.histogram2d(s.confidence, s.near_zero, (np.linspace(0, 1, 51), edges))[0].T / 3
        np.testing.assert_allclose(density.filled(0).reshape(expected.shape), expected)
    assert upper[0].get_xlim() == upper[1].get_xlim()
    assert lower[0].get_ylim() == lower[1].get_ylim()
    assert lower[0].collections[0].norm is not None
    assert lower[0].collections[0].get_clim() == lower[1].collections[0].get_clim()

    figure = draw_distributions(inputs)
    assert len(figure.axes) == 6
    for column, (_, s) in enumerate(inputs):
        for row, name in enumerate(("max_logit", "norm", "margin")):
            axes = figure.axes[2 * row + column]
            filled, right, wrong = (patch.get_data() for patch in axes.patches)
            assert filled.values.sum() == pytest.approx(100)
            values = getattr(s, name)
            np.testing.assert_allclose(
                wrong.values, 100 * np.histogram(values[~s.correct], wrong.edges)[0] / (~s.correct).sum()
            )
            np.testing.assert_allclose(
                right.values, 100 * np.histogram(values[s.correct], right.edges)[0] / s.correct.sum()
            )


def test_at_most_six_inputs() -> None:
    with pytest.raises(UserError, match="1 to 6 inputs, not 7"):
        draw_near_zero(named(1.0) * 7)
