"""A Hugging Face Space around a model: the demo with all that it needs, as a repository of its own."""

from importlib import metadata
from pathlib import Path

import yaml

from ddpm_hf._version import __version__
from ddpm_hf.checkpoints.format import Content
from ddpm_hf.hub.card import split_card
from ddpm_hf.hub.upload import CARD, Destination, Package, Pushed, push
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient

PACKAGE = Path(__file__).parents[1]

GRADIO_VERSION, PYTHON_VERSION = "6.31.0", "3.12"
"""What the Space runs on; the demo is tested with this gradio."""

CPU_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"
"""Of pip: there torch comes without the gigabytes of CUDA that PyPI's brings to a Space without a GPU."""

APP = '''"""The demo of {model}. The folder ddpm_hf beside this file is the library ddpm-hf {version}, Apache-2.0."""

from ddpm_hf.demo.demo_model import load_model
from ddpm_hf.demo.page import serve, wait

if __name__ == "__main__":
    wait(serve(load_model("{model}"), host=None))
'''

TEXT = """
# {name}

Try [{model}](https://huggingface.co/{model}) in the browser: draw images and watch them come out of the noise,
interpolate, inpaint. Made with ddpm-hf, whose source lies in `ddpm_hf/` (Apache-2.0, see `ddpm_hf/LICENSE`).

If the model is private, give the Space a secret `HF_TOKEN` with the right to read it.
"""


def push_space(
    space_id: str,
    model_id: str,
    license: str | None = None,
    private: bool = True,
    client: HubClient | None = None,
) -> Pushed:
    """Publish the demo of a model of the Hub as a Space; what people changed in its README's metadata and text stays.

    Args:
        space_id: user/name of the Space; made if need be.
        model_id: user/name of the model.
        license: of the Space, in the Hub's spelling; None leaves it as it is.
        private: whether it must not be public.
        client: the Hub; None is the usual one.

    Raises:
        UserError: if a name, the token or the repository cannot be used, or ddpm-hf is not installed.
        HubUnreachableError: if the Hub did not answer.
    """
    client = client or HubClient()
    for option, name in (("--space", space_id), ("--repo_id", model_id)):
        if name.count("/") != 1:
            raise UserError(f"{option}: given {name!r}; a Space needs it as USER/NAME")

    def make_more(readme: str | None) -> dict[str, bytes]:
        return {
            CARD: make_readme(model_id, space_id, license, readme),
            "requirements.txt": _requirements(readme).encode(),
        }

    files = {"app.py": APP.format(model=model_id, version=__version__).encode(), **_library()}
    message = f"Publish the demo of {model_id}"
    package = Package(files, message, make_more, is_ours=lambda path: path.startswith("ddpm_hf/"))
    return push(client, Destination(space_id, private=private, repo_type="space"), package)


def make_readme(model_id: str, space_id: str, license: str | None, old: str | None = None) -> bytes:
    """Write the README of a Space, whose metadata say how the Hub runs it.

    Args:
        model_id: user/name of the model.
        space_id: user/name of the Space.
        license: in the Hub's spelling; None leaves it as it is.
        old: the README that there is; its text stays, and what its metadata say of the rest.

    Raises:
        UserError: if the metadata of the old one cannot be read.
    """
    known, text = split_card(old or "")
    name = space_id.split("/")[1]
    looks = {"title": name, "emoji": "🎲", "colorFrom": "indigo", "colorTo": "gray"}
    runs = {
        "sdk": "gradio",
        "sdk_version": GRADIO_VERSION,
        "python_version": PYTHON_VERSION,
        "app_file": "app.py",
        "models": [model_id],
    }
    front = {**looks, **known, **runs, **({"license": license} if license else {})}
    written = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    text = text if "models" in known else TEXT.format(name=name, model=model_id)  # the Hub's own says nothing yet
    return f"---\n{written}---\n\n{text.strip()}\n".encode()


def _library() -> dict[str, Content]:
    """This library's source and its license, by path in the Space."""
    sources = (file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix in (".py", ".typed", ".md"))
    files: dict[str, Content] = {f"ddpm_hf/{file.relative_to(PACKAGE).as_posix()}": file for file in sources}
    license = PACKAGE.parent / "LICENSE"
    return {**files, "ddpm_hf/LICENSE": license} if license.is_file() else files


def _requirements(readme: str | None) -> str:
    """What this library needs besides gradio, which the Hub installs in the version that the README names."""
    try:
        needed = metadata.requires("ddpm-hf") or []
    except metadata.PackageNotFoundError:
        raise UserError("ddpm-hf is not installed, so it is not known what it needs; run: pip install -e .") from None
    hardware = str(split_card(readme or "")[0].get("suggested_hardware", "cpu"))
    lines = [CPU_INDEX] if hardware.startswith("cpu") else []
    return "".join(f"{each}\n" for each in [*lines, *sorted(each for each in needed if "extra ==" not in each)])
