"""The forms a law may take.

A form maps a resource x > 0 (parameters, tokens, members) to a loss in nats per token. It states its bounds, because
a fit that ends on one is a warning, not a number. It does not fit: see `dataeff.laws.fit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA_BOUNDS = (0.02, 3.0)  # db/views/1_power_law.sql has the same


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = a / x^alpha + e, with a >= 0, e >= 0 and alpha in `ALPHA_BOUNDS`.

    The form of Hestness et al. (arXiv 1712.00409) and of one term of Hoffmann et al. (arXiv 2203.15556, equation 2); in
    arXiv 2509.14786 it is the law over N, whose limit e is a recipe's asymptote, and over D. `a` is in nats where x = 1.
    """

    a: float
    alpha: float
    e: float

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return the loss at each x, same shape as x."""
        return self.a * np.asarray(x, dtype=np.float64) ** -self.alpha + self.e

    def inverse(self, loss: float) -> float | None:
        """Return the x where the law falls to `loss`, (a / (loss - e))^(1/alpha); None where it never does (loss <= e)."""
        if loss <= self.e:
            return None
        if self.a == 0:
            return 0.0
        exponent = math.log(self.a / (loss - self.e)) / self.alpha
        return math.exp(exponent) if exponent < 709 else math.inf
