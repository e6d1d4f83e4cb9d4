"""The forms a law may take: which loss, in nats per token, follows from parameters, tokens, repetitions or members.

A form is a class and a law is an instance: `PowerLaw(a=0.05, alpha=1.02, e=3.43)`. Every form here is linear in some
parameters, which are never negative, once the others (its `bounds` name them) are fixed:

    L = sum over j of linear[j] * columns(x, *bounds)[j]

That is all a fit needs to know (`dataeff.laws.fit`), so a new form is one small class: fields, `linear`, `bounds`,
`source`, `columns`. Bounds are generous; a fit that ends on one says so and is no number to use.

Units: a, b, e and p are nats/token (a and b where the variable is 1), tau is members, r_tokens and r_parameters are
repetitions beyond the first pass, exponents have none. x, n, d and unique are in whatever unit the points were given in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dataeff.errors import InputError, nearest

ALPHA_BOUNDS = (0.02, 3.0)  # db/views/1_power_law.sql has the same


def _power(x: NDArray, exponent: NDArray | float) -> NDArray:
    return np.exp(-exponent * np.log(x))  # unlike x**-exponent, as fast for the complex exponents a fit differentiates with


class Form:
    """What every form has. `columns` takes an array for each variable and a number (or array) for each name in `bounds`."""

    variables: ClassVar[tuple[str, ...]] = ("x",)
    linear: ClassVar[tuple[str, ...]] = ("a", "e")
    bounds: ClassVar[dict[str, tuple[float, float]]] = {}
    constants: ClassVar[dict[str, float]] = {}  # parameters that are held
    source: ClassVar[str]

    @staticmethod
    def columns(*x_and_shape: NDArray) -> tuple[NDArray | float, ...]:
        raise NotImplementedError

    @staticmethod
    def offset(*x_and_shape: NDArray) -> NDArray | float:
        """Return what linear parameters that are held (`hold`) add to the loss."""
        return 0.0

    def __call__(self, *x: ArrayLike) -> NDArray[np.float64]:
        """Return the loss in nats per token, of the variables' shape (one argument a variable)."""
        arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in x))
        terms = self.columns(*arrays, *(getattr(self, name) for name in self.bounds))
        loss = sum(getattr(self, name) * term for name, term in zip(self.linear, terms, strict=True))
        loss += self.offset(*arrays, *(getattr(self, name) for name in self.bounds))
        return loss * np.ones(arrays[0].shape)

    @property
    def limit(self) -> float:
        """The loss as every variable grows without bound and nothing is repeated, in nats per token."""
        return getattr(self, "e", 0.0)


@dataclass(frozen=True)
class PowerLaw(Form):
    """L(x) = a / x^alpha + e. In arXiv 2509.14786 the law over N, whose limit is a recipe's asymptote, and over D."""

    a: float
    alpha: float
    e: float
    bounds = {"alpha": ALPHA_BOUNDS}
    source = "Hestness et al. 2017, arXiv 1712.00409, section 3; one term of Hoffmann et al. 2022, arXiv 2203.15556, eq. 2"

    @staticmethod
    def columns(x, alpha):
        return _power(x, alpha), 1.0


@dataclass(frozen=True)
class Reciprocal(Form):
    """L(x) = a / x + e: what averaging K independent members gives to leading order in 1/K."""

    a: float
    e: float
    source = "the power law with alpha = 1; over K in arXiv 2509.14786, where fitted exponents are near 1"

    @staticmethod
    def columns(x):
        return 1 / x, 1.0


@dataclass(frozen=True)
class PowerLawWithoutFloor(PowerLaw):
    """L(x) = a / x^alpha, whose limit is 0: a straight line in log-log axes."""

    e: ClassVar[float] = 0.0
    linear = ("a",)
    source = "Kaplan et al. 2020, arXiv 2001.08361, eqs. 1.1 and 1.2"

    @staticmethod
    def columns(x, alpha):
        return (_power(x, alpha),)


@dataclass(frozen=True)
class Exponential(Form):
    """L(K) = a exp(-K / tau) + e, an approach faster than any power, for K members: a rival to test the power law against."""

    a: float
    tau: float
    e: float
    bounds = {"tau": (0.1, 1000.0)}
    source = "ours, as a rival in K"

    @staticmethod
    def columns(x, tau):
        return np.exp(-x / tau), 1.0


@dataclass(frozen=True)
class Additive(Form):
    """L(N, D) = a / N^alpha + b / D^beta + e, N in parameters and D in tokens that are not repeated."""

    a: float
    alpha: float
    b: float
    beta: float
    e: float
    variables = ("n", "d")
    linear = ("a", "b", "e")
    bounds = {"alpha": ALPHA_BOUNDS, "beta": ALPHA_BOUNDS}
    source = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2"

    @staticmethod
    def columns(n, d, alpha, beta):
        return _power(n, alpha), _power(d, beta), 1.0


@dataclass(frozen=True)
class DataConstrained(Additive):
    """The additive law of effective parameters N' and tokens D', for `d` tokens seen of which `unique` differ.

    D' = U (1 + R* (1 - exp(-R / R*))), with U = unique, R = d / unique - 1 repetitions and R* = r_tokens. N' likewise, with
    U the parameters that the unique tokens call for, R = N / U - 1 the excess and R* = r_parameters. Tokens and parameters
    must be counts, not millions: `PER_PARAMETER`, the tokens that call for one parameter, is what the paper's own fit (a = 521,
    b = 1488, alpha = beta = .353) implies; it is held fixed, since a fit of it too is not linear in a and b.
    """

    r_tokens: float
    r_parameters: float
    variables = ("n", "d", "unique")
    bounds = {**Additive.bounds, "r_tokens": (0.05, 500.0), "r_parameters": (0.05, 500.0)}
    source = "Muennighoff et al. 2023, arXiv 2305.16264, section 3 and its appendix on the fit"
    PER_PARAMETER: ClassVar[float] = 1 / 0.051

    @staticmethod
    def columns(n, d, unique, alpha, beta, r_tokens, r_parameters):
        unique = np.minimum(unique, d)
        called_for = np.minimum(n, unique / DataConstrained.PER_PARAMETER)

        def effective(used, r, r_star):
            return used * (1 - r_star * np.expm1(-r / r_star))

        tokens = effective(unique, d / unique - 1, r_tokens)
        return _power(effective(called_for, n / called_for - 1, r_parameters), alpha), _power(tokens, beta), 1.0


@dataclass(frozen=True)
class Overfitting(Additive):
    """L = a / N^alpha + b / d^beta + e + p R N / unique: repeated tokens count in full, and each repetition adds a penalty.

    R = d / unique - 1. Unlike `DataConstrained` it can rise with N and with epochs, as runs without regularization do.
    """

    p: float
    variables = ("n", "d", "unique")
    linear = ("a", "b", "e", "p")
    source = "an additive penalty on repetition: Lovelace et al. 2026, arXiv 2605.01640; its shape R N / unique is ours"

    @staticmethod
    def columns(n, d, unique, alpha, beta):
        return _power(n, alpha), _power(d, beta), 1.0, np.maximum(d / unique - 1, 0) * n / unique


FORMS: dict[str, type[Form]] = {
    "power": PowerLaw,
    "reciprocal": Reciprocal,
    "power_without_floor": PowerLawWithoutFloor,
    "exponential": Exponential,
    "additive": Additive,
    "data_constrained": DataConstrained,
    "overfitting": Overfitting,
}


def hold(form: type[Form], constants: Mapping[str, float]) -> type[Form]:
    """Return the form with these parameters held at their values, the others free.

    Raises `InputError` for a name or value that the form does not have, and where no linear parameter is left to fit.
    """
    if not constants:
        return form
    names = (*form.linear, *form.bounds)
    for name, value in constants.items():
        if name not in names:
            raise InputError(f"{name} = {value:g} cannot be held: {form.__name__} has no such parameter; {nearest(name, names)}")
        low, high = form.bounds.get(name, (0.0, np.inf))
        if not low <= value <= high or not np.isfinite(value):
            raise InputError(f"{name} = {value:g} cannot be held: {form.__name__} takes {low:g} to {high:g}")
    free = tuple(name for name in form.linear if name not in constants)
    if not free:
        raise InputError(f"{', '.join(constants)} are held: one of {', '.join(form.linear)} must be left to fit")

    class Held(form):
        linear = free
        bounds = {name: ends for name, ends in form.bounds.items() if name not in constants}

        @staticmethod
        def _terms(x_and_shape):
            x, shape = x_and_shape[: len(form.variables)], x_and_shape[len(form.variables) :]
            values = constants | dict(zip(Held.bounds, shape, strict=True))
            return dict(zip(form.linear, form.columns(*x, *(values[name] for name in form.bounds)), strict=True))

        @staticmethod
        def columns(*x_and_shape):
            terms = Held._terms(x_and_shape)
            return tuple(terms[name] for name in free)

        @staticmethod
        def offset(*x_and_shape):
            terms = Held._terms(x_and_shape)
            return sum(constants[name] * term for name, term in terms.items() if name in constants)

    Held.constants, Held.__name__ = dict(constants), form.__name__
    return Held
