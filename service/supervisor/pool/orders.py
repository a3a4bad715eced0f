"""What clients order of the pool, as front-ends pass it on: a load or a rollback. Each gets one answer."""

from __future__ import annotations

from typing import Any

from service.options.nearest import did_you_mean, one_of
from service.supervisor.child import Child
from service.supervisor.pool.changes import Changes, Reply
from service.supervisor.pool.checking import Wish
from service.supervisor.pool.engines import Engines
from service.supervisor.pool.versions import Servable


def obey(pool: Engines, changes: Changes, front_end: Child, message: dict[str, Any]) -> None:
    """Begins what ``message`` orders, and sends ``front_end`` how it ended, with the order's number."""

    def reply(code: str | None, words: str, result: dict[str, Any]) -> None:
        front_end.channel.send("done", number=message["number"], code=code, words=words, result=result)

    _act(pool, changes, message, reply)


def _act(pool: Engines, changes: Changes, message: dict[str, Any], reply: Reply) -> None:
    servable = named(pool, message["name"])
    if servable is None:
        names = [one.called for one in pool.asked]
        words = f"there is no such model, {message['name'][:100]!r}; there is {one_of(names)}"
        reply("not_found", words + did_you_mean(message["name"], names), {})
    elif message["action"] == "rollback":
        changes.rollback(servable, reply)
    else:
        wish = Wish(message["settings"], message["other_classes"], message["least_agreement"])
        changes.load(servable, wish, reply)


def named(pool: Engines, name: str | None) -> Servable | None:
    """The model of that name, the default one without a name."""
    if name is None:
        return pool.servables[0]
    return next((servable for servable in pool.asked if servable.called == name), None)
