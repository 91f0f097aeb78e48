import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surveyproc.config.expressions import evaluate, keywords

HEADER = {"ZP": 25.0, "EXPTIME": 100.0, "ESO DET ZP": 24.5, "NEGATIVE": -1.0, "NIL": 0.0}


def value(text: str) -> float:
    return evaluate(text, HEADER.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ZP", 25.0),
        ("ZP + 2.5*log10(EXPTIME)", 30.0),
        (' "ESO DET ZP" - -0.5 ', 25.0),
        ("-(ZP - 50)/2**2", 6.25),
        ("max(ZP, 30, min(EXPTIME, 31))", 31.0),
        ("sqrt(abs(NEGATIVE)) * exp(0)", 1.0),
        ("30", 30.0),
    ],
)
def test_arithmetic_over_keywords(text, expected):
    assert value(text) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ZP +",
        "__import__('os')",
        "ZP.real",
        "ZP[0]",
        "sin(ZP)",
        "log10()",
        "log10(x=ZP)",
        "(lambda: 1)()",
        "[ZP for _ in ZP]",
        "ZP if ZP else 1",
        "ZP < 1",
        "ZP and 1",
        "f'{ZP}'",
        "True",
        "1j",
        "ZP := 1",
        "~3",
        "3 % 2",
        "b'a'",
        "*ZP",
        "log10(*ZP)",
        "ZP\x00",
        "(" * 400 + "ZP",
        "1+" * 300 + "1",
    ],
)
def test_what_is_not_arithmetic_is_refused_before_anything_is_looked_up(text):
    refused = "is no arithmetic expression|is not allowed|more than"
    with pytest.raises(ValueError, match=refused):
        keywords(text)
    with pytest.raises(ValueError, match=refused):
        evaluate(text, lambda name: pytest.fail(f"{name} was looked up"))


@pytest.mark.parametrize(
    "text", ["log10(NEGATIVE)", "ZP / NIL", "9**9**9", "NEGATIVE**0.5", "exp(1000)", "1e400"]
)
def test_no_finite_value(text):
    with pytest.raises(ValueError, match="value"):
        value(text)


@given(st.recursive(
    st.sampled_from(["ZP", "EXPTIME", "2.5", "3"]),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
    max_leaves=12,
))  # fmt: skip
def test_python_agrees(text):
    try:
        expected = eval(text, {}, HEADER)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="has no value"):
            value(text)
    else:
        assert value(text) == expected


@given(st.text(max_size=60))
def test_any_text_has_a_finite_value_or_is_refused(text):
    try:
        found = evaluate(text, lambda name: 1.0)
    except ValueError:
        return
    assert math.isfinite(found)
