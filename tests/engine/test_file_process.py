"""The process that decodes files, in a program of its own: it is forked while its engine has one thread."""

from __future__ import annotations

import subprocess
import sys
import textwrap

_BEGIN = """
import os, select, signal, time
import numpy as np, torch
from service.engine.arena import Arena, Geometry
from service.engine.file_process import FileProcess
from service.models.cuda import jpegs
from service.preprocess import Preprocessing, prepare
from tests.models.cuda.test_jpegs import by_pillow, photo, saved

spec = Preprocessing(resize=40, crop=(32, 32))
arena = Arena.create(Geometry(4, *spec.shape, 10))
known = jpegs.open_decoder
torch.set_num_threads(1)

def by_the_cpu(spec, device):
    return jpegs.JpegDecoder(by_pillow, spec, torch.device("cpu"))

def give(files, slot, data):
    arena.pixels[slot].reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
    arena.record_admission(slot, time.monotonic() + 60, bulk=False)
    arena.record_file(slot, len(data))
    files.submit(slot)

def collected(files, count):
    found = []
    while len(found) < count:
        assert select.select([files], [], [], 60)[0], "no answer"
        found += files.collect()
    return found
"""


def outcome(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_decodes_into_the_arena_until_its_link_closes() -> None:
    says = outcome(
        """
        jpegs.open_decoder = by_the_cpu
        files = FileProcess().open(arena, spec, "cuda")
        pictures = [saved(photo(20 + n, 30, n)) for n in range(3)]
        for slot, data in enumerate(pictures):
            give(files, slot, data)
        assert sorted(collected(files, 3)) == [(0, True), (1, True), (2, True)]
        wanted = np.empty(spec.shape, np.uint8)
        for slot, data in enumerate(pictures):
            prepare(data, spec, wanted, max_pixels=1 << 20)
            assert (arena.pixels[slot] == wanted).all()
        files.close()
        pid, status = os.waitpid(-1, 0)
        print("ended", status)
        """
    )
    assert says == "ended 0\n"


def test_a_killed_one_returns_what_it_had_and_where_none_decodes_the_reason_is_a_sentence() -> None:
    says = outcome(
        """
        import sys

        def reason(process):
            try:
                process.open(arena, spec, "cuda")
            except ValueError as error:
                return error

        killed = FileProcess()
        os.kill(killed._pid, signal.SIGKILL)
        print(reason(killed))

        sys.modules["nvidia"] = None
        print(reason(FileProcess()))

        jpegs.open_decoder = by_the_cpu
        process = FileProcess()
        files = process.open(arena, spec, "cuda")
        os.kill(process._pid, signal.SIGSTOP)
        give(files, 0, saved(photo(9, 9)))
        give(files, 3, saved(photo(9, 9)))
        os.kill(process._pid, signal.SIGKILL)
        print(collected(files, 2), files.open)
        """
    )
    dead, missing, killed = says.splitlines()
    assert "has ended" in dead
    assert "not installed" in missing
    assert killed == "[(0, False), (3, False)] False"
