"""The base of every section of a configuration, and the kinds of number that its fields hold."""

from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError


def _not_a_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_not_a_switch)]
Float = Annotated[float, BeforeValidator(_not_a_switch)]
PositiveInt = Annotated[Int, Ge(1)]
NonNegativeInt = Annotated[Int, Ge(0)]
PositiveFloat = Annotated[Float, Gt(0)]
NonNegativeFloat = Annotated[Float, Ge(0)]
Probability = Annotated[Float, Ge(0), Le(1)]
Decay = Annotated[Float, Ge(0), Lt(1)]


class Section(BaseModel):
    """One section of the YAML file: unknown keys are mistakes, values never change, NaN and infinity are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


def mistakes(*found: tuple[str, Any, str] | None) -> None:
    """Raise what a section's fields, each right by itself, get wrong together.

    Args:
        found: for each mistake the field's dotted path within the section, what was given, and what is allowed; None
            where a check found nothing.

    Raises:
        PydanticCustomError: naming every mistake, so that `load_config` can report each at its own line.
    """
    wrong = [each for each in found if each is not None]
    if wrong:
        text = "; ".join(f"{path}: given {given}; allowed: {allowed}" for path, given, allowed in wrong)
        raise PydanticCustomError("together", "{text}", {"text": text, "mistakes": wrong})
