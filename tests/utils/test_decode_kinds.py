"""Image files of every kind: the grey levels that come out, and what is said of them."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest

from utils.decode import DEEP, TRANSPARENT, decode_noted, decode_rgb, fit_face, may_change, to_8_bits

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (32, 40, 3), np.uint8)
TWELVE = RNG.integers(0, 1 << 12, (32, 40), np.uint16)
TWELVE[0, 0] = (1 << 12) - 1


def encode(image, suffix, *options):
    return cv2.imencode(suffix, image, options)[1].tobytes()


def scaled(image, highest):
    return np.rint(image * (255 / highest)).astype(np.uint8)[..., None].repeat(3, 2)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm"])
def test_eight_bits_stay_to_the_bit(suffix):
    image, changed = decode_noted(encode(COLOUR, suffix))
    assert (image == COLOUR[..., ::-1]).all()
    assert changed == ""
    grey, changed = decode_noted(encode(COLOUR[..., 0], ".pgm" if suffix == ".ppm" else suffix))
    assert (grey == COLOUR[..., :1]).all()
    assert changed == ""


def test_jpeg_2000():
    smooth = cv2.resize(COLOUR[:4, :4], (64, 64), interpolation=cv2.INTER_CUBIC)
    image, changed = decode_noted(encode(smooth, ".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000))
    assert (abs(image.astype(int) - smooth[..., ::-1]) <= 1).all()
    assert changed == ""


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_bits_that_a_camera_fills_are_the_range(suffix, bits):
    """Infrared cameras of 12 bits in 16 come out nearly black otherwise."""
    levels = np.linspace(0, (1 << bits) - 1, 32 * 40).astype(np.uint16).reshape(32, 40)
    image, changed = decode_noted(encode(levels, suffix))
    assert (int(image.min()), int(image.max())) == (0, 255)
    assert abs(image[..., 0].astype(float) - levels * (255 / ((1 << bits) - 1))).max() < 1
    assert changed == DEEP


def test_colour_of_16_bits_keeps_its_order():
    deep = COLOUR.astype(np.uint16) * 16
    for suffix in (".png", ".tif"):
        assert (abs(decode_rgb(encode(deep, suffix)).astype(int) - COLOUR[..., ::-1]) <= 1).all()


def significant_bits(png, bits):
    """The PNG with a chunk sBIT."""
    chunk = b"sBIT" + bytes([bits])
    return png[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def test_a_png_that_states_its_bits_is_taken_at_its_word():
    dark = TWELVE >> 4
    assert (decode_rgb(significant_bits(encode(dark, ".png"), 12)) == scaled(dark, 4095)).all()
    assert decode_rgb(encode(dark, ".png")).max() == 255


@pytest.mark.parametrize(("white", "kind"), [(4095, ">u2"), (1000, ">u2"), (100, "u1"), (15, "u1")])
def test_a_pgm_that_states_its_white_is_taken_at_its_word(white, kind):
    levels = (TWELVE % (white // 2 + 1)).astype(kind)
    image, changed = decode_noted(b"P5\n# made here\n40 32\n%d\n" % white + levels.tobytes())
    assert (abs(image.astype(int) - scaled(levels.astype(int), white)) <= 1).all()
    assert changed == DEEP


@pytest.mark.parametrize(("scale", "highest"), [(1.0, 1.0), (0.3, 1.0), (255.0, 255.0), (4095.0, 4095.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point(scale, highest, channels):
    levels = RNG.random((32, 40)).astype(np.float32) * scale
    levels[0, 0], levels[0, 1] = scale, -scale / 50
    stored = levels if channels == 1 else levels[..., None].repeat(3, 2)
    # Older releases of OpenCV pack floating-point colour into fewer bits unless they are told not to.
    image, changed = decode_noted(encode(stored, ".tif", cv2.IMWRITE_TIFF_COMPRESSION, 1))
    assert (image == scaled(levels.clip(0), np.float32(highest))).mean() > 0.99
    assert (int(image[0, 0, 0]), int(image[0, 1, 0])) == (round(255 * scale / highest), 0)
    assert changed == DEEP


@pytest.mark.parametrize(
    ("white", "over", "kind"),
    [
        (1, 1.02, "f4"),
        (1, 1.05, "f4"),
        (255, 256.2, "f4"),
        (16383, 16384, "u2"),
        (255, 267, "u2"),
        (65535, 66000, "f4"),
    ],
)
def test_values_a_little_beyond_white_do_not_change_the_range(white, over, kind):
    levels = np.linspace(0, white, 32 * 40).reshape(32, 40).astype(kind)
    inside = decode_rgb(encode(levels, ".tif"))
    levels[3, 4] = over
    image = decode_rgb(encode(levels, ".tif"))
    assert image[3, 4].tolist() == [255] * 3
    image[3, 4] = inside[3, 4]
    assert (abs(image.astype(int) - inside) <= 1).all()


@pytest.mark.parametrize(("scale", "kind"), [(1, "f4"), (255, "f4"), (4095, "i2")])
def test_values_around_zero_are_refused(scale, kind):
    """Whether an image is one of -1 .. 1 shows only in its dark places, so that a set would be read in two ways."""
    levels = ((RNG.random((32, 40)) * 2 - 1) * scale).astype(kind)
    with pytest.raises(ValueError, match=r"its values run from -.* expected none below 0: save it with 0 as black"):
        to_8_bits(levels)
    with pytest.raises(ValueError, match="expected none below 0"):
        decode_rgb(encode(levels.astype("f4"), ".tif"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 70000])
def test_values_that_are_no_grey_levels(value):
    levels = np.zeros((32, 40), np.float32)
    levels[3, 4] = value
    with pytest.raises(ValueError, match=r"no finite numbers|its values reach 70000, expected at most 65535"):
        decode_rgb(encode(levels, ".tif"))


def test_black_stays_black():
    assert to_8_bits(np.zeros((2, 2), np.uint16)).max() == 0
    assert to_8_bits(np.zeros((2, 2), np.float32)).max() == 0


@pytest.mark.parametrize(
    ("suffix", "options"), [(".png", ()), (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)), (".webp", (64, 90))]
)
def test_transparency_is_left_out_and_said(suffix, options):
    alpha = np.dstack([COLOUR, RNG.integers(1, 256, COLOUR.shape[:2], np.uint8)])
    image, changed = decode_noted(encode(alpha, suffix, *options))
    assert image.shape == (32, 40, 3)
    assert changed == TRANSPARENT
    if suffix == ".png":
        assert (image == COLOUR[..., ::-1]).all()
    assert decode_noted(encode(COLOUR, suffix, *options))[1] == ""


def test_only_files_that_may_change_are_decoded_for_it():
    assert may_change(encode(TWELVE, ".png"))
    assert not may_change(encode(COLOUR, ".png"))
    assert not may_change(encode(COLOUR, ".jpg"))
    assert not may_change(b"")


def test_packing_stores_what_training_sees():
    """Other readers of records would take the upper 8 bits of 16."""
    square = TWELVE[:32, :32]
    fitted = fit_face(encode(square, ".png"), 32, ".png", keep=True)
    assert not fitted.is_resized
    assert decode_noted(fitted.encoded)[1] == ""
    assert (decode_rgb(fitted.encoded) == scaled(square, 4095)).all()


def test_cmyk():
    pillow = pytest.importorskip("PIL.Image", reason="writes the CMYK files")
    levels = np.full((32, 40, 3), (200, 60, 20), np.uint8)
    for suffix, options in (("JPEG", {"quality": 98}), ("TIFF", {})):
        file = io.BytesIO()
        pillow.fromarray(levels).convert("CMYK").save(file, suffix, **options)
        image, changed = decode_noted(file.getvalue())
        assert (abs(image.astype(int) - levels) <= 2).all()
        assert changed == ""
