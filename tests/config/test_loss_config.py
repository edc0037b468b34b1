"""loss_config: what it accepts, and that it reports every mistake at once."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddpm_hf.config import load_config
from ddpm_hf.config.loss import LossConfig
from ddpm_hf.runtime.errors import UserError

Refused = Callable[..., dict[str, str]]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Give loss_config some values; returns what is said of each mistake, by its dotted path in the section."""

    def refused(**values: Any) -> dict[str, str]:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump({"loss_config": values}))
        with pytest.raises(UserError) as refusal:
            load_config(file)
        mistakes = [line.partition("loss_config.")[2].partition(": ") for line in str(refusal.value).splitlines()[1:]]
        return {path: text for path, _, text in mistakes}

    return refused


def test_the_document_loads_verbatim() -> None:
    config = LossConfig.model_validate(
        {
            "loss_type": "mse",
            "mse_weight": 1.0,
            "use_time_weighting": True,
            "time_weight_type": "snr",
            "time_weight_params": {"min_weight": 0.1, "max_weight": 1.0},
        }
    )
    assert config.weight_bounds == (0.1, 1.0)
    assert config.term_weights == {"mse": 1.0}


def test_it_survives_being_written_and_read() -> None:
    config = LossConfig(time_weight_type="p2", time_weight_params={"p2_gamma": 0.5}, timestep_sampling="importance")
    assert LossConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("formula", "bounds"),
    [
        ("constant", (0, math.inf)),
        ("snr", (0.1, 1)),
        ("linear", (0.1, 1)),
        ("inverse", (0.1, 1)),
        ("min_snr", (0, math.inf)),
        ("p2", (0, math.inf)),
    ],
)
def test_bounds_default_by_formula(formula: str, bounds: tuple[float, float]) -> None:
    assert LossConfig(time_weight_type=formula).weight_bounds == bounds
    assert LossConfig(time_weight_type=formula, time_weight_params={"max_weight": 3}).weight_bounds == (bounds[0], 3)


def test_hybrid_has_all_terms_and_a_single_type_its_own() -> None:
    assert LossConfig(loss_type="hybrid", l1_weight=0).term_weights == {"mse": 1, "l1": 0, "huber": 1}
    assert LossConfig(loss_type="l1", l1_weight=2, mse_weight=0).term_weights == {"l1": 2}


def test_all_mistakes_are_reported_at_once(refused: Refused) -> None:
    found = refused(
        loss_type="hybrid",
        mse_weight=0,
        l1_weight=0,
        huber_weight=0,
        huber_delta=-1,
        time_weight_type="snrr",
        time_weight_params={"min_weight": 2, "max_weight": 1, "gamma": 0, "p2_gamma": -1, "p2_k": 0, "gama": 5},
        timestep_sampling="random",
        mse_wieght=1,
    )
    assert set(found) == {
        "huber_weight",
        "huber_delta",
        "time_weight_type",
        "time_weight_params.max_weight",
        "time_weight_params.gamma",
        "time_weight_params.p2_gamma",
        "time_weight_params.p2_k",
        "time_weight_params.gama",
        "timestep_sampling",
        "mse_wieght",
    }
    assert "min_weight (2.0)" in found["time_weight_params.max_weight"]
    assert "mse_weight" in found["huber_weight"]


@pytest.mark.parametrize("term", ["mse", "l1", "huber"])
def test_a_single_term_needs_a_weight(refused: Refused, term: str) -> None:
    assert set(refused(loss_type=term, **{f"{term}_weight": 0})) == {f"{term}_weight"}


@pytest.mark.parametrize("name", ["mse_weight", "l1_weight", "huber_weight"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "much"])
def test_weights_are_numbers_of_zero_or_more(refused: Refused, name: str, value: Any) -> None:
    assert set(refused(**{name: value})) == {name}


@pytest.mark.parametrize("params", [{"min_weight": -1}, {"max_weight": 0}, {"gamma": 0}, {"gamma": -5}, {"p2_k": 0}])
def test_parameters_have_ranges(refused: Refused, params: dict[str, float]) -> None:
    assert set(refused(time_weight_params=params)) == {f"time_weight_params.{name}" for name in params}


def test_a_bound_beyond_the_formulas_own_is_refused(refused: Refused) -> None:
    assert set(refused(time_weight_type="snr", time_weight_params={"min_weight": 2})) == {
        "time_weight_params.min_weight"
    }
    assert set(refused(time_weight_type="linear", time_weight_params={"max_weight": 0.05})) == {
        "time_weight_params.max_weight"
    }
    assert LossConfig(time_weight_type="min_snr", time_weight_params={"min_weight": 2}).weight_bounds == (2, math.inf)
