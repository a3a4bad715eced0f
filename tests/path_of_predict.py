"""The functions that a `POST /predict` passes, in the order of its life: traced while one is served.

    python -m tests.path_of_predict

One request with a JPEG goes through the application, the engine's client, a decoding thread, the engine's loop and its
device's thread; the model is a fake. A function is on the path when it is at work, or waits, while the request goes
from one of these threads to the next, or the client's bytes in and the answer's bytes out. The loops of the threads,
which ran before, are not. What a function of the path calls and gets an answer from at once is printed below it: as a
part of the path if it is in one of the path's files, else as asked elsewhere.

Lines are those with code: no docstrings, comments and empty lines.
"""

from __future__ import annotations

import ast
import asyncio
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

from starlette.types import ASGIApp, Message, Scope

from service.api.app import create_app
from service.engine import canary
from tests.api.site import ready
from tests.loops import until
from tests.pictures import encode, picture

ROOT = Path(__file__).resolve().parent.parent
_SERVICE = f"{ROOT / 'service'}/"
#: Calls that hand something to another thread or process: sockets, pipes, queues, a lock that somebody waits for.
_HANDS_OVER = frozenset({"send", "recv", "write", "put", "release", "call_soon_threadsafe", "set_result"})
#: Where the other threads wait for work.
_WAIT = {"EngineCore.step", "DeviceThread._work", "RestThread._work", "Threads._sleep", "Owner._run_jobs"}
#: Requests before the one that is traced: what is done once is no part of the path.
_BEFORE = 2


@dataclass(frozen=True)
class Function:
    """A function of ours: its file (below the root), name, and first line."""

    file: str
    name: str
    line: int

    @property
    def last_line(self) -> int:
        return _node(self).end_lineno or self.line

    @property
    def lines(self) -> int:
        """How many lines hold code."""
        return len(_lines_with_code(self))


@dataclass
class Trace:
    """What one request passed."""

    path: dict[Function, list[Function]] = field(default_factory=dict)
    """The functions on the path in order, each with what it asked."""
    loops: frozenset[Function] = frozenset()
    """What ran in other threads when the request came."""
    _asked: dict[Function, list[tuple[Function, ...]]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The files on the path, in order."""
        return list(dict.fromkeys(function.file for function in self.path))

    @property
    def own(self) -> set[Function]:
        """Every function that the request calls in these files."""
        asked = {one for functions in self.path.values() for one in functions}
        return set(self.path) | {one for one in asked if one.file in self.files}

    @property
    def elsewhere(self) -> set[Function]:
        """What is asked in other files."""
        return {one for functions in self.path.values() for one in functions} - self.own

    def hand_over(self, stack: list[Function]) -> None:
        """The request goes on to another thread below the innermost of ``stack``, which begins with the outermost."""
        for function in stack:
            if function not in self.loops:
                self.path.setdefault(function, [])

    def call(self, function: Function, stack: list[Function]) -> None:
        """``function`` is called by the innermost of ``stack``."""
        self._asked.setdefault(function, []).append(tuple(stack))

    def settle(self) -> None:
        """Puts what was asked below the function on the path that asked first. Periodic work belongs to nobody."""
        for function, stacks in self._asked.items():
            if function in self.path:
                continue
            above = (one for stack in stacks for one in reversed(stack) if one in self.path)
            if (asker := next(above, None)) is not None:
                self.path[asker].append(function)


def trace() -> Trace:
    """What a request passes today."""
    found = Trace()
    asyncio.run(_serve(found))
    found.settle()
    return found


async def _serve(found: Trace) -> None:
    recorder = _Recorder(found)
    threading.setprofile(recorder)  # before the threads of the engine and of the decoders are there
    try:
        # An idle device's canary is nobody's request.
        with patch.object(canary, "PAUSE", math.inf), ready(None) as (_, context):
            app = create_app(context)
            for _ in range(_BEFORE):
                await _ask(app, recorder)
            await until(recorder.is_everyone_waiting)
            found.loops = frozenset(function for stack in recorder.stacks() for function in stack)
            with recorder.recording():
                await _ask(app, recorder)
    finally:
        threading.setprofile(None)


class _Recorder:
    """For `sys.setprofile`."""

    def __init__(self, found: Trace) -> None:
        self._found = found
        self._on = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records this thread, and the others, which have it already."""
        self._on = True
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
            self._on = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self._on:
            return
        if event == "call" and _is_ours(frame.f_code):
            function = _function(frame.f_code)
            if function is not None:
                self._found.call(function, self._stack(frame.f_back))
        elif event == "c_call" and _is_ours(frame.f_code) and argument.__name__ in _HANDS_OVER:
            self.hand_over(frame)
        elif event == "call" and frame.f_code.co_name in _HANDS_OVER and _is_ours(frame.f_back.f_code):  # type: ignore[union-attr]
            self.hand_over(frame.f_back)  # an event loop in Python

    def stacks(self) -> list[list[Function]]:
        """Our functions on the stack of each other thread that has any."""
        own = threading.get_ident()
        frames = [frame for thread, frame in sys._current_frames().items() if thread != own]
        return [stack for frame in frames if (stack := self._stack(frame))]

    def is_everyone_waiting(self) -> bool:
        """True if the engine has begun to serve, and no other thread is at work."""
        innermost = {stack[-1].name for stack in self.stacks()}
        return "EngineCore.step" in innermost and innermost <= _WAIT

    def hand_over(self, frame: FrameType | None) -> None:
        """The request goes on from ``frame``."""
        if self._on:
            self._found.hand_over(self._stack(frame))

    def _stack(self, frame: FrameType | None) -> list[Function]:
        stack = []
        while frame is not None:
            if _is_ours(frame.f_code) and (function := _function(frame.f_code)) is not None:
                stack.append(function)
            frame = frame.f_back
        return stack[::-1]


async def _ask(app: ASGIApp, recorder: _Recorder) -> None:
    """One request, as uvicorn gives it to an application."""
    photo = encode(picture(), "JPEG")
    headers = [(b"content-type", b"image/jpeg"), (b"content-length", str(len(photo)).encode())]
    body: list[Message] = [{"type": "http.request", "body": photo, "more_body": False}]
    answer: list[Message] = []

    async def receive() -> Message:
        if not body:  # a client that waits for its answer
            await asyncio.get_running_loop().create_future()
        recorder.hand_over(sys._getframe(1))
        return body.pop()

    async def send(message: Message) -> None:
        recorder.hand_over(sys._getframe(1))
        answer.append(message)

    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    assert answer[0]["status"] == 200, answer


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(_SERVICE)


def _function(code: CodeType) -> Function | None:
    """The function that ``code`` is a part of: what is nested in it is read with it, but for a lambda, which may run
    when its function has long ended."""
    if code.co_name in ("<lambda>", "<module>"):
        return None
    name = code.co_qualname.partition(".<locals>")[0]
    file = str(Path(code.co_filename).relative_to(ROOT))
    line = next((node.lineno for node, known in _functions(file) if known == name), None)
    return None if line is None else Function(file, name, line)


_KNOWN: dict[str, list[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]] = {}
#: Several threads are traced. Two that parse at the same time raise SystemError in Python 3.11.
_PARSING = threading.Lock()


def _functions(file: str) -> list[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """The functions and methods of a file, with their qualified names."""
    with _PARSING:
        if file not in _KNOWN:
            _KNOWN[file] = list(_named(ast.parse((ROOT / file).read_text()), ""))
        return _KNOWN[file]


def _named(node: ast.AST, prefix: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, prefix + child.name
        elif isinstance(child, ast.ClassDef):
            yield from _named(child, f"{prefix}{child.name}.")


def _node(function: Function) -> ast.FunctionDef | ast.AsyncFunctionDef:
    return next(node for node, name in _functions(function.file) if name == function.name)


def _lines_with_code(function: Function) -> set[int]:
    node = _node(function)
    source = (ROOT / function.file).read_text().splitlines()
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    skipped = range(first.lineno, (first.end_lineno or 0) + 1) if documented else range(0)
    return {
        line
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if line not in skipped and source[line - 1].strip() and not source[line - 1].strip().startswith("#")
    }


def count(functions: set[Function]) -> int:
    """The lines of all of them together."""
    return sum(function.lines for function in functions)


def main() -> None:
    found = trace()
    for function, asked in found.path.items():
        print(f"{function.file}:{function.line}-{function.last_line}  {function.name}  ({function.lines})")
        for one in asked:
            mark = "" if one.file in found.files else "elsewhere: "
            print(f"        {mark}{one.file}:{one.line}-{one.last_line}  {one.name}  ({one.lines})")
    elsewhere = {one.file for one in found.elsewhere}
    print(
        f"\n{len(found.files)} files and {count(found.own)} lines are on the path; "
        f"{count(found.elsewhere)} lines in {len(elsewhere)} other files are asked on the way"
    )


if __name__ == "__main__":
    main()
