"""Uploads beside a training: it never waits, never fails, and nothing of the run is lost."""

import logging
import re
import shlex
import shutil
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback.server import TOKEN

from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.background import STAGING, HubUploader
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.signals import StopRequest

SETTINGS = {"repo_id": "ada/digits", "license": "apache-2.0", "push_every": 2}


@pytest.fixture
def uploader(hub, client, run):
    made = []

    def make(**settings):
        made.append(HubUploader(HubConfig(**{**SETTINGS, **settings}), run, client))
        return made[-1]

    yield make
    for each in made:
        each.drain(limit=0)
    hub.faults.end()
    for thread in threading.enumerate():
        if thread.name == "hub-upload":
            thread.join(10)


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def titles(hub, branch="main", repo_id="ada/digits"):
    return [commit.title for commit in hub.repo(repo_id).history(branch)]


def test_a_run_is_uploaded_as_it_goes_and_at_the_end(hub, uploader, run, capsys, transfer):
    up = uploader()
    up.start()
    assert hub.repo("ada/digits").private
    assert not hub.repo("ada/digits").was_public
    up.submit(run / "checkpoints/step-4", 4)
    wait_for(lambda: not up._is_busy())
    up.submit(run / "checkpoints/step-6", 6, last=True)
    up.submit_finished()
    assert up.drain()
    assert titles(hub) == ["Upload the pipeline", "Upload the pipeline after 4 updates", "initial commit"]
    assert not (run / STAGING).exists()
    assert re.search(r"on the Hub: http://127.0.0.1:\d+/ada/digits/tree/[0-9a-f]{40}", capsys.readouterr().out)


def test_without_a_repository_nothing_happens(hub, uploader, run):
    up = uploader(repo_id=None)
    up.check()
    up.start()
    up.submit(run / "checkpoints/step-4", 4)
    up.submit_finished()
    assert up.drain()
    assert not hub.log


def test_only_every_so_many_updates(hub, uploader, run):
    up = uploader(push_every=3)
    up.start()
    up.submit(run / "checkpoints/step-4", 2)
    assert not up._is_busy()
    up.submit(run / "checkpoints/step-4", 4)
    wait_for(lambda: not up._is_busy())
    up.submit(run / "checkpoints/step-6", 6)
    assert up.drain()
    assert len(titles(hub)) == 2


def test_submit_never_waits_and_the_newest_upload_wins(hub, uploader, run):
    """The Hub hangs while four checkpoints come, and each is pruned at once."""
    up = uploader()
    up.start()
    fault = hub.fault("preupload", hang=60)
    for step in (8, 10):
        shutil.copytree(run / "checkpoints" / "step-6", run / "checkpoints" / f"step-{step}")
    for step in (4, 6, 8, 10):
        folder = run / "checkpoints" / f"step-{step}"
        up.submit(folder, step)
        shutil.rmtree(folder)
        if step == 4:
            wait_for(lambda: up._in_flight is not None)
    assert up._in_flight.step == 4
    fault.over.set()
    assert up.drain()
    assert len(titles(hub)) == 3  # the one in flight, the newest, and the Hub's own
    assert not (run / STAGING).exists()


def test_a_newer_folder_ends_the_retries_of_an_older_one(hub, uploader, run):
    up = uploader()
    up.start()
    fault = hub.fault("commit", status=503, times=9999)
    up.submit(run / "checkpoints/step-4", 4)
    wait_for(lambda: len(hub.requests("commit")) > 1)
    up.submit_finished()
    wait_for(lambda: up._in_flight is not None and up._in_flight.step is None)
    fault.times = 0
    assert up.drain()
    assert titles(hub) == ["Upload the pipeline", "initial commit"]


SELDOM = [pytest.param(route, marks=pytest.mark.slow) for route in ("info", "lfs-batch", "lfs-put", "validate")]


@pytest.mark.parametrize("route", ["preupload", "commit", *SELDOM])
@pytest.mark.parametrize(
    "fault",
    [
        *[{"status": status} for status in (401, 403, 404, 429, 500, 503)],
        {"drop": "before"},
        {"drop": "after"},
        {"hang": 0.4},
    ],
    ids=str,
)
def test_no_fault_stops_a_training(hub, uploader, run, route, fault, monkeypatch, caplog, capsys):
    """Whatever strikes the upload of a checkpoint, the final commit is complete and nothing is doubled."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    caplog.set_level(logging.DEBUG, "ddpm_hf")
    up = uploader()
    up.start()
    hub.fault(route, times=3, **fault)
    up.submit(run / "checkpoints/step-4", 4)
    wait_for(lambda: not up._is_busy())
    hub.faults.clear()
    up.submit_finished()
    assert up.drain()
    made = titles(hub)
    assert made[0] == "Upload the pipeline"
    assert len(made) == len(set(made))
    assert len(hub.repo("ada/digits").find("main").files) == 10
    said = caplog.text + "".join(capsys.readouterr())
    assert TOKEN not in said
    assert {request.token for request in hub.log if request.host.startswith("localhost")} <= {""}


def test_a_hub_that_hangs_at_the_end_has_a_limit_and_leaves_a_command(hub, uploader, run, capsys):
    up = uploader(private=False)
    up.start()
    hub.fault("commit", hang=60, times=99)
    up.submit_finished()
    assert not up.drain(0.5)
    out = capsys.readouterr().out
    assert "not everything is on the Hub (the time limit was reached)" in out
    command = shlex.split(out.splitlines()[-1])
    assert command == [
        *("python", "pipelines/push_to_hub.py", str(run)),
        *("--repo_id", "ada/digits", "--no-private", "--license", "apache-2.0"),
    ]
    assert (run / "model_index.json").exists()


def test_a_permanent_failure_is_reported_with_its_reason(hub, uploader, run, capsys, caplog):
    up = uploader()
    up.start()
    hub.fault("commit", status=403, times=99)
    up.submit_finished()
    assert not up.drain()
    assert "may not write to the repository ada/digits" in capsys.readouterr().out
    assert len(hub.requests("commit")) == 1


def test_a_stop_is_heeded_while_draining(hub, uploader, run):
    up = uploader()
    up.start()
    hub.fault("commit", status=503, times=9999)
    up.submit_finished()
    stop = StopRequest()
    stop.request()
    assert not up.drain(10**6, stop)


def test_checkpoints_go_to_their_branch_or_repository(hub, uploader, run):
    up = uploader(push_every=None, checkpoint_branch="state")
    up.start()
    up.submit(run / "checkpoints/step-4", 4)
    wait_for(lambda: not up._is_busy())
    up.submit(run / "checkpoints/step-6", 6, last=True)
    up.submit_finished()
    assert up.drain()
    made = titles(hub, "state")
    assert made == ["Checkpoint after 6 updates", "Checkpoint after 4 updates", "initial commit"]
    assert titles(hub) == ["Upload the pipeline", "initial commit"]
    assert "training_state/optimizer.safetensors" in hub.repo("ada/digits").find("state").files
    assert not [path for path in hub.repo("ada/digits").find("main").files if "state" in path]
    other = uploader(checkpoint_repo_id="lab/state")
    other.start()
    other.submit(run / "checkpoints/step-6", 6, last=True)
    assert other.drain()
    assert titles(hub, repo_id="lab/state") == ["Checkpoint after 6 updates", "initial commit"]
    assert hub.repo("lab/state").private


def test_a_file_system_without_hard_links_is_used_all_the_same(hub, uploader, run, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    up = uploader()
    up.start()
    up.submit(run / "checkpoints/step-4", 4)
    assert up.drain()
    assert titles(hub)[0] == "Upload the pipeline after 4 updates"


# before step 0


def test_the_check_makes_nothing(hub, uploader):
    uploader(checkpoint_branch="state").check()
    assert not hub.repos


@pytest.mark.parametrize(
    ("prepare", "settings", "words"),
    [
        (lambda hub, patch: patch.delenv("HF_TOKEN"), {}, "there is no token"),
        (lambda hub, patch: patch.setenv("HF_TOKEN", "hf_wrong"), {}, "does not know the token"),
        (lambda hub, patch: hub.roles.update(ada="read"), {}, "the token of ada may only read"),
        (lambda hub, patch: None, {"repo_id": "bob/digits"}, "allowed: repositories of ada, lab"),
        (lambda hub, patch: None, {"checkpoint_repo_id": "bob/digits"}, "allowed: repositories of ada, lab"),
        (lambda hub, patch: hub.put("ada/digits", {}), {}, "is public already"),
        (lambda hub, patch: hub.fault("auth-check", status=403), {"repo_id": "lab/made"}, "may not write to"),
        (lambda hub, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True), {}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_later_failures_are_reported_by_the_check(hub, uploader, monkeypatch, prepare, settings, words):
    hub.put("lab/made", {}, private=True)
    prepare(hub, monkeypatch)
    with pytest.raises(UserError, match=words):
        uploader(**settings).check()


def test_a_name_alone_is_in_the_owners_namespace(hub, uploader, run):
    up = uploader(repo_id="digits")
    up.start()
    up.submit_finished()
    assert up.drain()
    assert titles(hub)[0] == "Upload the pipeline"


def test_an_unreachable_hub_at_the_start_does_not_end_the_run(hub, uploader, run, caplog):
    up = uploader()
    fault = hub.fault("*", status=503, times=9999)
    up.check()
    up.start()
    assert "the run starts nevertheless" in caplog.text
    fault.times = 0
    up.submit_finished()
    assert up.drain()
    assert titles(hub)[0] == "Upload the pipeline"


@pytest.mark.parametrize("route", ["whoami", "info", "create", "auth-check"])
@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 503}, {"drop": "before"}, {"drop": "after"}], ids=str)
def test_start_retries_transient_faults(hub, uploader, route, fault):
    if route == "auth-check":
        hub.put("ada/digits", {}, private=True)
    hub.fault(route, times=2, **fault)
    up = uploader()
    up.check()
    up.start()
    assert hub.repo("ada/digits").private


def test_the_guide_names_every_field_with_its_default():
    guide = (Path(__file__).parents[2] / "docs" / "hub.md").read_text()
    for name, field in HubConfig.model_fields.items():
        assert f"| `{name}` |" in guide, name
        default = {None: "`null`", True: "`true`"}.get(field.default if name != "include" else "", str(field.default))
        if name != "include":
            assert re.search(rf"\| `{name}` \| `?{re.escape(default.strip('`'))}`? \|", guide), name
