"""Real images in the place of samples: what the figures of a model that has nothing left to learn would be."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ddpm_hf.evaluation.plan import Plan
from ddpm_hf.evaluation.scoring import FeatureSet
from ddpm_hf.runtime.randomness import generator_at


@dataclass(frozen=True)
class RealImages:
    """Real images that are scored like samples.

    Attributes:
        candidates: in the place of the samples.
        real: what they are compared with; none of them is a candidate.
        training: what they may be copies of.
        text: which images these are.
    """

    candidates: FeatureSet
    real: FeatureSet
    training: FeatureSet
    text: str

    def matched_samples(self, samples: FeatureSet) -> FeatureSet:
        """As many of the samples, the first ones, as there are real images in their place."""
        return samples.select(list(range(len(self.candidates))))


def in_place_of_samples(plan: Plan, sets: Mapping[str, FeatureSet], count: int) -> RealImages:
    """Choose the images: held-out ones if there are as many, or else up to half of the reference against the rest.

    Args:
        plan: of the evaluation.
        sets: the features of each split.
        count: samples, of which there are never fewer than of the chosen images.
    """
    real, held_out = sets[plan.reference_split], sets[plan.held_out_split]
    is_another = plan.held_out_split not in (plan.reference_split, plan.training_split)
    if is_another and len(held_out) >= min(count, len(real) // 2):
        order = torch.randperm(len(held_out), generator=generator_at(0, "real-vs-real"))[:count].sort().values
        text = f"{len(order):,} images of {plan.held_out_split!r} against {len(real):,} of {plan.reference_split!r}"
        return RealImages(held_out.select(order.tolist()), real, sets[plan.training_split], text)
    order = torch.randperm(len(real), generator=generator_at(0, "real-vs-real"))
    half = min(count, len(real) // 2)
    one, other = order[:half].sort().values.tolist(), order[half:].sort().values.tolist()
    text = f"{len(one):,} images of {plan.reference_split!r} against its {len(other):,} others"
    rest = real.select(other)
    return RealImages(real.select(one), rest, rest, text)
