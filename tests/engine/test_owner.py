"""The one thread that runs what belongs to a thread: in order, with its results and its errors."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from service.engine.owner import Owner


def test_everything_runs_in_one_daemon_in_its_order_and_comes_back() -> None:
    owner, ran = Owner("device"), []
    assert owner.call(lambda: 7) == 7
    wait = owner.start(lambda: ran.append("first"))
    assert owner.call(lambda: list(ran)) == ["first"]
    wait()
    threads = {owner.call(threading.current_thread) for _ in range(3)}
    (thread,) = threads
    assert (thread.name, thread.daemon) == ("device", True)
    assert thread is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("no weights"), SystemExit(3), KeyboardInterrupt()])
def test_an_error_is_the_caller_s_and_the_thread_goes_on(error: BaseException) -> None:
    owner = Owner("device")

    def fails() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        owner.call(fails)
    assert raised.value is error
    wait = owner.start(fails)
    with pytest.raises(type(error)):
        wait()
    assert owner.call(lambda: "on it goes") == "on it goes"


def test_what_was_done_is_not_kept_until_the_next_call() -> None:
    class Model:
        pass

    owner = Owner("device")
    kept = weakref.ref(owner.call(Model))
    owner.start(lambda: None)()
    gc.collect()
    assert kept() is None
