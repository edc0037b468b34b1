"""Uploads beside the training: it hands over a folder and goes on at once."""

import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.check import check_access
from ddpm_hf.hub.export import checkpoint_package, pipeline_package
from ddpm_hf.hub.share import checkpoint_destination, pipeline_destination, push_command
from ddpm_hf.hub.upload import prepare, push
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError
from ddpm_hf.runtime.signals import Stopped, StopRequest

logger = logging.getLogger(__name__)

STAGING = ".hub"
"""Folder in the run folder where checkpoints are held while they wait: hard links, which take no space."""

ATTEMPTS = 40
"""Of one upload, unless a newer one replaces it: with the longest pauses more than half an hour."""

Kind = Literal["pipeline", "checkpoint"]


@dataclass(frozen=True)
class _Job:
    """One upload: of what, from where; what it holds on to is thrown away afterwards."""

    kind: Kind
    source: Path
    step: int | None
    is_staged: bool


class HubUploader:
    """Uploads of a run in the background: one at a time, and of several that wait the newest of its kind only.

    No method but `check` and `start` ever raises, and none but `drain` ever waits. Where settings.repo_id is None,
    every method does nothing.

    Args:
        settings: the `hub` section.
        run: the run folder.
        client: the Hub; None is the usual one.
    """

    def __init__(self, settings: HubConfig, run: Path, client: HubClient | None = None) -> None:
        self.settings, self.run = settings, run
        client = client or HubClient()
        self._checking = client
        retries = replace(client.retries, attempts=max(client.retries.attempts, ATTEMPTS), sleep=self._pause)
        self._client = HubClient(client.api.endpoint, client.token, retries)
        self._changed = threading.Condition()
        self._waiting: dict[Kind, _Job] = {}
        self._in_flight: _Job | None = None
        self._failed: dict[Kind, str] = {}
        self._pushed_step: int | None = None
        self._done_bytes = self._all_bytes = 0
        self._closed = False
        self._last_url: str | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is uploaded at all."""
        return self.settings.repo_id is not None

    def check(self) -> None:
        """Check token, namespace, permission and repository before the first step; nothing is made.

        Raises:
            UserError: naming what does not fit.
        """
        if self.is_on:
            check_access(self._checking, self.settings)

    def start(self) -> None:
        """Make the repositories, private from their first second if so told, and begin to wait for folders.

        Raises:
            UserError: if the token may not do that.
        """
        if not self.is_on:
            return
        for destination in check_access(self._checking, self.settings):
            try:
                prepare(self._checking, destination)
            except HubUnreachableError as error:
                logger.warning("%s: the run starts all the same and pushes when the Hub is back", error)
        if not self.settings.license:
            logger.warning("hub.license is not given: the model card will say unknown; set it, such as apache-2.0")
        shutil.rmtree(self.run / STAGING, ignore_errors=True)
        self._thread = threading.Thread(target=self._work, name="hub-upload", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path, step: int, last: bool = False) -> None:
        """Hand over a checkpoint; it is uploaded if `hub.push_every` updates have passed, or it is the last.

        Args:
            checkpoint: a complete checkpoint folder, which may be removed right afterwards.
            step: updates done.
            last: of the run, or before an interruption.
        """
        every, keeps = self.settings.push_every, self.settings.keeps_checkpoints
        passed = step - (self._pushed_step or 0)
        due = last or (keeps if every is None else passed >= every)
        kinds: list[Kind] = [*(["pipeline"] if every and not last else []), *(["checkpoint"] if keeps else [])]  # type: ignore[list-item]
        if not due or self._thread is None:
            return
        self._pushed_step = step
        for kind in kinds:
            self._hand_over(kind, checkpoint, step)

    def submit_finished(self) -> None:
        """Hand over the finished pipeline, which lies in the run folder with its pictures and figures."""
        if self._thread is not None:
            self._put(_Job("pipeline", self.run, None, is_staged=False))

    def drain(self, limit: float | None = None, stop: StopRequest | None = None) -> bool:
        """Wait for what is still to be uploaded, with a bar, and say what came of it.

        Args:
            limit: seconds; None is `hub.wait_at_end`.
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
        unfinished = self._close()
        if not unfinished:
            if self._last_url:
                print(f"on the Hub: {self._last_url}")
            return True
        reasons = "; ".join(dict.fromkeys(self._failed.values())) or "the time was up"
        command = push_command(self.run, self.settings, checkpoints="checkpoint" in unfinished)
        print(f"not all is on the Hub ({reasons}); everything is in {self.run}/, push it later with:\n  {command}")
        return False

    # the training's side

    def _hand_over(self, kind: Kind, checkpoint: Path, step: int) -> None:
        """Hold on to a checkpoint by hard links; it may be pruned while it waits."""
        staged = self.run / STAGING / f"{kind}-{step}"
        try:
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(checkpoint, staged, copy_function=os.link)
        except (OSError, shutil.Error):  # no hard links here: then it is uploaded if it stays for long enough
            shutil.rmtree(staged, ignore_errors=True)
            self._put(_Job(kind, checkpoint, step, is_staged=False))
        else:
            self._put(_Job(kind, staged, step, is_staged=True))

    def _put(self, job: _Job) -> None:
        with self._changed:
            replaced = self._waiting.pop(job.kind, None)
            self._waiting[job.kind] = job
            self._changed.notify_all()
        if replaced is not None:
            _throw_away(replaced)

    def _is_busy(self) -> bool:
        with self._changed:
            return bool(self._waiting) or self._in_flight is not None

    def _close(self) -> set[Kind]:
        """Take no more; what is in flight ends with the process."""
        with self._changed:
            self._closed = True
            unfinished = {*self._waiting, *self._failed, *([self._in_flight.kind] if self._in_flight else [])}
            self._changed.notify_all()
        self._thread = None
        if not unfinished:
            shutil.rmtree(self.run / STAGING, ignore_errors=True)
        return unfinished

    # the thread's side

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._upload(job)
            except Stopped:
                pass  # a newer one waits, or nobody does any more
            except Exception as error:
                self._note_failure(job, str(error) or type(error).__name__)
            else:
                self._failed.pop(job.kind, None)
            with self._changed:
                self._in_flight = None
                self._changed.notify_all()
            _throw_away(job)

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._in_flight = self._waiting.pop(next(iter(self._waiting)))
            self._done_bytes = self._all_bytes = 0
            return self._in_flight

    def _upload(self, job: _Job) -> None:
        if job.kind == "checkpoint":
            destination = checkpoint_destination(self._client, self.settings)
            package = checkpoint_package(job.source)
        else:
            destination = pipeline_destination(self._client, self.settings)
            package = pipeline_package(self.run, self.settings, destination.repo_id, job.source)
        self._all_bytes = package.num_bytes
        done = push(self._client, destination, package, self._note_progress)
        if job.kind == "pipeline":
            self._last_url = done.url
        logger.info("%s: %s", destination, f"{done.num_changed} files changed" if done.num_changed else "up to date")

    def _note_progress(self, num_bytes: int) -> None:
        self._done_bytes = num_bytes

    def _note_failure(self, job: _Job, text: str) -> None:
        if self._failed.get(job.kind) != text:
            at = "the finished pipeline" if job.step is None else f"step {job.step:,}"
            logger.warning("the upload of %s failed, and nothing else with it: %s", at, text)
        self._failed[job.kind] = text

    def _pause(self, seconds: float) -> None:
        """Pause between two attempts; give up if a newer folder waits or the run has ended."""
        with self._changed:
            job = self._in_flight
            if self._changed.wait_for(lambda: self._closed or (job is not None and job.kind in self._waiting), seconds):
                raise Stopped


def _throw_away(job: _Job) -> None:
    if job.is_staged:
        shutil.rmtree(job.source, ignore_errors=True)
