"""Small faults in a module's source, one at a time: cosmic-ray's operators, and the deletion of a statement."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import parso
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

#: Of cosmic-ray's operators those whose mutants are not all of one kind. `int | None` in annotations is never run.
OPERATORS = (
    "AddNot",
    "ExceptionReplacer",
    "NumberReplacer",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBinaryOperator_Mul_Div",
    "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_Lt_GtE",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_LtE_Gt",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_Gt_LtE",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_GtE_Lt",
    "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_IsNot_Is",
    "ReplaceFalseWithTrue",
    "ReplaceTrueWithFalse",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    "ZeroIterationForLoop",
)


@dataclass(frozen=True)
class Mutant:
    """One changed line of ``file`` (relative to the root); ``line`` counts from 1."""

    file: str
    line: int
    before: str
    after: str
    source: str
    """The whole module with the fault."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.before}  ->  {self.after}"


class DeleteStatement(Operator):
    """A call whose value nobody takes, or an assignment to an attribute or an element, becomes ``pass``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "simple_stmt" and _has_an_effect(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0]
        node.children[0] = parso.python.tree.Keyword("pass", first.start_pos, first.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


def _has_an_effect(statement: Any) -> bool:
    if statement.type in ("atom_expr", "power"):
        return True
    target = statement.children[0] if statement.type == "expr_stmt" else None
    return target is not None and target.type in ("atom_expr", "power") and len(statement.children) > 2


def sample(root: Path, files: Sequence[str], size: int, seed: int) -> list[Mutant]:
    """``size`` mutants of ``files`` by chance, the same ones in the same order for the same ``seed`` and sources."""
    operators = [get_operator(f"core/{name}")() for name in OPERATORS] + [DeleteStatement()]
    places = [
        (file, operator, occurrence)
        for file in files
        for operator, count in zip(operators, _occurrences((root / file).read_text(), operators), strict=True)
        for occurrence in range(count)
    ]
    random.Random(seed).shuffle(places)
    found: dict[tuple[str, str], Mutant] = {}
    for file, operator, occurrence in places:
        if len(found) == size:
            break
        source = (root / file).read_text()
        mutated = MutationVisitor.mutate_code(source, operator, occurrence)
        place = _first_difference(source, mutated) if _compiles(mutated) else None
        if place is not None:  # two operators may make the same fault
            found[file, mutated] = Mutant(file, *place, mutated)
    return list(found.values())


def _compiles(mutated: str | None) -> TypeGuard[str]:
    """True for a module; `not` before the target of `:=` makes none."""
    try:
        return mutated is not None and compile(mutated, "a mutant", "exec") is not None
    except SyntaxError:
        return False


def _occurrences(source: str, operators: Sequence[Any]) -> list[int]:
    """How often each of ``operators`` can be applied."""
    counts = [0] * len(operators)
    nodes = [get_ast(source)]
    while nodes:
        node = nodes.pop()
        nodes += getattr(node, "children", ())
        for place, operator in enumerate(operators):
            counts[place] += sum(1 for _ in operator.mutation_positions(node))
    return counts


def _first_difference(source: str, mutated: str) -> tuple[int, str, str] | None:
    for number, (before, after) in enumerate(
        zip(source.split("\n"), mutated.split("\n"), strict=False), start=1
    ):
        if before != after:
            return number, before.strip(), after.strip()
    return None
