"""`hub`: where a run is shared, and what is uploaded."""

import re
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from ddpm_hf.config.section import NUMBER, PositiveInt, Section

REPO_ID = r"^[\w-][\w.-]*(/[\w-][\w.-]*)?$"
ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:(?:models|datasets|spaces)/)?"
    r"(?P<repo_id>[\w.-]+/[\w.-]+)(?:/tree/(?P<revision>[^?#]+?))?/?(?:[?#].*)?"
)
"""Of a repository on the Hub's website."""


def repo_id_of(given: Any) -> Any:
    """The id in the address of a repository, as user/name or user/name@REVISION; anything else as it is given."""
    match = ADDRESS.fullmatch(given.strip()) if isinstance(given, str) else None
    if match is None:
        return given
    return "@".join([match["repo_id"], *({match["revision"]} - {None, "main"})])


RepoId = Annotated[
    str,
    Field(
        pattern=REPO_ID,
        max_length=96,
        json_schema_extra={
            "patternErrorMessage": "user/name, or a name alone, of letters, digits, '-', '_' and '.', at most 96 in all"
        },
    ),
    BeforeValidator(repo_id_of),
]
Branch = Annotated[
    str,
    Field(
        pattern=r"^\w[\w-]*([./]\w[\w-]*)*$",
        json_schema_extra={"patternErrorMessage": "a branch of letters, digits, '-', '_', and '.' or '/' between them"},
    ),
]
License = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        json_schema_extra={
            "patternErrorMessage": "the Hub's spelling of a license, such as apache-2.0, cc-by-4.0 or other"
        },
    ),
]
Part = Literal["code", "config", "metrics", "samples"]


class HubConfig(Section):
    """Where the pipeline of a run is uploaded, during training and at the end."""

    repo_id: RepoId | None = None
    """Repository on the Hub, as user/name, or a name alone for your own; null: nothing is uploaded."""
    private: bool = True
    """Create the repository as private, and refuse an existing public one. false: leave it as it is, or create it as
    public."""
    revision: Branch = "main"
    """Branch that the pipeline is pushed to; created if it does not exist."""
    push_every: PositiveInt | None = None
    """Updates between two uploads of the pipeline during training, each with the next checkpoint; null: only the
    finished one."""
    include: tuple[Part, ...] = ("config", "metrics", "samples")
    """What is uploaded besides weights, scheduler and model card: the configuration, metrics.json, and pictures of
    samples. `code` is accepted from earlier versions and adds nothing."""
    license: License | None = None
    """License of the model in the Hub's spelling, such as apache-2.0 or cc-by-4.0; null: the card says unknown."""
    checkpoint_branch: Branch | None = None
    """Branch for checkpoints with all training state, for --resume hub:USER/REPO@BRANCH; null: none are uploaded,
    unless checkpoint_repo_id is given."""
    checkpoint_repo_id: RepoId | None = None
    """A second repository for those checkpoints; null: repo_id."""
    wait_at_end: Annotated[int, Ge(0), Le(86_400), NUMBER] = 600
    """Seconds that the end of a run waits for unfinished uploads; what is left then, pipelines/push_to_hub.py can
    push."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_same_repo = self.checkpoint_repo_id in (None, self.repo_id)
        is_same_branch = self.checkpoint_branch == self.revision
        is_given_twice = self.checkpoint_repo_id == self.repo_id is not None and self.checkpoint_branch is None
        return self.refuse(
            (
                is_same_repo and is_same_branch,
                "checkpoint_branch",
                "another branch than revision, or a checkpoint_repo_id",
            ),
            (is_given_twice, "checkpoint_repo_id", "another repository than repo_id, or a checkpoint_branch"),
        )

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether checkpoints with training state are uploaded, too."""
        return self.checkpoint_branch is not None or self.checkpoint_repo_id is not None
