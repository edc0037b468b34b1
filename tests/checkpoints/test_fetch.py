"""Downloads: one commit, every byte checked, nothing that could run."""

import json
import logging
import pickle
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback.server import TOKEN

from ddpm_hf.checkpoints.fetch import HubAddress, fetch_checkpoint, fetch_pipeline
from ddpm_hf.checkpoints.format import find_damage
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.export import pipeline_package
from ddpm_hf.hub.share import push_run
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient, HubUnreachableError, RetryPolicy

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def pushed(hub, client, run):
    """A run on the Hub: its pipeline on main, its newest checkpoint on the branch "checkpoints"."""
    settings = HubConfig(repo_id="ada/digits", license="mit", checkpoint_branch="checkpoints")
    push_run(run, settings, client)
    push_run(run, settings, client, kind="checkpoint")
    hub.log.clear()
    return run


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def test_a_pipeline_is_fetched_completely_and_without_code(hub, client, pushed, transfer):
    folder = fetch_pipeline("ada/digits", client)
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert names == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "training_config.yaml",
        "unet/config.json",
        WEIGHTS,
    }
    assert (folder / WEIGHTS).read_bytes() == (pushed / WEIGHTS).read_bytes()
    assert {request.token for request in hub.log if request.host.startswith("localhost")} <= {""}


def test_all_of_it_is_of_one_commit(hub, client, pushed, monkeypatch):
    """Somebody pushes while it is downloaded; offline, what was downloaded then is found."""
    before = hub.repo("ada/digits").branches["main"]
    hub.fault("info", then=lambda: hub.put("ada/digits", {"unet/config.json": b"{}", WEIGHTS: b"other"}))
    folder = fetch_pipeline("ada/digits", client)
    assert hub.repo("ada/digits").branches["main"] != before
    assert folder.name == before
    assert json.loads((folder / "unet/config.json").read_text())["_class_name"] == "UNet2DModel"
    assert (folder / WEIGHTS).read_bytes() == (pushed / WEIGHTS).read_bytes()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_pipeline("ada/digits", client) == folder


def test_a_download_that_broke_off_leaves_the_older_one_for_offline_use(hub, client, pushed, monkeypatch):
    folder = fetch_pipeline("ada/digits", client)
    hub.put("ada/digits", {WEIGHTS: (pushed / WEIGHTS).read_bytes()[:-1] + b"x"})
    hub.fault("cdn", status=503, times=9999)
    with pytest.raises(HubUnreachableError):
        fetch_pipeline("ada/digits", client)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_pipeline("ada/digits", client) == folder


def test_a_revision_can_be_named(hub, client, pushed):
    first = hub.repo("ada/digits").branches["main"]
    hub.put("ada/digits", {WEIGHTS: b"other"})
    assert fetch_pipeline(f"ada/digits@{first}", client).name == first
    with pytest.raises(UserError, match="no such branch, tag or commit"):
        fetch_pipeline("ada/digits@nowhere", client)


def test_a_byte_flipped_in_transit_is_detected_and_fetched_again(hub, client, pushed, caplog):
    hub.fault("cdn", flip=True)
    folder = fetch_pipeline("ada/digits", client)
    assert f"{WEIGHTS} of ada/digits is damaged" in caplog.text
    assert (folder / WEIGHTS).read_bytes() == (pushed / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("path", "route"), [(WEIGHTS, "cdn"), ("model_index.json", "resolve")])
def test_a_file_that_stays_damaged_is_named(hub, client, pushed, path, route):
    hub.fault(route, flip=True, times=99)
    with pytest.raises(UserError, match=f"{path} of ada/digits"):
        fetch_pipeline("ada/digits", client)


def test_a_byte_flipped_in_the_cache_is_found_online_and_offline(hub, client, pushed, monkeypatch, caplog):
    folder = fetch_pipeline("ada/digits", client)

    def flip():
        blob = (folder / WEIGHTS).resolve()
        raw = bytearray(blob.read_bytes())
        raw[-1] ^= 1
        blob.write_bytes(raw)

    flip()
    fetch_pipeline("ada/digits", client)
    assert "is damaged on this machine" in caplog.text
    assert (folder / WEIGHTS).read_bytes() == (pushed / WEIGHTS).read_bytes()
    flip()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{WEIGHTS} of ada/digits.*cache"):
        fetch_pipeline("ada/digits", client)


@pytest.mark.parametrize("transfer", ["xet"], indirect=True)
def test_a_byte_flipped_in_the_store_of_xet_is_found(hub, client, pushed, tmp_path, transfer):
    blocks = [file for file in (tmp_path / "xet-store").rglob("xorbs/default.*") if file.suffix != ".tagset"]
    assert blocks
    for block in blocks:
        raw = bytearray(block.read_bytes())
        raw[len(raw) // 2] ^= 1
        block.write_bytes(raw)
    with pytest.raises(UserError, match=WEIGHTS):
        fetch_pipeline("ada/digits", client)


@pytest.mark.parametrize("route", ["info", "tree", "resolve", "cdn"])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 500},
        {"status": 503},
        {"drop": "before"},
        {"cut": 20},
        {"hang": 0.4},
    ],
    ids=str,
)
def test_transient_faults_are_retried(hub, client, pushed, route, fault):
    hub.fault(route, times=2, **fault)
    folder = fetch_pipeline("ada/digits", client)
    assert (folder / WEIGHTS).read_bytes() == (pushed / WEIGHTS).read_bytes()


@pytest.mark.parametrize("route", ["info", "tree", "resolve", "cdn"])
@pytest.mark.parametrize(("status", "words"), [(401, "token"), (403, "ada/digits"), (404, "ada/digits")])
def test_refusals_are_reported(hub, client, pushed, route, status, words, caplog):
    caplog.set_level(logging.DEBUG, "ddpm_hf")
    hub.fault(route, status=status, times=99)
    with pytest.raises(UserError, match=words) as caught:
        fetch_pipeline("ada/digits", client)
    assert TOKEN not in str(caught.value) + caplog.text


# offline


def test_what_is_cached_works_offline(hub, client, pushed, monkeypatch):
    folder = fetch_pipeline("ada/digits", client)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert fetch_pipeline("ada/digits", client) == folder
    assert not hub.log


def test_offline_errors_name_what_is_missing(hub, client, pushed, monkeypatch):
    folder = fetch_pipeline("ada/digits", client)
    shutil.rmtree(folder / "scheduler")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE.*ada/other"):
        fetch_pipeline("ada/other", client)
    with pytest.raises(UserError, match=r"cache.*scheduler/scheduler_config\.json"):
        fetch_pipeline("ada/digits", client)


def test_the_cache_is_used_when_the_hub_is_unreachable(hub, client, pushed, caplog):
    folder = fetch_pipeline("ada/digits", client)
    hub.fault("info", status=503, times=99)
    assert fetch_pipeline("ada/digits", client) == folder
    assert "looking for ada/digits in the cache" in caplog.text
    with pytest.raises(UserError, match=r"ada/other.*cache"):
        fetch_pipeline("ada/other", client)


def test_a_download_that_keeps_failing_is_an_error(hub, client, pushed):
    hub.fault("cdn", status=503, times=9999)
    with pytest.raises(HubUnreachableError, match="could not reach"):
        fetch_pipeline("ada/digits", client)


# checkpoints


@pytest.mark.parametrize("address", ["hub:ada/digits", "hub:ada/digits@checkpoints"])
def test_a_checkpoint_comes_complete(client, pushed, address, transfer):
    folder = fetch_checkpoint(address, client)
    assert find_damage(folder) is None
    for name in ("network", "optimizer", "timestep_sampler"):
        path = f"training_state/{name}.safetensors"
        assert (folder / path).read_bytes() == (pushed / "checkpoints/step-6" / path).read_bytes()


def test_a_repository_without_a_checkpoint_says_so(hub, client, run):
    push_run(run, HubConfig(repo_id="ada/digits"), client)
    with pytest.raises(UserError, match=r"--resume hub:ada/digits: .* no such branch"):
        fetch_checkpoint("hub:ada/digits", client)
    with pytest.raises(UserError, match=r"hub\.checkpoint_branch"):
        fetch_checkpoint("hub:ada/digits@main", client)
    with pytest.raises(UserError, match="ada/none"):
        fetch_checkpoint("hub:ada/none", client)


@pytest.mark.parametrize("text", ["hub:", "hub:ada", "hub:ada/", "hub:a/b/c", "hub:ada/digits@"])
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="hub:USER/REPO@REVISION"):
        HubAddress.parse(text)


# hostile repositories


@pytest.mark.parametrize(
    "name",
    [
        *("../../up.json", "/tmp/up.json", "unet/../../../up.safetensors", "unet/..", "./up", "a/../../up"),
        *("unet/\0.json", "a\\..\\b", "C:/up", "a//up", ""),
    ],
)
def test_a_repository_that_lists_such_names_gives_nothing(hub, client, pushed, name, tmp_path):
    hub.put("ada/digits", {name: b"{}"})
    with pytest.raises(UserError, match="would not stay inside"):
        fetch_pipeline("ada/digits", client)
    assert not hub.requests("resolve")
    assert not list(tmp_path.rglob("up.*"))


class _Runs:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/pickle-of-a-test-ran"),))


def test_pickles_are_never_loaded(hub, client, pushed):
    files = dict(hub.repo("ada/digits").find("main").files)
    pickled = {"unet/diffusion_pytorch_model.bin": pickle.dumps(_Runs()), "training_state/optimizer.pt": b"x"}
    hub.put("ada/digits", pickled)
    folder = fetch_pipeline("ada/digits", client)  # beside safetensors they are not even downloaded
    assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt")]
    only = {path: file.data or hub.large[file.sha256] for path, file in files.items() if path != WEIGHTS}
    hub.put("ada/pickled", {**only, **pickled}, private=True)
    with pytest.raises(UserError, match="pickled weights"):
        fetch_pipeline("ada/pickled", client)
    assert not Path("/tmp/pickle-of-a-test-ran").exists()


def test_hostile_weights_are_refused_after_the_hash_has_passed(hub, client, pushed, run):
    good = (run / WEIGHTS).read_bytes()
    for bad in (good[:100], (2**62).to_bytes(8, "little") + good[8:], good + b"more", b"", b"\0" * 8):
        hub.put("ada/digits", {WEIGHTS: bad})
        with pytest.raises(UserError, match="safetensors"):
            fetch_pipeline("ada/digits", client)


def test_a_repository_without_a_pipeline_is_refused(hub, client):
    hub.put("ada/notes", {"README.md": b"hello"})
    with pytest.raises(UserError, match="holds no pipeline"):
        fetch_pipeline("ada/notes", client)


def test_a_json_file_without_end_is_refused_before_it_is_downloaded(hub, client, pushed, monkeypatch):
    monkeypatch.setattr("ddpm_hf.checkpoints.fetch.MAX_TEXT_BYTES", 10_000)
    hub.put("ada/digits", {"unet/config.json": b" " * 10_001})
    with pytest.raises(UserError, match="10,001 bytes"):
        fetch_pipeline("ada/digits", client)


def test_what_is_fetched_is_what_was_packed(hub, client, pushed, run):
    packed = pipeline_package(run, HubConfig(repo_id="ada/digits"), "ada/digits", run).files
    folder = fetch_pipeline("ada/digits", client)
    assert (folder / "model_index.json").read_bytes() == packed["model_index.json"]


def test_where_nobody_answers_no_class_of_python_is_named_and_few_attempts_are_made(caplog, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    slept: list[float] = []
    nobody = HubClient("http://127.0.0.1:9", retries=RetryPolicy(sleep=slept.append))
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="the Hub cannot be reached, and ada/nothing"):
        fetch_pipeline("ada/nothing", nobody)
    assert "the connection to the Hub failed" in caplog.text
    assert not re.search(r"\w+Error", caplog.text)
    assert sum(slept) <= 1 + 2 + 4 + 8


@pytest.mark.parametrize("text", ["https://huggingface.co/ada/digits", "hub:ada/digits", "hf.co/ada/digits/tree/v1"])
def test_an_address_is_as_good_as_an_id(text):
    assert str(HubAddress.parse(text)) in ("ada/digits", "ada/digits@v1")
