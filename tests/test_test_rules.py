"""What every test keeps to: it asserts something, it does not sleep until something should have happened, and no
assertion is about time that has passed on a machine which others use as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent
#: Programs for people, which run services for minutes; they are no tests.
_PROGRAMS = frozenset({"drills", "fuzz", "live", "mutation"})

#: Sleeps outside a loop that waits for a condition, and why each is there.
SLEEPS = {
    "api/test_features.py: test_features_and_predictions_share_a_batch": (
        "lets what was taken be submitted; if it is too short, the batches are three and the test fails"
    ),
    "end_to_end/test_memory.py: test_twenty_thousand_requests_leave_nothing_behind": (
        "lets what is freed late be freed; if it is too short, the test fails"
    ),
    "engine/test_client_and_core.py: test_expired_and_cancelled_work_never_runs_and_only_hang_ups_count_as_such": (
        "longer than the deadline that is to pass"
    ),
    "engine/test_client_and_core.py: test_a_cancellation_at_any_moment_loses_no_slot": (
        "random moments for cancellations and writes"
    ),
    "engine/test_client_and_core.py: test_a_slot_is_not_free_while_a_thread_writes_into_it": (
        "nothing may happen meanwhile"
    ),
    "engine/test_client_and_core.py: test_whoever_waits_for_a_killed_engine_is_answered_by_the_next": (
        "the images may be anywhere when the engine dies"
    ),
    "engine/test_client_and_core.py: test_a_standby_takes_over_what_a_dead_engine_had": (
        "the images may be anywhere when the engine dies"
    ),
    "engine/test_client_and_core.py: test_the_images_of_a_request_that_wait_for_a_place_wait_for_an_engine_as_well": (
        "the image may be anywhere when the engine dies"
    ),
    "engine/test_client_and_core.py: test_the_slots_of_a_dead_front_end_come_back": (
        "the images may be anywhere when the front-end goes"
    ),
    "engine/test_client_and_core.py: test_what_decoding_costs_is_told_to_everyone": (
        "is what the decode costs"
    ),
    "engine/test_client_and_core.py: test_a_batch_that_never_ends_is_said_once": (
        "nothing may be said meanwhile"
    ),
    "engine/test_in_flight.py: test_two_batches_are_on_the_device_and_the_third_waits": (
        "no third batch may begin meanwhile"
    ),
    "fakes.py: FakeRunning": ("is what the batch takes"),
    "fakes.py: FakeCanary": ("is what the canary takes"),
    "frontend/test_wire.py: test_the_deadline_runs_from_the_first_byte_and_ends_a_body_too": (
        "longer than the deadline that is to pass"
    ),
    "frontend/test_wire.py: test_a_slow_upload_within_the_deadline_is_served": ("is the slow client"),
    "frontend/test_wire.py: test_headers_have_a_limit": ("is the slow client"),
    "images/decoders/misbehaving.py: tricky": ("is a decode that takes long"),
    "images/decoders/test_pool.py: test_a_crash_is_a_damaged_image_and_one_that_was_not_its_fault_is_tried_again": (
        "lets the decode begin; if it is too short, the decoders die before it, and the test says the same"
    ),
    "images/decoders/test_threads.py: test_every_job_runs_once": (
        "lets all threads fall asleep between two bursts"
    ),
}

_SAYS_SO = frozenset({"raises", "fail", "warns", "run_state_machine_as_test", "check_call"})
_CLOCKS = frozenset({"monotonic", "perf_counter", "time", "thread_time", "process_time"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _files() -> Iterator[Path]:
    for path in sorted(TESTS.rglob("*.py")):
        if path.relative_to(TESTS).parts[0] not in _PROGRAMS:
            yield path


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(_tree(path)) if isinstance(node, Function))


@cache
def _called(node: ast.AST) -> set[str]:
    """The last names of what is called, or given as a function, in ``node``."""
    return {
        each.attr if isinstance(each, ast.Attribute) else each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute | ast.Name)
    }


@cache
def _asserts(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Assert | ast.Raise) for each in ast.walk(node)) or any(
        name in _SAYS_SO or name.startswith("assert_") for name in _called(node)
    )


def test_every_test_asserts_something() -> None:
    """Itself, or through a function or a class of the tests that it names."""
    definitions: dict[str, list[ast.AST]] = {}
    for path in _files():
        for node in ast.walk(_tree(path)):
            if isinstance(node, Function | ast.ClassDef):
                definitions.setdefault(node.name, []).append(node)

    def does(node: ast.AST, seen: frozenset[str]) -> bool:
        if _asserts(node):
            return True
        names = (_called(node) & definitions.keys()) - seen
        return any(does(other, seen | names) for name in names for other in definitions[name])

    silent = [
        f"{path.relative_to(TESTS)}: {function.name}"
        for path in _files()
        if path.name.startswith("test_")
        for function in _functions(path)
        if function.name.startswith("test_") and not does(function, frozenset({function.name}))
    ]
    assert silent == []


def test_sleeps_wait_for_a_condition_or_have_a_reason() -> None:
    """A sleep in a ``while`` loop waits until its condition holds; any other one hopes that it has been long enough."""
    found = {
        f"{path.relative_to(TESTS)}: {name}"
        for path in _files()
        for name in _sleepers(_tree(path), "", False)
    }
    assert found == set(SLEEPS), "found, or in the list and gone"


def _sleepers(node: ast.AST, name: str, waits: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = name or (child.name if isinstance(child, Function | ast.ClassDef) else "")
        if isinstance(child, ast.Call) and _is_sleep(child) and not waits:
            yield inner or "the module"
        yield from _sleepers(child, inner, waits or isinstance(child, ast.While))


def _is_sleep(call: ast.Call) -> bool:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    turn = call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0
    return called == "sleep" and not turn


def test_no_assertion_is_about_time_that_has_passed() -> None:
    """But for the patience of a loop that waits for a condition, and of a stamp that has to be of today."""
    found = {f"{path.relative_to(TESTS)}: {name}" for path in _files() for name in _timed(_tree(path), "")}
    assert found == {"observability/test_tracing.py: test_a_request_becomes_a_span_with_its_stages"}


def _timed(node: ast.AST, name: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, Function) else name
        if isinstance(child, ast.Assert):
            if any(isinstance(each, ast.Call) and _is_clock(each) for each in ast.walk(child)):
                yield inner
        elif not isinstance(child, ast.While):
            yield from _timed(child, inner)


def _is_clock(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in _CLOCKS
        and isinstance(function.value, ast.Name)
        and function.value.id == "time"
    )
