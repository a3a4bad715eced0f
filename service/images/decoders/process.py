"""A decoder's process: it receives an order, decodes a picture, and replies. It has only its socket and its memory."""

from __future__ import annotations

import io
import json
import mmap
import os
import socket
import traceback

import numpy as np
from PIL import Image, _imaging

from service.errors import InvalidImage, RequestError
from service.images.decode import OpenedImage
from service.images.decoders import wire
from service.images.decoders.cost import Cost, cost, largest
from service.images.decoders.picture import Picture, Recipe
from service.images.decoders.rights import Bounds, close_all_but, give_up
from service.images.decoders.wire import Layout, ReplyKind

#: Blocks of 16 MiB that Pillow keeps for the next picture, within the memory of `SMALL`. Fresh pages from the kernel
#: take a fifth of the time of a photo of 12 megapixels.
_BLOCKS = 2


class _NeedsMore(Exception):
    def __init__(self, needed: Cost) -> None:
        super().__init__(needed)
        self.needed = needed


def main(end: socket.socket, memory: int, layout: Layout, recipe: Recipe) -> None:
    """Serves orders until the front-end closes its ``end``. Runs in a process that has no other purpose."""
    decoder = PictureDecoder(mmap.mmap(memory, layout.size), layout, recipe)
    bounds = Bounds()
    _be_silent()
    close_all_but({0, 1, 2, end.fileno(), bounds.descriptor})
    _imaging.set_blocks_max(_BLOCKS)
    give_up()
    end.setblocking(True)
    while frame := end.recv(wire.MAX_ORDER_BYTES):
        number, length, memory, drawn = wire.ORDER.unpack_from(frame)
        if len(frame) > wire.ORDER.size:
            decoder.prepare_as(wire.recipe_from_json(json.loads(frame[wire.ORDER.size :])))
        bounds.allow(memory)
        end.send(decoder.reply(number, length, memory, bool(drawn)))


def _be_silent() -> None:
    """Redirects the standard streams to /dev/null: readers print remarks about damaged files to stderr."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)


class PictureDecoder:
    """Carries out orders; it knows nothing of the process, so tests call it directly."""

    def __init__(self, memory: mmap.mmap, layout: Layout, recipe: Recipe) -> None:
        self._memory = memory
        self._layout = layout
        self.prepare_as(recipe)

    def prepare_as(self, recipe: Recipe) -> None:
        """Prepares pictures by ``recipe`` from now on (another model)."""
        self._recipe = recipe
        count = wire.pixel_bytes(recipe)
        self._pixels = np.frombuffer(self._memory, np.uint8, count, self._layout.pixels).reshape(
            recipe.preprocessing.shape
        )
        self._largest = largest(recipe.max_pixels, self._layout.room)

    def reply(self, number: int, length: int, memory: int, drawn: bool) -> bytes:
        kind, content = self._work(length, memory, drawn)
        return wire.REPLY.pack(number, kind) + content[: wire.MAX_WORDS_BYTES]

    def _work(self, length: int, memory: int, drawn: bool) -> tuple[ReplyKind, bytes]:
        picture = Picture(self._memory[:length], self._recipe, drawn)

        def admit(opened: OpenedImage) -> None:
            needed = cost(opened)
            if needed.memory > memory:
                raise _NeedsMore(needed)

        try:
            picture(self._pixels, admit)
            return ReplyKind.DONE, self._done(picture)
        except _NeedsMore as more:
            return ReplyKind.NEEDS, _needed(more.needed)
        except RequestError as error:
            if isinstance(error.__cause__, MemoryError):
                return self._out_of_memory(memory)
            return ReplyKind.REFUSED, _words(error)
        except MemoryError:
            return self._out_of_memory(memory)
        except Exception:
            # The border of this process: a defect of this project, which the front-end logs and answers with 500.
            return ReplyKind.DEFECT, traceback.format_exc(limit=-12).encode(errors="replace")

    def _out_of_memory(self, memory: int) -> tuple[ReplyKind, bytes]:
        """Asks for the largest picture's memory, since the estimate was too low; refuses if it has that already."""
        if memory < self._largest.memory:
            return ReplyKind.NEEDS, _needed(self._largest)
        return ReplyKind.REFUSED, _words(
            InvalidImage("the image takes more memory than any of its size should")
        )

    def _done(self, picture: Picture) -> bytes:
        width, height = picture.photo.size if picture.photo is not None else (0, 0)
        if picture.photo is not None:
            at = self._layout.photo
            self._memory[at : at + 3 * width * height] = picture.photo.tobytes()
            picture.photo = None
        return wire.SIZES.pack(*picture.size, height, width)


def _needed(needed: Cost) -> bytes:
    return wire.NEEDED.pack(needed.memory, needed.seconds)


def _words(error: RequestError) -> bytes:
    return f"{error.code}\n{error}".encode(errors="replace")


def warm_up(recipe: Recipe) -> None:
    """Prepares a picture of every format and kind of mode, so that Pillow's lazy imports are done before the fork."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.empty(recipe.preprocessing.shape, np.uint8)
    for name, modes in _WARM.items():
        for mode in modes:
            file = io.BytesIO()
            options = {} if name in ("GIF", "BMP") else {"exif": exif}
            Image.new("RGB", (8, 8)).convert(mode).save(file, name, **options)
            Picture(file.getvalue(), recipe, drawn=True)(pixels, cost)


_WARM = {
    "JPEG": ("RGB", "CMYK", "L"),
    "PNG": ("RGB", "RGBA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P",),
    "BMP": ("RGB", "P"),
    "TIFF": ("RGB", "LAB", "YCbCr", "F"),
}
