"""The grid: the lattice of hyper-parameter values that a search walks.

A point is a tuple of indices, one an axis, in the order of the axes. Its neighbours differ by one step on one
axis. An axis of one value is fixed. An edge beyond which no run can lie (weight decay 0, one epoch, dropout 0) is
natural: an optimum there is no boundary case. The grid knows nothing of losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from annotated_types import Ge, Le

from dataeff.errors import OffGridError
from dataeff.specs.run import RunSpec

Point = tuple[int, ...]

# What the fields of a run allow at most, such as weight decay 0 or one epoch: name, side, value.
NATURAL_EDGES = {
    (name, "lower", rule.ge) if isinstance(rule, Ge) else (name, "upper", rule.le)
    for name, field in RunSpec.model_fields.items()
    for rule in field.metadata
    if isinstance(rule, (Ge, Le))
}


@dataclass(frozen=True)
class Grid:
    """Axes and their rising values, e.g. `Grid({"lr": (1e-3, 3e-3), "epochs": (1, 2, 4)})`."""

    axes: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        if not self.axes:
            raise OffGridError("the grid has no axes; give at least one, such as lr = [1e-3, 3e-3]")
        for name, values in self.axes.items():
            if not values:
                raise OffGridError(f"{name} is empty; give at least one value")
            if any(b <= a for a, b in zip(values, values[1:], strict=False)):
                raise OffGridError(f"{name} is {list(values)}: values must rise strictly; use {sorted(set(values))}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.axes)

    @cached_property
    def shape(self) -> Point:
        return tuple(len(values) for values in self.axes.values())

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def middle(self) -> Point:
        """The middle of every axis; the lower of the two where there is no middle (cheaper, and less likely to diverge)."""
        return tuple((length - 1) // 2 for length in self.shape)

    @property
    def quarters(self) -> list[Point]:
        """The middles of the grid's halves, axis after axis: further points to start a search from."""
        middle, axes = self.middle, enumerate(self.shape)
        ends = [(axis, round((length - 1) * share)) for axis, length in axes for share in (0.25, 0.75)]
        return [(*middle[:axis], index, *middle[axis + 1 :]) for axis, index in ends]

    def values(self, point: Point) -> dict[str, float]:
        return {name: values[i] for (name, values), i in zip(self.axes.items(), point, strict=True)}

    def point(self, values: Mapping[str, float]) -> Point:
        """Return the point that has exactly these values. Raises `OffGridError`, which lists what is on the axis."""
        for name, axis in self.axes.items():
            if values.get(name) not in axis:
                raise OffGridError(f"{name} = {values.get(name)} is not on the grid; valid: {list(axis)}")
        return tuple(axis.index(values[name]) for name, axis in self.axes.items())

    def nearest(self, values: Mapping[str, float]) -> Point:
        """Return the point whose values are nearest, axis by axis (the lower one of two); an axis not given takes its middle."""
        return tuple(
            min(range(len(axis)), key=lambda i, axis=axis, name=name: abs(axis[i] - values[name])) if name in values else middle
            for (name, axis), middle in zip(self.axes.items(), self.middle, strict=True)
        )

    def __contains__(self, point: object) -> bool:
        here = isinstance(point, tuple) and len(point) == len(self.shape)
        return here and all(isinstance(i, int) and 0 <= i < length for i, length in zip(point, self.shape, strict=True))

    def step(self, point: Point, axis: int, by: int) -> Point | None:
        """Return the point `by` steps along `axis`, or None beyond the edge."""
        index = point[axis] + by
        return (*point[:axis], index, *point[axis + 1 :]) if 0 <= index < self.shape[axis] else None

    def neighbours(self, point: Point) -> list[Point]:
        """Return every in-grid point one step away, lower before upper, axis by axis."""
        steps = (self.step(point, axis, by) for axis in range(len(self.shape)) for by in (-1, 1))
        return [p for p in steps if p is not None]

    def edges(self, point: Point) -> list[tuple[str, str]]:
        """Return (axis, "lower" | "upper") for each edge `point` lies on that is neither natural nor of a fixed axis."""
        return [
            (name, side)
            for (name, values), i in zip(self.axes.items(), point, strict=True)
            for side, end in (("lower", 0), ("upper", len(values) - 1))
            if i == end and len(values) > 1 and (name, side, values[i]) not in NATURAL_EDGES
        ]
