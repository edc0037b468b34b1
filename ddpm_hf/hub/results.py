"""Figures of an evaluation and how each was measured, from metrics.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROTOCOL = {
    "samples": ("num_samples", "n_samples", "samples"),
    "sampler": ("sampler",),
    "steps": ("num_inference_steps", "steps", "network_evaluations"),
    "seed": ("seed", "seeds"),
    "extractor": ("extractor", "features", "feature_extractor"),
    "reference": ("reference", "reference_split"),
}
"""What a figure means nothing without, and the names that it may go by."""

NOT_RECORDED = "not recorded"

TITLES = {
    "fid": "FID",
    "inception_score": "Inception score",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "ssim": "SSIM (reconstruction)",
    "psnr": "PSNR (reconstruction)",
    "bits_per_dim": "Bits/dim",
}


@dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        name: of the metric, as in metrics.json.
        value: maybe not finite.
        spread: its standard deviation, if measured.
        protocol: every key of PROTOCOL.
        label: what the evaluation itself calls it, which says of which features it is; None: the usual title.
    """

    name: str
    value: float
    spread: float | None
    protocol: dict[str, Any]
    label: str | None = None

    @property
    def title(self) -> str:
        """For a person."""
        return self.label or TITLES.get(self.name, self.name)


def read_results(metrics: Mapping[str, Any]) -> list[Result]:
    """Read the figures of metrics.json.

    Args:
        metrics: the report of `ddpm_hf.evaluation`; or figures measured elsewhere, either {"metrics": {name: figure},
            "protocol": {…}} or {name: figure, …, "protocol": {…}}; a figure is a number or {"value": …, "std": …} with
            what differs from the common protocol beside it.
    """
    common = metrics.get("protocol") or _protocol_of_report(metrics)
    figures = metrics.get("metrics")
    if not isinstance(figures, Mapping):
        figures = {name: figure for name, figure in metrics.items() if name != "protocol"}
    found = []
    for name, figure in figures.items():
        own = figure if isinstance(figure, Mapping) else {"value": figure}
        value = own.get("value", own.get("mean"))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            spread = own.get("std", own.get("sd", own.get("deviation")))
            found.append(Result(name, float(value), spread, _protocol({**common, **own}), own.get("name")))
    return found


def is_finite(result: Result) -> bool:
    """Whether a figure is a number at all."""
    return math.isfinite(result.value)


def _protocol_of_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """How an evaluation of ours measured: what its report says of sampling, features and reference."""
    if "sampling" not in report:
        return {}
    reference = report["reference"]
    return {
        **{name: report["sampling"][name] for name in ("n_samples", "sampler", "num_inference_steps")},
        "seed": ", ".join(map(str, report["sampling"]["seeds"])),
        "extractor": report["features"]["label"],
        "reference": f"{reference['num_images']:,} images of {reference['dataset']}, split {reference['split']}",
    }


def _protocol(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: next((given[alias] for alias in aliases if given.get(alias) is not None), NOT_RECORDED)
        for name, aliases in PROTOCOL.items()
    }
