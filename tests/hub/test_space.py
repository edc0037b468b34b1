"""The demo as a Space: complete, published once, and a page that answers where it is downloaded to."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import free_port, page_of

from ddpm_hf.hub.space import CPU_INDEX, GRADIO_VERSION, make_readme, push_space
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import HubClient, RetryPolicy

REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "pipelines" / "push_to_hub.py"


@pytest.fixture
def spaces(hub):
    """The loopback Hub's Spaces, with little patience."""
    return HubClient(hub.url, retries=RetryPolicy(attempts=5, base=0.01, longest=0.05))


def files_of(hub, name="ada/demo"):
    return hub.repo(name, "space").find("main").files


def front_of(readme):
    return yaml.safe_load(readme.decode().split("---")[1])


def test_the_space_is_complete_and_pushed_once(hub, spaces):
    pushed = push_space("ada/demo", "ada/digits", "mit", client=spaces)
    files = files_of(hub)
    assert {"app.py", "requirements.txt", "README.md", "ddpm_hf/__init__.py", "ddpm_hf/demo/page.py"} <= files.keys()
    assert not [path for path in files if "__pycache__" in path]
    assert 'load_model("ada/digits")' in files["app.py"].data.decode()
    needs = files["requirements.txt"].data.decode()
    assert needs.splitlines()[0] == CPU_INDEX
    assert "diffusers" in needs
    assert "torch" in needs
    assert "extra" not in "".join(needs.splitlines()[1:])
    assert "token" not in files["app.py"].data.decode().lower()
    assert hub.repo("ada/demo", "space").private
    assert pushed.url == f"{hub.url}/spaces/ada/demo"
    sent = len(hub.log)
    assert push_space("ada/demo", "ada/digits", "mit", client=spaces).num_changed == 0
    assert len(hub.repo("ada/demo", "space").history("main")) == 2
    assert {request.method for request in hub.log[sent:]} <= {"GET", "HEAD"}


def test_the_metadata_say_how_the_hub_runs_it():
    front = front_of(make_readme("ada/digits", "ada/demo", "mit"))
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == GRADIO_VERSION
    assert front["app_file"] == "app.py"
    assert front["models"] == ["ada/digits"]
    assert front["license"] == "mit"
    assert "license" not in front_of(make_readme("ada/digits", "ada/demo", None))


def test_the_gradio_of_the_space_is_the_one_that_is_tested():
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert f"gradio=={GRADIO_VERSION}" in pins


def test_what_people_write_into_its_readme_stays(hub, spaces):
    push_space("ada/demo", "ada/digits", "mit", client=spaces)
    readme = files_of(hub)["README.md"].data.replace(b"title: demo", b"title: Mine\nsuggested_hardware: t4-small")
    hub.put("ada/demo", {"README.md": readme + b"\nMy words.\n", "notes.txt": b"mine"}, kind="space")
    push_space("ada/demo", "ada/digits", client=spaces)
    after = files_of(hub)
    assert front_of(after["README.md"].data)["title"] == "Mine"
    assert front_of(after["README.md"].data)["suggested_hardware"] == "t4-small"
    assert front_of(after["README.md"].data)["license"] == "mit"
    assert b"My words." in after["README.md"].data
    assert "notes.txt" in after
    assert CPU_INDEX not in after["requirements.txt"].data.decode()  # it suggests a GPU


def test_a_removed_source_file_is_deleted_from_the_space(hub, spaces):
    push_space("ada/demo", "ada/digits", client=spaces)
    hub.put("ada/demo", {"ddpm_hf/old.py": b"pass"}, kind="space")
    assert push_space("ada/demo", "ada/digits", client=spaces).num_changed == 1
    assert "ddpm_hf/old.py" not in files_of(hub)


@pytest.mark.parametrize(
    ("route", "fault"), [("create", {"status": 503}), ("commit", {"status": 503}), ("commit", {"drop": "after"})]
)
def test_transient_faults_are_retried_and_make_one_commit(hub, spaces, route, fault):
    hub.fault(route, **fault)
    push_space("ada/demo", "ada/digits", client=spaces)
    assert len(hub.repo("ada/demo", "space").history("main")) == 2


def test_names_without_an_owner_and_public_spaces_are_refused(hub, spaces):
    with pytest.raises(UserError, match="--space: given 'demo'"):
        push_space("demo", "ada/digits", client=spaces)
    hub.put("ada/open", {"a.txt": b"a"}, kind="space")
    with pytest.raises(UserError, match=r"hub\.private: .*ada/open"):
        push_space("ada/open", "ada/digits", client=spaces)


@pytest.mark.slow
def test_the_program_publishes_a_space_that_runs(hub, environment, run, tmp_path):
    command = [sys.executable, PROGRAM, run, "--repo_id", "ada/digits", "--space", "ada/demo", "--license", "mit"]
    for words in ("files changed", "nothing to do, it is up to date"):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, env=environment, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert f"{hub.url}/spaces/ada/demo" in done.stdout
        assert words in next(line for line in done.stdout.splitlines() if line.startswith("space: "))
    space = tmp_path / "space"
    for path, file in files_of(hub).items():
        (space / path).parent.mkdir(parents=True, exist_ok=True)
        (space / path).write_bytes(file.data)
    port = free_port()
    served = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=space,
        env={**environment, "GRADIO_SERVER_PORT": port, "GRADIO_SERVER_NAME": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert "ada/digits · ddpm-hf" in page_of(served, f"http://127.0.0.1:{port}")
    finally:
        served.terminate()
        said, _ = served.communicate(timeout=30)
    assert "Traceback" not in said, said
