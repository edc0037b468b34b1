"""The model card: written from the facts of a run, again and again, around what people have written in it.

Every section that is generated stands between two marks, the first with a hash of its text. A section whose text no
longer has that hash was edited by a person and stays as it is, as does everything outside of the marks and every key
of the metadata that is not ours.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

from ddpm_hf.hub.card_sections import sections
from ddpm_hf.hub.facts import Facts
from ddpm_hf.hub.results import is_finite
from ddpm_hf.runtime.errors import UserError

FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
SECTION = re.compile(r"<!-- ddpm-hf:([a-z]+) ([0-9a-f]{8}) -->\r?\n(.*?)\r?\n<!-- /ddpm-hf:\1 -->", re.DOTALL)

TASK = "unconditional-image-generation"
TAGS = ("ddpm", "diffusers", "ddpm-hf", TASK)
UNKNOWN_LICENSE = "unknown"


def make_card(facts: Facts, old: str | None = None) -> str:
    """Write a model card.

    Args:
        facts: what it tells.
        old: the card that there is; what people wrote in it is kept.

    Raises:
        UserError: if the metadata of the old card cannot be read.
    """
    metadata, body = split_card(old or "")
    front = yaml.safe_dump(_metadata(facts, metadata), sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{front}---\n\n{_body(sections(facts), body)}"


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """The metadata of a card, and its text.

    Raises:
        UserError: if the metadata is no YAML table.
    """
    match = FRONT_MATTER.match(card)
    if match is None:
        return {}, card
    try:
        metadata = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise UserError(
            f"README.md in the repository has metadata that is no YAML: {error}; mend it on the Hub"
        ) from None
    if not isinstance(metadata, dict):
        raise UserError("README.md in the repository has metadata that is no table of keys; mend it on the Hub")
    return metadata, card[match.end() :].lstrip("\r\n")


def _body(new: Mapping[str, str], old: str) -> str:
    if not SECTION.search(old):
        fresh = "\n\n".join(_marked(name, text) for name, text in new.items())
        return f"{old.rstrip()}\n\n{fresh}\n" if old.strip() else f"{fresh}\n"

    def renew(match: re.Match[str]) -> str:
        name, written, text = match[1], match[2], match[3]
        return _marked(name, new[name]) if name in new and _hash(text) == written else match[0]

    return SECTION.sub(renew, old)


def _marked(name: str, text: str) -> str:
    return f"<!-- ddpm-hf:{name} {_hash(text)} -->\n{text}\n<!-- /ddpm-hf:{name} -->"


def _hash(text: str) -> str:
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode()).hexdigest()[:8]


def _metadata(facts: Facts, old: dict[str, Any]) -> dict[str, Any]:
    conditional = ("class-conditional",) if facts.num_classes else ()
    new: dict[str, Any] = {
        "license": facts.license or old.get("license") or UNKNOWN_LICENSE,
        "library_name": "diffusers",
        "pipeline_tag": TASK,
        "tags": _union(TAGS + conditional, old.get("tags")),
    }
    if facts.dataset_on_hub or old.get("datasets"):
        new["datasets"] = _union([facts.dataset_on_hub] if facts.dataset_on_hub else [], old.get("datasets"))
    others = [each for each in _as_list(old.get("model-index")) if not _is_named(each, facts.name)]
    if index := _model_index(facts) + others:
        new["model-index"] = index
    ours = {*new, "model-index"}
    return {**new, **{key: value for key, value in old.items() if key not in ours}}


def _model_index(facts: Facts) -> list[dict[str, Any]]:
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Image generation",
            dataset_type=facts.dataset_on_hub or re.sub(r"[^\w./-]", "-", facts.dataset),
            dataset_name=facts.dataset,
            metric_type=result.name,
            metric_value=result.value,
            metric_name=result.title,
            metric_args=result.protocol if result.spread is None else {**result.protocol, "std": result.spread},
        )
        for result in facts.results
        if is_finite(result)
    ]
    return eval_results_to_model_index(facts.name, results) if results else []


def _union(ours: Any, theirs: Any) -> list[str]:
    return list(dict.fromkeys([*ours, *map(str, _as_list(theirs))]))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_named(entry: Any, name: str) -> bool:
    return isinstance(entry, dict) and entry.get("name") == name
