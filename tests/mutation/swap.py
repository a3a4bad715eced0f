"""A fault in functions of a module that is imported already: they get other code, wherever they are held."""

from __future__ import annotations

import gc
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType

#: What names a function in its module: the qualified name and the first line.
Place = tuple[str, int]


class AtImport(Exception):
    """A fault in what runs at the import: a constant, a default, a decorator, a class's attribute."""


def changed(path: str, before: str, after: str) -> dict[Place, CodeType]:
    """The functions of the module at ``path`` whose codes differ between two sources, with the new code.

    Raises `AtImport` if it is not only functions that differ, or one that cannot be told from another.
    """
    found: dict[Place, CodeType] = {}
    old = compile(before, path, "exec")
    _compare(old, compile(after, path, "exec"), found)
    places = Counter(_places(old))
    if any(places[place] > 1 for place in found):  # two lambdas on one line
        raise AtImport
    return found


def put(path: str, codes: dict[Place, CodeType]) -> None:
    """Gives ``codes`` to the functions of the imported module at ``path``."""
    for held in gc.get_objects():
        if type(held) is FunctionType and held.__code__.co_filename == path:
            code = codes.get(_place(held.__code__))
            if code is not None:
                held.__code__ = code


def around(codes: Iterable[CodeType], line: int) -> range:
    """The lines of the innermost of ``codes`` that has ``line``; none if it is in no one's."""
    spans = [
        range(code.co_firstlineno, 1 + max(number for _, _, number in code.co_lines() if number))
        for code in codes
    ]
    return min((span for span in spans if line in span), key=len, default=range(0))


def _compare(old: CodeType, new: CodeType, found: dict[Place, CodeType]) -> None:
    is_function = bool(old.co_flags & inspect.CO_OPTIMIZED)
    if is_function and old != new:
        found[_place(old)] = new
    inner, inner_new = _inner(old), _inner(new)
    as_before = [code.co_qualname for code in inner] == [code.co_qualname for code in inner_new]
    if not is_function and not (as_before and _same(old, new)):
        raise AtImport
    if as_before:
        for pair in zip(inner, inner_new, strict=True):
            _compare(*pair, found)


def _places(code: CodeType) -> Iterator[Place]:
    yield _place(code)
    for inner in _inner(code):
        yield from _places(inner)


def _place(code: CodeType) -> Place:
    return code.co_qualname, code.co_firstlineno


def _inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether two codes do the same, but for the functions in them and where the lines are."""

    def constants(code: CodeType) -> list[object]:
        return [(type(each), repr(each)) for each in code.co_consts if not isinstance(each, CodeType)]

    return constants(one) == constants(other) and all(
        getattr(one, name) == getattr(other, name) for name in ("co_code", "co_names", "co_exceptiontable")
    )
