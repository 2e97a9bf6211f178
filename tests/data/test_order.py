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
