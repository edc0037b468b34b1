"""Uploads beside the training, which hands over a folder and continues at once.

huggingface_hub's `run_as_future` and `CommitScheduler` do not replace this thread: at the end of the process they wait
for an upload however long it hangs, they keep no folder that is pruned meanwhile, and drop no upload for a newer one.
"""

import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.share import UNREACHABLE_AT_START, Kind, check_access, destination, kinds, push_command, push_folder
from ddpm_hf.hub.upload import prepare
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError
from ddpm_hf.runtime.signals import Stopped, StopRequest

logger = logging.getLogger(__name__)

STAGING = ".hub"
"""Folder in the run folder with the checkpoints that wait: hard links, which take no space."""

ATTEMPTS = 40
"""Attempts of one upload unless a newer one replaces it; with the longest pauses they take over half an hour."""


@dataclass(frozen=True)
class _Upload:
    """A folder that is to be uploaded; step is None for the finished run."""

    kind: Kind
    folder: Path
    step: int | None

    def discard(self) -> None:
        """Remove the folder if it is a staged copy."""
        if self.folder.parent.name == STAGING:
            shutil.rmtree(self.folder, ignore_errors=True)


class HubUploader:
    """The uploads of a run, one at a time; of several of a kind that wait, only the newest is done.

    No method but `check` and `start` raises, and none but `drain` waits. If settings.repo_id is None, all methods do
    nothing.

    Args:
        settings: the `hub` section.
        run: the run folder.
        client: None: the usual Hub.
    """

    def __init__(self, settings: HubConfig, run: Path, client: HubClient | None = None) -> None:
        self.settings, self.run, self._client = settings, run, client or HubClient()
        retries = self._client.retries
        patient = replace(retries, attempts=max(retries.attempts, ATTEMPTS), sleep=self._pause)
        self._background_client = HubClient(self._client.api.endpoint, self._client.token, patient)
        self._changed = threading.Condition()  # of the attributes below, which both threads use
        self._waiting: dict[Kind, _Upload] = {}
        self._in_flight: _Upload | None = None
        self._errors: dict[Kind, str] = {}
        self._done_bytes = self._all_bytes = 0
        self._last_url: str | None = None
        self._closed = False
        self._pushed_step = 0
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Check token, namespace, permission and repository before the first step; nothing is made.

        Raises:
            UserError: naming the option that cannot be used.
        """
        if self.settings.repo_id is not None:
            check_access(self._client, self.settings)

    def start(self) -> None:
        """Make the repositories, private from the start if the settings say so, and start the thread.

        Raises:
            UserError: if the token may not do that.
        """
        if self.settings.repo_id is None:
            return
        try:
            for kind in kinds(self.settings):
                prepare(self._client, destination(kind, self.settings, self._client))
        except HubUnreachableError as error:
            logger.warning(UNREACHABLE_AT_START, error)
        if not self.settings.license:
            logger.warning("hub.license is not given: the model card will say unknown; set it, such as apache-2.0")
        shutil.rmtree(self.run / STAGING, ignore_errors=True)
        self._thread = threading.Thread(target=self._work, name="hub-upload", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path, step: int, last: bool = False) -> None:
        """Hand over a checkpoint; it is uploaded if `hub.push_every` updates have passed, or it is the last one.

        Args:
            checkpoint: a complete checkpoint folder, which may be removed right afterwards.
            step: updates done.
            last: whether it is the last one of the run, or before an interruption.
        """
        every, keeps_checkpoints = self.settings.push_every, self.settings.keeps_checkpoints
        is_due = last or (keeps_checkpoints if every is None else step - self._pushed_step >= every)
        if not is_due or self._thread is None:
            return
        self._pushed_step = step
        if every and not last:  # the finished pipeline follows the last checkpoint
            self._put(_Upload("pipeline", self._stage(checkpoint, "pipeline"), step))
        if keeps_checkpoints:
            self._put(_Upload("checkpoint", self._stage(checkpoint, "checkpoint"), step))

    def submit_finished(self) -> None:
        """Hand over the finished run."""
        if self._thread is not None:
            self._put(_Upload("pipeline", self.run, None))

    def drain(self, limit: float | None = None, stop: StopRequest | None = None) -> bool:
        """Wait for the remaining uploads, with a progress bar, and report the result.

        Args:
            limit: seconds; None: `hub.wait_at_end`.
            stop: polled several times a second; a request ends the wait.

        Returns:
            Whether everything that was handed over last is on the Hub. If not, the command that pushes it is printed.
        """
        if self._thread is None:
            return True
        deadline = time.monotonic() + (self.settings.wait_at_end if limit is None else limit)
        with tqdm(desc="uploading", unit="B", unit_scale=True, dynamic_ncols=True, delay=0.5) as bar:
            while self._is_busy() and time.monotonic() < deadline and not (stop and stop.requested()):
                bar.total, bar.n = self._all_bytes or None, self._done_bytes
                bar.refresh()
                with self._changed:
                    self._changed.wait(min(0.2, max(deadline - time.monotonic(), 0)))
            bar.n = self._done_bytes
        with self._changed:
            self._closed, self._thread = True, None  # an upload in flight ends with the process
            unfinished = {*self._waiting, *self._errors, *([self._in_flight.kind] if self._in_flight else [])}
            self._changed.notify_all()
        if unfinished:
            reasons = "; ".join(dict.fromkeys(self._errors.values())) or "the time limit was reached"
            command = push_command(self.run, self.settings, checkpoints="checkpoint" in unfinished)
            print(f"not everything is on the Hub ({reasons}); it is in {self.run}/, push it later with:\n  {command}")
            return False
        shutil.rmtree(self.run / STAGING, ignore_errors=True)
        if self._last_url:
            print(f"on the Hub: {self._last_url}")
        return True

    # called by the training

    def _stage(self, checkpoint: Path, kind: Kind) -> Path:
        """Hold a checkpoint by hard links, since it may be pruned while it waits."""
        staged = self.run / STAGING / f"{kind}-{checkpoint.name}"
        shutil.rmtree(staged, ignore_errors=True)
        try:
            shutil.copytree(checkpoint, staged, copy_function=os.link)
        except (OSError, shutil.Error):  # without hard links it is uploaded if it is not pruned before
            shutil.rmtree(staged, ignore_errors=True)
            return checkpoint
        return staged

    def _put(self, upload: _Upload) -> None:
        with self._changed:
            replaced = self._waiting.pop(upload.kind, None)
            self._waiting[upload.kind] = upload
            self._changed.notify_all()
        if replaced is not None:
            replaced.discard()

    def _is_busy(self) -> bool:
        with self._changed:
            return bool(self._waiting) or self._in_flight is not None

    # called by the thread

    def _work(self) -> None:
        while (upload := self._next()) is not None:
            try:
                self._push(upload)
                self._errors.pop(upload.kind, None)
            except Stopped:  # for a newer upload, or at the end of the run
                pass
            except Exception as error:
                text = str(error) or "it failed without a reason"
                if self._errors.get(upload.kind) != text:
                    name = "the finished pipeline" if upload.step is None else f"step {upload.step:,}"
                    logger.warning("the upload of %s failed; training is not affected: %s", name, text)
                self._errors[upload.kind] = text
            with self._changed:
                self._in_flight = None
                self._changed.notify_all()
            upload.discard()

    def _next(self) -> _Upload | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._in_flight = self._waiting.pop(next(iter(self._waiting)))
            self._done_bytes = self._all_bytes = 0
            return self._in_flight

    def _push(self, upload: _Upload) -> None:
        client, folder = self._background_client, upload.folder
        pushed = push_folder(upload.kind, self.run, folder, self.settings, client, self._show_progress)
        if upload.kind == "pipeline":
            self._last_url = pushed.url
        logger.info("%s: %s", upload.kind, pushed)

    def _show_progress(self, num_bytes: int, total: int) -> None:
        self._done_bytes, self._all_bytes = num_bytes, total

    def _pause(self, seconds: float) -> None:
        """Pause between two attempts; stop the upload if a newer one waits or the run has ended."""
        with self._changed:
            upload = self._in_flight
            if self._changed.wait_for(
                lambda: self._closed or (upload is not None and upload.kind in self._waiting), seconds
            ):
                raise Stopped
