"""Jobs: frozen specs of work. The fields of a job decide its outcome and nothing else does; its id is their hash.

A kind of job is one class in `dataeff.work`: its fields, its result, what it leaves beside that, how it runs. What a job needs
is what its fields name (`Input`), so a graph of jobs is a value that nothing has to register. A field at its default stays out
of the identity, so that a new field leaves every earlier id as it was; therefore a default may never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from dataeff.specs.identity import identity
from dataeff.specs.spec import Input, Spec

if TYPE_CHECKING:
    from dataeff.facts.store import JobFolder, Store

Outcome = Literal["running", "finished", "diverged", "out_of_memory", "preempted", "killed", "failed"]


class Fact(BaseModel):
    """Base of what is written when work has been done: immutable, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Attempt(Fact):
    """One try at a job: where, when, how it ended."""

    job_id: str = Field(validation_alias=AliasChoices("job_id", "run_id"))  # files of earlier versions say run_id
    number: int
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Outcome = "running"
    reason: str | None = None
    host: str
    process_id: int
    device: str


@dataclass(frozen=True)
class Progress:
    """How far a job is; steps of a sampling are its tokens. The last training loss read, in nats per token, None before it."""

    id: str
    step: int
    steps: int
    tokens_per_second: float
    train_loss: float | None = None


@dataclass(frozen=True)
class Context:
    """How a job is run here; nothing of it decides the outcome. Both functions may be called as often as a job likes."""

    device: str = "auto"
    evaluations: int = 4  # validations a run, evenly spaced, the final one included
    on_progress: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False  # once it is true, save a checkpoint and raise `Preempted`


class Job(Spec):
    """Work that is done once and leaves a result. A subclass has fields, the class variables, and `run`.

    It is known by its kind from when its module is imported.
    """

    kind: ClassVar[str]  # in the words of people
    version: ClassVar[int] = 1  # raised when the same fields would give another outcome than before
    always_hashed: ClassVar[set[str] | None] = None  # of a kind whose ids were given out before kind and version were hashed
    Result: ClassVar[type[Fact]]
    outputs: ClassVar[tuple[str, ...]] = ()  # names of the files beside result.json that jobs with this one as an input need
    flops: ClassVar[float] = 0.0  # that this job takes by itself, its inputs left out; 0 where they do not count
    kinds: ClassVar[dict[str, type[Job]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        if "kind" in cls.__dict__:
            Job.kinds[cls.kind] = cls

    @cached_property
    def id(self) -> str:
        new = self.always_hashed is None
        first = {"kind": self.kind, "version": self.version} if new else self.model_dump(include=self.always_hashed)
        return identity({**first, **self.model_dump(exclude_defaults=True)})

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs among the fields, at any depth, each once."""
        return tuple(dict.fromkeys(_inputs(self)))

    def run(self, folder: JobFolder, store: Store, context: Context) -> Fact:
        """Do the work: the inputs are there. Write outputs and checkpoints into `folder`; return the result."""
        raise NotImplementedError

    def useless(self, result: Fact) -> str | None:
        """Return why no other job can read this one, which left no outputs then; None where one can."""
        return None

    def rows(self, result: Fact) -> dict[str, list[dict[str, Any]]]:
        """Return its rows in the database, by table; a kind without tables of its own has one in table `job`."""
        row = {"job_id": self.id, "kind": self.kind, "inputs": [each.name for each in self.inputs], "flops": self.flops}
        return {"job": [{**row, "spec": self.model_dump(mode="json"), "result": result.model_dump(mode="json")}]}


def _inputs(value: object) -> Iterator[Input]:
    if isinstance(value, Input):
        yield value
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _inputs(each)
