"""`service.images.decode`: what is let in, what is refused and how, and that nothing else ever comes out."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from service.errors import EmptyBody, ImageTooLarge, InvalidImage, RequestError, UnsupportedMediaType
from service.images import decode as room
from service.images.decode import decode, sniff, to_rgb
from service.images.dimensions import webp_canvas
from tests.fuzz import corpus
from tests.pictures import (
    MODES,
    WRITERS,
    encode,
    gif_bomb,
    oriented,
    picture,
    png_bomb,
    png_chunk,
    run_length_bmp,
    webp_bomb,
)

LIMIT = 50_000_000


def reference(data: bytes) -> Image.Image:
    """What a user of torchvision does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def assert_like_pillow(data: bytes) -> None:
    image = decode(data, max_pixels=LIMIT)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(reference(data)))


@pytest.mark.parametrize("name", corpus.FORMATS)
def test_every_format_is_known_by_its_bytes_and_decoded_like_pillow(name: str) -> None:
    data = encode(picture(), name)
    assert sniff(data[: room.MAGIC_BYTES]) == name
    assert_like_pillow(data)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_is_taken(kind: type) -> None:
    data = encode(picture(), "PNG")
    assert decode(kind(data), max_pixels=LIMIT).tobytes() == decode(data, max_pixels=LIMIT).tobytes()


@pytest.mark.parametrize("name", ["PPM", "ICO", "EPS", "PCX", "TGA", "SGI", "PDF", "DDS", "JPEG2000", "ICNS"])
def test_other_formats_never_reach_a_decoder(name: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="JPEG, PNG, WebP, GIF, BMP and TIFF"):
        decode(encode(picture(size=(64, 64)), name), max_pixels=LIMIT)


@pytest.mark.parametrize(
    "data",
    [b"8BPS\0\1" + b"\0" * 40, b"<svg/>", b"BMW builds cars and motorcycles", b"\0", b"RIFF\0\0\0\0WAVEfmt "],
)
def test_other_bytes_are_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        decode(data, max_pixels=LIMIT)


def test_no_bytes_are_an_empty_body() -> None:
    with pytest.raises(EmptyBody):
        decode(b"", max_pixels=LIMIT)


def test_a_polyglot_is_what_its_first_bytes_say() -> None:
    """Bytes of two formats: the second one is not looked for when the first one fails."""
    gif = encode(picture(), "GIF")
    with pytest.raises(InvalidImage):
        decode(b"\xff\xd8\xff" + gif, max_pixels=LIMIT)
    assert_like_pillow(encode(picture(), "PNG") + gif)


def test_no_registry_of_pillows_is_needed_or_filled() -> None:
    code = (
        "from tests.pictures import encode, picture; from PIL import Image\n"
        "from service.images.decode import decode\n"
        "assert Image._initialized == 0 and not {'torch', 'PIL.PsdImagePlugin'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", "import sys\n" + code], check=True)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_as_pillow_does_it(mode: str) -> None:
    image = picture(mode)
    via = image.convert("LA") if mode == "La" else image
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(via.convert("RGB")))


def test_rgb_is_not_copied() -> None:
    image = picture()
    assert to_rgb(image) is image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", sorted(WRITERS))
def test_every_mode_in_every_orientation(mode: str, orientation: int) -> None:
    data = oriented(picture(mode), WRITERS[mode], orientation)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode in (mode, "I;16", "RGB"), "the file does not bring the mode that it is to test"
    assert_like_pillow(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
def test_orientation_in_the_other_formats_that_have_it(name: str, orientation: int) -> None:
    data = oriented(picture(), name, orientation)
    assert decode(data, max_pixels=LIMIT).size == ((37, 23) if orientation < 5 else (23, 37))
    assert_like_pillow(data)


@given(
    st.integers(0, 9),
    st.sampled_from([1, 3, 4, 5, 6, 8, 9, 10, 11, 12]),
    st.sampled_from("<>"),
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
)
@settings(deadline=None, max_examples=150)
def test_an_orientation_of_any_type_is_obeyed_as_pillow_does(
    orientation: int, kind: int, endian: str, name: str
) -> None:
    assert_like_pillow(encode(picture(), name, exif=b"Exif\0\0" + exif_entry(endian, kind, orientation)))


def exif_entry(endian: str, kind: int, value: int) -> bytes:
    """A directory with an orientation of any numeric type."""
    formats = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 12: "d"}
    content = (
        struct.pack(f"{endian}{'L' if kind == 5 else 'l'}l", 3 * value, 3)
        if kind in (5, 10)
        else struct.pack(endian + formats[kind], value)
    )
    head = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(endian + "LHHHL", 8, 1, 0x0112, kind, 1)
    if len(content) <= 4:
        return head + content.ljust(4, b"\0") + struct.pack(endian + "L", 0)
    return head + struct.pack(endian + "LL", 26, 0) + content


@pytest.mark.parametrize("magic", [b"II\0*", b"MM*\0"])
def test_a_tiff_of_swapped_magic_is_read_as_pillow_reads_it(magic: bytes) -> None:
    data = bytearray(encode(picture(), "TIFF", big_tiff=False))
    if magic.startswith(b"MM"):
        data = bytearray(big_endian_tiff())
    data[:4] = magic
    assert_like_pillow(bytes(data))


def big_endian_tiff() -> bytes:
    tags = [(256, 5), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8 + 2 + 8 * 12 + 4), (278, 4), (279, 20)]
    entries = b"".join(struct.pack(">HHLL", tag, 4, 1, value) for tag, value in tags)
    return b"MM\0*" + struct.pack(">LH", 8, len(tags)) + entries + bytes(4) + bytes(range(20))


def test_orientation_from_xmp() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(picture(), "JPEG", xmp=xmp)
    assert decode(data, max_pixels=LIMIT).size == (23, 37)
    assert_like_pillow(data)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    assert decode(oriented(picture(), "JPEG", orientation), max_pixels=LIMIT).size == (37, 23)


@given(st.binary(max_size=80), st.sampled_from(["JPEG", "PNG", "WEBP"]))
@settings(deadline=None, max_examples=250)
def test_malformed_exif_never_fails_a_good_image(content: bytes, name: str) -> None:
    tiff = (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0")[len(content) % 3]
    data = encode(picture(), name, exif=b"Exif\0\0" + tiff + content)
    assert sorted(decode(data, max_pixels=LIMIT).size) == [23, 37]


def test_malformed_exif_that_pillow_cannot_read_is_no_rotation() -> None:
    data = encode(picture(), "PNG", exif=b"Exif\0\0rubbish!")
    with pytest.raises(SyntaxError):
        reference(data)
    assert decode(data, max_pixels=LIMIT).size == (37, 23)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_of_several_frames(name: str) -> None:
    first, second = picture(seed=1), picture(seed=2)
    options = {"lossless": True} if name == "WEBP" else {}
    several = encode(first, name, save_all=True, append_images=[second], **options)
    assert len(several) > len(encode(first, name, **options))
    assert_like_pillow(several)
    one = decode(encode(first, name, **options), max_pixels=LIMIT)
    np.testing.assert_array_equal(np.asarray(decode(several, max_pixels=LIMIT)), np.asarray(one))


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bits_are_clipped_as_pillow_does(name: str) -> None:
    values = np.array([[0, 200, 255, 256, 65535]], np.uint16)
    image = decode(encode(Image.fromarray(values), name), max_pixels=LIMIT)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 200, 255, 255, 255]


@pytest.mark.parametrize("transparency", [0, b"\0\x80\xff"])
def test_a_palette_with_transparency(transparency: int | bytes) -> None:
    data = encode(picture().quantize(7), "PNG", transparency=transparency)
    assert_like_pillow(data)


def test_a_cmyk_jpeg_is_inverted_as_adobe_writes_it() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.asarray(decode(encode(image, "JPEG", quality=100), max_pixels=LIMIT))[3, 3, 0] > 240
    assert_like_pillow(encode(picture("CMYK"), "JPEG"))


def test_a_palette_gif_and_a_progressive_jpeg() -> None:
    assert_like_pillow(encode(picture().quantize(16), "GIF", transparency=3))
    assert_like_pillow(encode(picture(size=(200, 150)), "JPEG", progressive=True))


def test_pillow_is_kept_quiet_once() -> None:
    decode(encode(picture(), "PNG"), max_pixels=LIMIT)
    before = list(warnings.filters)
    decode(encode(picture(), "PNG"), max_pixels=LIMIT)
    assert warnings.filters == before


# -- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        png_bomb(50_000, 50_000),
        png_bomb(2**31 - 1, 2**31 - 1),
        webp_bomb(16_000, 16_000),
        gif_bomb(60_000, 60_000),
    ],
    ids=["png", "png of the largest numbers", "webp canvas", "gif frame"],
)
def test_a_bomb_is_refused_from_its_header(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ImageTooLarge, match=r"the image has .*\d+ pixels; max_image_pixels allows 50000000"):
        decode(data, max_pixels=LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("name", corpus.FORMATS)
def test_the_limit_is_exact_for_odd_and_even_numbers(name: str) -> None:
    data = encode(picture(size=(37, 23)), name)
    decode(data, max_pixels=37 * 23)
    for limit in (37 * 23 - 1, 37 * 23 - 2, 400, 1):
        with pytest.raises(ImageTooLarge, match=f"allows {limit}$"):
            decode(data, max_pixels=limit)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0"}], ids=str)
def test_a_webp_canvas_is_read_from_the_header(options: dict[str, object]) -> None:
    data = encode(picture(size=(300, 70)), "WEBP", **options)
    assert webp_canvas(data) == (300, 70)
    for length in range(12, 30):
        assert webp_canvas(data[:length]) is None


def test_threads_decode_side_by_side() -> None:
    files = [encode(picture(size=(200, 150), seed=seed), "JPEG") for seed in range(8)]
    expected = [decode(data, max_pixels=LIMIT).tobytes() for data in files]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda data: decode(data, max_pixels=LIMIT).tobytes(), files * 5))
    assert results == expected * 5


def test_a_side_has_its_own_limit() -> None:
    with pytest.raises(ImageTooLarge, match="no side may have more than 65535"):
        decode(png_bomb(65_536, 1), max_pixels=LIMIT)


def test_more_than_pillows_own_limit_may_be_allowed() -> None:
    with pytest.raises(InvalidImage):  # judged good, then found empty
        decode(png_bomb(20_000, 10_000), max_pixels=400_000_000)


def test_text_bombs_in_a_png_stay_bounded() -> None:
    start = png_bomb(10, 10)[:33]
    bomb = start + png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 1_000_000)) * 1000
    tracemalloc.start()
    with pytest.raises(InvalidImage):
        decode(bomb, max_pixels=LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000_000


def test_a_run_length_bitmap_is_decoded_while_it_is_small() -> None:
    rows = b"".join(bytes([20, row, 0, 0]) for row in range(10)) + b"\0\1"
    assert_like_pillow(run_length_bmp(20, 10, rows))
    with pytest.raises(ImageTooLarge, match="run-length"):
        decode(run_length_bmp(60_000, 700, rows), max_pixels=LIMIT)


# -- damage ------------------------------------------------------------------------------------------


def assert_decodes_or_refuses(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert decode(data, max_pixels=1_000_000).mode == "RGB"


@pytest.mark.parametrize("name", sorted(corpus.whole()))
def test_truncations_leave_nothing_but_our_own_errors(name: str) -> None:
    data = corpus.whole()[name]
    for length in {*range(1, min(len(data), 40)), *range(40, len(data), max(1, len(data) // 40))}:
        assert_decodes_or_refuses(data[:length])


def test_a_whole_file_of_a_kind_that_is_not_read_is_called_that() -> None:
    jpeg = bytearray(encode(picture(), "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 4] = 12
    lossless = bytearray(encode(picture(), "JPEG"))
    lossless[lossless.index(b"\xff\xc0") + 1] = 0xC6
    tiff = bytearray(encode(picture("RGB"), "TIFF"))
    at = tiff.index(struct.pack("<HHL", 262, 3, 1)) + 8  # photometric interpretation
    tiff[at : at + 2] = struct.pack("<H", 32_844)
    bmp = bytearray(encode(picture(), "BMP"))
    bmp[30] = 4
    for data, words in ((jpeg, "12 bits"), (lossless, "lossless"), (tiff, "TIFF"), (bmp, "BMP")):
        with pytest.raises(UnsupportedMediaType, match=f"{words}.*not read"):
            decode(bytes(data), max_pixels=LIMIT)


@pytest.mark.parametrize("name", corpus.FORMATS)
def test_a_file_cut_in_half_is_invalid(name: str) -> None:
    data = encode(picture(size=(200, 150)), name)
    with pytest.raises(
        InvalidImage, match=f"begin like a {name} file but cannot be decoded: damaged or truncated"
    ):
        decode(data[: len(data) // 2], max_pixels=LIMIT)


@given(
    st.binary(max_size=200), st.sampled_from([magic for magic, _ in room._MAGIC] + [b"BM", b"RIFF....WEBP"])
)
@settings(deadline=None, max_examples=200)
def test_rubbish_behind_a_good_beginning(content: bytes, magic: bytes) -> None:
    assert_decodes_or_refuses(magic + content)


def test_an_error_of_any_kind_inside_pillow_is_a_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(picture(), "PNG")
    kinds = (
        OSError,
        KeyError,
        struct.error,
        zlib.error,
        MemoryError,
        RecursionError,
        AssertionError,
        UserWarning,
    )
    for kind in kinds:

        def fail(*_: object, kind: type[Exception] = kind) -> None:
            raise kind("from the depth")

        monkeypatch.setattr(Image.Image, "getexif", lambda self: {})
        monkeypatch.setattr(PngImageFile, "load", fail)
        with pytest.raises(InvalidImage) as caught:
            decode(data, max_pixels=LIMIT)
        assert "depth" not in str(caught.value)
