"""A run from its first step, or its last checkpoint, to the finished pipeline."""

import contextlib
import logging
import time
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator, PartialState
from tqdm import tqdm

from ddpm_hf.checkpoints import write_checkpoint
from ddpm_hf.config import Config
from ddpm_hf.hub import HubUploader, pin_dataset, record_environment
from ddpm_hf.plotting import loss_curve
from ddpm_hf.training.interruption import Interrupted, StopSignals
from ddpm_hf.training.learner import Learner
from ddpm_hf.training.metrics import Meter, MetricsFile
from ddpm_hf.training.precision import choose_precision, use_all_cores
from ddpm_hf.training.preflight import describe, make_plan
from ddpm_hf.training.previews import Abandoned, Previews
from ddpm_hf.training.state import STATE, Progress, load_progress

SECONDS_TO_UPLOAD_WHEN_STOPPED = 5
"""A run that is asked to stop has seconds, not minutes; what is not uploaded then is told."""

if TYPE_CHECKING:
    from ddpm_hf.evaluation.features import FeatureExtractor

logger = logging.getLogger(__name__)


class Trainer:
    """One run: from a configuration, or one of its checkpoints, to a pipeline that anyone can load.

    Making a trainer checks everything that can be checked beforehand and writes nothing; `train` does the work.

    Args:
        config: the run.
        resume: "latest" for the newest complete checkpoint of the run folder, or the folder of a checkpoint; None
            starts a new run.

    Raises:
        UserError: for anything in the configuration, the data or the run folder that would end in failure later.
    """

    def __init__(self, config: Config, resume: str | None = None) -> None:
        self.accelerator = _make_accelerator(config)
        self.config = config = config.model_copy(update={"dataset": pin_dataset(config.dataset)})
        self.plan = make_plan(config, resume, self.accelerator)
        self.run_folder, self.num_steps = self.plan.run, self.plan.num_steps
        self.metrics = MetricsFile(self.run_folder.metrics)
        self.signals = StopSignals()
        self.uploader = HubUploader(config.hub, self.run_folder.path)
        if self.accelerator.is_main_process:
            self.uploader.check()
        self.extractor = self._load_extractor() if config.training.evaluate_every else None

    def describe(self) -> str:
        """What the run will do and cost, for a person to read."""
        return describe(self.plan, self.accelerator)

    def train(self) -> None:
        """Train to the last step and leave the finished pipeline, pictures and figures in the run folder.

        Raises:
            Interrupted: after a checkpoint, when SIGTERM or SIGINT asks for an end.
            FloatingPointError: when a gradient is no longer finite; the weights are as they were before it.
        """
        lock = self.run_folder.locked() if self.accelerator.is_main_process else contextlib.nullcontext()
        with lock, self.signals:
            self._set_up()
            with tqdm(
                desc="training",
                total=self.num_steps,
                initial=self.step,
                unit="step",
                dynamic_ncols=True,
                disable=not self.accelerator.is_main_process,
            ) as bar:
                while self.step < self.num_steps:
                    self._advance(bar)
            self._finish()

    def _set_up(self) -> None:
        """Make everything that the checkpoint, if any, has a say in."""
        checkpoint, training = self.plan.start, self.config.training
        self.learner = Learner(
            self.config, self.plan.images, self.num_steps, self.accelerator, checkpoint, self.plan.perceptual
        )
        progress = load_progress(checkpoint / STATE) if checkpoint else Progress()
        self.step = progress.step
        self.meter = Meter(self.accelerator, progress.sums)
        if self.accelerator.scaler is not None and progress.scaler:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        self.logged_step, self.logged_seconds = self.step, progress.seconds
        self.saved_step = self.step
        self.started = time.perf_counter() - progress.seconds
        self.previews = Previews(
            self.learner.pipeline,
            self.config.seed,
            training.num_preview_images,
            training.preview_inference_steps,
            should_stop=lambda: bool(self.signals.received),
        )
        self.accelerator.init_trackers("ddpm-hf")
        if self.accelerator.is_main_process:
            self.uploader.start()
            record_environment(
                self.run_folder.path, self.accelerator.num_processes, str(self.accelerator.mixed_precision)
            )
            self.run_folder.config.write_text(self.config.to_yaml(), encoding="utf-8")
            self.metrics.cut_after(self.step)

    def _advance(self, bar: tqdm) -> None:
        """One update, and whatever is due after it."""
        training = self.config.training
        self.meter.add(**self.learner.update(self.step))
        self.step += 1
        bar.update()
        if self.step == self.num_steps or _due(self.step, self.config.logging.log_every):
            self._log(bar)
        if self.step == self.num_steps or _due(self.step, training.checkpoint_every):
            self._save_checkpoint()
        if self.step < self.num_steps and _due(self.step, training.preview_every):
            self._preview()
        if self.step < self.num_steps and _due(self.step, training.evaluate_every):
            self._evaluate()
        if self._shall_stop() and self.step < self.num_steps:
            self._save_checkpoint()
            self.uploader.drain(SECONDS_TO_UPLOAD_WHEN_STOPPED)
            raise Interrupted(self.signals.received, f"stopped at step {self.step:,} with a checkpoint; {self._go_on}")

    def _shall_stop(self) -> bool:
        """Whether any process has been asked to stop; all of them learn it at the same step."""
        if self.accelerator.num_processes == 1:
            return bool(self.signals.received)
        received = torch.tensor([self.signals.received], device=self.accelerator.device)
        self.signals.received = int(self.accelerator.gather(received).max())
        return bool(self.signals.received)

    def _log(self, bar: tqdm) -> None:
        """Write the means since the last line to metrics.jsonl, the tracker and the bar."""
        means = self.meter.means()
        seconds = time.perf_counter() - self.started
        images = self.config.training.batch_size * (self.step - self.logged_step)
        rate = images / (seconds - self.logged_seconds)
        self.logged_step, self.logged_seconds = self.step, seconds
        record = {"step": self.step, **means, "images_per_second": round(rate, 1), "seconds": round(seconds, 2)}
        if self.accelerator.is_main_process:
            self.metrics.append(record)
        self.accelerator.log({name: value for name, value in record.items() if name != "step"}, step=self.step)
        bar.set_postfix_str(f"loss {means['loss']:.4f}, lr {means['learning_rate']:.1e}, {rate:,.0f} img/s")

    def _save_checkpoint(self) -> None:
        """Write a complete checkpoint, unless this step has one; a disk that is full does not end the run."""
        progress = Progress(
            step=self.step,
            seconds=time.perf_counter() - self.started,
            sums=self.meter.sums(),
            scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {},
            config=self.config.to_dict(),
        )
        if self.accelerator.is_main_process and self.saved_step != self.step:
            try:
                checkpoint = write_checkpoint(
                    self.run_folder.checkpoints,
                    self.step,
                    lambda folder: self.learner.save(folder, progress),
                    self.config.training.checkpoints_to_keep,
                )
                last = self.step == self.num_steps or bool(self.signals.received)
                self.uploader.submit(checkpoint, self.step, last)
            except OSError as error:
                logger.warning("no checkpoint at step %d: %s; the last one stays, training goes on", self.step, error)
        self.saved_step = self.step
        self.accelerator.wait_for_everyone()

    def _preview(self) -> None:
        """Draw samples from the averaged weights as they are now."""
        if self.accelerator.is_main_process:
            with contextlib.suppress(Abandoned):
                self.previews.draw(self.run_folder.previews / f"step-{self.step}.png")
        self.accelerator.wait_for_everyone()

    def _load_extractor(self) -> "FeatureExtractor":
        from ddpm_hf.evaluation.features import load_extractor  # only where it is asked for

        return load_extractor(self.config.benchmark, self.accelerator.device)

    def _evaluate(self) -> None:
        """Measure the averaged weights on a few samples; the figures stand in metrics.jsonl beside the step."""
        from ddpm_hf.evaluation import quick_look

        figures = quick_look(
            self.learner.pipeline, self.config, self.step, self.config.training.num_evaluation_samples, self.extractor
        )
        if self.accelerator.is_main_process:
            self.metrics.append({"step": self.step, "evaluation": figures})

    def _finish(self) -> None:
        """Leave the pipeline and the pictures in the run folder, and say how to use them."""
        if self.accelerator.is_main_process:
            self.run_folder.publish(self.learner.pipeline.save_pretrained)
            losses = [record for record in self.metrics.read() if "loss" in record]
            loss_curve(losses, self.run_folder.loss)
            try:
                self.previews.draw(self.run_folder.samples, self.run_folder.denoising)
            except Abandoned:
                raise Interrupted(
                    self.signals.received, f"trained, but not all pictures drawn; {self._go_on}"
                ) from None
            print(self._closing_words())
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.accelerator.is_main_process:  # after every barrier: an upload may take longer than the others wait
            self.uploader.submit_finished()
            self.uploader.drain(should_stop=lambda: bool(self.signals.received))

    @property
    def _go_on(self) -> str:
        return f"go on with: accelerate launch training/train.py --config {self.run_folder.config} --resume latest"

    def _closing_words(self) -> str:
        minutes, seconds = divmod(round(time.perf_counter() - self.started), 60)
        folder, T = self.run_folder.path, self.config.model.time_steps
        steps = f", num_inference_steps={T}" if T < 1000 else ""  # diffusers asks for 1000 unless told otherwise
        return (
            f"\n{self.num_steps:,} steps in {minutes} min {seconds} s. In {folder}/: the pipeline, samples.png, "
            "denoising.png, loss.png\n"
            f"  sample: python pipelines/generate.py --model {folder} --num_samples 16\n"
            f"  resume: accelerate launch training/train.py --config {self.run_folder.config} --resume latest "
            f"training.num_steps={2 * self.num_steps}\n"
            f"  open:   python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('{folder}')"
            f'(batch_size=4{steps}).images[0].show()"'
        )


def _make_accelerator(config: Config) -> Accelerator:
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if on_cpu:
        use_all_cores()
    tracker, folder = config.logging.tracker, config.output_dir
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=choose_precision(config.training.mixed_precision, PartialState(cpu=on_cpu).device),
        log_with=None if tracker == "none" else tracker,
        project_dir=None if tracker == "none" else f"{folder}/logs",
    )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
