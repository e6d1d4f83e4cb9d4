"""What every declared value is made of: `Spec`, and `Input`, by which one job names another."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Spec(BaseModel):
    """Base of all specs: immutable, strict about unknown keys and about numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Input(str):
    """A job whose outcome another job reads, as the value of a field. `Input(run, 2)` is its second snapshot, named `ID@2`.

    In an identity and in files it is its name alone; read back from a file, it has no `job`.
    """

    job: Any

    def __new__(cls, job: Any, part: int | None = None) -> Self:
        name = job if isinstance(job, str) else job.id
        self = super().__new__(cls, name if part is None else f"{name}@{part}")
        self.job = None if isinstance(job, str) else job
        return self

    @property
    def name(self) -> str:
        return str(self)

    @property
    def id(self) -> str:
        return self.partition("@")[0]

    @property
    def part(self) -> int | None:
        number = self.partition("@")[2]
        return int(number) if number else None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        serialization = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_plain_validator_function(cls._validate, serialization=serialization)

    @classmethod
    def _validate(cls, value: Any) -> Self:
        if isinstance(value, Input):
            return value
        if isinstance(value, str) and value or hasattr(value, "id"):
            return cls(value)
        raise ValueError(f"{value!r} is no job; give a job or its id")
