"""The folder that a run writes to: its layout, and the lock that lets one run write there at a time."""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ddpm_hf.checkpoints.format import INDEX, list_checkpoints, prune, write_manifest
from ddpm_hf.runtime.errors import RunError, UserError
from ddpm_hf.runtime.files import fsync_tree, is_disk_full, remove, visible_files, write_text_atomic

logger = logging.getLogger(__name__)


RESUMABLE = "latest, auto, the folder of a run or of a complete checkpoint, or hub:USER/REPO"
"""What --resume takes."""


class RunFolder:
    """The layout of a run folder. The finished pipeline is saved at its top, in diffusers' format.

    Args:
        path: the folder; it need not exist yet.

    Attributes:
        config: the configuration as the run uses it.
        metrics: the log of the training, one JSON object a line.
        evaluation: folder of the evaluations.
        report: metrics.json of the newest evaluation of the finished run.
        environment: hardware and versions.
        checkpoints: folder of the checkpoints.
        previews: folder of samples drawn during training, step-N.png.
        samples: samples of the finished pipeline.
        denoising: strips from noise to sample of the finished pipeline.
        loss: plot of the loss.
        skipped: names of the images that could not be read.
        dry_run: folder of the pictures of a dry run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation = self.path / "evaluation"
        self.report = self.path / "metrics.json"
        self.environment = self.path / "environment.json"
        self.checkpoints = self.path / "checkpoints"
        self.previews = self.path / "previews"
        self.samples = self.path / "samples.png"
        self.denoising = self.path / "denoising.png"
        self.loss = self.path / "loss.png"
        self.skipped = self.path / "skipped.txt"
        self.dry_run = self.path / "dry_run"
        self.lock = self.path / ".lock"
        self.stop_notice = self.path / ".stop"
        self._held = -1  # the descriptor of the lock, within `locked`

    @property
    def holds_a_run(self) -> bool:
        """Whether a run was begun here."""
        return self.config.exists()

    def check_free(self) -> None:
        """Raise if a new run would overwrite something in the folder.

        Raises:
            UserError: if it is a file or holds anything.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output_dir: {self.path} is a file; choose another with output_dir=FOLDER")
        if self.holds_a_run:
            raise UserError(
                f"output_dir: {self.path} holds a run already; go on with it by --resume latest, or choose another "
                "folder with output_dir=FOLDER"
            )
        if self.path.exists() and set(visible_files(self.path)) - {self.dry_run}:
            raise UserError(f"output_dir: {self.path} is not empty; choose another with output_dir=FOLDER")

    def found(self) -> tuple[str, ...]:
        """The names of the configuration and the checkpoints, by which `check_unchanged` detects another run."""
        return tuple(each.name for each in (self.config, *sorted(self.checkpoints.glob("[!.]*"))) if each.exists())

    def check_unchanged(self, found: tuple[str, ...]) -> None:
        """Raise if another run has written to the folder since `found` was called; call it within `locked`.

        Raises:
            UserError: if the configuration or the checkpoints differ from those found before.
        """
        if self.found() != found:
            raise UserError(f"output_dir: another run has written to {self.path} meanwhile; start this one again")

    def check_begun(self) -> None:
        """Raise if there is no run to resume.

        Raises:
            UserError: if there is no run here.
        """
        if not self.holds_a_run:
            raise UserError(f"--resume latest: there is no run in {self.path}; leave --resume out to start one")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock within the block; a process that dies releases it.

        Raises:
            UserError: if another process holds the folder, or it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._held = self._take()
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written to: {error.strerror}") from error
        try:
            yield
        finally:
            os.close(self._held)

    def is_intact(self) -> bool:
        """Whether the folder still is the one that this run has locked, and can be resumed; call it within `locked`."""
        try:
            return self.holds_a_run and os.path.samestat(self.lock.stat(), os.fstat(self._held))
        except OSError:
            return False

    def make_anew(self, config: str) -> None:
        """Make the folder again that somebody has deleted, without what was in it; call it within `locked`.

        Args:
            config: the text of config.yaml.

        Raises:
            RunError: if another run has begun there meanwhile.
            OSError: if it cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.lock.exists() and os.path.samestat(self.lock.stat(), os.fstat(self._held))):
            is_taken = self.holds_a_run
            try:
                lock = self._take()
            except UserError:
                is_taken = True
            if is_taken:
                raise RunError(
                    f"{self.path} was deleted, and another run has begun there; this one has nowhere to go on"
                )
            os.close(self._held)
            self._held = lock
        write_text_atomic(self.config, config)

    def check_unlocked(self) -> None:
        """Raise if another run holds the lock; lets a run fail before its set-up, which ends in `locked`.

        Raises:
            UserError: naming the process.
        """
        with contextlib.suppress(OSError):  # `locked` says what is wrong
            if self.lock.exists():
                os.close(self._take())

    def _take(self) -> int:
        """Lock the file, or whatever has its name; returns its descriptor.

        Raises:
            UserError: if another run holds the lock.
        """
        try:
            lock = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o666)
        except IsADirectoryError:
            lock = os.open(self.lock, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = "" if self.lock.is_dir() else f" (process {os.read(lock, 20).decode(errors='replace')})"
            os.close(lock)
            raise UserError(
                f"output_dir: {self.path} is in use by another run{holder}; wait for it, stop it, "
                "or choose another folder with output_dir=FOLDER"
            ) from None
        with contextlib.suppress(OSError):  # the number only informs; a full disk, or a folder, does not take it
            os.truncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        return lock

    def free_bytes(self) -> int:
        """Free space on the disk of the folder."""
        existing = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        return shutil.disk_usage(existing).free

    def kept_bytes(self) -> int:
        """Size of all checkpoints."""
        return sum(file.stat().st_size for file in self.checkpoints.rglob("*") if file.is_file())

    def publish(self, save: Callable[[Path], object]) -> None:
        """Put a pipeline at the top of the run folder, replacing an earlier one once the new one is complete.

        On a full disk it takes the place of old checkpoints; the newest and the best one stay.

        Args:
            save: writes the pipeline into the folder that it is given.
        """
        staged = self.path / f".tmp-pipeline-{secrets.token_hex(4)}"
        for leftover in (*self.path.glob(".tmp-*"), *self.checkpoints.glob(".tmp-*")):
            remove(leftover)
        try:
            self._save_in_place_of_checkpoints(save, staged)
            # remove the index first and write it last, so that it never names missing files
            remove(self.path / INDEX)
            for new in sorted(staged.iterdir(), key=lambda path: path.name == INDEX):
                old = self.path / new.name
                if old.is_dir():
                    remove(old, self.path / f".tmp-removed-{new.name}-{secrets.token_hex(4)}")
                new.replace(old)
        finally:
            remove(staged)

    def _save_in_place_of_checkpoints(self, save: Callable[[Path], object], staged: Path) -> None:
        """Save a pipeline; as long as the disk is full, remove the oldest checkpoint and try again."""
        while True:
            try:
                save(staged)
                write_manifest(staged)
                fsync_tree(staged)
                return
            except Exception as error:
                remove(staged)
                fewer = range(len(list_checkpoints(self.checkpoints)) - 1, 0, -1)
                if not is_disk_full(error) or not any(prune(self.checkpoints, keep) for keep in fewer):
                    raise
                logger.warning("%s: an old checkpoint was removed, since the finished pipeline lacks room", self.path)
