"""The model behind the page: its pipeline, its card, and the metrics of its evaluations."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from ddpm_hf.checkpoints.fetch import HubAddress, download, read_head
from ddpm_hf.checkpoints.find import load_pipeline, weights_hash
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.data.decoding import open_image
from ddpm_hf.demo.visitor_input import Limits
from ddpm_hf.evaluation.report import Report
from ddpm_hf.hub.card import make_card, split_card
from ddpm_hf.hub.export import find_pipeline
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
        name: folder or Hub id, as the user gave it.
        pipeline: on its device.
        weights: a hash of the network's weights.
        limits: of a visitor's requests.
        card: Markdown without metadata and pictures; empty if there is none.
        evaluations: the report of each evaluation by its name, the newest first.
        picture: samples from the end of its run.
    """

    name: str
    pipeline: DDPMPipeline
    weights: str
    limits: Limits
    card: str = ""
    evaluations: dict[str, Report] = field(default_factory=dict)
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
    def facts(self) -> dict[str, str]:
        """The network and its process, for a person."""
        network, scheduler = self.pipeline.unet, self.pipeline.scheduler.config
        height, width = self.size
        facts = {
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
            facts["Labels"] = f"{self.num_labels}, the last of them: no class"
        return facts


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
    model = DemoModel(name, pipeline, weights_hash(pipeline.unet), Limits())
    model.limits = (limits or Limits()).within(model.time_steps, *model.size)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _describe_folder(model, folder)
    elif not is_offline():
        _describe_repository(model, HubAddress.parse(name))
    return model


def _describe_folder(model: DemoModel, folder: Path) -> None:
    """Read the card in the folder, or else make the one that a push would write."""
    files = {name: folder / name for name in (CARD, METRICS, PICTURE) if (folder / name).is_file()}
    _describe(model, files)
    _read_evaluations(model, folder)
    if not model.card:
        name = str(folder) if folder.name else folder.resolve().name
        info = gather_model_info(folder, find_pipeline(folder), name, "main", files, None)
        model.card = plain_card(make_card(info))


def _describe_repository(model: DemoModel, address: HubAddress) -> None:
    client = HubClient()
    try:
        head = client.call(
            f"listing {address}", lambda: read_head(client, address.repo_id, address.revision), address.repo_id
        )
        wanted = [name for name in (CARD, METRICS, PICTURE) if 0 < head.sizes.get(name, 0) <= MAX_FILE_BYTES]
        with TemporaryDirectory() as cache:
            folder = download(client, head, wanted, cache=Path(cache)) if wanted else Path(cache)
            _describe(model, {name: folder / name for name in wanted})
    except (UserError, HubUnreachableError) as error:
        model.card = f"*The model's card could not be read: {error}*"


def _describe(model: DemoModel, files: dict[str, Path]) -> None:
    if CARD in files:
        model.card = plain_card(files[CARD].read_text(encoding="utf-8", errors="replace"))
    if METRICS in files and (report := _read_report(files[METRICS])):
        model.evaluations[METRICS] = report
    with suppress(ValueError):  # a damaged picture is not shown
        model.picture = open_image(files[PICTURE]) if PICTURE in files else None


def _read_evaluations(model: DemoModel, folder: Path) -> None:
    """The evaluations in the folder of a run; the newest one's report is a file of the run folder, too."""
    below = RunFolder(folder).evaluation
    files = sorted(below.glob(f"**/{METRICS}"), key=lambda file: file.stat().st_mtime, reverse=True)
    found = {str(file.parent.relative_to(below)): _read_report(file) for file in files}
    shown = dict([(name, report) for name, report in found.items() if report][:MAX_EVALUATIONS])
    top = {name: report for name, report in model.evaluations.items() if report not in shown.values()}
    model.evaluations = top | shown


def _read_report(file: Path) -> Report | None:
    """The report in a file; None if it is damaged."""
    try:
        return Report.read(file)
    except UserError:
        return None


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
