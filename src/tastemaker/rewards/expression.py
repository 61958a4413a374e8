"""Parses a reward's name: one reward, or several combined. Does not import torch.

A combination is written as arithmetic, `clip-score + 0.5*jpeg-compressibility` (docs/guides/rewards.md). Names of
rewards may have nearly any character, also +, * and commas, so that only spaces around an operator make it one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from tastemaker.errors import RewardError
from tastemaker.rewards.labelers.settings import is_label
from tastemaker.rewards.serving.settings import is_remote
from tastemaker.rewards.vlm.settings import is_vlm, without_servers

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf)(?=[\s*,)]|$)")
_CALL = re.compile(r"(min|clip|standardise)\(")
_MAX_DEPTH = 50
"""Deepest nesting of brackets and signs; two or three are usual."""


@dataclass(frozen=True)
class Part:
    """One reward by its name."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A number."""

    value: float


@dataclass(frozen=True)
class Sum:
    """The sum of terms, each with its sign in it."""

    terms: tuple[Node, ...]


@dataclass(frozen=True)
class Product:
    """The product of factors."""

    factors: tuple[Node, ...]


@dataclass(frozen=True)
class Minimum:
    """The smallest of several."""

    of: tuple[Node, ...]


@dataclass(frozen=True)
class Clip:
    """A value clamped to [low, high]."""

    of: Node
    low: float
    high: float


@dataclass(frozen=True)
class Standardise:
    """A value in standard deviations of the base model's images from their mean."""

    of: Node


Node = Part | Constant | Sum | Product | Minimum | Clip | Standardise


def parse(text: str) -> Node:
    """The expression tree of a reward's name; `Part(text)` where nothing is combined.

    Raises RewardError where operators, brackets or numbers do not fit together.
    """
    if _names_file(text):
        return Part(text)
    tokens = list(_tokens(text))
    # A single name may have spaces, commas and brackets in it, as those of files and lists of servers do.
    plain = tokens[:1] == [] or (tokens[0].kind == "name" and not any(token.combines for token in tokens))
    only = len(tokens) == 1 and tokens[0].kind == "number"
    return Part(text) if plain or only else _Parser(text, tokens).whole()


def _names_file(text: str) -> bool:
    """Whether it is a reward of a file, whose path may look like a sum: `target-image:four - copy.png`."""
    name, _, argument = text.partition(":")
    with suppress(OSError, ValueError):
        return bool(re.fullmatch(r"[\w.-]+", name) and argument) and Path(argument).expanduser().is_file()
    return False


def parts(node: Node) -> tuple[str, ...]:
    """The names of the rewards in a tree, each once, in the order of their first use."""
    return tuple(dict.fromkeys(one.name for one in walk(node) if isinstance(one, Part)))


def walk(node: Node) -> Iterator[Node]:
    """A tree's nodes, children before their parents."""
    for child in children(node):
        yield from walk(child)
    yield node


def children(node: Node) -> tuple[Node, ...]:
    """The nodes that a node combines."""
    match node:
        case Sum(found) | Product(found) | Minimum(found):
            return found
        case Clip(of) | Standardise(of):
            return (of,)
        case _:
            return ()


def weighted_terms(node: Node) -> list[tuple[float, Node]]:
    """The terms of a sum with the numbers that they are multiplied by, without those that are numbers alone.

    `a + 0.5*b - min(b, c)` is (1, a), (0.5, b) and (-1, min(b, c)); what is no sum is one term.
    """
    if isinstance(node, Sum):
        return [found for term in node.terms for found in weighted_terms(term)]
    if isinstance(node, Product):
        weight = math.prod(factor.value for factor in node.factors if isinstance(factor, Constant))
        rest = tuple(factor for factor in node.factors if not isinstance(factor, Constant))
        if len(rest) == 1:
            return [(weight * inner, found) for inner, found in weighted_terms(rest[0])]
        return [(weight, Product(rest))] if rest else []
    return [] if isinstance(node, Constant) else [(1.0, node)]


def to_text(node: Node, rename: Callable[[str], str] = lambda name: name) -> str:
    """A tree as text, which `parse` reads as an equal tree; its parts under other names where `rename` gives them."""
    match node:
        case Part(name):
            return _quoted(rename(name))
        case Constant(value):
            return f"{value:g}" if float(f"{value:g}") == value else repr(value)
        case Sum(terms):
            return f"({' + '.join(to_text(term, rename) for term in terms)})"
        case Product(factors):
            return f"({' * '.join(to_text(factor, rename) for factor in factors)})"
        case Minimum(of):
            return f"min({', '.join(to_text(one, rename) for one in of)})"
        case Clip(of, low, high):
            return f"clip({to_text(of, rename)}, {to_text(Constant(low))}, {to_text(Constant(high))})"
        case Standardise(of):
            return f"standardise({to_text(of, rename)})"


def without_addresses(name: str) -> str:
    """A reward's name without the addresses of servers, which may move."""
    tree = parse(name)
    if not any(is_remote(part) or is_label(part) or is_vlm(part) for part in parts(tree)):
        return name
    return _without_address(name) if isinstance(tree, Part) else to_text(tree, _without_address)


def _without_address(name: str) -> str:
    if is_remote(name):
        return "remote"
    return "label" if is_label(name) else without_servers(name)


def labels(names: Sequence[str]) -> list[str]:
    """Short and unique names for metrics and plots, without the addresses of servers and the folders of files."""
    found: list[str] = []
    for name in names:
        tree = parse(name)
        text = to_text(tree, _short) if any(_short(part) != part for part in parts(tree)) else name
        count = 1
        while (label := text if count == 1 else f"{text}-{count}") in found:
            count += 1
        found.append(label)
    return found


def _short(name: str) -> str:
    if is_remote(name) or is_label(name) or is_vlm(name):
        return _without_address(name)
    head, colon, argument = name.partition(":")
    local = colon and argument.startswith(("/", "~", "."))
    return f"{head}:{argument.rstrip('/').rpartition('/')[2]}" if local else name


def _quoted(name: str) -> str:
    try:
        # Followed by a bracket, as in a tree: a name with an open bracket would include it.
        found = [(token.kind, token.text) for token in _tokens(f"{name})")]
        alone = found == [("name", name), ("sign", ")")]
    except RewardError:
        alone = False
    quote = '"' if "'" in name else "'"
    return name if alone else f"{quote}{name}{quote}"


@dataclass(frozen=True)
class _Token:
    kind: Literal["name", "quoted", "number", "call", "sign"]
    text: str
    index: int

    @property
    def combines(self) -> bool:
        """Whether it cannot be part of a single name."""
        return self.kind in ("call", "quoted") or (self.kind == "sign" and self.text in "+-*")


def _tokens(text: str) -> Iterator[_Token]:
    """Operators, brackets, numbers and names; a name ends at a space, a comma before a space, or an unmatched bracket.

    Whether an operator or an operand is expected decides what a - is: `a -1` takes one away.
    """
    index, operand = 0, True
    while index < len(text):
        letter, start = text[index], index
        if letter.isspace():
            index += 1
            continue
        if letter in "'\"":
            index = text.find(letter, start + 1) + 1
            if not index:
                raise RewardError(f"the reward {text!r} has no end to the name that begins at {text[start:]!r}")
            yield _Token("quoted", text[start + 1 : index - 1], start)
            operand = False
        elif operand and (call := _CALL.match(text, start)):
            index = call.end()
            yield _Token("call", call[1], start)
        elif operand and (number := _NUMBER.match(text, start)):
            index = number.end()
            yield _Token("number", number[0], start)
            operand = False
        elif letter in "+-*,()":
            index += 1
            yield _Token("sign", letter, start)
            operand = letter != ")"
        else:
            index = _name_end(text, start)
            yield _Token("name", text[start:index], start)
            operand = False


def _name_end(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        letter = text[index]
        if letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
        # `min(a, b)`, but `remote:URL,URL`.
        if letter.isspace() or depth < 0 or (letter == "," and text[index + 1 : index + 2].isspace()):
            return index
    return len(text)


class _Parser:
    """Sums of products of operands, from left to right."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self.text, self.tokens, self.at, self.depth = text, tokens, 0, 0

    def fail(self, expected: str) -> NoReturn:
        """Raises RewardError: what was expected, and what is there instead."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        found = "it ends" if token is None else f"there is {self.text[token.index :][:40]!r}"
        quotes = ""
        if token is not None and token.kind == "name":
            quotes = "; put a name with spaces in quotes"
        raise RewardError(f"the reward {self.text!r} cannot be read: expected {expected} where {found}{quotes}")

    def sign(self, which: str) -> bool:
        """Takes the next token where it is this sign."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        if token is None or token.kind != "sign" or token.text != which:
            return False
        self.at += 1
        return True

    def whole(self) -> Node:
        """The tree of all tokens."""
        found = self.sum()
        if self.at < len(self.tokens):
            self.fail("+, -, * or the end")
        if not parts(found):
            raise RewardError(f"the reward {self.text!r} names no reward: put one in, as in 0.5*jpeg-compressibility")
        return found

    def sum(self) -> Node:
        """Terms with + and - between them."""
        terms = [self.product()]
        while True:
            if self.sign("+"):
                terms.append(self.product())
            elif self.sign("-"):
                terms.append(_negative(self.product()))
            else:
                return Sum(tuple(terms)) if len(terms) > 1 else terms[0]

    def product(self) -> Node:
        """Factors with * between them."""
        factors = [self.operand()]
        while self.sign("*"):
            factors.append(self.operand())
        return Product(tuple(factors)) if len(factors) > 1 else factors[0]

    def operand(self) -> Node:
        """A number, a reward, a call or a bracket, with its sign."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise RewardError(f"the reward {self.text[:60]!r}... has more than {_MAX_DEPTH} nested brackets")
        found = self._operand()
        self.depth -= 1
        return found

    def _operand(self) -> Node:
        if self.sign("-"):
            return _negative(self.operand())
        if self.sign("("):
            found = self.sum()
            self.close()
            return found
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        if token is None or token.kind == "sign":
            self.fail("a reward or a number")
        self.at += 1
        if token.kind == "number":
            return Constant(self.finite(token))
        return self.call(token.text) if token.kind == "call" else Part(token.text)

    def finite(self, token: _Token) -> float:
        """The value of a number."""
        value = float(token.text)
        if not math.isfinite(value):
            raise RewardError(f"the reward {self.text!r} has the number {token.text}: only a clip's bounds may be inf")
        return value

    def call(self, name: str) -> Node:
        """The arguments of `min`, `clip` or `standardise`, and the closing bracket."""
        if name == "min":
            several = [self.sum()]
            while self.sign(","):
                several.append(self.sum())
            self.close("a comma and a space, or ),")
            return Minimum(tuple(several))
        inner = self.sum()
        if name == "standardise":
            self.close()
            return Standardise(inner)
        low, high = self.bound(), self.bound()
        self.close()
        if not low < high:
            raise RewardError(f"the reward {self.text!r} clips to [{low:g}, {high:g}]: the first must be the smaller")
        return Clip(inner, low, high)

    def bound(self) -> float:
        """A comma and a bound of `clip`, which may be infinite."""
        if not self.sign(","):
            self.fail("a comma, a space and a bound, as in clip(clip-score, 0, 0.3),")
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        if token is None or token.kind != "number":
            self.fail("a number")
        self.at += 1
        return float(token.text)

    def close(self, expected: str = ")") -> None:
        if not self.sign(")"):
            self.fail(expected)


def _negative(node: Node) -> Node:
    return Constant(-node.value) if isinstance(node, Constant) else Product((Constant(-1.0), node))
