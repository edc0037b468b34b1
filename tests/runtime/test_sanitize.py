"""Nothing of a machine or a person is in what is pushed, and text from outside does nothing where it is shown."""

import html

import pytest
from loopback.server import TOKEN
from markdown_it import MarkdownIt

from ddpm_hf.hub.upload import refuse_tokens
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.sanitize import for_html, for_markdown, for_terminal, sanitize, sanitize_config


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


HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "one\nWARNING: two",
    "back\rover",
    "\u202etxt.exe",
    "\x9b31m",
    "nul\0",
    "\udcff\udcfe",
    "<img src=x onerror=alert(1)>",
    "<!-- /ddpm-hf:about -->",
    "[click](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "[a]: http://example.org",
    "a | b | c",
    "`code` *bold* __bold__ ~~gone~~",
    "& &lt; &amp;",
    "back\\slash \\| end\\",
    "{{ 7 * 7 }} {% raw %}",
]
FORMATTED = {"html_inline", "html_block", "link_open", "image", "code_inline", "strong_open", "em_open", "s_open"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_only_shows_it(text):
    assert for_terminal(text).isprintable()
    assert for_terminal(text, lines=True).isprintable()
    assert for_terminal("two mistakes\n  one\n  two", lines=True) == "two mistakes\n  one\n  two"
    assert for_terminal("plain, ähnlich 数 [0, 1]") == "plain, ähnlich 数 [0, 1]"


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_it_as_it_is(text):
    """What a reader of Markdown makes of it, in a sentence and in a table, is the text again."""
    reader = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    for source in (f"text {for_markdown(text)}", f"| a |\n| --- |\n| {for_markdown(text)} |"):
        found = [token for block in reader.parse(source) for token in [block, *(block.children or [])]]
        assert not FORMATTED & {token.type for token in found}
        shown = "".join(token.content for token in found if token.type in ("text", "text_special"))
        assert " ".join(for_terminal(" ".join(text.splitlines())).split()) in " ".join(shown.split())
    assert for_markdown(for_markdown(text)) == for_markdown(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_html_shows_it_as_it_is(text):
    assert not set("<>\"'") & set(for_html(text))
    assert html.unescape(for_html(text)) == "\n".join(map(for_terminal, text.split("\n")))
