import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffcv_train.data.loading import plan


@given(st.integers(1, 500), st.integers(0, 99), st.integers(0, 99))
def test_random_order_is_a_permutation_that_repeats(n: int, seed: int, epoch: int) -> None:
    first = plan.random_order(n, seed, epoch)
    assert np.array_equal(np.sort(first), np.arange(n))
    assert np.array_equal(first, plan.random_order(n, seed, epoch))


def test_random_order_changes_with_seed_and_epoch() -> None:
    orders = {tuple(plan.random_order(100, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 20), st.integers(0, 5))
def test_quasi_random_order_is_a_permutation_with_few_pages_in_use(
    pages: int, per_page: int, window: int, epoch: int
) -> None:
    page_of = np.repeat(np.arange(pages) + 7, per_page)
    visited = plan.quasi_random_order(page_of, window, 0, epoch)
    assert np.array_equal(np.sort(visited), np.arange(len(page_of)))
    sequence = page_of[visited]
    first = {page: np.argmax(sequence == page) for page in np.unique(sequence)}
    last = {page: len(sequence) - 1 - np.argmax(sequence[::-1] == page) for page in np.unique(sequence)}
    in_use = [
        sum(first[p] <= i <= last[p] for p in first) for i in range(0, len(sequence), max(1, len(sequence) // 20))
    ]
    assert max(in_use) <= 2 * window + 1


@given(st.integers(1, 300), st.integers(1, 16), st.integers(1, 5))
def test_interleaved_batches_of_ranks_are_the_global_batches(n: int, size: int, world_size: int) -> None:
    visited = plan.random_order(n, 0, 0)
    alone = plan.interleaved_batches(visited, size * world_size, 0, 1)
    ranks = [plan.interleaved_batches(visited, size, rank, world_size) for rank in range(world_size)]
    assert [len(batches) for batches in ranks] == [len(alone)] * world_size
    for batch, *shares in zip(alone, *ranks, strict=True):
        assert np.array_equal(batch, np.concatenate(shares))


@given(st.integers(1, 300), st.integers(1, 16), st.integers(1, 5))
def test_contiguous_batches_of_ranks_are_disjoint_and_as_many(n: int, size: int, world_size: int) -> None:
    visited = plan.random_order(n, 0, 0)
    ranks = [plan.contiguous_batches(visited, size, rank, world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {n // (size * world_size)}
    samples = [s for batches in ranks for batch in batches for s in batch]
    assert len(samples) == len(set(samples))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_visits_each_of_997_samples_once(world_size: int) -> None:
    ranks = [plan.every_sample_batches(997, 64, rank, world_size) for rank in range(world_size)]
    samples = np.concatenate([batch for batches in ranks for batch in batches])
    assert np.array_equal(np.sort(samples), np.arange(997))


def test_more_ranks_than_samples_leave_some_without_batches() -> None:
    assert plan.every_sample_batches(2, 4, 2, 3) == []


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.integers(0, 9), st.integers(0, 9))
def test_weighted_draws_are_the_shares_rounded(weights: list[float], seed: int, epoch: int) -> None:
    w = np.array([weight if weight > 1e-3 else 0.0 for weight in weights])
    if not w.any():
        w[0] = 1.0
    n, draws = len(w), int(np.count_nonzero(w))
    keys = plan.weighted_draws(w, seed, epoch)
    assert len(keys) == draws == len(np.unique(keys)) and np.array_equal(keys, plan.weighted_draws(w, seed, epoch))
    counts = np.bincount(keys % n, minlength=n)
    share = w / w.sum() * draws
    assert (counts[w == 0] == 0).all() and (np.abs(counts - share) < 1 + 1e-6).all()
    # A sample's draws are its repetitions 0, 1, …
    assert all(sorted(keys[keys % n == i] // n) == list(range(counts[i])) for i in range(n))


def test_equal_weights_draw_every_sample_once() -> None:
    assert np.array_equal(np.sort(plan.weighted_draws(np.full(97, 0.1), 3, 1)), np.arange(97))


def test_weighted_draws_have_the_share_as_their_mean() -> None:
    w = np.random.default_rng(0).random(20) ** 3
    epochs = 4000
    counts = sum(np.bincount(plan.weighted_draws(w, 0, epoch) % 20, minlength=20) for epoch in range(epochs))
    share = w / w.sum() * 20
    # The variance of a count that is rounded up or down is at most a quarter.
    assert (np.abs(counts / epochs - share) < 5 * 0.5 / np.sqrt(epochs)).all()


@pytest.mark.parametrize("order", ["random", "quasi_random"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_share_weighted_draws(order: plan.Order, repeats: int, world_size: int) -> None:
    n = 60
    w = np.r_[np.ones(50), np.full(9, 5.0), 0.0]
    pages = np.arange(n) // 7
    plans = [
        plan.EpochPlan(n, 4, order, 1, rank, world_size, repeats, pages, 3, weights=w) for rank in range(world_size)
    ]
    batches = [p.batches(2) for p in plans]
    assert [len(b) for b in batches] == [len(p) for p in plans] == [59 // (4 * world_size)] * world_size
    keys = np.concatenate([key for rank in batches for key in rank])
    assert len(np.unique(keys)) == len(keys) and not (keys % n == 59).any()
    for p, full in zip(plans, batches, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(p.batches(2, 3), full[3:], strict=True))
    if repeats == 1 and world_size == 1:
        assert np.isin(keys, plan.weighted_draws(w, 1, 2)).all()


def drawn_at_once(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """What `weighted_draws` gives, by NumPy's plainest means."""
    generator = np.random.default_rng((seed, epoch, 1))
    n, draws = len(weights), int(np.count_nonzero(weights))
    shuffled = generator.permutation(n)
    edges = np.cumsum(weights[shuffled])
    points = (np.arange(draws) + generator.random()) * (edges[-1] / draws)
    last = np.flatnonzero(weights[shuffled])[-1]
    keys, times = [], dict.fromkeys(range(n), 0)
    for point in points:
        sample = int(shuffled[min(np.searchsorted(edges, point, side="right"), last)])
        keys.append(sample + n * times[sample])
        times[sample] += 1
    return np.array(keys)


@pytest.mark.parametrize("part", [7, 1 << 18])
def test_orders_are_those_of_numpys_generator(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done to hold less of them in memory: a run that began before must go on with the same epochs."""
    monkeypatch.setattr(plan, "_PART", part)
    n = 1003
    rng = np.random.default_rng(0)
    assert np.array_equal(plan.random_order(n, 3, 4), np.random.default_rng((3, 4)).permutation(n))
    weights = rng.random(n) ** 4 * (rng.random(n) < 0.8)
    assert np.array_equal(plan.weighted_draws(weights, 3, 4), drawn_at_once(weights, 3, 4))
    for pages in (np.arange(n) // 60, rng.integers(0, 17, n), (np.arange(n) // 60).astype(np.uint32)):
        generator = np.random.default_rng((3, 4))
        unique, inverse = np.unique(pages, return_inverse=True)
        rank = generator.permutation(len(unique))
        wanted = np.argsort(rank[inverse] + generator.random(n) * 5, kind="stable")
        assert np.array_equal(plan.quasi_random_order(pages, 5, 3, 4), wanted)
    for rank in range(3):
        keys = np.concatenate(plan.EpochPlan(n, 4, "random", 3, rank, 3).batches(4))
        assert keys.dtype == np.int64
        wanted = np.random.default_rng((3, 4)).permutation(n)[: n // 12 * 12].reshape(-1, 3, 4)[:, rank].ravel()
        assert np.array_equal(keys, wanted)
