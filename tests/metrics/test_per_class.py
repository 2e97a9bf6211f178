"""Per-class results and the confusion matrix, against scikit-learn's."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from ffcv_train.analysis.figures.confusion import NAMED, draw_confusion, pairs_table
from ffcv_train.metrics.per_class import ClassResults, SampleResults


def sample_results(
    samples: int, classes: int, seed: int = 0, parts: int = 3
) -> tuple[torch.Tensor, np.ndarray, SampleResults]:
    """Logits that prefer the label, some of them equal, labels (the last class has none), and what was gathered."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes - 1, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), labels] += 1.5
    logits[::7] = logits[::7].round()
    # Each part is a rank's; each sees its own samples, in no order.
    ranks = []
    for rank in range(parts):
        own = torch.randperm(samples, generator=generator)
        own = own[own % parts == rank]
        one = SampleResults(samples)
        for batch in own.split(16):
            one.update(logits[batch], labels[batch], batch)
        ranks.append(one)
    sums = [torch.stack([getattr(r, name) for r in ranks]).sum(0) for name in ("_integers", "_confidence")]
    gathered = iter(sums)
    ranks[0].reduce(lambda tensor: tensor.copy_(next(gathered)))
    return logits, labels.numpy(), ranks[0]


def test_equal_scikit_learn_s() -> None:
    logits, labels, samples = sample_results(500, 12)
    found = samples.compute(labels, 12, None)
    predicted, classes = logits.argmax(1).numpy(), np.arange(12)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=np.nan
    )
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1, f1)
    assert np.isnan(found.recall[11])
    assert np.array_equal(found.counts, support)
    counts = confusion_matrix(labels, predicted, labels=classes)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(found.matrix(classes.tolist()), share)
    np.testing.assert_allclose(found.matrix([3, 7]), share[np.ix_([3, 7], [3, 7])])
    confidence = torch.softmax(logits.double(), 1).amax(1).numpy()
    for label in range(11):
        mine = labels == label
        assert found.mean_confidence[label] == pytest.approx(confidence[mine].mean())
        # Of equal logits scikit-learn prefers the higher class.
        distinct = mine & (np.arange(500) % 7 != 0)
        expected = top_k_accuracy_score(labels[distinct], logits[distinct].numpy(), k=5, labels=classes)
        assert found.hits_5[label] >= round(expected * distinct.sum())
    true, other = np.divmod(np.argsort(-(counts - np.diag(np.diag(counts))).ravel(), kind="stable")[:5], 12)
    assert [(t, o) for t, o, _, _ in found.worst_pairs(5)] == list(zip(true.tolist(), other.tolist(), strict=True))
    assert found.worst_classes(3) == np.argsort(recall[:11], kind="stable")[:3].tolist()


def test_survive_json() -> None:
    _, labels, samples = sample_results(200, 5)
    found = samples.compute(labels, 5, [f"name {i}" for i in range(5)])
    again = ClassResults.from_plain(json.loads(json.dumps(found.plain())))
    assert again.names == found.names
    for name in ("counts", "predicted", "hits", "hits_5", "confidences", "confusions"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    for wrong in ({"names": ["a"]}, {"confusions": [[0, 9, 1]]}):
        with pytest.raises(ValueError, match=r"columns of different lengths|unknown classes"):
            ClassResults.from_plain({**found.plain(), **wrong})


def texts(results: ClassResults) -> set[str]:
    figure = draw_confusion(results)
    figure.draw_without_rendering()
    return {label.get_text() for axes in figure.axes for label in axes.get_yticklabels()}


def test_a_thousand_classes_stay_readable() -> None:
    """The classes of the most frequent errors have names, no more than there is room for; the table has the pairs."""
    _, labels, samples = sample_results(4000, 1000)
    found = samples.compute(labels, 1000, [f"class {i}" for i in range(1000)])
    shown = {text for text in texts(found) if text.startswith("class ")}
    assert 2 <= len(shown) <= NAMED
    pairs = found.worst_pairs(5)
    assert all({found.names[true], found.names[other]} <= shown for true, other, _, _ in pairs)
    assert f"| {found.names[pairs[0][0]]} | {found.names[pairs[0][1]]} |" in pairs_table(found)


def test_few_classes_are_all_named_and_none_may_be_wrong() -> None:
    _, labels, samples = sample_results(60, 4)
    assert texts(samples.compute(labels, 4, list("abcd"))) >= set("abcd")
    perfect = SampleResults(40)
    classes = torch.arange(40)
    perfect.update(torch.eye(40), classes, classes)
    found = perfect.compute(classes.numpy(), 40, None)
    assert not len(found.confusions)
    draw_confusion(found).draw_without_rendering()
