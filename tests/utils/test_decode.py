import struct
import zlib

import cv2
import numpy as np
import pytest

from data.records.reader import RecordReader
from utils.decode import decode_rgb, fit_face

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (33, 47, 3), np.uint8)
GREY = COLOUR[..., 0]
ALPHA = RNG.integers(0, 256, (33, 47, 4), np.uint8)
DEEP = RNG.integers(0, 2**16, (33, 47, 3), np.uint16)


def encode(image, suffix, *options):
    return cv2.imencode(suffix, image, options)[1].tobytes()


def turned(jpeg):
    """The same JPEG with an EXIF entry that says: turn by 90 degrees."""
    entry = struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize(
    "encoded",
    [
        encode(COLOUR, ".jpg"), encode(GREY, ".jpg"), encode(COLOUR, ".png"), encode(GREY, ".png"),
        encode(ALPHA, ".png"), encode(DEEP, ".png"), encode(DEEP[..., 0], ".png"), encode(COLOUR, ".bmp"),
        encode(COLOUR, ".webp"), encode(ALPHA, ".webp"), turned(encode(COLOUR, ".jpg")),
    ],
    ids=["jpg", "grey jpg", "png", "grey png", "alpha", "deep", "grey deep", "bmp", "webp", "webp alpha", "turned"],
)  # fmt: skip
def test_same_pixels_as_decoding_and_swapping(encoded):
    bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    rgb = decode_rgb(encoded)
    assert rgb.dtype == np.uint8
    assert (rgb == cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)).all()


def test_real_faces(shared_data):
    reader = RecordReader(shared_data / "lfw_train" / "train.rec")
    for position in range(1, 200):
        encoded = reader.read_face(position)[1]
        bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        assert (decode_rgb(encoded) == bgr[..., ::-1]).all()


refuses_cut_pixels = pytest.mark.skipif(
    not hasattr(cv2, "IMREAD_COLOR_RGB"), reason="OpenCV before 4.11 fills what is missing of a JPEG with grey"
)


@pytest.mark.parametrize("cut", [20, 300, *(pytest.param(cut, marks=refuses_cut_pixels) for cut in (1000, -2))])
def test_a_jpeg_that_is_cut_short_is_no_image(cut):
    with pytest.raises(ValueError, match="not a decodable image"):
        decode_rgb(encode(COLOUR, ".jpg")[:cut])


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_header_of_a_giant_is_no_image(side):
    """OpenCV would take it, and memory for it, by its own limit."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="its header announces more pixels than are decoded here"):
        decode_rgb(png)


class TestFitFace:
    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    def test_kept_to_the_byte(self, suffix):
        encoded = encode(COLOUR[:32, :32], suffix)
        assert fit_face(encoded, 32) == (encoded, False, True, "")

    def test_coded_anew_where_asked_or_of_another_kind(self):
        png, webp = encode(COLOUR[:32, :32], ".png"), encode(COLOUR[:32, :32], ".webp", cv2.IMWRITE_WEBP_QUALITY, 101)
        for encoded, keep in ((png, False), (webp, True)):
            fitted = fit_face(encoded, 32, ".png", keep=keep)
            assert (fitted.is_resized, fitted.was_square) == (False, True)
            assert fitted.encoded.startswith(b"\x89PNG")
            assert (decode_rgb(fitted.encoded) == decode_rgb(encoded)).all()

    def test_quality(self):
        sizes = [len(fit_face(encode(COLOUR, ".png"), 32, quality=quality).encoded) for quality in (10, 95)]
        assert sizes[0] < sizes[1]

    @pytest.mark.parametrize("size", [20, 33, 90])
    def test_resized(self, size):
        fitted = fit_face(encode(COLOUR, ".png"), size, ".png")
        assert (fitted.is_resized, fitted.was_square) == (True, False)
        image = decode_rgb(fitted.encoded)
        how = cv2.INTER_AREA if size < 47 else cv2.INTER_LINEAR
        assert (image == cv2.resize(COLOUR[..., ::-1], (size, size), interpolation=how)).all()

    def test_no_image(self):
        with pytest.raises(ValueError, match="not a decodable image: 3 bytes"):
            fit_face(b"abc", 112)


RED = np.zeros((5, 7, 3), np.uint8)
RED[..., 0] = 255  # RGB


class TestDecode:
    def test_png_is_exact_and_rgb(self):
        image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
        out = decode_rgb(encode(image[..., ::-1], ".png"))
        assert out.dtype == np.uint8
        assert (out == image).all()

    def test_jpeg_is_rgb(self):
        out = decode_rgb(encode(RED[..., ::-1], ".jpg")).astype(int)
        assert abs(out - RED).max() < 8

    def test_grey_is_repeated(self):
        grey = np.arange(30, dtype=np.uint8).reshape(5, 6)
        assert (decode_rgb(encode(grey, ".png")) == grey[..., None].repeat(3, 2)).all()

    @pytest.mark.parametrize("wrap", [bytes, memoryview, lambda data: np.frombuffer(data, np.uint8)])
    def test_takes_any_buffer(self, wrap):
        assert decode_rgb(wrap(encode(RED, ".png"))).shape == (5, 7, 3)

    @pytest.mark.parametrize("data", [b"", b"no image", encode(RED, ".png")[:20]])
    def test_damaged(self, data):
        with pytest.raises(ValueError, match=f"not a decodable image: {len(data)} bytes"):
            decode_rgb(data)
