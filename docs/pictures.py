"""Make every picture of docs/images again: python docs/pictures.py (or make pictures), after make demo

Those of docs/samplers.md come of the commands that it shows. Those of the demo are taken in Chromium, from the page
that pipelines/app.py serves: pip install -e ".[test]" and apt-get install chromium.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError

DOCS = Path(__file__).parent
RUN = "runs/digits"

OF_THE_RUN = {"samples.png": "digits_samples.png", "denoising.png": "digits_denoising.png"}
OF_COMMANDS = {
    "pipelines/generate.py": {
        "grid.png": "samplers_grid.png",
        "denoising.png": "samplers_denoising.png",
        "predicted.png": "samplers_predicted.png",
    },
    "pipelines/interpolate.py": {"strip.png": "samplers_interpolation.png"},
}
CURVES = ("loss_weights.png", "schedule_cosine.png")
OF_THE_DEMO = ("demo.png", "demo_look_back.png", "demo_interpolate.png", "demo_inpaint.png")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
PATIENCE = 120_000
"""Milliseconds."""


def make_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--model", default=RUN, metavar="FOLDER", help=f"run folder (default: {RUN})")
    parser.add_argument("--output", default=DOCS / "images", type=Path, metavar="DIR", help="default: docs/images")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Make them all."""
    run, output = Path(arguments.model).resolve(), arguments.output.resolve()
    missing = [name for name in OF_THE_RUN if not (run / name).is_file()]
    if missing:
        raise UserError(f"--model: {run} has no {' and no '.join(missing)}; train it first: make demo")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError("the pictures of the demo need a browser: apt-get install chromium (or put one on the path)")
    output.mkdir(parents=True, exist_ok=True)
    for name, picture in OF_THE_RUN.items():
        shutil.copyfile(run / name, output / picture)
    for program, pictures in OF_COMMANDS.items():
        show_command(program, pictures, run, output)
    draw_curves(run, output)
    photograph(run, output, browser)


def show_command(program: str, pictures: dict[str, str], run: Path, output: Path) -> None:
    """Run the first command of docs/samplers.md that calls a program, with a run in the place of its own."""
    text = (DOCS / "samplers.md").read_text(encoding="utf-8")
    shown = re.search(rf"^    python ({re.escape(program)} --model ){RUN} (.*)$", text, re.MULTILINE)
    assert shown, program
    with TemporaryDirectory() as folder:
        command = [*shlex.split(shown[1]), str(run), *shlex.split(shown[2]), "--output", folder]
        subprocess.run([sys.executable, *command], cwd=DOCS.parent, check=True)
        for name, picture in pictures.items():
            shutil.copyfile(Path(folder) / name, output / picture)


def draw_curves(run: Path, output: Path) -> None:
    """Draw the weights over time, and the noise schedule of a run."""
    from ddpm_hf import load_pipeline
    from ddpm_hf.pipelines.pictures import schedule_curves

    weights, schedule = (str(output / name) for name in CURVES)
    subprocess.run([sys.executable, "docs/loss_weights.py", weights], cwd=DOCS.parent, check=True)
    schedule_curves(load_pipeline(run).scheduler.alphas_cumprod.cpu(), Path(schedule))


def photograph(run: Path, output: Path, browser: str) -> None:
    """Use the demo as a person would, and keep what it looks like."""
    from playwright.sync_api import sync_playwright

    from ddpm_hf.demo.demo_model import load_model
    from ddpm_hf.demo.page import serve

    served = serve(load_model(str(run)))
    try:
        with sync_playwright() as playwright:
            window = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
            page = window.new_page(viewport={"width": 1240, "height": 830})
            page.set_default_timeout(PATIENCE)
            page.goto(served.local_url)
            for name, act in zip(OF_THE_DEMO, (generate, look_back, interpolate, inpaint), strict=True):
                act(page)
                page.wait_for_timeout(1000)  # for what still moves
                shrink(page.screenshot(full_page=True), output / name)
            window.close()
    finally:
        served.close(verbose=False)


def shrink(screenshot: bytes, file: Path) -> None:
    """Keep a screenshot in 256 colours, of which it has hardly more."""
    with Image.open(BytesIO(screenshot)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def generate(page: Any) -> None:
    """Draw the images that the fields ask for."""
    page.locator("#generate").click()
    page.get_by_text(" · seed 0 · ").wait_for()


def look_back(page: Any) -> None:
    """Go back to the middle of the run, and look at what the network was given."""
    steps = slide(page, "step")
    page.get_by_label("the noisy image that it is given").check()
    page.get_by_text(f"stage {steps + 1} of ").and_(page.get_by_text("the noisy image that")).first.wait_for()


def interpolate(page: Any) -> None:
    """Lead from one seed to another, and stop half way."""
    page.get_by_role("tab", name="Interpolate").click()
    for field, seed in (("seed-a", "5"), ("seed-b", "2020")):
        page.locator(f"#{field} input").fill(seed)
        page.keyboard.press("Tab")
    page.locator("#interpolate").click()
    page.get_by_text("seeds 5 to 2020 · ").wait_for()
    slide(page, "way")


def inpaint(page: Any) -> None:
    """Let the model draw an image, paint over its lower half, and have that made anew."""
    page.get_by_role("tab", name="Inpaint").click()
    with page.expect_response(lambda answer: "/file=" in answer.url):
        page.locator("#another").click()
    page.wait_for_timeout(2000)  # the canvas says nothing of when it has drawn its background
    box = page.locator("#editor canvas").first.bounding_box()
    left, right = (box["x"] + share * box["width"] for share in (0.18, 0.82))
    for share in (0.6, 0.7, 0.8):
        y = box["y"] + share * box["height"]
        page.mouse.move(left, y)
        page.mouse.down()
        page.mouse.move(right, y, steps=20)
        page.mouse.up()
    page.locator("#inpaint").click()
    page.get_by_text(" variants · seed 0 · ").wait_for()


def slide(page: Any, name: str) -> int:
    """Move a slider to its middle; gives its position."""
    slider = page.locator(f"#{name} input[type=range]")
    middle = int(slider.get_attribute("max")) // 2
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(middle):
        page.keyboard.press("ArrowRight")
    return middle


if __name__ == "__main__":
    cli.run(make_parser(), main)
