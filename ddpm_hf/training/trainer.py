"""A run from its first step, or its last checkpoint, to the finished pipeline."""

import contextlib
import logging
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from ddpm_hf.checkpoints.format import Progress, list_checkpoints, step_of, write_checkpoint
from ddpm_hf.config import Config
from ddpm_hf.hub import HubUploader
from ddpm_hf.runtime.cli import launcher
from ddpm_hf.runtime.distributed import max_over_processes
from ddpm_hf.runtime.errors import RunError
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.memory import is_out_of_memory
from ddpm_hf.runtime.signals import Stopped, StopRequest
from ddpm_hf.training.accelerator import make_accelerator
from ddpm_hf.training.captured import choose_run
from ddpm_hf.training.preflight import commands, describe, make_plan
from ddpm_hf.training.previews import Previews
from ddpm_hf.training.resume import with_its_weights
from ddpm_hf.training.run_logger import RunLogger
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.update import StepOutput, TrainStep
from ddpm_hf.training.validation import Validation

SECONDS_TO_UPLOAD_WHEN_STOPPED = 5
"""A run that is asked to stop has seconds, not minutes. Unfinished uploads are reported."""

SHARE_BEFORE_COLOURS = 0.2
"""Share of a run during which previews are too noisy for their colours to mean anything."""

if TYPE_CHECKING:
    from ddpm_hf.evaluation.extractors.base import FeatureExtractor

logger = logging.getLogger(__name__)


class Trainer:
    """One run: from a configuration, or one of its checkpoints, to a pipeline that anyone can load.

    The constructor checks everything that can be checked beforehand and writes nothing; `train` does the work.

    Args:
        config: the run.
        resume: "latest" for the newest complete checkpoint of the run folder, "auto" for that or a new run, or the
            folder of a checkpoint; None starts a new run.

    Raises:
        UserError: for anything in the configuration, the data or the run folder that would fail later.
    """

    def __init__(self, config: Config, resume: str | None = None) -> None:
        self.accelerator = make_accelerator(config)
        self.plan = make_plan(config, resume, self.accelerator)
        self.config, self.run_folder, self.num_steps = self.plan.config, self.plan.run, self.plan.num_steps
        self.stop = StopRequest(self.run_folder.stop_notice)
        self.uploader = HubUploader(config.hub, self.run_folder.path)
        if self.accelerator.is_main_process:
            self.uploader.check()
        self.extractor = self._prepare_evaluation() if config.training.evaluate_every else None

    def describe(self) -> str:
        """What the run will do and need, for a person to read."""
        return describe(self.plan, self.accelerator)

    def train(self) -> None:
        """Train to the last step and leave the finished pipeline, pictures and metrics in the run folder.

        Raises:
            Stopped: after a checkpoint, when SIGTERM, SIGINT or SIGHUP requests a stop.
            RunError: at the end, when no checkpoint could be written for more than two intervals.
            FloatingPointError: when a gradient is not finite; the weights are as they were before it.
        """
        training, log_every = self.config.training, self.config.logging.log_every
        with self._lock(), self.stop.on_signals():
            if self.plan.is_finished:
                self._report_finished()
                return
            self._set_up()
            with self.logger.bar:
                if self.pending:  # interrupted by a signal when the checkpoint was written
                    self._run_pending()
                    self._stop_if_requested()
                while self.step < self.num_steps:
                    self.logger.add(self._update())
                    self.step += 1
                    is_last = self.step == self.num_steps
                    if is_last or _is_due(self.step, log_every):
                        self.state.finite.read()
                        self._keep_folder()
                        self.logger.log_means(self.step)
                    self._observe(is_last)
                    # The checkpoint comes last, so that a resumed run repeats nothing of the above.
                    if is_last or _is_due(self.step, training.checkpoint_every):
                        self._save_checkpoint()
                    if not is_last:
                        self._stop_if_requested()
            self._finish()
            self._check_kept("trained, and the pipeline is complete")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the run folder; all processes wait for the lock before they install signal handlers."""
        is_main = self.accelerator.is_main_process
        with self.run_folder.locked() if is_main else contextlib.nullcontext():
            if is_main:
                self.run_folder.check_unchanged(self.plan.found)
                self.stop.clear()
            self.accelerator.wait_for_everyone()
            yield

    def _set_up(self) -> None:
        """Build the run's objects, restoring them from the checkpoint."""
        config, plan, progress = self.config, self.plan, self.plan.start.progress
        self.state = TrainState(config, self.accelerator, plan.start, plan.compiled)
        self.train_step = TrainStep(self.state, plan.images, self.num_steps, plan.perceptual)
        if config.training.fit_memory:
            self.train_step.fit_memory()
        self.step = self.attempted_step = self.kept_step = progress.step
        if self.step < self.num_steps:
            self.train_step.run = choose_run(self.train_step, self.step)
        self.score, self.pending = progress.score, list(progress.pending)
        self.logger = RunLogger(self.run_folder, config, self.accelerator, self.num_steps, progress)
        self.previews = Previews(self.state, plan.images, self.stop)
        self.validation = None
        if plan.held_out is not None:
            self.validation = Validation(plan.held_out, self.state, self.train_step.objective.plain_loss)
        if self.accelerator.is_main_process:  # first of all, since a folder without it cannot be resumed
            write_text_atomic(self.run_folder.config, config.to_yaml())
        self.logger.start(self.step, self.pending)
        if self.accelerator.is_main_process:
            self.uploader.start()
            if plan.images.skipped:
                with self.logger.going_on_without(self.run_folder.skipped.name, self.step):
                    write_text_atomic(self.run_folder.skipped, "\n".join(plan.images.skipped) + "\n")

    def _update(self) -> StepOutput:
        """One update, with advice if the device runs out of memory."""
        try:
            return self.train_step.update(self.step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"out of memory in the update at step {self.step:,}; training.fit_memory=true, a larger "
                "training.gradient_accumulation_steps or training.gradient_checkpointing=true needs less, for the same "
                f"batch; {self._resume_hint}"
            ) from error

    def _observe(self, is_last: bool) -> None:
        """Run the previews, validations and evaluations that are due at this step."""
        training = self.config.training
        every = {
            "preview": None if is_last else training.preview_every,  # the samples of the finished run follow
            "validation": training.validate_every,
            "evaluation": training.evaluate_every,
        }
        self.score, self.pending = None, [work for work, steps in every.items() if _is_due(self.step, steps)]
        self._run_pending()

    def _run_pending(self) -> None:
        """Run pending work; what a stop interrupts stays pending, and is run when the run is resumed."""
        if self.pending:
            self.state.finite.read()
            self.state.gather_averages()
        works = {"preview": self._preview, "validation": self._validate, "evaluation": self._evaluate}
        for work in list(self.pending):
            with contextlib.suppress(Stopped):
                works[work]()
                self.pending.remove(work)

    def _preview(self) -> None:
        """Draw samples of the averaged weights."""
        with self.stop.together():
            if self.accelerator.is_main_process:
                with self.logger.going_on_without("the preview", self.step):
                    colours = self.previews.draw(self.run_folder.previews / f"step-{self.step}.png")
                    self.logger.log(self.step, {"preview": colours.logged()})
                    warning = self.previews.drift_warning(colours)
                    if warning and self.step >= SHARE_BEFORE_COLOURS * self.num_steps:
                        logger.warning("The colours of the preview at step %d are off: %s", self.step, warning)

    def _validate(self) -> None:
        """Measure the loss of the averaged weights on held-out images."""
        assert self.validation is not None  # it is due only with held-out images
        metrics = self.validation.measure(self.stop)
        self.logger.log(self.step, {"validation": metrics})
        if self.config.training.keep_best_by == "validation_loss":
            self.score = metrics["loss"]

    def _prepare_evaluation(self) -> "FeatureExtractor":
        from ddpm_hf.evaluation import prepare_in_training_evaluation  # imported only if the configuration uses it

        return prepare_in_training_evaluation(self.config, self.accelerator.device)

    def _evaluate(self) -> None:
        """Evaluate the averaged weights on a few samples."""
        from ddpm_hf.evaluation import evaluate_in_training  # imported only if the configuration uses it

        metrics, count = None, self.config.training.num_evaluation_samples
        # With several processes, none may continue alone while the others wait for it.
        is_alone = self.accelerator.num_processes == 1
        with self._continue_without("evaluation") if is_alone else contextlib.nullcontext():
            metrics = evaluate_in_training(
                self.state.pipeline, self.config, self.step, count, self.extractor, self.stop
            )
        if metrics is not None:
            self.logger.log(self.step, {"evaluation": metrics})
            if self.config.training.keep_best_by != "validation_loss":
                self.score = metrics.get(str(self.config.training.keep_best_by))

    def _save_checkpoint(self) -> None:
        """Write a checkpoint, unless one was attempted at this step; a full disk does not end the run."""
        if self.attempted_step == self.step:
            return
        self.state.finite.read()
        files, scaler = self.state.gather(), self.accelerator.scaler
        progress = Progress(
            step=self.step,
            seconds=self.logger.seconds,
            sums=self.logger.means.sums(),
            scaler=scaler.state_dict() if scaler is not None else {},
            num_images=len(self.plan.images),
            num_accumulation_steps=self.state.num_accumulation_steps,
            num_processes=self.accelerator.num_processes,
            num_skipped=self.state.finite.num_skipped,
            score=self.score,
            pending=self.pending,
            config=self.config.to_dict(),
        )
        self._keep_folder()
        if self.accelerator.is_main_process:
            with self._continue_without("checkpoint"):
                checkpoint = write_checkpoint(
                    self.run_folder.checkpoints,
                    self.step,
                    lambda folder: self.state.save(folder, progress, files),
                    self.config.training.checkpoints_to_keep,
                )
                self.kept_step = self.step
                is_last = self.step == self.num_steps or bool(self.stop.signal_number)
                self.uploader.submit(checkpoint, self.step, is_last)
            with self.logger.going_on_without(self.run_folder.loss.name, self.step):
                self.logger.plot()
        self.attempted_step = self.step
        self.kept_step = max_over_processes(self.kept_step)

    def _keep_folder(self) -> None:
        """Make the run folder again if somebody has deleted it, and ask for a checkpoint.

        Raises:
            RunError: if another run has begun there.
        """
        if not self.accelerator.is_main_process or self.run_folder.is_intact():
            return
        with self._continue_without("run folder"):
            self.run_folder.make_anew(self.config.to_yaml())
            logger.warning(
                "%s was deleted, with all earlier checkpoints and metrics, and is made again at step %d. The "
                "checkpoint that follows is enough to resume the run.",
                self.run_folder.path,
                self.step,
            )
            self.stop.wants_checkpoint = True

    def _stop_if_requested(self) -> None:
        """End the run with a checkpoint if any process has been asked to stop; or write one if it was asked to.

        Raises:
            Stopped: in every process.
        """
        waits = self.accelerator.device.type == "cuda" and self.accelerator.num_processes > 1
        if (waits and not _is_due(self.step, self.config.logging.log_every)) or not self.stop.agreed():
            if self.stop.agreed_on_checkpoint:
                self.stop.wants_checkpoint = self.stop.agreed_on_checkpoint = False
                self._save_checkpoint()
            return  # GPUs ask each other only where they wait anyway
        self._save_checkpoint()
        self.uploader.drain(SECONDS_TO_UPLOAD_WHEN_STOPPED)
        self.accelerator.wait_for_everyone()  # a launcher ends the others as soon as one has left
        self._check_kept(f"stopped at step {self.step:,}")
        kept = " with a checkpoint"
        if self.kept_step != self.step:
            left = list_checkpoints(self.run_folder.checkpoints)
            kept = f"; the last checkpoint is of step {step_of(left[0]):,}" if left else "; no checkpoint is left"
        raise Stopped(f"stopped at step {self.step:,}{kept}; {self._resume_hint}", self.stop.signal_number)

    def _check_kept(self, end: str) -> None:
        """Raise at the end of a run whose checkpoints have failed for more than two intervals.

        Raises:
            RunError: in every process.
        """
        every, latest = self.config.training.checkpoint_every, self.kept_step
        if every is not None and self.step - latest > 2 * every:
            kept = f"the last one is of step {latest:,}" if latest else "there is none"
            raise RunError(
                f"{end}, but no checkpoint could be written for {self.step - latest:,} steps: {kept}; the warnings "
                f"above say why; {self._resume_hint}"
            )

    def _finish(self) -> None:
        """Write the pipeline and its pictures into the run folder, and print how to use them."""
        try:
            with self.stop.together():
                if self.accelerator.is_main_process:
                    try:
                        self.run_folder.publish(self.state.save_pipeline)
                    except (OSError, SafetensorError) as error:
                        raise RunError(
                            f"trained, but the pipeline cannot be written: {error}; {self._resume_hint}"
                        ) from error
                    with self.logger.going_on_without(self.run_folder.loss.name, self.step):
                        self.logger.plot()
                    with self.logger.going_on_without("the pictures of the finished run", self.step):
                        self.previews.draw(self.run_folder.samples, self.run_folder.denoising)
                    print(self._summary())
        except Stopped as stopped:
            raise Stopped(
                f"trained, but not all pictures drawn; {self._resume_hint}", stopped.exit_code - 128
            ) from None
        self._upload_finished()

    def _report_finished(self) -> None:
        """Say that there is nothing to train; upload what is to be uploaded."""
        if self.accelerator.is_main_process:
            print(
                f"\nThe run in {self.run_folder.path} is finished: all of its {self.num_steps:,} steps are done. More "
                f"training.num_steps extend it, or {with_its_weights(self.run_folder.path)}\n"
                f"{commands(self.plan)}"
            )
            self.uploader.start()
        self._upload_finished()

    def _upload_finished(self) -> None:
        """End the run's other work and upload what it made."""
        self.accelerator.end_training()
        if self.accelerator.is_main_process:  # after every barrier: an upload may take longer than the others wait
            self.uploader.submit_finished()
            self.uploader.drain(stop=self.stop)

    @contextlib.contextmanager
    def _continue_without(self, name: str) -> Iterator[None]:
        """Warn that something cannot be written, and continue without it."""
        try:
            yield
        except (OSError, SafetensorError, FloatingPointError) as error:  # safetensors has its own error for a full disk
            logger.warning("Cannot write the %s at step %d: %s. The run goes on without it.", name, self.step, error)

    @property
    def _resume_hint(self) -> str:
        file = shlex.quote(str(self.run_folder.config))
        return f"resume with: {launcher()} training/train.py --config {file} --resume latest"

    def _summary(self) -> str:
        """What was made, and commands that work as they stand for this kind of run."""
        minutes, seconds = divmod(round(self.logger.seconds), 60)
        run = self.run_folder
        pictures = [file.name for file in (run.samples, run.denoising, run.loss) if file.exists()]
        return (
            f"\n{self.num_steps:,} steps in {minutes} min {seconds} s\n"
            f"  made:   the pipeline, {', '.join(pictures)} in {run.path}/\n{commands(self.plan)}"
        )


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
