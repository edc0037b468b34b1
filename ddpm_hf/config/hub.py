"""`hub`: where a run is shared, and what of it."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import Field, model_validator

from ddpm_hf.config.section import PositiveInt, Section, mistakes

RepoId = Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)?$", max_length=96)]
Branch = Annotated[str, Field(pattern=r"^\w[\w-]*([./]\w[\w-]*)*$")]
Part = Literal["code", "config", "metrics", "samples"]


class HubConfig(Section):
    """Where the pipeline of a run is uploaded, while it is trained and at the end."""

    repo_id: RepoId | None = None
    """Repository on the Hub, as user/name, or a name alone for your own; null: nothing is uploaded."""
    private: bool = True
    """Make the repository private from its first second; an existing public one is refused. false: as it is, or
    public."""
    revision: Branch = "main"
    """Branch that the pipeline goes to; made if need be."""
    push_every: PositiveInt | None = None
    """Updates between two uploads of the pipeline while it is trained, each with the next checkpoint; null: only the
    finished one."""
    include: tuple[Part, ...] = ("code", "config", "metrics", "samples")
    """What goes along with the weights, the scheduler and the model card: our pipeline as code, the configuration,
    metrics.json, and pictures of samples."""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None
    """License of the model in the Hub's spelling, such as apache-2.0 or cc-by-4.0; null: the card says unknown."""
    checkpoint_branch: Branch | None = None
    """Branch that checkpoints with all training state go to as well, for --resume hub:USER/REPO@BRANCH; null: none
    are uploaded, unless checkpoint_repo_id is given."""
    checkpoint_repo_id: RepoId | None = None
    """A second repository for those checkpoints; null: repo_id."""
    wait_at_end: Annotated[int, Ge(0), Le(86_400)] = 600
    """Seconds that the end of a run waits for what is still to be uploaded; what is not done by then is left to
    pipelines/push_to_hub.py."""

    @model_validator(mode="after")
    def _check_together(self) -> Any:
        same_repo = self.checkpoint_repo_id in (None, self.repo_id)
        mistakes(
            ("checkpoint_branch", self.checkpoint_branch, "another branch than revision, or a checkpoint_repo_id")
            if same_repo and self.checkpoint_branch == self.revision
            else None,
            ("checkpoint_repo_id", self.checkpoint_repo_id, "another repository, or a checkpoint_branch")
            if self.checkpoint_repo_id == self.repo_id is not None and self.checkpoint_branch is None
            else None,
        )
        return self

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether checkpoints with training state are uploaded, too."""
        return self.checkpoint_branch is not None or self.checkpoint_repo_id is not None
