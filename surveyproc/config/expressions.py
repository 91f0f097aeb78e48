"""Arithmetic over the keywords of a header, as survey.toml may state it. Nothing is executed."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

FUNCTIONS: dict[str, Callable[..., float]] = {
    "log10": math.log10,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "abs": abs,
    "min": min,
    "max": max,
}
OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
MAX_LENGTH = 500


def keywords(text: str) -> list[str]:
    """The keywords that an expression reads, in order of their first use.

    A keyword is written as it is, or in quotes if it is no name: `"ESO DET ZP" + 0.1`.

    Raises
    ------
    ValueError
        If the text is no expression of numbers, keywords, + - * / ** and FUNCTIONS.

    Examples
    --------
    >>> keywords("MAGZERO1 + 2.5*log10(EXPTIME)")
    ['MAGZERO1', 'EXPTIME']
    """
    found: list[str] = []
    _walk(_tree(text), found.append)
    return list(dict.fromkeys(found))


def evaluate(text: str, lookup: Callable[[str], float]) -> float:
    """The value of an expression whose keywords `lookup` knows; what that raises is passed on.

    Raises
    ------
    ValueError
        If the text is no expression, or has no finite value (log10 of a negative number).

    Examples
    --------
    >>> evaluate("ZP + 2.5*log10(T)", {"ZP": 25.0, "T": 100.0}.__getitem__)
    30.0
    """
    tree = _tree(text)
    _walk(tree, lambda name: None)
    try:
        value = _value(tree, lookup)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"{text!r} has no value: {error}") from error
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"{text!r} has no finite value")
    return value


def _tree(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"an expression of more than {MAX_LENGTH} characters")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no arithmetic expression") from error


def _walk(node: ast.expr, keyword: Callable[[str], Any]) -> None:
    """Call `keyword` for every keyword, and refuse whatever is not arithmetic."""
    match node:
        case ast.Constant(value=str(name)) | ast.Name(id=name):
            keyword(name)
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            pass
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            _walk(left, keyword)
            _walk(right, keyword)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            _walk(operand, keyword)
        case ast.Call(func=ast.Name(id=name), args=[_, *_], keywords=[]) if name in FUNCTIONS:
            for argument in node.args:
                _walk(argument, keyword)
        case _:
            raise ValueError(
                f"{ast.unparse(node)!r} is not allowed: an expression is made of numbers, header "
                f"keywords, + - * / ** and {', '.join(FUNCTIONS)}"
            )


def _value(node: ast.expr, lookup: Callable[[str], float]) -> float:
    match node:
        case ast.Constant(value=str(name)) | ast.Name(id=name):
            return lookup(name)
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_value(left, lookup), _value(right, lookup))
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](_value(operand, lookup))
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name](*(_value(argument, lookup) for argument in args))
        case ast.Constant(value=int() | float() as number):
            return float(number)
    raise AssertionError(node)  # _walk has refused it
