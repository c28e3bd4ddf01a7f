"""Arithmetic over metrics: parsed with Python's grammar, never evaluated as code.

An expression is made of numbers, `+ - * /`, parentheses and names of metrics. A metric is written as it is
called in an evaluation: `task.metric`, or `task.metric.filter` where the task has several filters. A name
that is not plain letters, digits and underscores (a hyphen, a leading digit) stands in quotes:
`"gsm8k.exact_match.strict-match"`; lm-eval's own spelling with a comma is understood there too. Plain facts
of a model (`parameters`) have no dot.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from evomerge.errors import ConfigError

MAX_CHARACTERS = 2000
MAX_DEPTH = 200
"""Deepest nesting; a plain sum nests once a term."""

_ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARISONS: dict[type[ast.cmpop], str] = {ast.GtE: ">=", ast.LtE: "<=", ast.Gt: ">", ast.Lt: "<"}


@dataclass(frozen=True, slots=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured quantity, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Negation:
    """Minus its operand."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class Operation:
    """Two operands and one of `+ - * /`."""

    symbol: str
    left: Expression
    right: Expression


Expression = Number | Metric | Negation | Operation


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two expressions and one of `>= <= > <`."""

    symbol: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Dual:
    """A value and its gradient with respect to every metric it depends on (forward differentiation)."""

    value: float
    gradient: Mapping[str, float] = field(default_factory=dict)


def parse_expression(text: str) -> Expression:
    """Parse arithmetic over metrics.

    Example:
        >>> sorted(metrics_of(parse_expression("0.5 * sums.exact_match - mean_response_tokens")))
        ['mean_response_tokens', 'sums.exact_match']

    Raises:
        ConfigError: for anything but arithmetic over metrics, with the offending piece.
    """
    return _Reader(text).expression(_tree(text))


def parse_comparison(text: str) -> Comparison:
    """Parse a comparison of two expressions, for instance `gsm8k.exact_match >= 0.4`.

    Raises:
        ConfigError: for anything else.
    """
    tree = _tree(text)
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or type(tree.ops[0]) not in _COMPARISONS:
        raise ConfigError(
            f"constraint {text!r}: expected one comparison of expressions with >=, <=, > or <, "
            "for instance `sums.exact_match >= 0.4`"
        )
    reader = _Reader(text)
    symbol = _COMPARISONS[type(tree.ops[0])]
    return Comparison(symbol, reader.expression(tree.left), reader.expression(tree.comparators[0]))


def metrics_of(expression: Expression) -> Iterator[str]:
    """Yield the name of every metric in an expression, in reading order, as often as it stands there."""
    if isinstance(expression, Metric):
        yield expression.name
    elif isinstance(expression, Negation):
        yield from metrics_of(expression.operand)
    elif isinstance(expression, Operation):
        yield from metrics_of(expression.left)
        yield from metrics_of(expression.right)


def evaluate(expression: Expression, resolve: Callable[[str], Dual]) -> Dual:
    """Compute an expression and its gradient.

    Args:
        expression: what to compute.
        resolve: gives the value and gradient of a metric by name.

    Returns:
        Value and gradient; both may be non-finite after a division by zero.
    """
    if isinstance(expression, Number):
        return Dual(expression.value)
    if isinstance(expression, Metric):
        return resolve(expression.name)
    if isinstance(expression, Negation):
        return _scaled(evaluate(expression.operand, resolve), -1.0)
    left, right = evaluate(expression.left, resolve), evaluate(expression.right, resolve)
    return _OPERATIONS[expression.symbol](left, right)


def grows_with(expression: Expression) -> tuple[str, ...]:
    """Return the metrics that an expression grows with, in reading order, judged where every metric is 1.

    Example:
        >>> grows_with(parse_expression("0.5 * sums.exact_match - mean_response_tokens"))
        ('sums.exact_match',)
    """
    gradient = evaluate(expression, lambda name: Dual(1.0, {name: 1.0})).gradient
    return tuple(name for name, part in gradient.items() if part > 0)


def _scaled(dual: Dual, factor: float) -> Dual:
    return Dual(dual.value * factor, {name: part * factor for name, part in dual.gradient.items()})


def _sum(left: Dual, right: Dual) -> Dual:
    names = {**left.gradient, **right.gradient}
    gradient = {name: left.gradient.get(name, 0.0) + right.gradient.get(name, 0.0) for name in names}
    return Dual(left.value + right.value, gradient)


def _product(left: Dual, right: Dual) -> Dual:
    outer = _sum(_scaled(left, right.value), _scaled(right, left.value))
    return Dual(left.value * right.value, outer.gradient)


def _inverse(dual: Dual) -> Dual:
    if dual.value == 0.0:
        return Dual(math.nan, dict.fromkeys(dual.gradient, math.nan))
    inverse = 1.0 / dual.value
    return Dual(inverse, {name: -part * inverse * inverse for name, part in dual.gradient.items()})


_OPERATIONS: Mapping[str, Callable[[Dual, Dual], Dual]] = {
    "+": _sum,
    "-": lambda left, right: _sum(left, _scaled(right, -1.0)),
    "*": _product,
    "/": lambda left, right: _product(left, _inverse(right)),
}


def _tree(text: str) -> ast.expr:
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"expression {text[:40]!r}...: {len(text)} characters, more than the {MAX_CHARACTERS} allowed"
        )
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(
            f"expression {text!r}: this is not arithmetic over metrics, for instance "
            "`0.5 * sums.exact_match + japanese.acc`; a name with other signs stands in quotes"
        ) from None


class _Reader:
    """Turns Python's syntax tree into expressions, refusing every other construct."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0

    def expression(self, node: ast.expr) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConfigError(f"expression {self._text[:40]!r}...: nested more than {MAX_DEPTH} deep; write it shorter")
        try:
            return self._piece(node)
        finally:
            self._depth -= 1

    def _piece(self, node: ast.expr) -> Expression:
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, (ast.Name, ast.Attribute)):
            return Metric(self._dotted(node))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            operand = self.expression(node.operand)
            return Negation(operand) if isinstance(node.op, ast.USub) else operand
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            symbol = _ARITHMETIC[type(node.op)]
            return Operation(symbol, self.expression(node.left), self.expression(node.right))
        raise self._refusal(node)

    def _constant(self, node: ast.Constant) -> Expression:
        value = node.value
        if isinstance(value, str) and value.strip():
            return Metric(value.strip().replace(",", "."))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return Number(number)
        raise self._refusal(node)

    def _dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        raise self._refusal(node)

    def _refusal(self, node: ast.expr) -> ConfigError:
        piece = ast.get_source_segment(self._text.strip(), node) or type(node).__name__
        return ConfigError(
            f"expression {self._text!r}: {piece!r} is not allowed; expected numbers, metrics, + - * / and "
            "parentheses alone"
        )


COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
"""What each comparison means."""
