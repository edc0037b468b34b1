"""The model behind the page: its pipeline, its card, and the metrics of its evaluations."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from ddpm_hf.checkpoints.fetch import HubAddress, download, read_head
from ddpm_hf.checkpoints.find import load_pipeline, newest_pipeline, weights_hash
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.pixels import open_image
from ddpm_hf.demo.visitor_input import Limits
from ddpm_hf.evaluation.plan import dataset_of
from ddpm_hf.evaluation.report import Report
from ddpm_hf.hub.card import make_card, split_card
from ddpm_hf.hub.model_info import gather_model_info
from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.pipelines.images import PIL_MODES
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError, is_offline

CARD = "README.md"
METRICS, PICTURE = RunFolder("").report.name, RunFolder("").samples.name
MAX_FILE_BYTES = 16 * 2**20
MAX_EVALUATIONS = 20
NOT_SHOWN = re.compile(
    r"<!-- ddpm-hf:(samples|results) .*?<!-- /ddpm-hf:\1 -->|<!--.*?-->|!\[[^\]]*\]\([^)]*\)|<img\b[^>]*>", re.DOTALL
)
"""Parts of a card: pictures, which could come from anywhere, and generated sections that the page shows itself."""


@dataclass
class DemoModel:
    """A loaded model and everything that the page shows of it.

    Attributes:
        name: folder or Hub id, as the user gave it; of an absolute folder only the part below the working directory, or
            its last name: visitors are not told where it lies.
        pipeline: on its device.
        weights: a hash of the network's weights.
        limits: of a visitor's requests.
        card: Markdown without metadata and pictures; empty if there is none.
        evaluations: the report of each evaluation by its name, the newest first.
        dataset: the options of the images that it was trained on.
        picture: samples from the end of its run.
    """

    name: str
    pipeline: DDPMPipeline
    weights: str
    limits: Limits
    card: str = ""
    evaluations: dict[str, Report] = field(default_factory=dict)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    picture: Image.Image | None = None

    @property
    def title(self) -> str:
        """The name of the folder, or the Hub id."""
        folder = Path(self.name).expanduser()
        return folder.resolve().name if folder.is_dir() else self.name

    @property
    def identity(self) -> dict[str, str]:
        """Name and weights, for the settings of an image."""
        return {"model": self.name, "weights": self.weights}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""
        size = self.pipeline.unet.config.sample_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return int(self.pipeline.unet.config.in_channels)

    @property
    def mode(self) -> str:
        """PIL's mode of its images."""
        return PIL_MODES[self.channels]

    @property
    def time_steps(self) -> int:
        """T."""
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def num_labels(self) -> int | None:
        """Labels of a class-conditional model, including the one for no class; None for another model."""
        labels = self.pipeline.unet.config.num_class_embeds
        return None if labels is None else int(labels)

    @property
    def description(self) -> dict[str, str]:
        """The network and its process, for a person."""
        network, scheduler = self.pipeline.unet, self.pipeline.scheduler.config
        height, width = self.size
        rows = {
            "Images": f"{width}x{height}, {'gray' if self.channels == 1 else 'RGB'}",
            "Parameters": f"{sum(each.numel() for each in network.parameters()):,}",
            "Channels by level": ", ".join(map(str, network.config.block_out_channels)),
            "Time steps": f"{self.time_steps:,}",
            "Betas": f"{scheduler.beta_schedule}",
            "Predicts": f"{scheduler.prediction_type}",
            "Reverse variance": f"{scheduler.get('variance_type', 'set by its sampler')}",
            "Weights": self.weights,
        }
        if self.num_labels is not None:
            rows["Labels"] = f"{self.num_labels}, the last of them: no class"
        return rows


def load_model(name: str, limits: Limits | None = None) -> DemoModel:
    """Load a model, its card and its metrics; no code of a repository is run.

    Args:
        name: folder of a saved pipeline or a run, or an id on the Hub, as user/name or user/name@REVISION.
        limits: of a visitor's requests; those that follow from the model are added.

    Raises:
        UserError: if there is no such model, or its images are not gray or RGB.
    """
    pipeline = load_pipeline(name)
    pipeline.set_progress_bar_config(disable=True)
    channels = pipeline.unet.config.in_channels
    if channels not in PIL_MODES or pipeline.unet.config.sample_size is None:
        raise UserError(
            f"--model: {name} makes images of {channels} channels and size {pipeline.unet.config.sample_size}; the demo"
            " shows gray and RGB images of a known size"
        )
    model = DemoModel(_public_name(name), pipeline, weights_hash(pipeline.unet), Limits())
    model.limits = (limits or Limits()).within(model.time_steps, *model.size)
    folder = Path(name).expanduser()
    model.dataset = dataset_of(pipeline.name_or_path)
    if folder.is_dir():
        _read_files(model, folder)
        _read_evaluations(model, folder)
        if not model.card:  # the one that a push would write
            repo_id = model.name if Path(model.name).name else model.title
            names = [name for name in (CARD, METRICS, PICTURE) if (folder / name).is_file()]
            info = gather_model_info(folder, newest_pipeline(folder), repo_id, names)
            model.card = plain_card(make_card(info))
    elif not is_offline():
        try:
            with TemporaryDirectory() as cache:
                _read_files(model, _download_files(HubAddress.parse(name), Path(cache)))
        except (UserError, HubUnreachableError) as error:
            model.card = f"*The model's card could not be read: {error}*"
    return model


def _public_name(name: str) -> str:
    folder = Path(name).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        return name
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else folder.name


def _download_files(address: HubAddress, cache: Path) -> Path:
    """Download card, report and picture of a repository, those of a reasonable size."""
    client = HubClient()
    head = read_head(client, address.repo_id, address.revision)
    wanted = [name for name in (CARD, METRICS, PICTURE) if 0 < head.sizes.get(name, 0) <= MAX_FILE_BYTES]
    return download(client, head, wanted, cache) if wanted else cache


def _read_files(model: DemoModel, folder: Path) -> None:
    """Read card, report and picture of a folder, those that exist and are not damaged."""
    with suppress(OSError):
        model.card = plain_card((folder / CARD).read_text(encoding="utf-8", errors="replace"))
    with suppress(ValueError):
        model.picture = open_image(folder / PICTURE)
    with suppress(UserError):
        model.evaluations[METRICS] = Report.read(folder / METRICS)


def _read_evaluations(model: DemoModel, folder: Path) -> None:
    """Read the evaluations of a run; the report of the newest is at the top of its folder as well."""
    below = RunFolder(folder).evaluation
    files = sorted(below.glob(f"**/{METRICS}"), key=lambda file: file.stat().st_mtime, reverse=True)
    found: dict[str, Report] = {}
    for file in files:
        with suppress(UserError):  # a damaged one is not shown
            found[str(file.parent.relative_to(below))] = Report.read(file)
    found = dict(list(found.items())[:MAX_EVALUATIONS])
    top = {name: report for name, report in model.evaluations.items() if report not in found.values()}
    model.evaluations = top | found


def plain_card(card: str) -> str:
    """The text of a model card without its metadata and its pictures, which the browser would fetch from anywhere.

    Args:
        card: README.md of a repository.
    """
    try:
        _, body = split_card(card)
    except UserError:
        body = card
    return re.sub(r"\n{3,}", "\n\n", NOT_SHOWN.sub("", body)).strip()
