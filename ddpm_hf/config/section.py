"""The base class of every section of a configuration, and the number types of its fields."""

from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from ddpm_hf.runtime.values import flatten

CONFLICT = "conflict"
"""Type of the validation errors that `Section.refuse` raises."""


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "a number, not true or false")
    return value


NUMBER = BeforeValidator(_refuse_bool)
"""Comes after the bounds in an annotation: pydantic names only bounds beside the number itself as JSON Schema does."""

PositiveInt = Annotated[int, Ge(1), NUMBER]
NonNegativeInt = Annotated[int, Ge(0), NUMBER]
PositiveFloat = Annotated[float, Gt(0), NUMBER]
NonNegativeFloat = Annotated[float, Ge(0), NUMBER]
Probability = Annotated[float, Ge(0), Le(1), NUMBER]
Fraction = Annotated[float, Ge(0), Lt(1), NUMBER]
EmbeddingChannels = Annotated[int, Ge(4), NUMBER]
"""Channels as many as the embedding of the timestep has: below 4 DDPM's has a single frequency, and divides by zero."""


class Section(BaseModel):
    """A section of the YAML file. It is immutable, and refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, values: Any) -> Any:
        return {} if values is None else values

    def refuse(self, *rules: tuple[object, str, str]) -> Self:
        """Check fields against each other, once each of them is valid by itself.

        Args:
            rules: whether the rule is broken, the dotted YAML path of the field to change, and what is allowed there.
                The text names every other field that the rule depends on.

        Raises:
            ValidationError: with an error at the location of each broken rule's field.
        """
        broken = [(path, allowed) for is_broken, path, allowed in rules if is_broken]
        if not broken:
            return self
        values = flatten(self.model_dump(mode="json", by_alias=True))
        raise ValidationError.from_exception_data(
            type(self).__name__,
            [
                InitErrorDetails(
                    type=PydanticCustomError(CONFLICT, "{allowed}", {"allowed": allowed}),
                    loc=tuple(path.split(".")),
                    input=values[path],
                )
                for path, allowed in broken
            ],
        )
