"""Every format and mode of image file, upright and in RGB; bombs, broken and foreign files refused by name."""

import errno
import io
import os
import pathlib
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from skve._inputs import image_decoding
from skve._inputs.images import check_images
from skve.exceptions import ImageError

RNG = np.random.default_rng(0)
COLOUR = np.asarray(Image.fromarray(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 32)))
GREY = COLOUR[..., 0]


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(source):
    """What the estimator sees of one image, read without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = check_images([source])[0]
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def refused(source):
    with pytest.raises(ImageError, match=r"^X\[0\]") as caught:
        check_images([source])[0]
    return str(caught.value)


# ------------------------------------------------------------------------------------- formats and modes

EXACT = ["PNG", "BMP", "TIFF", "TGA", "PPM", "PCX", "SGI", "QOI"]
LOSSY = ["JPEG", "WEBP", "AVIF", "JPEG2000", "MPO"]


@pytest.mark.parametrize("format", EXACT)
def test__decode_file__format_without_loss__same_pixels(format):
    if format not in Image.SAVE:
        Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {format}")
    assert np.array_equal(read(encoded(Image.fromarray(COLOUR), format)), COLOUR)


@pytest.mark.parametrize("format", LOSSY)
def test__decode_file__format_with_loss__close_pixels(format):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {format}")
    assert np.abs(read(encoded(Image.fromarray(COLOUR), format, quality=95)) - COLOUR).mean() < 6


def test__readable_formats__list__holds_the_common_ones_and_no_reader_that_starts_programs():
    assert {"PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"} <= set(image_decoding.readable_formats())
    assert not {"EPS", "WMF", "PDF"} & set(image_decoding.readable_formats())


def orientations():
    upright = Image.fromarray(COLOUR)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a camera of that orientation made
    return {1: upright} | {tag: upright.transpose(how) for tag, how in undo.items()}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test__decode_file__exif_orientation__upright(format, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"lossless": True} if format == "WEBP" else {}
    got = read(encoded(orientations()[tag], format, exif=exif, **options))
    assert got.shape == COLOUR.shape
    assert np.abs(got - COLOUR).mean() < (8 if format == "JPEG" else 1e-9)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00MM", b"nothing", b""])
def test__decode_file__broken_exif__image_as_it_is(exif):
    jpeg = encoded(Image.fromarray(COLOUR), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow says "Corrupt EXIF data"
        got = np.asarray(check_images([jpeg[:2] + segment + jpeg[2:]])[0])
    assert np.array_equal(got, read(jpeg))


SIXTEEN = np.linspace(0, 65535, GREY.size).round().astype(np.uint16).reshape(GREY.shape)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test__decode_file__16_bits__divided_by_257(format):
    expected = np.repeat(np.rint(SIXTEEN / 257)[..., None], 3, axis=-1)
    assert np.array_equal(read(encoded(Image.fromarray(SIXTEEN), format)), expected)


def test__decode_file__16_bit_png_of_older_pillow__as_of_the_newer(monkeypatch):
    """Older versions open such files in mode I, of 32 bits."""
    image = Image.open(io.BytesIO(encoded(Image.fromarray(SIXTEEN), "PNG")))
    older = image.convert("I")
    older.format = "PNG"
    assert np.array_equal(np.asarray(older), SIXTEEN)
    assert np.array_equal(read(older), read(image))


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, kind, rows):
    """A PNG file of raw rows, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\x00" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test__decode_file__16_bit_colours__within_one_of_divided_by_257():
    pixels = RNG.integers(0, 65536, (6, 7, 3))
    got = read(png(7, 6, 16, 2, [row.astype(">u2").tobytes() for row in pixels]))
    assert np.abs(got - pixels / 257).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test__decode_file__32_bits__refused_with_remedy(mode):
    values = SIXTEEN.astype(np.int32 if mode == "I" else np.float32) * 3
    assert f"got 32 bits (mode '{mode}'), whose value of white is not known. Scale it to 0 to 255" in refused(
        encoded(Image.fromarray(values), "TIFF")
    )


@pytest.mark.parametrize("inverted", [False, True])
def test__decode_file__cmyk__close_to_its_colours(inverted):
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    data = encoded(cmyk, "JPEG", quality=98) if inverted else encoded(cmyk, "TIFF")  # Adobe's JPEGs are inverted
    assert np.abs(read(data) - COLOUR).mean() < 8


TRANSPARENT = np.dstack([COLOUR, np.where(GREY > 128, 255, 0).astype(np.uint8)])


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test__decode_file__alpha__dropped_and_colours_under_it_kept(format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert np.array_equal(read(encoded(Image.fromarray(TRANSPARENT), format, **options)), COLOUR)


def test__decode_file__grey_with_alpha__grey():
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(TRANSPARENT[..., 3])])
    assert np.array_equal(read(encoded(la, "PNG")), np.repeat(GREY[..., None], 3, axis=-1))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))])
def test__decode_file__palette_with_and_without_transparency__its_colours(transparency):
    palette = Image.fromarray(COLOUR).quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(read(encoded(palette, "PNG", **options)), expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
def test__decode_file__one_bit__black_and_white(format):
    image = Image.fromarray(GREY > 128)
    assert image.mode == "1"
    assert np.array_equal(read(encoded(image, format)), np.repeat((GREY > 128)[..., None] * 255, 3, axis=-1))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test__decode_file__several_frames__the_first(format):
    if format not in Image.SAVE_ALL:
        pytest.skip(f"this Pillow does not write {format} with several frames")
    frames = [Image.new("RGB", (20, 16), colour) for colour in ("#c81e1e", "#1ec81e", "#1e1ec8")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert np.abs(read(data) - np.array([200, 30, 30])).max() <= 6


def test__decode_opened__later_frame_of_an_animation__that_frame():
    frames = [Image.new("RGB", (20, 16), colour) for colour in ("#c81e1e", "#1ec81e")]
    image = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    assert np.abs(read(image) - np.array([30, 200, 30])).max() <= 6


def test__decode_file__mixed_sizes_and_formats__each_its_own():
    sizes = [(40, 32), (7, 3), (1, 1), (300, 2)]
    files = [
        encoded(Image.new("RGB", size), format)
        for size, format in zip(sizes, ["JPEG", "PNG", "GIF", "BMP"], strict=True)
    ]
    sequence = check_images(files)
    assert [sequence[index].size for index in range(4)] == sizes


def test__decode_file__lab__close_to_its_colours():
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.applyTransform(Image.fromarray(COLOUR), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert np.abs(read(encoded(lab, "TIFF")) - COLOUR).mean() < 8


def test__decode_opened__one_lazy_image_in_eight_threads__all_the_same(tmp_path):
    large = Image.fromarray(COLOUR).resize((600, 500))
    large.save(tmp_path / "image.png")
    expected, results = np.asarray(large), []
    sequence = check_images([Image.open(tmp_path / "image.png")])

    def work():
        results.append(np.array_equal(np.asarray(sequence[0]), expected))

    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results == [True] * 8


# ------------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("format", [*EXACT, *LOSSY, "GIF"])
def test__decode_file__truncated_anywhere__refused_by_name_or_decoded(format):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {format}")
    data = encoded(Image.fromarray(COLOUR), format)
    for size in range(0, len(data), max(1, len(data) // 40)):
        try:
            image = check_images([data[:size]])[0]
        except ValueError as error:
            assert str(error).startswith(f"X[0] ({size} bytes) ")  # noqa: PT017
            assert "Replace it or leave it out" in str(error)  # noqa: PT017
        else:
            assert size > 20
            assert image.mode == "RGB"


def test__decode_file__truncated_jpeg__refused_with_index_and_path(tmp_path):
    data = encoded(Image.fromarray(COLOUR).resize((300, 200)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"X\[1\] = '.*cut\.jpg' must be an image file, got .*truncated"):
        check_images([COLOUR, tmp_path / "cut.jpg"])[1]


def test__decode_opened__truncated__refused_by_index():
    data = encoded(Image.fromarray(COLOUR).resize((300, 200)), "JPEG")
    assert "X[0] must be an image, got" in refused(Image.open(io.BytesIO(data[: len(data) // 2])))


def test__decode_opened__closed__refused_by_index(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "image.png")
    image = Image.open(tmp_path / "image.png")
    image.close()
    assert "whose file was closed before its pixels were read. Pass its path" in refused(image)


# ----------------------------------------------------------------------------- what no image is to blame for


@pytest.fixture(params=["file", "opened"])
def source(request, tmp_path):
    """An image, as a path and as what Pillow has opened."""
    path = tmp_path / "image.png"
    Image.fromarray(COLOUR).save(path)
    if request.param == "file":
        yield path
    else:
        with Image.open(path) as image:
            yield image


def raising(error):
    def load(self):
        raise error

    return load


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.EACCES])
def test__decode__system_error__what_the_system_said_and_the_image_is_kept(source, monkeypatch, number):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", raising(OSError(number, os.strerror(number))))
    message = refused(source)
    assert f"got its error: {os.strerror(number)}. Keep the image" in message
    assert "leave it out" not in message


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "Invalid argument"), OSError("image file is truncated")])
def test__decode__error_of_a_reader__the_image_is_to_blame(source, monkeypatch, error):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", raising(error))
    assert f"{error}. Replace it or leave it out" in refused(source)


def test__decode__no_memory__memory_error(source, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", raising(MemoryError("no memory")))
    with pytest.raises(MemoryError, match="no memory"):
        check_images([source])[0]


# --------------------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize("name", ["image.eps", "image.png", "image.jpg"])
def test__decode_file__postscript_under_any_name__refused_and_no_program_started(tmp_path, name, monkeypatch):
    import subprocess

    path = tmp_path / name
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print showpage\n%%EOF\n")
    with Image.open(path) as image:
        assert image.format == "EPS"  # which Pillow would give to Ghostscript
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: started.append(args))
    assert "must be an image file" in refused(path)
    assert started == []


def bombs(n_pixels):
    """Small files of each format that decode to `n_pixels` white pixels."""
    width = 30_000
    height = n_pixels // width
    blank = Image.new("1", (width, height), 1)
    row = bytes(width // 8)
    return {
        "PNG": png(width, height, 1, 0, [row] * height),
        "GIF": b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x00\x00\x00"
        + b","
        + struct.pack("<HHHH", 0, 0, width, height)
        + b"\x00\x02\x00;",
        "TIFF": encoded(blank, "TIFF", compression="group4"),
        "BMP": encoded(blank, "BMP"),
        "PPM": b"P4 %d %d\n" % (width, height) + bytes(height * ((width + 7) // 8)),
    }


@pytest.mark.parametrize("factor", [1.1, 2.5])
@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test__decode_file__decompression_bomb__refused_with_the_limit(format, factor):
    """Between once and twice the limit Pillow itself only warns."""
    message = refused(bombs(int(factor * Image.MAX_IMAGE_PIXELS))[format])
    assert f"at most {Image.MAX_IMAGE_PIXELS} pixels" in message
    assert "raise PIL.Image.MAX_IMAGE_PIXELS if you trust it" in message


def test__decode_file__png_bomb_in_an_ico__refused_before_it_is_decoded(monkeypatch):
    """Pillow decodes it when it opens the file, up to twice its limit, whatever size the directory says."""
    inner = png(1300, 1, 8, 0, [bytes(1300)])
    directory = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    loaded = []
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: loaded.append(self.size))
    assert "must be an image file" in refused(directory + inner)
    assert loaded == []


def webp_bomb():
    """A lossless WebP header of 16383 x 16383 pixels and no data."""
    bits = 16382 | 16382 << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(20)
    body = b"WEBP" + b"VP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test__decode_file__webp_bomb__refused():
    assert "X[0]" in refused(webp_bomb())


def test__decode_file__limit_set_by_the_user__holds(monkeypatch):
    data = encoded(Image.fromarray(COLOUR), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1279)
    with pytest.warns(Image.DecompressionBombWarning):
        assert "at most 1279 pixels, got 40 x 32 = 1280" in refused(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1280)
    assert read(data).shape == (32, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read(data).shape == (32, 40, 3)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test__decode_file__huge_text_in_a_png__refused_or_not_unpacked(kind, after):
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    text = chunk(kind, head + zlib.compress(bytes(80 * 1024 * 1024)))
    plain = encoded(Image.fromarray(COLOUR), "PNG")
    position = plain.rindex(b"IEND") - 4 if after else 33  # in front of the last chunk, or behind the first
    data = plain[:position] + text + plain[position:]
    assert len(data) < 200_000
    assert "too large" in refused(data)


def test__decode_file__progressive_jpeg_of_endless_scans__refused():
    """A scan of a few bytes is a pass over the whole image: a small file would take minutes."""
    data = encoded(Image.fromarray(COLOUR), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    assert read(data[:-2] + scan * 20 + b"\xff\xd9").shape == COLOUR.shape
    assert "more than 500 scans" in refused(data[:-2] + scan * 600 + b"\xff\xd9")


def test__decode_file__pipe_or_device__refused_before_it_is_opened(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", pathlib.Path("/dev/zero")):
        assert "must be a file, got a pipe, a socket or a device" in refused(path)


def test__check_images__link_to_itself__called_a_link(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "link.png")
    assert "must be a file, got a broken link" in refused(tmp_path / "link.png")


@pytest.mark.parametrize("behind", [b"", b"\xff", b"\xff\xda" * 2000])
def test__decode_file__jpeg_with_a_film_behind_it__only_the_image_is_read(behind):
    data = encoded(Image.fromarray(COLOUR), "JPEG", progressive=True)
    assert np.array_equal(read(data + behind), read(data))


@pytest.mark.parametrize("chunk_size", [4, 5, 64, 1000])
@pytest.mark.parametrize("progressive", [False, True])
def test__count_scans__any_chunks__same_number(monkeypatch, chunk_size, progressive):
    data = encoded(Image.fromarray(COLOUR), "JPEG", progressive=progressive, restart_marker_rows=1)
    monkeypatch.setattr(image_decoding, "_CHUNK", chunk_size)
    assert image_decoding._count_scans(io.BytesIO(data + b"\xff\xda" * 9)) == (10 if progressive else 1)


def test__decode_file__jpeg_with_a_huge_tail__not_read(tmp_path):
    with open(tmp_path / "image.jpg", "wb") as file:
        file.write(encoded(Image.fromarray(COLOUR), "JPEG"))
        file.truncate(2**36)
    assert read(tmp_path / "image.jpg").shape == COLOUR.shape


class PlugIn(ImageFile.ImageFile):
    """As a plugin of another package, pillow-heif say."""

    format = "OURS"

    def _open(self):
        if self.fp.read(4) != b"OURS":
            raise SyntaxError("not ours")
        self._size, self._mode = (2, 1), "L"
        self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 4, ("L", 0, 1))]


@pytest.fixture
def plugin():
    Image.register_open("OURS", PlugIn, lambda prefix: prefix.startswith(b"OURS"))
    Image.register_extension("OURS", ".ours")
    yield
    del Image.OPEN["OURS"], Image.EXTENSION[".ours"]
    Image.ID.remove("OURS")


def test__decode_file__format_of_a_registered_plugin__read(plugin):
    assert read(b"OURS\x00\xff")[..., 0].tolist() == [[0, 255]]


def test__decode_file__plugin_that_is_not_registered__refused():
    assert "must be an image file" in refused(b"OURS\x00\xff")
