"""Try a model in the browser.

    python pipelines/app.py --model FOLDER_OR_REPO

The page is served to this machine alone, unless --host says otherwise. It
needs gradio: pip install -e ".[demo]"
"""

from ddpm_hf.runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take a second

import argparse
import importlib.util
import socket

from ddpm_hf.checkpoints.find import pipeline_folder
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError


def make_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(__doc__)
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--model", metavar="FOLDER_OR_REPO", required=True, help="a saved pipeline, a run folder, or an id on the Hub"
    )
    page = parser.add_argument_group("the page")
    page.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="to listen at; 0.0.0.0: all (default: %(default)s)"
    )
    page.add_argument("--port", type=int, metavar="N", help="1 to 65535 (default: the first free one from 7860)")
    page.add_argument("--open", action="store_true", help="open it in the browser")
    page.add_argument(
        "--allowed_hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names that the page answers to, such as that of a proxy, beside localhost, this machine's and addresses "
        "(default: none)",
    )
    limits = parser.add_argument_group("what a visitor may ask for")
    limits.add_argument("--max_images", type=int, default=64, metavar="N", help="most images at once (default: 64)")
    limits.add_argument(
        "--max_steps", type=int, default=1000, metavar="N", help="most denoising steps of an image (default: 1000)"
    )
    limits.add_argument(
        "--max_evaluations",
        type=int,
        default=20_000,
        metavar="N",
        help="most network evaluations of a request, images times steps (default: 20000)",
    )
    limits.add_argument(
        "--max_seconds", type=int, default=120, metavar="N", help="most seconds of a request (default: 120)"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Load the model and serve the page."""
    for name in ("max_images", "max_steps", "max_evaluations", "max_seconds"):
        if getattr(arguments, name) < 2:
            raise UserError(f"--{name}: given {getattr(arguments, name)}; allowed: at least 2")
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise UserError(f"--port: given {arguments.port}; allowed: 1 to 65535")
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the demo needs gradio, which is not installed; install it: pip install -e ".[demo]"')
    _check_address(arguments.host, arguments.port)
    pipeline_folder(arguments.model)

    with cli.waiting("loading PyTorch, diffusers and gradio"):
        from ddpm_hf.demo.demo_model import load_model
        from ddpm_hf.demo.page import serve, wait
        from ddpm_hf.demo.visitor_input import Limits

    limits = Limits(
        images=arguments.max_images,
        steps=arguments.max_steps,
        evaluations=arguments.max_evaluations,
        seconds=arguments.max_seconds,
    )
    model = load_model(arguments.model, limits)
    wait(serve(model, arguments.host, arguments.port, arguments.open, arguments.allowed_hosts))


def _check_address(host: str, port: int | None) -> None:
    """Refuse an address that cannot be listened at; gradio would try a hundred ports, and say so of each."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        where = host if port is None else f"{host}, port {port},"
        raise UserError(f"--host, --port: {where} cannot be listened at: {error.strerror}; give another") from None


if __name__ == "__main__":
    cli.run(make_parser(), main)
