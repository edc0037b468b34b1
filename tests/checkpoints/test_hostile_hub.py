"""A Hub that means harm, or a cache between that does: answers have an end, in bytes and in time."""

import dataclasses
import time
import tracemalloc

import pytest
from loopback.storage import StoredFile

from ddpm_hf.checkpoints.fetch import fetch_pipeline, read_head
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.share import push_run
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import LISTING_BYTES, HubClient, HubUnreachableError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
ROUTES = ("info", "tree", "resolve", "cdn")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture
def pushed(hub, client, run):
    push_run(run, HubConfig(repo_id="ada/digits", license="mit"), client)
    hub.log.clear()
    return hub.repo("ada/digits")


@pytest.fixture
def hurried(hub, client):
    """A client with little time for an attempt in all, though as much as ever for each part of an answer."""
    return HubClient(hub.url, retries=dataclasses.replace(client.retries, total=0.5, slowest=1e6))


@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_without_end_is_not_received(hub, client, pushed, route):
    hub.fault(route, flood=True, times=99)
    tracemalloc.start()
    with pytest.raises(UserError, match="sends more than"):
        fetch_pipeline("ada/digits", client)
    assert tracemalloc.get_traced_memory()[1] < 4 * LISTING_BYTES
    tracemalloc.stop()
    assert hub.num_flooded < 3 * LISTING_BYTES  # what waits in sockets among it


def test_a_listing_of_pages_without_end_is_given_up(hub, client, pushed, monkeypatch):
    monkeypatch.setattr("ddpm_hf.runtime.hub_client.ANSWER_BYTES", 2**20)  # 16 pages instead of 16,000
    hub.fault("tree", endless=True, times=10**9)
    with pytest.raises(UserError, match="sends more than"):
        fetch_pipeline("ada/digits", client)
    assert len(hub.requests("tree")) < 40


@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_that_never_ends_is_given_up(hub, hurried, pushed, route):
    """A byte now and then is never silent for long."""
    hub.fault(route, drip=0.05, times=99)
    started = time.monotonic()
    with pytest.raises((HubUnreachableError, UserError), match=r"has not answered in full within|cache"):
        fetch_pipeline("ada/digits", hurried)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_that_is_compressed_is_not_read(hub, client, pushed, route):
    """A thousandth of it would be received, and the rest made here."""
    hub.fault(route, compressed=True, times=99)
    with pytest.raises(UserError, match="compressed"):
        fetch_pipeline("ada/digits", client)


@pytest.mark.parametrize(("path", "size"), [("unet/config.json", 600 * 2**20), (WEIGHTS, 2**40), (WEIGHTS, -1)])
def test_a_file_longer_than_any_of_its_kind_is_refused_before_it_is_received(hub, client, pushed, path, size):
    files = pushed.find("main").files
    files[path] = dataclasses.replace(files[path], size=size)
    with pytest.raises(UserError):
        fetch_pipeline("ada/digits", client)
    assert not hub.requests("resolve")


def test_a_file_longer_than_listed_is_not_received(hub, client, pushed, monkeypatch):
    monkeypatch.setattr("ddpm_hf.runtime.hub_client.LISTING_BYTES", 2**20)
    files = pushed.find("main").files
    found = files["unet/config.json"]
    files["unet/config.json"] = StoredFile(b" " * 50 * 2**20, found.size, found.blob_id)
    with pytest.raises(UserError, match=r"sends more than|arrived damaged"):
        fetch_pipeline("ada/digits", client)


@pytest.mark.parametrize(
    "files",
    [
        {"unet/\ud800.json": StoredFile(b"", 0, "0" * 40)},
        {"unet/more.json": StoredFile(b"", "many", "0" * 40)},
        {"unet/more.json": StoredFile(b"", 0, 17)},
        {"unet/more.json": StoredFile(b"", 1.5, "0" * 40)},
    ],
    ids=range(4),
)
def test_a_damaged_list_of_files_is_a_users_error(client, pushed, files):
    pushed.find("main").files.update(files)
    with pytest.raises(UserError, match="ada/digits"):
        read_head(client, "ada/digits")


def test_a_whole_push_and_fetch_stay_within_the_limits(hub, client, pushed, hurried, run):
    """Limits that a real transfer met would end honest work."""
    assert fetch_pipeline("ada/digits", client).is_dir()
    push_run(run, HubConfig(repo_id="ada/digits", license="apache-2.0"), client)
