"""Clients of every kind that keep asking until they are told to stop, and the ledger of what they were told."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.crew import Crew
from tests.drills import wire
from tests.drills.hostile import CLASSES, Trick, class_of, shift, trick_image
from tests.uploads import png

#: Seconds after a kill in which connections of the killed process may break: the kernel resets them at once, and a
#: client on a busy machine notices a moment later.
_AFTERMATH = 1.5
#: Seconds between two tries of a client that was refused: 429, 503, or no connection.
_PAUSE = 0.02
PHOTOS = tuple((photo, class_of(photo)) for photo in map(png, range(16)))


@dataclass
class Ledger:
    """What became of every request. Filled by many threads, each under the lock."""

    statuses: Counter[str] = field(default_factory=Counter)
    """By kind of request and outcome: ``good 200``."""
    wrong: list[str] = field(default_factory=list)
    """Answers that nobody may give."""
    lost: list[wire.Outcome] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    """Of good requests that were answered 200, seconds."""
    last_answer: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, outcome: wire.Outcome, expected: frozenset[int | str], wrong: str = "") -> None:
        with self._lock:
            self.statuses[f"{kind} {outcome.status}"] += 1
            if outcome.status == "lost":
                self.lost.append(outcome)
            elif outcome.status != "refused" and outcome.status not in expected:
                wrong = wrong or f"{kind}: {outcome.status} {outcome.document}"
            if wrong:
                self.wrong.append(wrong)
            if outcome.status == 200:
                self.last_answer = max(self.last_answer, outcome.began + outcome.seconds)
                if kind == "good":
                    self.latencies.append(outcome.seconds)

    def count(self, status: int | str) -> int:
        return sum(number for name, number in self.statuses.items() if name.endswith(f" {status}"))

    @property
    def asked(self) -> int:
        return sum(self.statuses.values())

    @property
    def answered(self) -> int:
        return self.asked - self.count("refused") - self.count("lost") - self.count("gone")

    def lost_without_a_kill(self, kills: Sequence[float]) -> list[wire.Outcome]:
        """Requests without an answer whose connection broke at no moment when a front-end was killed."""
        return [
            outcome
            for outcome in self.lost
            if not any(kill - 0.1 <= outcome.began + outcome.seconds <= kill + _AFTERMATH for kill in kills)
        ]


#: Answers that overload, an engine's death and a drain allow to anything.
_ANYTIME: frozenset[int | str] = frozenset({429, 503})


class Crowd(Crew):
    """``with Crowd(address, {"good": 6, "bad": 1}) as crowd``: so many clients of each kind until the block ends."""

    def __init__(
        self, address: tuple[str, int], kinds: dict[str, int], *, seed: int = 0, think: float = 0.0
    ) -> None:
        """``think`` is how many seconds a client pauses between two requests, on average."""
        self.ledger = Ledger()
        self._address = address
        self._think = think
        super().__init__(
            *(
                partial(self._live, kind, 1000 * seed + 10 * number + index)
                for index, (kind, count) in enumerate(kinds.items())
                for number in range(count)
            )
        )

    def _live(self, kind: str, seed: int) -> None:
        rng = random.Random(seed)
        act: Callable[[wire.Client, random.Random], int | str] = getattr(self, f"_{kind}")
        client = wire.Client(self._address, keep=kind in ("kept", "bad", "batch"))
        while not self._stop.is_set():
            status = act(client, rng)
            if status in (429, 503, "refused"):
                time.sleep(_PAUSE)
            if self._think:
                time.sleep(rng.expovariate(1 / self._think))
        client.close()

    # Each kind of client, one request

    def _good(self, client: wire.Client, rng: random.Random, kind: str = "good") -> int | str:
        photo, right = rng.choice(PHOTOS)
        outcome = client.ask(photo)
        wrong = ""
        if outcome.status == 200:
            right = (right + shift(outcome.document["weights"])) % CLASSES
            if outcome.document["predictions"][0]["class_id"] != right:
                wrong = f"another's answer, of weights {outcome.document['weights']}"
        self.ledger.note(kind, outcome, _ANYTIME | {200}, wrong)
        return outcome.status

    def _kept(self, client: wire.Client, rng: random.Random) -> int | str:
        return self._good(client, rng, "kept")

    def _short(self, client: wire.Client, rng: random.Random) -> int | str:
        photo, _ = rng.choice(PHOTOS)
        outcome = client.ask(photo, X_Request_Timeout_Ms=str(rng.choice([1, 5, 20, 60, 200])))
        self.ledger.note("short", outcome, _ANYTIME | {200, 504})
        return outcome.status

    def _bad(self, client: wire.Client, rng: random.Random) -> int | str:
        photo, _ = rng.choice(PHOTOS)
        data, path, method, expected = rng.choice(
            [
                (photo[: rng.randrange(8, len(photo) - 20)], "/predict", "POST", 422),
                (bytes(rng.randbytes(200)), "/predict", "POST", 415),
                (b"", "/predict", "POST", 400),
                (photo, "/predict?top_k=0", "POST", 422),
                (photo, "/nowhere", "POST", 404),
                (b"", "/predict", "DELETE", 405),
            ]
        )
        outcome = client.ask(data, path, method)
        self.ledger.note("bad", outcome, _ANYTIME | {expected})
        time.sleep(0.01)
        return outcome.status

    def _batch(self, client: wire.Client, rng: random.Random) -> int | str:
        chosen = [rng.choice(PHOTOS) for _ in range(rng.randrange(2, 9))]
        body, content_type = _form([photo for photo, _ in chosen])
        outcome = client.ask(body, "/predict/batch", Content_Type=content_type)
        wrong = ""
        if outcome.status == 200:
            further = shift(outcome.document["weights"])
            for (_, right), result in zip(chosen, outcome.document["results"], strict=True):
                expected = (right + further) % CLASSES
                if result["status"] == 200 and result["predictions"][0]["class_id"] != expected:
                    wrong = "another's answer in a batch"
        self.ledger.note("batch", outcome, _ANYTIME | {200}, wrong)
        return outcome.status

    def _trick(self, client: wire.Client, rng: random.Random) -> int | str:
        """A model without numbers: a 500, for this one alone."""
        outcome = client.ask(trick_image(rng.choice([Trick.NAN, Trick.INFINITY])))
        self.ledger.note("trick", outcome, _ANYTIME | {500})
        time.sleep(0.02)
        return outcome.status

    def _gone(self, client: wire.Client, rng: random.Random) -> int | str:
        photo, _ = rng.choice(PHOTOS)
        began = time.monotonic()
        there = wire.hang_up(self._address, photo, rng.random() * 0.05, partly=rng.random() < 0.3)
        outcome = wire.Outcome("gone" if there else "refused", 0.0, began)
        self.ledger.note("hang-up", outcome, frozenset({"gone"}))
        return outcome.status


def _form(images: list[bytes]) -> tuple[bytes, str]:
    boundary = "drill-boundary"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{number}.png"\r\n\r\n'.encode()
        + image
        + b"\r\n"
        for number, image in enumerate(images)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def options(**settings: Any) -> dict[str, Any]:
    """Settings for a `Server` with the hostile model; names in capitals are its variables."""
    environment = {f"HOSTILE_{name}": str(value) for name, value in settings.items() if name.isupper()}
    rest = {name: value for name, value in settings.items() if not name.isupper()}
    return {"module": "tests.drills.hostile", "environment": environment, "access_log": False, **rest}
