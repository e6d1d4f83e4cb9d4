"""The forms against their formulas, written out."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import pytest

from dataeff.laws.fit import fit
from dataeff.laws.forms import (
    FORMS,
    Additive,
    DataConstrained,
    Exponential,
    Form,
    Overfitting,
    PowerLaw,
    PowerLawWithoutFloor,
    Reciprocal,
)

FALLING = [PowerLaw(6.0, 0.24, 1.9), Reciprocal(0.2, 3.2), PowerLawWithoutFloor(6.0, 0.1), Exponential(0.3, 1.7, 3.0)]


def test_every_form_names_its_source_and_the_bounds_of_every_parameter_that_is_not_linear():
    for form in FORMS.values():
        names = {field.name for field in fields(form)}
        assert names == {*form.linear, *form.bounds}
        assert all(0 < low < high for low, high in form.bounds.values())
        assert "arXiv" in form.source or "ours" in form.source


def test_laws_of_one_variable_are_their_formulas():
    assert FALLING[0]([1.0, 16.0]) == pytest.approx([7.9, 6 / 16**0.24 + 1.9])
    assert FALLING[1](4) == pytest.approx(3.25)
    assert FALLING[2](10.0) == pytest.approx(6 / 10**0.1)
    assert FALLING[3](2) == pytest.approx(0.3 * math.exp(-2 / 1.7) + 3)
    assert [law.limit for law in FALLING] == [1.9, 3.2, 0.0, 3.0]


def test_the_additive_law_is_hoffmanns():
    law = Additive(a=406.4, alpha=0.34, b=410.7, beta=0.28, e=1.69)
    assert law(70e9, 1.4e12) == pytest.approx(406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28 + 1.69)
    assert law([70e9, 1e9], 1.4e12).shape == (2,)


def test_the_data_constrained_law_is_muennighoffs():
    law = DataConstrained(a=521, alpha=0.353, b=1488, beta=0.353, e=1.87, r_tokens=15.4, r_parameters=5.3)
    n, d, unique = 8.7e9, 178e9, 25e9  # seven epochs, more parameters than 25e9 tokens call for
    base = min(n, unique * 0.051)
    n_effective = base + base * 5.3 * (1 - math.exp(-(n / base - 1) / 5.3))
    d_effective = unique + unique * 15.4 * (1 - math.exp(-(d / unique - 1) / 15.4))
    assert law(n, d, unique) == pytest.approx(521 / n_effective**0.353 + 1488 / d_effective**0.353 + 1.87)
    few = 1e6  # parameters: without excess and at one epoch it is the additive law
    assert law(few, 5e9, 5e9) == pytest.approx(Additive(521, 0.353, 1488, 0.353, 1.87)(few, 5e9))
    assert law(few, 3e9, 5e9) == pytest.approx(law(few, 3e9, 3e9))  # less than an epoch: what was seen is what counts


def test_the_overfitting_penalty_is_nothing_in_the_first_epoch_and_rises_with_repetition_and_size():
    law = Overfitting(a=10, alpha=0.3, b=10, beta=0.3, e=1.9, p=0.01)
    plain = Additive(10, 0.3, 10, 0.3, 1.9)
    assert law(1e9, 2e8, 2e8) == pytest.approx(plain(1e9, 2e8))
    assert law(1e9, 8e8, 2e8) - plain(1e9, 8e8) == pytest.approx(0.01 * 3 * 5)


def test_a_new_form_is_one_small_class():
    @dataclass(frozen=True)
    class Shifted(Form):
        """L(x) = a / (x + c) + e."""

        a: float
        c: float
        e: float
        bounds = {"c": (0.01, 100.0)}
        source = "made up"

        @staticmethod
        def columns(x, c):
            return 1 / (x + c), 1.0

    x = np.arange(1.0, 7)
    fitted = fit(Shifted, x, 2 / (x + 3) + 1)
    assert (fitted.law.a, fitted.law.c, fitted.law.e) == pytest.approx((2, 3, 1), rel=1e-6)
    assert fitted.certified and fitted.warnings == ()
