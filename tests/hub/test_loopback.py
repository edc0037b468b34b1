"""The loopback Hub itself: what it keeps, what it refuses, and how it fails, seen through the real client."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from loopback.server import TOKEN

FILES = {"config.json": b"{}", "unet/weights.safetensors": bytes(range(256)) * 4000}


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=TOKEN)


def upload(api, repo_id="ada/digits"):
    api.create_repo(repo_id, private=True, exist_ok=True)
    operations = [CommitOperationAdd(path, data) for path, data in FILES.items()]
    return api.create_commit(repo_id, operations, commit_message="all")


def test_what_is_uploaded_comes_back(hub, api, transfer, tmp_path):
    sha = upload(api).oid
    info = api.repo_info("ada/digits", files_metadata=True)
    assert (info.sha, info.private) == (sha, True)
    assert {file.rfilename for file in info.siblings} == {".gitattributes", *FILES}
    for path, data in FILES.items():
        got = api.hf_hub_download("ada/digits", path, revision=sha, cache_dir=tmp_path / "other")
        assert Path(got).read_bytes() == data
    assert bool(hub.requests("xet-token")) == (transfer == "xet")
    assert bool(hub.requests("lfs-put")) == (transfer == "lfs")
    assert not hub.requests("unknown")


def test_no_token_leaves_the_hubs_own_origin(hub, api, tmp_path):
    upload(api)
    api.hf_hub_download("ada/digits", "unet/weights.safetensors")
    assert hub.requests("cdn")
    assert {request.token for request in hub.requests("cdn")} == {""}


def test_a_private_repository_is_hidden_from_others(hub, api):
    upload(api)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).repo_info("ada/digits")


def test_a_stale_parent_is_refused(hub, api):
    first = hub.put("ada/digits", {"a.txt": b"1"}).oid
    hub.put("ada/digits", {"a.txt": b"2"})
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("ada/digits", [CommitOperationAdd("a.txt", b"3")], commit_message="late", parent_commit=first)


def test_faults_occur_as_often_as_configured(hub, api):
    hub.fault("whoami", status=503, times=2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="503"):
            api.whoami()
    assert api.whoami()["name"] == "ada"
    assert [request.status for request in hub.requests("whoami")] == [503, 503, 200]


def test_a_lost_answer_comes_after_the_work(hub, api):
    hub.fault("create", drop="after")
    with pytest.raises(Exception, match="disconnected"):
        api.create_repo("ada/digits")
    assert api.repo_info("ada/digits").id == "ada/digits"
