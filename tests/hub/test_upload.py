"""Pushing: one commit with everything, none where nothing changed, whatever goes wrong on the way."""

import logging
import traceback

import pytest
from loopback.server import TOKEN

from ddpm_hf.hub.upload import Destination, Package, prepare, push
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubUnreachableError, RetryPolicy

TO = Destination("ada/digits")
FILES = {"unet/w.safetensors": b"weights" * 1000, "unet/config.json": b"{}", "model_index.json": b"{}"}


def package(**changes):
    return Package(FILES | changes, "Upload the pipeline", lambda old: {"README.md": (old or "# Digits\n").encode()})


def commits(hub, repo_id="ada/digits", branch="main"):
    return [commit.title for commit in hub.repo(repo_id).history(branch)]


def test_everything_is_in_one_commit(hub, client, transfer):
    done = push(client, TO, package())
    repo = hub.repo("ada/digits")
    assert commits(hub) == ["Upload the pipeline", "initial commit"]
    assert set(repo.find("main").files) == {".gitattributes", "README.md", *FILES}
    assert done.commit == repo.branches["main"]
    assert done.num_changed == 4
    assert bool(hub.requests("lfs-put")) == (transfer == "lfs")


def test_a_second_push_makes_no_commit_and_sends_nothing(hub, client, transfer):
    push(client, TO, package())
    sent = len(hub.log)
    done = push(client, TO, package())
    assert done.num_changed == 0
    assert len(commits(hub)) == 2
    assert {request.method for request in hub.log[sent:]} <= {"GET", "HEAD"}


def test_only_what_changed_is_sent(hub, client):
    push(client, TO, package())
    assert push(client, TO, package(**{"unet/config.json": b"{1}"})).num_changed == 1
    assert hub.repo("ada/digits").find("main").files["unet/config.json"].data == b"{1}"
    assert len(hub.requests("lfs-put")) == 1


def test_the_repository_is_private_from_the_start(hub, client):
    push(client, TO, package())
    assert hub.repo("ada/digits").private
    assert not hub.repo("ada/digits").was_public


def test_a_public_repository_is_made_only_when_asked_for(hub, client):
    prepare(client, Destination("ada/open", private=False))
    assert not hub.repo("ada/open").private


def test_a_private_run_does_not_go_to_a_public_repository(hub, client):
    hub.put("ada/digits", {"a.txt": b""})
    with pytest.raises(UserError, match=r"hub\.private: given true"):
        push(client, TO, package())
    assert len(commits(hub)) == 2


def test_a_branch_is_made_and_main_left_alone(hub, client):
    push(client, Destination("ada/digits", "next/one"), package())
    assert commits(hub) == ["initial commit"]
    assert commits(hub, branch="next/one")[0] == "Upload the pipeline"


def test_files_of_others_stay_and_our_removed_files_are_deleted(hub, client):
    hub.put("ada/digits", {"notes.md": b"mine", "unet/old.safetensors": b"shard"}, private=True)
    with_old = Package(FILES, "Upload", is_ours=lambda path: path.startswith("unet/"))
    push(client, TO, with_old)
    assert set(hub.repo("ada/digits").find("main").files) == {".gitattributes", "notes.md", *FILES}


def test_a_repository_that_changes_meanwhile_is_read_again(hub, client):
    """Somebody commits between the reading of the head and our commit: both commits stay."""
    push(client, TO, package())
    seen = []

    def card(old):
        if not seen:
            hub.put("ada/digits", {"theirs.txt": b"theirs", "README.md": b"# Theirs\n"})
        seen.append(old)
        return {"README.md": ((old or "") + "ours\n").encode()}

    push(client, TO, Package(FILES | {"unet/config.json": b"{2}"}, "Ours", make_more=card))
    files = hub.repo("ada/digits").find("main").files
    assert files["theirs.txt"].data == b"theirs"
    assert files["README.md"].data == b"# Theirs\nours\n"
    assert files["unet/config.json"].data == b"{2}"
    assert commits(hub)[:2] == ["Ours", "by another hand"]
    assert [request.status for request in hub.requests("commit")][-2:] == [412, 200]


SELDOM = [
    pytest.param(route, marks=pytest.mark.slow)
    for route in ("info", "validate", "lfs-batch", "lfs-verify", "branch", "commits")
]


@pytest.mark.parametrize("route", ["create", "preupload", "lfs-put", "commit", *SELDOM])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 500},
        {"status": 503},
        {"drop": "before"},
        {"drop": "after"},
        {"hang": 0.4},
    ],
    ids=str,
)
def test_transient_faults_are_retried(hub, client, route, fault, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fault(route, times=2, **fault)
    done = push(client, Destination("ada/digits", "next", starts_empty=True), package())
    repo = hub.repo("ada/digits")
    assert commits(hub, branch="next") == ["Upload the pipeline", "initial commit"]
    assert set(repo.find("next").files) == {".gitattributes", "README.md", *FILES}
    assert done.commit == repo.branches["next"]
    assert not repo.was_public
    assert {request.token for request in hub.log if request.host.startswith("localhost")} <= {""}


@pytest.mark.parametrize("route", ["preupload", "xet-token", "commit"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": "before"}, {"drop": "after"}], ids=str)
def test_faults_with_xet(hub, client, transfer, route, fault, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fault(route, **fault)
    push(client, TO, package())
    assert commits(hub) == ["Upload the pipeline", "initial commit"]


@pytest.mark.parametrize("route", ["info", "create", "preupload", "commit"])
@pytest.mark.parametrize(("status", "words"), [(401, "hf auth login"), (403, "may not write"), (404, "ada/digits")])
def test_refusals_are_reported_once_without_the_token(hub, client, route, status, words, caplog):
    hub.fault(route, status=status, times=99)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UserError) as caught:
        push(client, TO, package())
    assert words in str(caught.value)
    assert len(hub.requests(route)) <= 2  # a HEAD of ours may go before
    assert TOKEN not in caplog.text + "".join(traceback.format_exception(caught.value, chain=True))


def test_an_unreachable_hub_is_given_up(hub, client, monkeypatch):
    hub.fault("commit", status=503, times=99)
    with pytest.raises(HubUnreachableError, match=r"5 attempts.*503"):
        push(client, TO, package())
    assert len(hub.requests("commit")) == 5
    assert commits(hub) == ["initial commit"]


def test_tokens_are_redacted_in_messages_of_the_hub(hub, client):
    hub.fault("commit", status=400, headers={"X-Error-Message": f"bad {TOKEN}"}, times=9)
    with pytest.raises(UserError) as caught:
        push(client, TO, package())
    assert TOKEN not in str(caught.value)


def test_pauses_double_with_jitter_and_obey_the_hub():
    policy = RetryPolicy(base=1, longest=60)
    for attempt in range(1, 6):
        pauses = [policy.pause(attempt, RuntimeError()) for _ in range(200)]
        assert 2 ** (attempt - 1) / 2 <= min(pauses) < max(pauses) <= 2 ** (attempt - 1)
    assert policy.pause(20, RuntimeError()) == 60
