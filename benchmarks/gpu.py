"""The first thirty minutes on a GPU: one command that runs steps of growing scope and prints a short table.

    python -m benchmarks.gpu [--minutes 30] [--seconds 1.5] [--weights random:0] [--models densenet121 vgg16 ...]
                             [--only STEP ...] [--again STEP ...] [--state FILE] [--allow-no-gpu]

Each step has a verdict and a time; a failing one does not keep the next from running, and leaves in the state's file
what is needed to understand it elsewhere. Run again, the command goes on after the last step that is there;
``--again`` repeats some, or all; ``--only`` runs some. What does not fit into the time is left out and named. Beside
what was measured stands what `benchmarks.paper.expected` expects of this GPU. Exit code 1 when a step failed, or
without CUDA.

Steps (`benchmarks.gpu_steps`):
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes, report
from service.models.catalog import VARIANTS
from service.settings import available_cores

Row = dict[str, Any]

_STATE = Path("build/gpu-first-run.json")
#: Most lines of the last table, its head included.
_LONGEST = 40
#: Lines that are kept of an error's traceback.
_STORY = 40


@dataclass(frozen=True)
class Plan:
    """The run that was asked for."""

    models: Sequence[str]
    weights: str
    deadline: float
    """Monotonic time at which the run must end."""
    seconds: float = 1.5
    """Seconds in which each rate is measured."""

    def left(self) -> float:
        return self.deadline - time.monotonic()


@dataclass
class Outcome:
    """The outcome of a step. ``verdict`` is passed, FAILED, or left out."""

    verdict: str
    says: str = ""
    """The result in one line."""
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    story: list[str] = field(default_factory=list)
    """The traceback and the last lines of the log after a failure."""


@dataclass(frozen=True)
class Step:
    """A step. ``run`` takes the plan and the outcomes of earlier steps by name. ``needs`` is in seconds."""

    name: str
    about: str
    needs: float
    run: Callable[[Plan, dict[str, Outcome]], Outcome]


class State:
    """The outcomes, kept in a file after each step, so that an interrupted run can be resumed."""

    def __init__(self, path: Path, device: str) -> None:
        self._path, self._device = path, device
        self.outcomes: dict[str, Outcome] = {}
        if path.is_file():
            document = json.loads(path.read_text())
            if document.get("device") == device:
                self.outcomes = {name: Outcome(**kept) for name, kept in document["outcomes"].items()}

    def keep(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        self._path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "device": self._device,
            "outcomes": {key: asdict(one) for key, one in self.outcomes.items()},
        }
        written = self._path.with_suffix(".part")
        written.write_text(json.dumps(document, indent=2, default=str) + "\n")
        written.replace(self._path)


def go(steps: Sequence[Step], plan: Plan, state: State, again: Sequence[str]) -> None:
    """Runs the steps that have not passed yet, and those in ``again``."""
    for step in steps:
        known = state.outcomes.get(step.name)
        if known is not None and known.verdict == "passed" and not {step.name, "all"} & {*again}:
            print(f"{step.name}: {known.verdict} before ({known.seconds:.0f} s)", file=sys.stderr)
            continue
        outcome = _one(step, plan, state.outcomes)
        state.keep(step.name, outcome)
        print(f"{step.name}: {outcome.verdict} in {outcome.seconds:.0f} s; {outcome.says}", file=sys.stderr)


def _one(step: Step, plan: Plan, before: dict[str, Outcome]) -> Outcome:
    if plan.left() < step.needs:
        return Outcome("left out", f"it wants {step.needs:.0f} s, and {max(0.0, plan.left()):.0f} are left")
    began = time.monotonic()
    try:
        outcome = step.run(plan, before)
    except Exception as error:
        # A failed step is a line of the table; the others still run.
        first = str(error).splitlines()[0] if str(error) else ""
        story = traceback.format_exception(error)
        outcome = Outcome(
            "FAILED", f"{type(error).__name__}: {first}", story="".join(story).splitlines()[-_STORY:]
        )
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def summary(steps: Sequence[Step], outcomes: dict[str, Outcome]) -> list[Row]:
    """Returns the last table, a line a step."""
    lines: list[Row] = [
        {
            "step": step.name,
            "verdict": outcomes[step.name].verdict,
            "s": round(outcomes[step.name].seconds),
            "says": outcomes[step.name].says,
        }
        for step in steps
        if step.name in outcomes
    ]
    return lines[: _LONGEST - 2]


def publish(steps: Sequence[Step], state: State, weights: str) -> None:
    """Publishes all tables, the short one last, and JSON beside them."""
    tables = {name: outcome.rows for name, outcome in state.outcomes.items() if outcome.rows}
    short = summary(steps, state.outcomes)
    notes = [
        f"Weights {weights}. Distance is the largest ‖out - ref‖ / ‖ref‖ of an image's logits, ref in fp32 on the CPU.",
        "'expected' is arithmetic: python -m benchmarks.paper --arithmetic.",
        "The bound is the smaller of the device's rate and the cores' decoding; the load generator shares the cores.",
    ]
    report.publish("gpu", "One GPU", {**tables, "in short": short}, notes)
    for name, outcome in state.outcomes.items():
        if outcome.story:
            print("", f"{name} FAILED:", *outcome.story, sep="\n  ", file=sys.stderr)
    print("", *report.table(short), sep="\n")


def main() -> int:
    from benchmarks import gpu_steps

    steps = gpu_steps.STEPS
    about = __doc__ + "".join(f"    {step.name:<14}{step.about}\n" for step in steps)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="at most, for everything")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each rate that is measured")
    parser.add_argument(
        "--weights", default="random:0", help="random:0 needs no network; pretrained says more"
    )
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    names = [step.name for step in steps]
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    parser.add_argument("--again", nargs="+", default=[], choices=[*names, "all"])
    parser.add_argument("--state", type=Path, default=_STATE, help="where the outcomes are kept")
    parser.add_argument(
        "--allow-no-gpu", action="store_true", help="exit with 0 where there is no CUDA device"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "benchmarks.gpu: torch sees no CUDA device here, so nothing was checked or measured",
            file=sys.stderr,
        )
        return 0 if arguments.allow_no_gpu else 1
    processes.end_with_servers()
    torch.set_num_threads(available_cores())
    deadline = time.monotonic() + 60 * arguments.minutes
    plan = Plan(arguments.models, arguments.weights, deadline, arguments.seconds)
    state = State(arguments.state, torch.cuda.get_device_name())
    go([step for step in steps if step.name in arguments.only], plan, state, arguments.again)
    publish(steps, state, arguments.weights)
    return int(any(outcome.verdict == "FAILED" for outcome in state.outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
