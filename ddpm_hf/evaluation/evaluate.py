"""An evaluation from its plan to its report."""

import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ddpm_hf._version import __version__
from ddpm_hf.config import Config
from ddpm_hf.evaluation.building import Scores, build_report
from ddpm_hf.evaluation.features import FeatureExtractor
from ddpm_hf.evaluation.held_out import (
    HeldOut,
    measure_baselines,
    measure_likelihood,
    measure_reconstructions,
    reconstructions_of,
)
from ddpm_hf.evaluation.neighbors import Neighbors, nearest
from ddpm_hf.evaluation.pictures import NUM_NEIGHBORS_SHOWN, NUM_PAIRS, draw_pictures
from ddpm_hf.evaluation.plan import SETTINGS, Plan, make_plan
from ddpm_hf.evaluation.real_images import in_place_of_samples
from ddpm_hf.evaluation.reference import Reference, load_reference
from ddpm_hf.evaluation.rendering import write_report
from ddpm_hf.evaluation.report import MetricValue, Report
from ddpm_hf.evaluation.sampling import draw_samples
from ddpm_hf.evaluation.scoring import FeatureSet, combine, kept_metrics, score_set
from ddpm_hf.evaluation.store import FeatureStore, Layout
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.runtime.distributed import assert_same_across_ranks
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.signals import StopRequest


def evaluate(
    model: str | Path,
    config: Config,
    *,
    output: Path | None = None,
    pipeline: DDPMPipeline | None = None,
    extractor: FeatureExtractor | None = None,
    label: str | None = None,
    pictures: bool = True,
    stop: StopRequest | None = None,
    renew: bool = False,
) -> Report | None:
    """Measure a model as `config.benchmark` says, and write the report.

    All processes call this together. What an earlier call finished in the same folder is not done again.

    Args:
        model: a saved pipeline, a run folder, or an id on the Hub.
        config: whose dataset, model and benchmark sections say what is measured, and whose seed samples follow from.
        output: the folder of the evaluation; None makes one of its own in `evaluation/` below the model's.
        pipeline: the model itself, where it is loaded already.
        extractor: what looks at the images, instead of `benchmark.features`.
        label: what the report is, if not a full evaluation; it becomes a warning.
        pictures: whether the report has pictures.
        stop: polled at every denoising step and every batch; work that is finished when a stop is requested is not done
            again when the same evaluation is asked for.
        renew: for a model in training: what the folder holds is replaced, where it is not of this evaluation.

    Returns:
        The report, which is also written to metrics.json, in the main process; None in the others. Its `metrics` map
        keys such as "frechet_distance" to a value with `value`, `std`, `problem` and the same of real images.

    Raises:
        UserError: naming everything that does not fit, before a sample is drawn.
        Stopped: in all processes, soon after a stop was requested in one of them.
    """
    return carry_out(make_plan(model, config, output, pipeline, extractor, renew), label, pictures, stop)


def carry_out(
    plan: Plan, label: str | None = None, pictures: bool = True, stop: StopRequest | None = None
) -> Report | None:
    """Draw the samples of a plan, score them, and write the report; see `evaluate`."""
    state, started, benchmark = PartialState(), time.perf_counter(), plan.benchmark
    # which waits for all: until then, others look whether the folder is free; what trains may differ by rounding
    weights = None if plan.renew else plan.settings["weights"]
    assert_same_across_ranks({**plan.settings, "weights": weights, "the folder": str(plan.folder)})
    if state.is_main_process:
        if plan.is_stale:
            shutil.rmtree(plan.folder)
        write_text_atomic(plan.folder / SETTINGS, json.dumps(plan.settings, indent=2) + "\n")
    state.wait_for_everyone()
    check = (stop or StopRequest()).check
    references = _references(plan, stop)
    seeds = [plan.drawing.seed + repeat for repeat in range(benchmark.num_seeds)]
    num_drawn, sampling_started = 0, time.perf_counter()
    folders = {seed: plan.folder / "features" / f"seed-{seed}" for seed in seeds}
    stores = {seed: FeatureStore(folder, _layout(plan), check) for seed, folder in folders.items()}
    for seed, store in stores.items():
        num_drawn += draw_samples(
            plan.pipeline,
            plan.drawing_of(seed),
            plan.extractor,
            store,
            plan.folder / "samples" / f"seed-{seed}",
            benchmark.n_samples,
            benchmark.save_samples,
            stop,
        )
    report = None
    with (stop or StopRequest()).together():
        if state.is_main_process:
            seconds = {"samples": time.perf_counter() - sampling_started, "drawn_by_main_process": num_drawn}
            report = _report(plan, references, stores, label, pictures)
            report = replace(report, seconds=seconds | {"total": time.perf_counter() - started})
            write_report(plan.folder, report, benchmark.save_metrics)
    return report


def _report(
    plan: Plan,
    references: dict[str, Reference],
    stores: dict[int, FeatureStore],
    label: str | None,
    pictures: bool,
) -> Report:
    """Everything that follows the samples, by the main process."""
    count, wanted = plan.benchmark.n_samples, plan.benchmark.metrics
    training = _set(references[plan.training_split])
    drawn = {seed: FeatureSet.of(store.table(count), store.logits(count)) for seed, store in stores.items()}
    scores = _compare(plan, references, drawn)
    conditional = plan.drawing.class_labels is not None
    held_out = HeldOut.choose(plan.splits[plan.held_out_split], plan.benchmark.num_held_out, conditional)
    reconstructions = reconstructions_of(plan, held_out) if wanted.ssim or wanted.psnr else []
    rows = measure_reconstructions(reconstructions, held_out, plan, wanted)
    baselines = measure_baselines(plan, held_out)
    if wanted.bits_per_dim:
        scores.samples["bits_per_dim"] = measure_likelihood(plan, held_out)
    neighbors: Neighbors | None = None
    if wanted.memorization and len(training) > 1:
        shown = drawn[plan.drawing.seed].table.select(range(min(NUM_PAIRS, count)))
        neighbors = nearest(shown, training.table, min(NUM_NEIGHBORS_SHOWN, len(training)), _metric_device(plan))
    captions = draw_pictures(plan, held_out, reconstructions, neighbors) if pictures else {}
    return build_report(plan, scores, rows, baselines, len(held_out.images), captions, label)


def _compare(plan: Plan, references: dict[str, Reference], drawn: dict[int, FeatureSet]) -> Scores:
    """The figures of the samples of each seed, and of real images in their place."""
    benchmark, folder = plan.benchmark, plan.folder / "scores"
    sets = {split: _set(reference) for split, reference in references.items()}
    reference, training = sets[plan.reference_split], sets[plan.training_split]
    asked = {
        "metrics": benchmark.metrics.model_dump(),
        "allow_few_samples": benchmark.allow_few_samples,
        "n": benchmark.n_samples,
        "version": __version__,
    }

    def score(
        file: Path, key: Any, candidates: FeatureSet, real: FeatureSet, train: FeatureSet
    ) -> dict[str, MetricValue]:
        few, device, metrics = benchmark.allow_few_samples, _metric_device(plan), benchmark.metrics
        return kept_metrics(file, key, lambda: score_set(candidates, real, train, metrics, plan.extractor, device, few))

    figures = [score(folder / f"seed-{seed}.json", asked, each, reference, training) for seed, each in drawn.items()]
    real = in_place_of_samples(plan, sets, benchmark.n_samples)
    # real images are the same for every model: what they come to lies beside their features
    asked = asked | {"sets": {split: each.key for split, each in references.items()}, "text": real.text}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    file = references[plan.reference_split].folder / f"real-vs-real-{digest}.json"
    of_real = score(file, asked, real.candidates, real.real, real.training)
    matched = None
    if (len(real.candidates), len(real.real)) != (benchmark.n_samples, len(reference)):
        fewer = [
            score(folder / f"seed-{seed}-matched.json", asked, real.matched_samples(each), real.real, real.training)
            for seed, each in drawn.items()
        ]
        matched = combine(fewer)
    return Scores(combine(figures), of_real, matched, real.text, len(real.candidates))


def _references(plan: Plan, stop: StopRequest | None) -> dict[str, Reference]:
    """The real images that samples are scores with, in this or that way."""
    device, dataset = plan.pipeline.device, plan.config.dataset
    return {
        split: load_reference(dataset.model_copy(update={"split": split}), images, plan.extractor, device, stop)
        for split, images in plan.splits.items()
    }


def _set(reference: Reference) -> FeatureSet:
    return FeatureSet(reference.table, reference.logits, reference.moments, reference.radii)


def _layout(plan: Plan) -> Layout:
    return Layout(plan.benchmark.batch_size, plan.extractor.num_features, plan.extractor.num_classes)


def _metric_device(plan: Plan) -> torch.device:
    """Where float64 is to be had."""
    device = plan.pipeline.device
    return device if device.type == "cuda" else torch.device("cpu")
