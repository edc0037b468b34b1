"""Every option of the configuration, for `--help`: name, default, range and meaning, from the schema."""

import json
import textwrap
from typing import Any

from ddpm_hf.config.root import Config, json_schema

WIDTH = 80
WRAP = textwrap.TextWrapper(WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)


def options_help(*sections: str) -> str:
    """Describe the options of some sections of the YAML file, each as it is given on the command line.

    Args:
        sections: keys of the file, such as "training"; none means all of them.
    """
    schema = json_schema()
    defaults = Config().to_dict()
    text = ["options of the configuration (section.key=value, with their defaults):"]
    for name, field in schema["properties"].items():
        if not sections or name in sections:
            text.append("")
            text += _describe(name, field, defaults[name], schema["$defs"])
    return "\n".join(text)


def option_for(mistake: str) -> str:
    """What to say of a mistaken `--num_steps 5`, which is an option of the configuration.

    Args:
        mistake: argparse's message, which ends with the arguments it does not know.
    """
    name = mistake.split("--", 1)[-1].partition(" ")[0].partition("=")[0].replace("-", "_")
    paths = [path for path in _paths(Config().to_dict()) if path.rpartition(".")[2] == name or path == name]
    return f"; options of the configuration are written {(paths or ['section.key'])[0]}=VALUE"


def _paths(section: dict[str, Any], above: str = "") -> list[str]:
    """The dotted path of every option."""
    return [
        path
        for name, value in section.items()
        for path in (_paths(value, f"{above}{name}.") if isinstance(value, dict) else [f"{above}{name}"])
    ]


def _describe(path: str, field: dict[str, Any], default: Any, definitions: dict[str, Any]) -> list[str]:
    """The lines of an option, or of all options of a section."""
    if "$ref" in field:
        section = definitions[field["$ref"].rsplit("/", 1)[1]]
        return [
            line
            for name, inner in section["properties"].items()
            for line in _describe(f"{path}.{name}", inner, default[name], definitions)
        ]
    shown = default if isinstance(default, str) else json.dumps(default)
    meaning = " ".join([*field.get("description", "").split(), *_limits(field)])
    return [f"  {path}={shown}", *WRAP.wrap(meaning)]


def _limits(field: dict[str, Any]) -> list[str]:
    """What a value may be, as far as the schema says."""
    kinds = [field, *field.get("anyOf", [])]
    choices = [json.dumps(choice) for kind in kinds for choice in kind.get("enum", [])]
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{word} {kind[key]:g}" for kind in kinds for key, word in words.items() if key in kind]
    found = [f"one of {', '.join(choices)}"] if choices else bounds
    return [f"({', '.join(found)})"] if found else []
