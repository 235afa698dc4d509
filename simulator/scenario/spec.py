"""Building stones of scenario fields: strict leaf types with units, and the ``spec`` decorator.

A spec is a frozen dataclass that pydantic validates as it stands: unknown fields are refused, leaves are strict
(``"8"`` is not 8), and descriptions feed the JSON Schema and docs/scenarios.md. One declaration serves all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from simulator.core.errors import UserError
from simulator.core.units import parse_bytes, parse_count, parse_seconds

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def spec(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass whose unknown fields pydantic refuses.

    A class with a ``build`` method is built once when it is validated, after its own ``__post_init__``, so that what
    the built object would refuse is reported at its place in the file.
    """
    if hasattr(cls, "build"):
        cls.__post_init__ = _checked(getattr(cls, "__post_init__", None))  # type: ignore[attr-defined]
    cls.__pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


def _checked(own: Callable[[Any], None] | None) -> Callable[[Any], None]:
    def check(self: Any) -> None:
        if own is not None:
            own(self)
        try:
            self.build()
        except UserError as error:
            raise ValueError(error.message) from None

    return check


def _with_unit(parse: Callable[[float | str], float], *, whole: bool = False) -> BeforeValidator:
    def convert(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str):
            return value  # the strict leaf judges it
        try:
            number = parse(value)
        except UserError as error:
            raise ValueError(str(error.message) + (f" {error.remedy}" if error.remedy else "")) from None
        return int(number) if whole and number == int(number) else number

    return BeforeValidator(convert)


def _quantity(kind: str, what: str, example: str, **bounds: float) -> WithJsonSchema:
    text = {"type": "string", "description": f"{what}, for example {example!r}"}
    return WithJsonSchema({"anyOf": [{"type": kind, **bounds}, text]})


Str = Annotated[str, Field(strict=True)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=200)]
Bool = Annotated[bool, Field(strict=True)]
Int = Annotated[int, Field(strict=True)]
Positive = Annotated[int, Field(strict=True, ge=1, le=2**53)]
NonNegative = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]

Seconds = Annotated[
    float,
    Field(strict=True, ge=0, allow_inf_nan=False),
    _with_unit(parse_seconds),
    _quantity("number", "seconds, or text with a unit", "10 min", minimum=0),
]
PositiveSeconds = Annotated[
    float,
    Field(strict=True, gt=0, allow_inf_nan=False),
    _with_unit(parse_seconds),
    _quantity("number", "seconds, or text with a unit", "100 ms", exclusiveMinimum=0),
]
Count = Annotated[
    int,
    Field(strict=True, ge=1, le=1_000_000_000),
    _with_unit(parse_count, whole=True),
    _quantity("integer", "a count, or text with a unit", "100k", minimum=1),
]
Bytes = Annotated[
    float,
    Field(strict=True, ge=0, allow_inf_nan=False),
    _with_unit(parse_bytes),
    _quantity("number", "bytes, or text with a unit", "80GiB", minimum=0),
]
PositiveBytes = Annotated[
    float,
    Field(strict=True, gt=0, allow_inf_nan=False),
    _with_unit(parse_bytes),
    _quantity("number", "bytes, or text with a unit", "200GB", exclusiveMinimum=0),
]


@dataclass(frozen=True)
class Shorthand:
    """Lets plain text stand for a mapping with one field: ``hardware: H100`` is ``hardware: {gpu: H100}``.

    number: a whole number stands for it instead.
    """

    field: str
    number: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        kind = "integer" if self.number else "string"
        return {"anyOf": [{"type": kind, "description": f"short for {{{self.field}: ...}}"}, handler(schema)]}

    def _expand(self, value: Any) -> Any:
        plain = type(value) is int if self.number else isinstance(value, str)
        return {self.field: value} if plain else value
