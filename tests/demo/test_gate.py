"""What visitors of a public page have tried: too much at once, and what no page asks for."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from PIL import Image
from processes import free_port, page_of
from starlette.requests import ClientDisconnect

from ddpm_hf.demo.gate import Gate, is_known_host, keep_below, known_hosts, visitor
from ddpm_hf.demo.visitor_input import Limits

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("browser")

GENERATE, INPAINT = "work", "work_2"


def visit(gate_app, path="/config", method="GET"):
    """The status that a request through a gate gets."""
    sent = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost:1")],
        "client": ("203.0.113.5", 1),
    }

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    asyncio.run(gate_app(scope, receive, send))
    return sent[0]["status"] if sent else None


@pytest.mark.parametrize(("error", "status", "lines"), [(ClientDisconnect(), None, 0), (KeyError("fn"), 400, 1)])
def test_an_error_inside_gradio_is_at_most_one_line_of_the_log(error, status, lines, tmp_path, caplog):
    async def app(scope, receive, send):
        raise error

    refusing = Gate(app, SimpleNamespace(), Limits(), known_hosts("127.0.0.1"), tmp_path)
    with caplog.at_level(logging.WARNING):
        assert visit(refusing) == status
    assert len(caplog.records) == lines
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("localhost:7860", True),
        ("LOCALHOST", True),
        ("127.0.0.1:7860", True),
        ("[::1]:7860", True),
        ("192.168.1.7", True),
        ("own.example", True),
        ("evil.example:7860", False),
        ("localhost.evil.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_only_known_names_and_addresses_are_answered(header, known):
    assert is_known_host(header, known_hosts("127.0.0.1", ["own.example"])) is known


def test_a_space_answers_to_any_name_and_tells_visitors_apart_by_its_proxy(monkeypatch):
    headers = {"x-forwarded-for": "198.51.100.1, 203.0.113.9"}
    request = SimpleNamespace(headers=headers, client=SimpleNamespace(host="10.0.0.1"))
    assert visitor(request) == "10.0.0.1"  # anybody can send the header
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert known_hosts(None) is None
    assert visitor(request) == "203.0.113.9"


def test_the_oldest_files_make_room(tmp_path):
    for index in range(4):
        file = tmp_path / str(index) / "file"
        file.parent.mkdir()
        file.write_bytes(bytes(10))
        os.utime(file, (index, index))
    keep_below(tmp_path, 25)
    assert sorted(file.parent.name for file in tmp_path.rglob("file")) == ["2", "3"]


class Visitor:
    """A client of the page that does not keep to what the browser does."""

    def __init__(self, address: str, session: str) -> None:
        self.address = address
        self.session = session
        config = json.loads(self.ask("/config"))
        self.functions = {each["api_name"]: each["id"] for each in config["dependencies"]}
        inputs = {each["id"]: each["props"].get("value") for each in config["components"]}
        self.values = {
            each["api_name"]: [inputs[component] for component in each["inputs"]] for each in config["dependencies"]
        }

    def ask(self, path: str, body: object = None, **headers: str) -> bytes:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.address + path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def status(self, path: str, body: object = None, **headers: str) -> int:
        try:
            self.ask(path, body, **headers)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def join(self, name: str, values: list) -> str:
        body = {"fn_index": self.functions[name], "data": values, "session_hash": self.session, "trigger_id": 0}
        return json.loads(self.ask("/gradio_api/queue/join", body))["event_id"]

    def outcome(self) -> dict:
        """The last message of this visitor's job."""
        path = f"{self.address}/gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(path, timeout=120) as stream:
            for line in stream:
                message = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("the stream ended without an outcome")

    def upload(self, image: Image.Image) -> dict:
        stream = BytesIO()
        image.save(stream, "PNG")
        head = b'Content-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png'
        body = b"--b\r\n" + head + b"\r\n\r\n%b\r\n--b--\r\n"
        answer = self.ask(
            "/gradio_api/upload", body % stream.getvalue(), **{"Content-Type": "multipart/form-data; boundary=b"}
        )
        return {"path": json.loads(answer)[0], "meta": {"_type": "gradio.FileData"}}


class Server:
    """The program, its address, its log and its folder of temporary files."""

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        port = free_port()
        self.model, self.log, self.address = model, folder / "log.txt", f"http://127.0.0.1:{port}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "pipelines/app.py", "--model", str(model), "--port", port, *options],
                cwd=REPOSITORY,
                env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        page_of(self.process, self.address)

    def end(self, signal_number: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    model = tmp_path_factory.mktemp("models") / "long"
    tiny.pipeline(1000).save_pretrained(model)
    started = Server(model, tmp_path_factory.mktemp("files"), "--max_seconds", "2")
    yield started
    started.end()


@pytest.fixture
def guest(server, request) -> Visitor:
    return Visitor(server.address, request.node.name)


def generate(guest: Visitor, count: int, steps: int) -> str:
    """Ask for images by the model's own sampler."""
    return guest.join(GENERATE, [count, "default", steps, *guest.values[GENERATE][3:]])


@pytest.mark.slow
@pytest.mark.parametrize("path", ["call/work", "call/v2/work", "run/work", "component_server", "dev/reload"])
def test_only_what_the_page_needs_is_answered(guest, path):
    assert guest.status(f"/gradio_api/{path}", {"data": []}) == 404
    assert guest.status("/gradio_api/proxy=http://127.0.0.1/") == 404
    assert guest.status("/monitoring") == 404


@pytest.mark.slow
def test_another_name_of_the_host_is_not_answered(guest):
    assert guest.status("/config", Host="evil.example") == 403
    assert guest.status("/config", Host="localhost") == 200


@pytest.mark.slow
def test_the_page_does_not_tell_where_the_model_lies(guest, server):
    assert str(server.model.parent) not in guest.ask("/config").decode()


@pytest.mark.slow
def test_images_times_steps_are_limited(guest):
    generate(guest, 64, 1000)
    outcome = guest.outcome()
    assert not outcome["success"]
    assert "64,000" in outcome["output"]["error"]


@pytest.mark.slow
def test_layers_are_counted_before_they_are_decoded(guest):
    layer = guest.upload(Image.new("RGBA", (3000, 3000), (0, 0, 0, 1)))
    for layers in ([layer], [layer] * 25):
        painted = {"background": None, "layers": layers, "composite": None}
        guest.join(INPAINT, [None, painted, *guest.values[INPAINT][2:]])
        outcome = guest.outcome()
        assert not outcome["success"]
        assert "Mask" in outcome["output"]["error"]


@pytest.mark.slow
def test_uploads_are_limited(guest):
    with pytest.raises(urllib.error.URLError):  # 413, or a connection that is closed before all is sent
        guest.ask("/gradio_api/upload", bytes(12 * 2**20))
    with pytest.raises(urllib.error.HTTPError, match="429"):
        for _ in range(Limits().uploads):
            guest.upload(Image.new("L", (8, 8)))


@pytest.mark.slow
def test_nobody_waits_long_for_others(tmp_path):
    tiny.pipeline(1000, sample_size=32, block_out_channels=(64, 64)).save_pretrained(tmp_path / "model")
    server = Server(tmp_path / "model", tmp_path, "--max_seconds", "20")
    try:
        for index in range(Limits().jobs):
            generate(Visitor(server.address, f"absent {index}"), 20, 1000)
        guest = Visitor(server.address, "guest")
        with pytest.raises(urllib.error.HTTPError, match="429"):  # one visitor does not fill the queue
            generate(guest, 1, 1)
        for _ in range(100):  # those who do not listen are dropped
            threading.Event().wait(1)
            if guest.status("/gradio_api/queue/join", {"fn_index": 10**9, "data": [], "session_hash": "x"}) != 429:
                break
        generate(guest, 1, 1)
        assert guest.outcome()["success"]
        generate(guest, 20, 1000)
        outcome = guest.outcome()
        assert not outcome["success"]
        assert "longer than 20 s" in outcome["output"]["error"]
    finally:
        server.end()


BODIES = [
    b"",
    b"no json",
    b"[" * 100_000,
    b"null",
    *({"fn_index": index, "data": [], "session_hash": "x"} for index in (-1, 10**9, 2, 10, 19, None)),
    {"fn_index": 2, "data": ["a"] * 6, "session_hash": "x"},
    {"fn_index": 2, "data": [{}] * 6, "session_hash": "x"},
    {"fn_index": 19, "data": [{"path": "/etc/passwd"}] * 7, "session_hash": "x"},
    {
        "fn_index": 19,
        "data": [None, {"layers": [{"path": "/etc/passwd"}]}, 9, 20, "default", 1, 0],
        "session_hash": "x",
    },
    {"fn_index": 19, "data": [None, {"layers": "no"}, 9, 20, "default", 1, 0], "session_hash": "x"},
]


@pytest.mark.slow
def test_requests_that_cannot_be_read_leave_no_traceback(guest, server):
    for path in ("queue/join", "run/predict", "cancel", "reset", "upload"):
        for body in BODIES:
            try:
                answer = json.loads(guest.ask(f"/gradio_api/{path}", body))
            except (urllib.error.HTTPError, ValueError):
                continue
            if path == "queue/join" and "event_id" in answer:
                guest.session = "x"
                assert not guest.outcome()["success"]
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_temporary_stays(folder, tmp_path, signal_number):
    server = Server(folder, tmp_path)
    Visitor(server.address, "me").upload(Image.new("L", (8, 8)))
    assert list(tmp_path.glob("ddpm-hf-*/*/*.png"))
    assert server.end(signal_number) == 128 + signal_number
    assert not list(tmp_path.glob("ddpm-hf-*"))
    assert "Traceback" not in server.log.read_text()
