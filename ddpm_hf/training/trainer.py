"""A run from its first step, or its last checkpoint, to the finished pipeline."""

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from accelerate import Accelerator
from safetensors import SafetensorError

from ddpm_hf.checkpoints.environment import record_environment
from ddpm_hf.checkpoints.format import Progress, write_checkpoint
from ddpm_hf.config import Config
from ddpm_hf.hub import HubUploader
from ddpm_hf.runtime.cli import launcher
from ddpm_hf.runtime.distributed import init_distributed, max_over_processes
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.memory import is_out_of_memory
from ddpm_hf.runtime.signals import Stopped, StopRequest
from ddpm_hf.training.journal import Journal
from ddpm_hf.training.learner import Learner
from ddpm_hf.training.metrics import Meter, Update
from ddpm_hf.training.precision import choose_precision
from ddpm_hf.training.preflight import describe, make_plan
from ddpm_hf.training.previews import Previews
from ddpm_hf.training.sharding import make_plugin
from ddpm_hf.training.tracking import check_tracker, start_tracker
from ddpm_hf.training.validation import Validation

SECONDS_TO_UPLOAD_WHEN_STOPPED = 5
"""A run that is asked to stop has seconds, not minutes; what is not uploaded then is told."""

SHARE_BEFORE_COLOURS = 0.2
"""Of a run, before which previews are too noisy for their colours to say anything."""

if TYPE_CHECKING:
    from ddpm_hf.evaluation.extractors.base import FeatureExtractor

logger = logging.getLogger(__name__)


class Trainer:
    """One run: from a configuration, or one of its checkpoints, to a pipeline that anyone can load.

    Making a trainer checks everything that can be checked beforehand and writes nothing; `train` does the work.

    Args:
        config: the run.
        resume: "latest" for the newest complete checkpoint of the run folder, "auto" for that or a new run, or the
            folder of a checkpoint; None starts a new run.

    Raises:
        UserError: for anything in the configuration, the data or the run folder that would end in failure later.
    """

    def __init__(self, config: Config, resume: str | None = None) -> None:
        self.accelerator = _make_accelerator(config)
        self.plan = make_plan(config, resume, self.accelerator)
        self.config, self.run_folder, self.num_steps = self.plan.config, self.plan.run, self.plan.num_steps
        self.stop = StopRequest(self.run_folder.stop_notice)
        self.uploader = HubUploader(config.hub, self.run_folder.path)
        if self.accelerator.is_main_process:
            self.uploader.check()
        self.extractor = self._prepare_evaluation() if config.training.evaluate_every else None

    def describe(self) -> str:
        """What the run will do and cost, for a person to read."""
        return describe(self.plan, self.accelerator)

    def train(self) -> None:
        """Train to the last step and leave the finished pipeline, pictures and figures in the run folder.

        Raises:
            Stopped: after a checkpoint, when SIGTERM or SIGINT asks for an end.
            FloatingPointError: when a gradient is no longer finite; the weights are as they were before it.
        """
        lock = self.run_folder.locked() if self.accelerator.is_main_process else contextlib.nullcontext()
        with lock:
            if self.accelerator.is_main_process:
                self.run_folder.check_unchanged(self.plan.found)
                self.stop.clear()
            self.accelerator.wait_for_everyone()  # none listens in a folder that another run holds
            with self.stop.on_signals():
                self._set_up()
                with self.journal.bar:
                    self._catch_up()
                    while self.step < self.num_steps:
                        self._advance()
                self._finish()

    def _set_up(self) -> None:
        """Make everything that the checkpoint, if any, has a say in."""
        checkpoint, config, training = self.plan.start, self.config, self.config.training
        self.learner = Learner(
            config, self.plan.images, self.num_steps, self.accelerator, checkpoint, self.plan.perceptual
        )
        if training.fit_memory:
            self.learner.fit_memory()
        progress = Progress.read(checkpoint) if checkpoint else Progress()
        self.step = self.saved_step = self.kept_step = progress.step
        self.score, self.owed = progress.score, list(progress.pending)
        self.meter = Meter(self.accelerator, config.model.time_steps, progress.sums)
        if self.accelerator.scaler is not None and progress.scaler:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        self.journal = Journal(
            self.run_folder,
            self.meter,
            self.accelerator,
            training.batch_size,
            self.num_steps,
            self.step,
            progress.seconds,
        )
        pipeline = self.learner.pipeline
        self.previews = Previews(
            pipeline,
            self.plan.images,
            config.seed,
            training.num_preview_images,
            training.preview_inference_steps,
            training.preview_sampler,
            self.stop,
        )
        self.validation = None
        if self.plan.held_out is not None:
            loss = self.learner.objective.plain_loss
            self.validation = Validation(
                self.plan.held_out, config, pipeline.unet, pipeline.scheduler, loss, self.accelerator
            )
        if self.accelerator.is_main_process:  # first of all, since a folder with anything else is refused
            write_text_atomic(self.run_folder.config, config.to_yaml())
        start_tracker(self.accelerator, config, self.run_folder.path)
        if self.accelerator.is_main_process:
            self.uploader.start()
            record_environment(
                self.run_folder.path, self.accelerator.num_processes, str(self.accelerator.mixed_precision)
            )
            if self.plan.images.skipped:
                write_text_atomic(self.run_folder.skipped, "\n".join(self.plan.images.skipped) + "\n")
            self.journal.metrics.cut_after(self.step, self.owed)

    def _advance(self) -> None:
        """One update, and whatever is due after it; the checkpoint last, so that a resumed run misses none of it."""
        training, is_last = self.config.training, self.step + 1 == self.num_steps
        self.meter.add(self._update())
        self.step += 1
        self.journal.bar.update()
        self.score = None
        if is_last or _due(self.step, self.config.logging.log_every):
            self.journal.write_means(self.step)
        preview_every = None if is_last else training.preview_every  # the samples of the finished run follow
        every = {"preview": preview_every, "validation": training.validate_every, "evaluation": training.evaluate_every}
        self.owed = [work for work, steps in every.items() if _due(self.step, steps)]
        self._look()
        if is_last or _due(self.step, training.checkpoint_every):
            self._save_checkpoint()
        if self._shall_stop() and not is_last:
            self._save_checkpoint()
            self._leave()

    def _update(self) -> Update:
        """One update, with advice where the device has no room for it."""
        try:
            return self.learner.update(self.step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"no room for an update at step {self.step:,}; training.fit_memory=true, a larger "
                "training.gradient_accumulation_steps or training.gradient_checkpointing=true needs less, for the same "
                f"batch; {self._go_on}"
            ) from error

    def _leave(self) -> None:
        self.uploader.drain(SECONDS_TO_UPLOAD_WHEN_STOPPED)
        self.accelerator.wait_for_everyone()  # a launcher ends the others as soon as one has left
        is_kept = self.kept_step == self.step
        kept = " with a checkpoint" if is_kept else f"; the last checkpoint is of step {self.kept_step:,}"
        raise Stopped(f"stopped at step {self.step:,}{kept}; {self._go_on}", self.stop.signal_number)

    def _catch_up(self) -> None:
        """Do what the checkpoint that the run goes on from was still owed."""
        if self.owed:
            self._look()
            if self._shall_stop():
                self._leave()

    def _look(self) -> None:
        """Preview, validate and evaluate, as is owed; what a signal cuts off stays so, for the run that goes on."""
        if self.owed:
            self.learner.complete_averages()
        works = {"preview": self._preview, "validation": self._validate, "evaluation": self._evaluate}
        for work in list(self.owed):
            if works[work]():
                self.owed.remove(work)

    def _shall_stop(self) -> bool:
        """Whether any process has been asked to stop; all of them learn it at the same step."""
        return self.stop.agreed()

    def _save_checkpoint(self) -> None:
        """Write a complete checkpoint, unless this step has one; a disk that is full does not end the run."""
        if self.saved_step == self.step:
            return
        self.learner.complete_averages()
        weights, moments = self.learner.gather()
        progress = Progress(
            step=self.step,
            seconds=self.journal.seconds,
            sums=self.meter.sums(),
            scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {},
            num_images=len(self.plan.images),
            num_accumulation_steps=self.learner.num_parts,
            num_processes=self.accelerator.num_processes,
            num_skipped=self.learner.num_skipped,
            score=self.score,
            pending=self.owed,
            config=self.config.to_dict(),
        )
        if self.accelerator.is_main_process:
            with self._room_for("checkpoint"):
                checkpoint = write_checkpoint(
                    self.run_folder.checkpoints,
                    self.step,
                    lambda folder: self.learner.save(folder, progress, weights, moments),
                    self.config.training.checkpoints_to_keep,
                )
                self.kept_step = self.step
                last = self.step == self.num_steps or bool(self.stop.signal_number)
                self.uploader.submit(checkpoint, self.step, last)
            with self._room_for("plot of the loss"):
                self.journal.draw()
        self.saved_step = self.step
        self.kept_step = max_over_processes(self.kept_step)

    @contextlib.contextmanager
    def _room_for(self, what: str) -> Iterator[None]:
        """Go on without something that the disk has no room for, and say so."""
        try:
            yield
        except (OSError, SafetensorError) as error:  # the second is how safetensors says it
            logger.warning("no %s at step %d: %s; what was there stays, training goes on", what, self.step, error)

    def _preview(self) -> bool:
        """Draw samples from the averaged weights as they are now; whether that came to its end."""
        done = True
        if self.accelerator.is_main_process:
            try:
                self._draw_preview()
            except Stopped:
                done = False
        self.accelerator.wait_for_everyone()
        return done

    def _draw_preview(self) -> None:
        with self._room_for("preview"):
            colours = self.previews.draw(self.run_folder.previews / f"step-{self.step}.png")
            self.journal.write(self.step, {"preview": colours.logged()})
            drift = colours.drift_from(self.previews.real)
            if drift and self.step >= SHARE_BEFORE_COLOURS * self.num_steps:
                model = self.config.model
                casts = (model.beta_schedule, model.prediction_type) == ("cosine", "epsilon")
                logger.warning(
                    "the colours of the preview at step %d are off: %s; a longer average (training.ema_decay), a "
                    "lower learning rate or more steps help%s",
                    self.step,
                    drift,
                    ", or v_prediction with these betas (model_config.prediction_type)" if casts else "",
                )

    def _validate(self) -> bool:
        """Measure the loss of the averaged weights on held-out images; whether that came to its end."""
        assert self.validation is not None
        try:
            figures = self.validation.measure(self.stop)
        except Stopped:
            return False
        self.journal.write(self.step, {"validation": figures})
        if self.config.training.keep_best_by == "validation_loss":
            self.score = figures["loss"]
        return True

    def _prepare_evaluation(self) -> "FeatureExtractor":
        from ddpm_hf.evaluation import prepare_in_training_evaluation  # only where it is asked for

        return prepare_in_training_evaluation(self.config, self.accelerator.device)

    def _evaluate(self) -> bool:
        """Measure the averaged weights on a few samples; whether that came to its end."""
        from ddpm_hf.evaluation import evaluate_in_training

        figures = None
        # of several processes that wait for each other, one must not go on alone
        alone = self.accelerator.num_processes == 1
        room = self._room_for("evaluation") if alone else contextlib.nullcontext()
        try:
            with room:
                figures = evaluate_in_training(
                    self.learner.pipeline,
                    self.config,
                    self.step,
                    self.config.training.num_evaluation_samples,
                    self.extractor,
                    self.stop,
                )
        except Stopped:
            return False
        if figures is not None:
            self.journal.write(self.step, {"evaluation": figures})
            if self.config.training.keep_best_by != "validation_loss":
                self.score = figures.get(str(self.config.training.keep_best_by))
        return True

    def _finish(self) -> None:
        """Leave the pipeline and the pictures in the run folder, and say how to use them."""
        drawn = True
        if self.accelerator.is_main_process:
            try:
                self.run_folder.publish(self.learner.save_pipeline)
                self.journal.draw()
            except (OSError, SafetensorError) as error:
                raise UserError(f"trained, but the pipeline cannot be written: {error}; {self._go_on}") from error
            try:
                self.previews.draw(self.run_folder.samples, self.run_folder.denoising)
                print(self._closing_words())
            except Stopped:
                drawn = False
        self._shall_stop()  # and so all processes know of a signal that one has received
        if max_over_processes(int(not drawn)):
            raise Stopped(f"trained, but not all pictures drawn; {self._go_on}", self.stop.signal_number)
        self.accelerator.end_training()
        if self.accelerator.is_main_process:  # after every barrier: an upload may take longer than the others wait
            self.uploader.submit_finished()
            self.uploader.drain(stop=self.stop)

    @property
    def _go_on(self) -> str:
        return f"go on with: {launcher()} training/train.py --config {self.run_folder.config} --resume latest"

    def _closing_words(self) -> str:
        minutes, seconds = divmod(round(self.journal.seconds), 60)
        folder, T = self.run_folder.path, self.config.model.time_steps
        steps = f", num_inference_steps={T}" if T < 1000 else ""  # diffusers asks for 1000 unless told otherwise
        return (
            f"\n{self.num_steps:,} steps in {minutes} min {seconds} s\n"
            f"  made:   the pipeline, samples.png, denoising.png, loss.png in {folder}/\n"
            f"  sample: python pipelines/generate.py --model {folder} --num_samples 16\n"
            f"  resume: {launcher()} training/train.py --config {self.run_folder.config} --resume latest "
            f"training.num_steps={2 * self.num_steps}\n"
            f"  score:  {launcher()} training/train.py --config {self.run_folder.config} --eval_only --benchmark\n"
            f"  open:   python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('{folder}')"
            f'(batch_size=4{steps}).images[0].show()"'
        )


def _make_accelerator(config: Config) -> Accelerator:
    plugin = make_plugin(config)
    check_tracker(config.logging.tracker)
    state = init_distributed(timedelta(minutes=config.training.timeout_minutes))
    tracker, folder = config.logging.tracker, config.output_dir
    accelerator = Accelerator(
        cpu=state.device.type == "cpu",
        fsdp_plugin=plugin,
        mixed_precision=choose_precision(config.training.mixed_precision, state.device),
        log_with=None if tracker == "none" else tracker,
        project_dir=None if tracker == "none" else f"{folder}/logs",
    )
    if plugin is not None and not accelerator.is_fsdp2:
        raise UserError(
            f"accelerate's FSDP: given, with {accelerator.num_processes} processes on {accelerator.device.type}; "
            "allowed on several GPUs only: see configs/accelerate/ for other launches"
        )
    return accelerator


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
