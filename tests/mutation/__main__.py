"""Faults in the engine and in `/predict`, one at a time: which of them do the tests find?

    python -m tests.mutation [--sample 150] [--seed 1] [--files FILE …] [--tests FILE …]

Runs in a copy of the checkout. First every test is run once, to learn what it takes and which lines it runs. A mutant
then gets the tests that run its line, the quickest first, until one fails. Exit code 1 when fewer than 90 % of the
mutants are found, without those that `equivalent.toml` names with a reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.mutation import equivalent, mutants, trial
from tests.mutation.forks import Room

ROOT = Path(__file__).resolve().parent.parent.parent
#: The part of the mutants that has to be found.
GOAL = 0.9
#: `process.py` and `file_process.py` are lives of processes: what tests them starts whole services, a minute a mutant.
FILES = [
    *(
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "service" / "engine").glob("*.py"))
        if path.name not in ("__init__.py", "process.py", "file_process.py")
    ),
    "service/api/admission.py",
    "service/api/predict.py",
]
#: Where their tests are. More of the service's tests pass through these modules, and look for something else.
TESTS = [
    "tests/engine",
    *(
        f"tests/api/test_{name}.py"
        for name in (
            "admission",
            "predict",
            "json_images",
            "open_inference",
            "priority",
            "explain",
            "features",
            "shadow",
        )
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
        room = Room(ROOT, Path(folder))
        chosen = mutants.sample(room.copy, arguments.files, arguments.sample, arguments.seed)
        judged = [mutant for mutant in chosen if equivalent.reason(mutant) is None]
        verdicts = trial.judge(room, arguments.tests, judged, tell)
    found = [verdict.found for verdict in verdicts]
    return report(list(zip(judged, found, strict=True)), len(chosen) - len(judged))


def tell(mutant: mutants.Mutant, verdict: trial.Verdict) -> None:
    """Prints what became of a mutant."""
    word, by = ("found", f"by {verdict.by}") if verdict.found else ("SURVIVED", "")
    print(f"{word:8} {mutant}  [{verdict.seconds:.1f} s {by}]", flush=True)


def report(results: Sequence[tuple[mutants.Mutant, bool]], equivalents: int) -> int:
    """Prints a row for each file; 1 when too few were found."""
    by_file = Counter((mutant.file, found) for mutant, found in results)
    for file in sorted({mutant.file for mutant, _ in results}):
        print(f"{file:32} {by_file[file, True]:4} found {by_file[file, False]:4} survived")
    total = sum(found for _, found in results)
    share = total / len(results)
    print(f"{total} of {len(results)} mutants were found, {share:.0%}; {equivalents} are equivalent")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
