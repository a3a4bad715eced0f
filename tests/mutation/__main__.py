"""Faults in the engine and in `/predict`, one at a time: which of them do the tests find?

    python -m tests.mutation [--sample 150] [--seed 1] [--files FILE …] [--tests FILE …]

Runs in a copy of the checkout. First every test file is run once, to learn what it takes and which lines it runs.
A mutant then gets the test files that run its line, the quickest first, until one fails. Exit code 1 when fewer than
90 % of the mutants are found, without those that `equivalent.toml` names with a reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.mutation import equivalent, mutants, trial

ROOT = Path(__file__).resolve().parent.parent.parent
#: The part of the mutants that has to be found.
GOAL = 0.9
#: `process.py` is the life of a process of its own: what tests it starts whole services, a minute a mutant.
FILES = [
    *(
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "service" / "engine").glob("*.py"))
        if path.name not in ("__init__.py", "process.py")
    ),
    "service/api/admission.py",
    "service/api/predict.py",
]
#: Where their tests are.
TESTS = [
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests" / "engine").glob("test_*.py"))),
    *(
        f"tests/api/test_{name}.py"
        for name in ("predict", "json_images", "priority", "shortcut", "explain", "features", "shadow")
    ),
    "tests/frontend/test_wire.py",
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=150, help="how many mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", nargs="+", default=FILES, help="modules that get faults")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="test files that look for them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imagenet-serve-mutants-") as folder:
        copy = trial.copy(ROOT, Path(folder) / "copy")
        seen = trial.learn(copy, arguments.tests, arguments.files)
        chosen = mutants.sample(copy, arguments.files, arguments.sample, arguments.seed)
        return report([(mutant, judge(copy, mutant, seen)) for mutant in chosen])


def judge(copy: Path, mutant: mutants.Mutant, seen: list[trial.Seen]) -> str:
    """What becomes of a mutant, in a word."""
    if equivalent.reason(mutant) is not None:
        verdict = "equivalent"
    else:
        verdict = "found" if trial.fails(copy, mutant, seen) else "SURVIVED"
    print(f"{verdict:10} {mutant}", flush=True)
    return verdict


def report(results: list[tuple[mutants.Mutant, str]]) -> int:
    """Prints a row for each file; 1 when too few were found."""
    by_file = Counter((mutant.file, verdict) for mutant, verdict in results)
    total: Counter[str] = Counter(verdict for _, verdict in results)
    for file in sorted({mutant.file for mutant, _ in results}):
        print(f"{file:32} {by_file[file, 'found']:4} found {by_file[file, 'SURVIVED']:4} survived")
    judged = total["found"] + total["SURVIVED"]
    share = total["found"] / judged
    print(
        f"{total['found']} of {judged} mutants were found, {share:.0%}; {total['equivalent']} are equivalent"
    )
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
