"""The page in a real browser: every tab is used as a person would, and nothing is asked of any other machine."""

import json
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 30_000

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def address(serve, folder) -> str:
    return serve("pipelines/app.py", "--model", folder, OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def page(chromium, address) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1240, "height": 900})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.asked_elsewhere, page.errors = [], []
        page.on("request", lambda request: page.asked_elsewhere.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(address)
        yield page
        browser.close()


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def picture(page, elem_id):
    """The bytes that are shown, as an address."""
    shown = page.locator(f"#{elem_id} img")
    expect(shown).to_be_visible()
    return shown.get_attribute("src")


def test_generate_shows_images_and_the_slider_shows_earlier_steps(page):
    page.locator("#generate").click()
    expect(page.get_by_text("16 images · seed 0 · 20 steps · sampler dpmsolver++")).to_be_visible()
    finished = picture(page, "images")
    page.locator("#step input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text("stage 20 of 20, at t =")).to_be_visible()
    page.keyboard.press("Home")
    page.get_by_label("the noisy image that it is given").check()
    expect(page.get_by_text("stage 1 of 20, at t = 19: the noisy image")).to_be_visible()
    expect(page.locator("#images img")).not_to_have_attribute("src", finished)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download images").or_(
            page.get_by_role("link", name="Download images")
        ).first.click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert json.loads(archive.read("settings.json"))["num_samples"] == 16
        assert len([name for name in archive.namelist() if name.startswith("images/")]) == 16


def test_invalid_input_shows_a_message(page):
    page.locator("#seed input").fill("")
    page.keyboard.press("Tab")
    page.locator("#generate").click()
    expect(page.get_by_text("Seed: given nothing; possible is a whole number")).to_be_visible()
    expect(page.get_by_text("Nothing was made; the message says why.").first).to_be_visible()
    page.locator("#seed input").fill("3")
    page.keyboard.press("Tab")
    page.locator("#generate").click()
    expect(page.get_by_text("16 images · seed 3 ·")).to_be_visible()


def test_warnings_of_the_sampler_are_shown(page):
    page.locator("#steps input[type=number]").fill("20")
    page.get_by_label("Sampler").click()
    page.get_by_role("option", name="euler").click()
    page.locator("#generate").click()
    expect(page.get_by_text("Note: sampler 'euler' does not clip")).to_be_visible()


def test_interpolation_between_seeds_and_images(page, tmp_path):
    tab(page, "Interpolate")
    page.locator("#interpolate").click()
    expect(page.get_by_text("seeds 0 to 1 · 8 frames")).to_be_visible()
    first = picture(page, "frame")
    page.locator("#way input[type=range]").focus()
    page.keyboard.press("End")
    expect(page.locator("#frame img")).not_to_have_attribute("src", first)
    page.get_by_label("two images").check()
    page.locator("#interpolate").click()
    expect(page.get_by_text("First image: nothing was uploaded")).to_be_visible()
    for level, field in ((60, "first-image"), (200, "second-image")):
        Image.new("RGB", (40, 30), (level, level, level)).save(tmp_path / f"{field}.png")
        page.locator(f"#{field} input[type=file]").set_input_files(tmp_path / f"{field}.png")
        expect(page.locator(f"#{field} img")).to_be_visible()
    page.locator("#interpolate").click()
    expect(page.get_by_text("two uploaded images · 8 frames")).to_be_visible()


def test_inpainting_with_the_brush(page):
    tab(page, "Inpaint")
    page.locator("#inpaint").click()
    expect(page.get_by_text("Image: there is none yet")).to_be_visible()
    with page.expect_response(lambda answer: "/file=" in answer.url):
        page.locator("#another").click()
    page.wait_for_timeout(1500)  # the canvas says nothing of when it has drawn its background
    page.locator("#inpaint").click()
    expect(page.get_by_text("Mask: nothing is painted")).to_be_visible()
    box = page.locator("#editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    for step in range(10):
        page.mouse.move(x - 40 + 8 * step, y + 2 * step)
    page.mouse.up()
    page.wait_for_timeout(300)
    page.locator("#repaint-steps input[type=number]").fill("3")
    page.keyboard.press("Tab")
    page.locator("#inpaint").click()
    expect(page.get_by_text("9 variants · seed 0 · 3 steps")).to_be_visible()
    assert picture(page, "variants")


def test_the_model_and_its_schedule_are_shown(page):
    tab(page, "Schedule")
    assert picture(page, "curves")
    tab(page, "Model")
    expect(page.get_by_text("8x8, gray")).to_be_visible()


def test_no_request_went_to_another_host(page, address):
    assert not [url for url in page.asked_elsewhere if not url.startswith((address, "data:", "blob:"))]
    assert page.errors == []


@pytest.mark.parametrize("path", ["setup.cfg", "/etc/passwd"])
def test_local_files_are_not_served(address, path):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=30)


def test_no_api_endpoints_are_public(address):
    with urllib.request.urlopen(f"{address}/gradio_api/info", timeout=30) as answer:
        assert json.load(answer) == {"named_endpoints": {}, "unnamed_endpoints": {}}
