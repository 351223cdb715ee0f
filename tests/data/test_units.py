"""Units by UCUM: which texts are units, and which factors hold whatever is measured."""

from __future__ import annotations

import pytest

from oncofed.data.units import checked_unit, conversion_factor, factor, is_unit
from oncofed.errors import DataError


@pytest.mark.parametrize(
    ("given", "wanted", "times"),
    [
        ("ug/L", "ng/mL", 1),
        ("10*9/L", "/nL", 1),
        ("10^9/L", "10*9/L", 1),
        ("U/L", "nkat/L", 1000 / 60),
        ("m[iU]/L", "[iU]/mL", 1e-6),
        ("mm[Hg]", "kPa", 0.133322),
        ("mL/min", "L/h", 0.06),
        ("kg/m2", "g/cm2", 0.1),
        ("(kg.m)/s2", "N", 1),
        ("mo", "d", 30.4375),
        ("months", "a", 1 / 12),
        ("%", "share", 0.01),
        ("cc", "mL", 1),
        ("µg/l", "ng/mL", 1),
        ("MG/DL", "mg/L", 10),
        ("ML", "mL", 1),
        ("10*3{cells}/uL", "10*9/L", 1),
    ],
)
def test_units_of_one_dimension_convert(given: str, wanted: str, times: float) -> None:
    assert factor(given, wanted) == pytest.approx(times, rel=1e-12)
    assert conversion_factor(wanted, given) == pytest.approx(1 / times, rel=1e-12)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("mmol/L", "mg/dL"),  # by the substance
        ("meq/L", "mmol/L"),  # by the charge
        ("Gy", "Sv"),  # by the radiation
        ("Cel", "K"),  # another zero
        ("[iU]/L", "U/L"),
        ("mL/min/{1.73_m2}", "mL/min"),
        ("G/L", "g/L"),  # gauss, or thousands of millions
        ("{score}", "{points}"),
        ("{score}", "%"),
        ("mg", ""),
        ("bananas", "mm"),
    ],
)
def test_what_no_factor_tells_is_refused_with_what_was_found(given: str, wanted: str) -> None:
    assert factor(given, wanted) is None
    with pytest.raises(DataError, match=r"found the unit .*, expected") as refused:
        conversion_factor(given, wanted)
    assert given in str(refused.value)


@pytest.mark.parametrize(
    ("text", "near"), [("mg/dll", "perhaps mg/dL"), ("mmm", "mm"), ("bananas", "such as mm"), ("monthz", "months")]
)
def test_a_unit_that_is_none_is_refused_with_near_ones(text: str, near: str) -> None:
    with pytest.raises(ValueError, match=r"expected one of UCUM") as refused:
        checked_unit(text)
    assert near in str(refused.value)


@pytest.mark.parametrize("text", ["", "mm", "mg/dl", "{score}", "[hnsf'U]", "HU", "Years", "mL/min/{1.73_m2}"])
def test_a_unit_stays_as_it_is_written(text: str) -> None:
    assert checked_unit(text) == text


@pytest.mark.parametrize("text", ["", "0176123456", "5", "Planted", "mL{Planted}", "{Planted}", "kg/", "m..s", "(m"])
def test_what_somebody_typed_is_no_unit(text: str) -> None:
    assert not is_unit(text)
