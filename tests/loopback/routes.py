"""The part of the Hub's API that huggingface_hub, diffusers and datasets speak; the names are those of the faults."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import yaml

from loopback.server import Refusal
from loopback.storage import Repository, folders_of, is_large, large_file, small_file

LONG_AGO = "2024-01-01T00:00:00.000Z"


def create(ask: Any) -> None:
    wanted = ask.json()
    user = ask.user()
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    kind, namespace = wanted.get("type") or "model", wanted.get("organization") or user
    repo_id = f"{namespace}/{wanted['name']}"
    url = ask.hub.url + ("" if kind == "model" else f"/{kind}s") + f"/{repo_id}"
    with ask.hub.lock:
        if (kind, repo_id) in ask.hub.repos:
            raise Refusal(409, f"You already created this {kind} repo", url=url)
        if not ask.may_write(namespace):
            raise Refusal(403, f"You don't have the rights to create a {kind} under the namespace {namespace!r}")
        ask.hub.repos[kind, repo_id] = Repository(kind, repo_id, wanted.get("visibility") == "private")
    ask.answer(200, {"url": url, "name": repo_id, "id": "0"})


def whoami(ask: Any) -> None:
    user = ask.user()
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    token = {"displayName": "test", "role": ask.role()}
    orgs = [{"name": name, "type": "org", "roleInOrg": "write"} for name in ask.hub.orgs]
    ask.answer(
        200, {"type": "user", "id": "0", "name": user, "fullname": user, "orgs": orgs, "auth": {"accessToken": token}}
    )


def validate(ask: Any) -> None:
    front = re.match(r"---\s*\n(.*?)\n---", ask.json()["content"], re.S)
    try:
        known = yaml.safe_load(front[1]) if front else {}
    except yaml.YAMLError as error:
        return ask.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
    errors = [] if isinstance(known.get("license", ""), str) else [{"message": '"license" must be a string'}]
    return ask.answer(400 if errors else 200, {"errors": errors, "warnings": []})


def preupload(ask: Any, kinds: str, repo: str, rev: str) -> None:
    files = ask.commit_of(ask.repository(kinds, repo, write=True), rev).files
    modes = []
    for file in ask.json()["files"]:
        mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
        known = {"oid": files[file["path"]].etag} if file["path"] in files else {}
        modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
    ask.answer(200, {"files": modes})


def lfs_batch(ask: Any, repo: str, kinds: str | None = None) -> None:
    ask.repository(kinds, repo, write=True)
    objects = []
    for each in ask.json()["objects"]:
        href = f"{ask.hub.url}/_lfs/{each['oid']}"
        actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        objects.append({**each, **({} if each["oid"] in ask.hub.large else {"actions": actions})})
    ask.answer(200, {"transfer": "basic", "objects": objects})


def lfs_put(ask: Any, oid: str) -> None:
    if hashlib.sha256(ask.body).hexdigest() != oid:
        raise Refusal(400, "the bytes do not have this sha256")
    ask.hub.large[oid] = ask.body
    ask.answer(200, b"", {"ETag": f'"{oid}"'})


def lfs_verify(ask: Any, oid: str) -> None:
    if len(ask.hub.large.get(oid, b"")) != ask.json()["size"]:
        raise Refusal(404, "not uploaded")
    ask.answer(200, {})


def commit(ask: Any, kinds: str, repo: str, rev: str) -> None:
    target = ask.repository(kinds, repo, write=True)
    lines = [json.loads(line) for line in ask.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    changed, deleted = {}, []
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            changed[value["path"]] = small_file(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            data = ask.hub.large.get(value["oid"])
            if data is None and value["oid"] not in ask.hub.xet_hashes():
                raise Refusal(400, "LFS pointer pointed to a file that does not exist")
            changed[value["path"]] = large_file(data, value["oid"], value["size"])
        elif line["key"] in ("deletedFile", "deletedFolder"):
            deleted.append(value["path"].rstrip("/") + ("/" if line["key"] == "deletedFolder" else ""))
    with ask.hub.lock:
        if rev not in target.branches:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        if header.get("parentCommit") not in (None, target.branches[rev]):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        made = target.commit(rev, header["summary"], changed, deleted)
    ask.answer(200, {"success": True, "commitOid": made.oid, "commitUrl": f"{ask.hub.url}/{repo}/commit/{made.oid}"})


def info(ask: Any, kinds: str, repo: str, rev: str | None = None) -> None:
    target = ask.repository(kinds, repo)
    found = ask.commit_of(target, rev)
    siblings = []
    for path, file in sorted(found.files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if ask.query.get("blobs"):
            sibling |= {"size": file.size, "blobId": file.blob_id}
            if file.sha256:
                sibling["lfs"] = {"size": file.size, "sha256": file.sha256, "pointerSize": 100}
        siblings.append(sibling)
    shown = {
        "_id": "0",
        "id": repo,
        "author": repo.split("/", maxsplit=1)[0],
        "sha": found.oid,
        "private": target.private,
    }
    shown |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
    ask.answer(200, {**shown, "modelId": repo, "createdAt": LONG_AGO, "lastModified": LONG_AGO})


def tree(ask: Any, kinds: str, repo: str, rev: str, path: str | None = None) -> None:
    found = ask.commit_of(ask.repository(kinds, repo), rev)
    inside = f"{path.strip('/')}/" if path else ""
    if inside and not any(name.startswith(inside) for name in found.files):
        refusal = Refusal(404, f"{path} does not exist", "EntryNotFound")
        refusal.headers = {"X-Repo-Commit": found.oid}
        raise refusal
    deep = ask.query.get("recursive", "").lower() in ("1", "true")
    shown = [entry for entry in _entries(ask, found.files) if entry["path"].startswith(inside)]
    ask.answer(200, [entry for entry in shown if deep or "/" not in entry["path"][len(inside) :]])


def paths(ask: Any, kinds: str, repo: str, rev: str) -> None:
    found = ask.commit_of(ask.repository(kinds, repo), rev)
    is_json = ask.headers.get("Content-Type", "").startswith("application/json")
    wanted = ask.json()["paths"] if is_json else parse_qs(ask.body.decode()).get("paths", [])
    ask.answer(200, [entry for entry in _entries(ask, found.files) if entry["path"] in wanted])


def refs(ask: Any, kinds: str, repo: str) -> None:
    target = ask.repository(kinds, repo)

    def shown(kind: str, named: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in named.items()]

    ask.answer(200, {"branches": shown("heads", target.branches), "tags": shown("tags", target.tags), "converts": []})


def commits(ask: Any, kinds: str, repo: str, rev: str) -> None:
    history = ask.repository(kinds, repo).history(rev)
    ask.answer(
        200,
        [{"id": each.oid, "title": each.title, "message": "", "authors": [], "date": LONG_AGO} for each in history],
    )


def branch(ask: Any, kinds: str, repo: str, name: str) -> None:
    target = ask.repository(kinds, repo, write=True)
    if name in target.branches:
        raise Refusal(409, "Reference already exists")
    target.branches[name] = ask.commit_of(target, ask.json().get("startingPoint")).oid
    ask.answer(200, {})


def auth_check(ask: Any, kinds: str, repo: str, mode: str | None = None) -> None:
    ask.repository(kinds, repo, write=mode == "/write")
    ask.answer(200, {})


def xet_token(ask: Any, kinds: str, repo: str, mode: str, rev: str) -> None:
    ask.repository(kinds, repo, write=mode == "write")
    if ask.hub.xet is None:
        raise Refusal(404, "no Xet here")
    until, url = str(int(time.time()) + 3600), f"local://{ask.hub.xet}"
    ask.answer(
        200,
        {"accessToken": "xet", "exp": int(until), "casUrl": url},
        {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": until},
    )


def resolve(ask: Any, repo: str, rev: str, path: str, kinds: str | None = None) -> None:
    target = ask.repository(kinds, repo)
    found = ask.commit_of(target, rev)
    headers = {"X-Repo-Commit": found.oid}
    file = found.files.get(path)
    if file is None:
        refusal = Refusal(404, "Entry not found", "EntryNotFound")
        refusal.headers = headers
        raise refusal
    headers["ETag"] = f'"{file.etag}"'
    if file.sha256 is None:
        return ask.answer_range(file.data, headers)
    headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": headers["ETag"]}
    if xet_hash := ask.hub.xet_hashes().get(file.sha256):
        headers["X-Xet-Hash"] = xet_hash
        headers["X-Xet-Refresh-Route"] = f"{ask.hub.url}/api/{target.kind}s/{repo}/xet-read-token/{found.oid}"
    return ask.answer(302, b"", {**headers, "Location": f"{ask.hub.cdn_url}/_cdn/{file.sha256}"})


def cdn(ask: Any, oid: str) -> None:
    if oid not in ask.hub.large:
        raise Refusal(404, "not here; it lies in the Xet store")
    ask.answer_range(ask.hub.large[oid], {"ETag": f'"{oid}"'})


def unknown(ask: Any) -> None:
    raise Refusal(404, f"the loopback Hub has no route {ask.command} {ask.path}")


def _entries(ask: Any, files: dict) -> list[dict]:
    xet = ask.hub.xet_hashes()
    folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders_of(files)]
    entries = [file.entry(path, xet.get(file.sha256 or "")) for path, file in files.items()]
    return sorted(folders + entries, key=lambda entry: entry["path"])


_REPO, _KINDS = r"(?P<repo>[^/]+/[^/]+)", r"(?P<kinds>models|datasets|spaces)"
_GIT, _OID, _REV = r"/(?P<kinds>datasets/|spaces/)?" + _REPO, "(?P<oid>[0-9a-f]{64})", "(?P<rev>[^/]+)"
ROUTES: list[tuple[str, str, re.Pattern[str], Callable[..., None]]] = [
    (name, method, re.compile(path), act)
    for name, method, path, act in (
        ("create", "POST", "/api/repos/create", create),
        ("whoami", "GET", "/api/whoami-v2", whoami),
        ("validate", "POST", "/api/validate-yaml", validate),
        ("preupload", "POST", f"/api/{_KINDS}/{_REPO}/preupload/{_REV}", preupload),
        ("commit", "POST", f"/api/{_KINDS}/{_REPO}/commit/{_REV}", commit),
        ("paths", "POST", f"/api/{_KINDS}/{_REPO}/paths-info/{_REV}", paths),
        ("tree", "GET", f"/api/{_KINDS}/{_REPO}/tree/{_REV}(?:/(?P<path>.+))?", tree),
        ("refs", "GET", f"/api/{_KINDS}/{_REPO}/refs", refs),
        ("commits", "GET", f"/api/{_KINDS}/{_REPO}/commits/{_REV}", commits),
        ("branch", "POST", f"/api/{_KINDS}/{_REPO}/branch/(?P<name>.+)", branch),
        ("auth-check", "GET", f"/api/{_KINDS}/{_REPO}/auth-check(?P<mode>/write)?", auth_check),
        ("xet-token", "GET", f"/api/{_KINDS}/{_REPO}/xet-(?P<mode>read|write)-token/(?P<rev>.+)", xet_token),
        ("info", "GET", f"/api/{_KINDS}/{_REPO}/revision/(?P<rev>.+)", info),
        ("info", "GET", f"/api/{_KINDS}/{_REPO}", info),
        ("lfs-batch", "POST", _GIT + r"\.git/info/lfs/objects/batch", lfs_batch),
        ("lfs-put", "PUT", f"/_lfs/{_OID}", lfs_put),
        ("lfs-verify", "POST", f"/_lfs/{_OID}/verify", lfs_verify),
        ("cdn", "GET", f"/_cdn/{_OID}", cdn),
        ("resolve", "GET", _GIT + f"/resolve/{_REV}/(?P<path>.+)", resolve),
    )
]


def find_route(method: str, path: str) -> tuple[str, Callable[..., None], dict[str, str]]:
    """The name, the function and the parts of the path of what is asked for."""
    method = "GET" if method == "HEAD" else method
    for name, of_method, pattern, act in ROUTES:
        if of_method == method and (match := pattern.fullmatch(path)):
            return name, act, match.groupdict()
    return "unknown", unknown, {}
