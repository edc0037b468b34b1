"""Nothing of a machine or a person is in what is pushed."""

import pytest
from loopback.server import TOKEN

from ddpm_hf.hub.sanitize import refuse_tokens, sanitize, sanitize_config
from ddpm_hf.runtime.errors import UserError


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("/home/ada/data/faces", "faces"),
        ("~/data/faces", "faces"),
        ("C:\\Users\\ada\\faces", "faces"),
        ("file:///srv/ada/faces", "faces"),
        ("see /home/ada/x.png, /tmp/y", "see x.png, y"),
        ("data/faces", "data/faces"),
        ("ada/faces", "ada/faces"),
        ("https://huggingface.co/ada/faces", "https://huggingface.co/ada/faces"),
        ("1/2 and/or 3 / 4", "1/2 and/or 3 / 4"),
    ],
)
def test_of_an_absolute_path_only_its_last_part_stays(given, left):
    assert sanitize({"a": [given], "_name_or_path": "/x"}) == {"a": [left]}


def test_a_configuration_loses_its_output_folder():
    assert sanitize_config({"output_dir": "runs/mine", "seed": 1}) == {"output_dir": None, "seed": 1}


def test_a_token_is_refused_by_the_name_of_its_file(tmp_path):
    (tmp_path / "a.md").write_text(f"my {TOKEN}")
    with pytest.raises(UserError, match=r"^a\.md holds a token") as caught:
        refuse_tokens({"a.md": tmp_path / "a.md"})
    assert TOKEN not in str(caught.value)
    refuse_tokens({"a.safetensors": TOKEN.encode(), "b.json": b"{}"})
