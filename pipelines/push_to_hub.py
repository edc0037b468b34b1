"""Share a run on the Hub.

    python pipelines/push_to_hub.py RUN_FOLDER --repo_id USER/NAME

Only files that differ are uploaded; without a difference there is no commit.
"""

from ddpm_hf.runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take a second

import argparse
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from tqdm import tqdm

from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.config.reader import explain
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError


def make_parser() -> cli.Parser:
    """The command line."""
    default = {name: field.default for name, field in HubConfig.model_fields.items()}
    parser = cli.Parser(__doc__)
    parser.add_argument("run_folder", metavar="RUN_FOLDER", type=Path, help="the output_dir of a run, finished or not")
    where = parser.add_argument_group("destination; by default that of the run's configuration")
    where.add_argument("--repo_id", metavar="USER/NAME", help="repository, made if it does not exist (hub.repo_id)")
    where.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="private from the start; a public repository is refused "
        f"(hub.private, by default {str(default['private']).lower()})",
    )
    where.add_argument(
        "--revision",
        metavar="BRANCH",
        help=f"made if it does not exist (hub.revision, by default {default['revision']})",
    )
    what = parser.add_argument_group("content")
    what.add_argument(
        "--license",
        metavar="ID",
        help="in the Hub's spelling, such as apache-2.0 (hub.license; by default the card says unknown)",
    )
    what.add_argument(
        "--checkpoints", action="store_true", help="push the newest checkpoint and its training state, too"
    )
    what.add_argument("--space", metavar="USER/NAME", help="publish a demo of the model as this Space, too")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Push the run."""
    if not arguments.run_folder.is_dir():
        raise UserError(f"RUN_FOLDER: there is no folder {arguments.run_folder}")
    settings = _settings(arguments)
    space = arguments.space and _checked({"repo_id": arguments.space}, {"hub.repo_id": "--space"}).repo_id

    with cli.waiting("loading the Hub's client"):
        from ddpm_hf.hub.share import Kind, push_run
        from ddpm_hf.runtime.hub_client import HubClient

    client = HubClient()
    if not client.has_token:
        raise UserError("there is no token for the Hub; make one with the role write and run: hf auth login")
    kinds: list[Kind] = ["pipeline", "checkpoint"] if arguments.checkpoints else ["pipeline"]
    for kind in kinds:
        with tqdm(desc=kind, unit="B", unit_scale=True, dynamic_ncols=True, delay=0.5) as bar:

            def show(done: int, total: int, bar: Any = bar) -> None:
                bar.total, bar.n = total, done
                bar.refresh()

            pushed = push_run(arguments.run_folder, settings, client, show, kind)
        print(f"{kind}: {pushed}")
    if space:
        _publish_space(space, settings, client)
    if not settings.license:
        print("No --license is given: the model card keeps its license, or says unknown.")


def _publish_space(space: str, settings: HubConfig, client: Any) -> None:
    from ddpm_hf.hub.share import full_repo_id
    from ddpm_hf.hub.space import push_space

    model = full_repo_id(client, settings.repo_id or "")
    print(f"space: {push_space(full_repo_id(client, space), model, settings.license, settings.private)}")
    if settings.private:
        print(f"If {model} is private, add a secret HF_TOKEN that may read it in the Space's settings.")


def _settings(arguments: argparse.Namespace) -> HubConfig:
    """The hub section of the run's configuration, overridden by the command line."""
    try:
        config = yaml.safe_load(RunFolder(arguments.run_folder).config.read_text(encoding="utf-8"))
        section = dict(config.get("hub") or {})
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        section = {}
    names = ("repo_id", "private", "revision", "license")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    settings = _checked({**section, **given}, {f"hub.{name}": f"--{name}" for name in given})
    if settings.repo_id is None:
        raise UserError("--repo_id: not given, and the run's configuration has no hub.repo_id; give USER/NAME")
    return settings


def _checked(values: dict[str, Any], options: dict[str, str]) -> HubConfig:
    """A hub section of these values; a mistake is reported under the option that it was given by."""
    try:
        return HubConfig.model_validate(values)
    except ValidationError as error:
        path, text, _ = explain(error, "hub")[0]
        name = ".".join(map(str, path))
        raise UserError(f"{options.get(name, name)}: {text.removesuffix(', or null')}") from None


if __name__ == "__main__":
    cli.run(make_parser(), main)
