"""Schedules against tables computed by hand, and against FFCV's own formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffcv_train.config.schema import LrConfig, ResolutionConfig
from ffcv_train.losses.base import alpha
from ffcv_train.system.errors import UserError
from ffcv_train.training import schedules


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.00017), (0.5, 0.4251275), (1, 0.850085), (2, 1.7), (5.5, 1.275), (9, 0.85), (15.5, 0.0607142857), (16, 0)],
)
def test_cyclic_rises_to_its_peak_and_falls_to_zero(epoch: float, rate: float) -> None:
    assert schedules.learning_rate(LrConfig(lr_peak_epoch=2), 1.7, 16, epoch) == pytest.approx(rate, abs=1e-9)


@given(epochs=st.integers(1, 100), peak=st.data(), steps=st.integers(1, 2000))
def test_cyclic_equals_ffcv_at_every_step(epochs: int, peak: st.DataObject, steps: int) -> None:
    peak_epoch = peak.draw(st.integers(0, epochs - 1), "peak epoch")
    epoch = peak.draw(st.integers(0, epochs - 1), "epoch")
    step = peak.draw(st.integers(0, steps - 1), "step")

    def ffcv_at_epoch(x: int) -> float:
        if peak_epoch == 0:  # np.interp is not defined on two equal abscissae; what is meant is the fall alone
            return np.interp(x, [0, epochs], [0.5, 0])
        return np.interp(x, [0, peak_epoch, epochs], [1e-4 * 0.5, 0.5, 0])

    expected = np.interp(step, [0, steps], [ffcv_at_epoch(epoch), ffcv_at_epoch(epoch + 1)])
    ours = schedules.learning_rate(LrConfig(lr_peak_epoch=peak_epoch), 0.5, epochs, epoch + step / steps)
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 1e-4), (1, 0.50005), (2, 1.0), (4, 0.8681980515), (6, 0.55), (8, 0.2318019485), (10, 0.1), (11, 0.1)],
)
def test_cosine_after_warm_up(epoch: float, rate: float) -> None:
    config = LrConfig(lr_schedule_type="cosine", warmup_epochs=2, min_lr=0.1)
    assert schedules.learning_rate(config, 1.0, 10, epoch) == pytest.approx(rate, abs=1e-9)


def test_cosine_without_warm_up_starts_at_the_peak() -> None:
    config = LrConfig(lr_schedule_type="cosine")
    rates = [schedules.learning_rate(config, 0.85, 200, epoch) for epoch in (0, 50, 100, 150, 200)]
    assert rates == pytest.approx([0.85, 0.7255203820, 0.425, 0.1244796180, 0.0])


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.1), (29.999, 0.1), (30, 0.01), (59.999, 0.01), (60, 0.001), (89.999, 0.001)]
)
def test_steps_every_thirty_epochs(epoch: float, rate: float) -> None:
    assert schedules.learning_rate(LrConfig(lr_schedule_type="step"), 0.1, 90, epoch) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 1e-5), (2.5, 0.050005), (5, 0.1), (59.9, 0.1), (60, 0.02), (120, 0.004), (160, 0.0008), (199, 0.0008)],
)
def test_steps_at_given_epochs_after_warm_up(epoch: float, rate: float) -> None:
    config = LrConfig(lr_schedule_type="step", step_ratio=0.2, step_epochs=(60, 120, 160), warmup_epochs=5)
    assert schedules.learning_rate(config, 0.1, 200, epoch) == pytest.approx(rate)


@given(
    kind=st.sampled_from(["cyclic", "cosine", "step"]),
    epochs=st.integers(1, 300),
    share=st.floats(0, 1),
    progress=st.floats(0, 1),
)
def test_rates_stay_between_zero_and_the_peak(kind: str, epochs: int, share: float, progress: float) -> None:
    config = LrConfig(lr_schedule_type=kind, lr_peak_epoch=share * epochs, warmup_epochs=share * epochs)
    schedules.check(config, ResolutionConfig(), epochs)
    assert 0 <= schedules.learning_rate(config, 0.3, epochs, progress * epochs) <= 0.3 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("epochs", "start_ramp", "end_ramp", "sides"),
    [
        (16, 11, 13, [160] * 12 + [192] * 4),  # rn50_16_epochs: 176 of epoch 12 is a tie and goes up, to 6 x 32
        (88, 65, 76, [160] * 71 + [192] * 17),  # rn50_88_epochs: 174.5 in epoch 70, 177.5 in epoch 71
    ],
)
def test_resolution_follows_ffcv_configs(epochs: int, start_ramp: int, end_ramp: int, sides: list[int]) -> None:
    config = ResolutionConfig(min_res=160, max_res=192, start_ramp=start_ramp, end_ramp=end_ramp)
    assert [schedules.resolution(config, epoch) for epoch in range(epochs)] == sides


def test_resolution_rounds_ties_to_the_even_multiple() -> None:
    config = ResolutionConfig(min_res=128, max_res=256, start_ramp=2, end_ramp=10)
    sides = [schedules.resolution(config, epoch) for epoch in range(12)]
    assert sides == [128, 128, 128, 128, 160, 192, 192, 192, 224, 256, 256, 256]


def test_resolution_of_small_images() -> None:
    config = ResolutionConfig(min_res=24, max_res=32, start_ramp=0, end_ramp=4, step=4)
    assert [schedules.resolution(config, epoch) for epoch in range(6)] == [24, 24, 28, 32, 32, 32]


def test_resolution_without_a_ramp_jumps_after_its_epoch() -> None:
    config = ResolutionConfig(min_res=160, max_res=192, start_ramp=3, end_ramp=3)
    assert [schedules.resolution(config, epoch) for epoch in range(6)] == [160] * 4 + [192] * 2


def test_alpha_is_linear_in_the_epoch() -> None:
    weights = [alpha(0.1, 0.2, 4, epoch) for epoch in range(4)]
    assert weights == pytest.approx([0.1, 0.125, 0.15, 0.175])
    assert alpha(0.1, 0.1, 7, 5) == pytest.approx(0.1)


def test_alpha_reaches_its_end_in_the_last_epoch_as_in_maxsups_deit() -> None:
    weights = [alpha(0.1, 0.2, 300, epoch, "reach") for epoch in range(300)]
    assert weights == pytest.approx([0.1 + epoch * 0.1 / 299 for epoch in range(300)])
    assert weights[-1] == pytest.approx(0.2)
    assert alpha(0.1, 0.2, 1, 0, "reach") == 0.1


@pytest.mark.parametrize(
    ("lr", "resolution", "key"),
    [
        (LrConfig(lr_peak_epoch=11), ResolutionConfig(), "lr.lr_peak_epoch=11"),
        (LrConfig(lr_schedule_type="cosine", warmup_epochs=11), ResolutionConfig(), "lr.warmup_epochs=11"),
        (LrConfig(lr_schedule_type="step", warmup_epochs=10.5), ResolutionConfig(), "lr.warmup_epochs=10.5"),
        (LrConfig(lr_schedule_type="cosine", lr=0.1, min_lr=0.2), ResolutionConfig(), "lr.min_lr=0.2"),
        (LrConfig(lr_schedule_type="step", step_epochs=(3, 3)), ResolutionConfig(), "lr.step_epochs=3,3"),
        (LrConfig(), ResolutionConfig(min_res=192, max_res=160), "resolution.min_res=192"),
        (LrConfig(), ResolutionConfig(min_res=128, start_ramp=5, end_ramp=4), "resolution.start_ramp=5"),
        (LrConfig(), ResolutionConfig(min_res=150, end_ramp=4), "resolution.min_res=150"),
        (LrConfig(), ResolutionConfig(min_res=32, max_res=40, end_ramp=4), "resolution.max_res=40"),
    ],
)
def test_contradictions_are_refused_by_name(lr: LrConfig, resolution: ResolutionConfig, key: str) -> None:
    with pytest.raises(UserError, match=key):
        schedules.check(lr, resolution, epochs=10)


@pytest.mark.parametrize(
    ("lr", "resolution"),
    [
        (LrConfig(lr_peak_epoch=10), ResolutionConfig()),
        (LrConfig(lr_peak_epoch=99, lr_schedule_type="cosine"), ResolutionConfig()),
        (LrConfig(step_epochs=(9, 1), warmup_epochs=99), ResolutionConfig()),
        (LrConfig(lr_schedule_type="step", step_epochs=(3, 8, 50)), ResolutionConfig(min_res=176, max_res=176)),
        (LrConfig(lr_schedule_type="cosine", lr=0.1, min_lr=0.2, reference_batch=8), ResolutionConfig()),
        (LrConfig(), ResolutionConfig(min_res=24, max_res=32, end_ramp=4, step=8)),
    ],
)
def test_what_is_consistent_passes(lr: LrConfig, resolution: ResolutionConfig) -> None:
    schedules.check(lr, resolution, epochs=10)
