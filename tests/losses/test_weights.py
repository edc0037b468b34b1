"""Each weight against its formula, written out one timestep at a time in Python's floats."""

import math

import pytest
import torch

from ddpm_hf.config.loss import LossConfig
from ddpm_hf.losses.weights import weight_table

T = 1000
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def linear_schedule() -> list[float]:
    product, alpha_bar = 1.0, []
    for t in range(T):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / (T - 1))
        alpha_bar.append(product)
    return alpha_bar


def cosine_schedule() -> list[float]:
    def f(t: int) -> float:
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    product, alpha_bar = 1.0, []
    for t in range(T):
        product *= 1 - min(1 - f(t + 1) / f(t), 0.999)
        alpha_bar.append(product)
    return alpha_bar


SCHEDULES = {"linear": linear_schedule(), "cosine": cosine_schedule()}
GAMMA, P2_GAMMA, P2_K = 4.0, 0.5, 1.5

# by formula and prediction type: w as a function of SNR and t
FORMULAS = {
    **{("constant", prediction): lambda snr, t: 1.0 for prediction in PREDICTIONS},
    **{("snr", prediction): lambda snr, t: snr for prediction in PREDICTIONS},
    **{("inverse", prediction): lambda snr, t: 1 / (1 + t) for prediction in PREDICTIONS},
    ("min_snr", "epsilon"): lambda snr, t: min(snr, GAMMA) / snr,
    ("min_snr", "sample"): lambda snr, t: min(snr, GAMMA),
    ("min_snr", "v_prediction"): lambda snr, t: min(snr, GAMMA) / (snr + 1),
    ("p2", "epsilon"): lambda snr, t: 1 / (P2_K + snr) ** P2_GAMMA,
    ("p2", "sample"): lambda snr, t: snr / (P2_K + snr) ** P2_GAMMA,
    ("p2", "v_prediction"): lambda snr, t: snr / (snr + 1) / (P2_K + snr) ** P2_GAMMA,
}


def table(alpha_bar: list[float], prediction: str, formula: str, **params: object) -> torch.Tensor:
    params = {"gamma": GAMMA, "p2_gamma": P2_GAMMA, "p2_k": P2_K, **params}
    config = LossConfig(use_time_weighting=True, time_weight_type=formula, time_weight_params=params)
    return weight_table(config, torch.tensor(alpha_bar, dtype=torch.float64), prediction)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("formula", "prediction"), FORMULAS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1e9), (0.1, 1.0), (0.0, 0.5)])
def test_weights_are_the_formulas_within_the_bounds(
    schedule: str, formula: str, prediction: str, low: float, high: float
) -> None:
    alpha_bar = SCHEDULES[schedule]
    expected = [FORMULAS[formula, prediction](a / (1 - a), t) for t, a in enumerate(alpha_bar)]
    expected = torch.tensor([min(max(w, low), high) for w in expected], dtype=torch.float64)
    actual = table(alpha_bar, prediction, formula, min_weight=low, max_weight=high)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_linear_falls_from_max_to_min(prediction: str) -> None:
    actual = table(SCHEDULES["cosine"], prediction, "linear", min_weight=0.25, max_weight=3.0)
    expected = torch.tensor([3.0 - 2.75 * t / (T - 1) for t in range(T)])
    torch.testing.assert_close(actual, expected)
    assert actual[0] == 3.0
    assert actual[-1] == 0.25


@pytest.mark.parametrize("formula", ["min_snr", "p2"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_three_forms_weigh_one_error_alike(schedule: str, formula: str) -> None:
    """|eps error|^2 = SNR |x_0 error|^2 = alpha_bar |v error|^2, so the forms differ by just these factors."""
    alpha_bar = torch.tensor(SCHEDULES[schedule], dtype=torch.float64)
    epsilon, sample, v = (table(SCHEDULES[schedule], prediction, formula).double() for prediction in PREDICTIONS)
    torch.testing.assert_close(sample, epsilon * alpha_bar / (1 - alpha_bar), rtol=1e-6, atol=0)
    torch.testing.assert_close(v, epsilon * alpha_bar, rtol=1e-6, atol=0)


def test_default_bounds_leave_the_papers_formulas_alone() -> None:
    assert table(SCHEDULES["linear"], "v_prediction", "min_snr").min() < 1e-4
    assert table(SCHEDULES["linear"], "sample", "min_snr").max() == GAMMA
    for formula in ("snr", "linear", "inverse"):
        weights = table(SCHEDULES["linear"], "epsilon", formula)
        torch.testing.assert_close(torch.stack([weights.min(), weights.max()]), torch.tensor([0.1, 1.0]))


@pytest.mark.parametrize(("formula", "prediction"), FORMULAS)
def test_normalised_weights_have_mean_one_and_the_same_shape(formula: str, prediction: str) -> None:
    bounded = table(SCHEDULES["linear"], prediction, formula, min_weight=0.1, max_weight=2.0)
    normalised = table(SCHEDULES["linear"], prediction, formula, min_weight=0.1, max_weight=2.0, normalize=True)
    torch.testing.assert_close(normalised.double().mean().item(), 1.0, rtol=1e-6, atol=0)
    torch.testing.assert_close(normalised, bounded / bounded.double().mean().float())


@pytest.mark.parametrize(("formula", "prediction"), FORMULAS)
@pytest.mark.parametrize("p2_gamma", [0.5, 1.0, 2.0])
def test_schedules_without_noise_or_without_signal_at_their_ends(
    formula: str, prediction: str, p2_gamma: float
) -> None:
    weights = table([1.0, 0.5, 0.0], prediction, formula, p2_gamma=p2_gamma, max_weight=10.0)
    assert weights.isfinite().all()
    assert weights.max() <= 10


def test_infinite_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="time_weight_params"):
        table([1.0, 0.5], "sample", "p2", p2_gamma=0.5)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="not all zero"):
        table([0.0, 0.0], "sample", "min_snr")


def test_without_time_weighting_every_timestep_counts_the_same() -> None:
    alphas = torch.tensor(SCHEDULES["linear"])
    config = LossConfig(use_time_weighting=False, time_weight_type="snr")
    assert torch.equal(weight_table(config, alphas, "epsilon"), torch.ones(T))


def test_the_default_is_min_snr_as_its_paper_has_it() -> None:
    snr = torch.tensor(SCHEDULES["linear"]) / (1 - torch.tensor(SCHEDULES["linear"]))
    weights = weight_table(LossConfig(), torch.tensor(SCHEDULES["linear"]), "epsilon")
    torch.testing.assert_close(weights, snr.clamp(max=5) / snr, rtol=1e-5, atol=0)
