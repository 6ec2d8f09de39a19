"""One image of any kind and format becomes an RGB image; what cannot be decoded is refused by name."""

import errno
import io
import re

import numpy as np
from PIL import Image

from skve._runtime.locks import new_lock
from skve.exceptions import ImageError

# Raster formats that Pillow decodes by itself. Its EPS and WMF readers would start other programs, or draw; its ICO
# reader decodes the image in a file before anybody can look at the number of its pixels.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
ONE = 1.001  # the largest float pixel of images from 0 to 1: resizing overshoots a little
_MAX_SCANS = 500  # of a progressive JPEG, which has about ten; each one is a pass over the whole image
_TURNS = {  # EXIF's orientations; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of a JPEG; in the data of a scan, 0xff is followed by others
_SCAN, _END = 0xDA, 0xD9
_CHUNK = 2**16  # bytes
_BOMB = (
    "The limit guards against small files that fill the memory; make the image smaller, or raise "
    "PIL.Image.MAX_IMAGE_PIXELS if you trust it."
)
_BROKEN = (None, errno.EINVAL)  # of an OSError that the content provokes, as by an offset below 0
_opened = new_lock()  # Pillow's lazily opened images must not be loaded by two threads at once


def readable_formats():
    """Return those of `FORMATS` that the installed Pillow reads, and those of plugins that have been registered."""
    Image.init()
    foreign = [name for name, (reader, _) in Image.OPEN.items() if not reader.__module__.startswith("PIL.")]
    return (*(name for name in FORMATS if name in Image.OPEN), *foreign)


def decode_file(source, where):
    """Return the first frame of an image file as an RGB image, turned upright.

    Parameters
    ----------
    source : str, path or bytes
        A file, or what is in it.
    where : str
        What messages call it.

    Raises
    ------
    ImageError
        If there is no such file, the system does not give it, it is no image or a broken one, or has more pixels
        than Pillow's limit.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=readable_formats()) as image:
            _check_size(image, where)
            if image.format in ("JPEG", "MPO"):  # several images in one file
                _check_scans(image.fp)
            return to_rgb(image, where)
    except FileNotFoundError:
        raise ImageError(f"{where} must be a file, got a path that does not exist. Check the path.") from None
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{where} must have at most {Image.MAX_IMAGE_PIXELS} pixels, got more. {error} {_BOMB}"
        ) from error
    except Exception as error:  # whatever a broken file provokes in the readers
        formats = f" The formats {', '.join(readable_formats())} are read."
        raise _refusal(error, f"{where} must be an image file", formats) from error


def decode_opened(image, where):
    """Return a user's PIL image as an RGB image, turned upright; see `decode_file` for the errors."""
    with _opened:
        try:
            _check_size(image, where)
            return to_rgb(image, where)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            if getattr(image, "fp", None) is None or image.fp.closed:
                raise ImageError(
                    f"{where} must be an open image, got one whose file was closed before its pixels were read. Pass "
                    f"its path, or call its load() before closing it."
                ) from error
            raise _refusal(error, f"{where} must be an image") from error


def _check_size(image, where):
    limit, n_pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and n_pixels > limit:
        raise ImageError(
            f"{where} must have at most {limit} pixels, got {image.width} x {image.height} = {n_pixels}. {_BOMB}"
        )


def _check_scans(file):
    if _count_scans(file) > _MAX_SCANS:
        raise ValueError(f"it has more than {_MAX_SCANS} scans, which take very long")


def _count_scans(file):
    """Return the number of scans of a JPEG, at most `_MAX_SCANS` + 1.

    What lies behind the end of the image, as the film of a motion photo, is not read.
    """
    n_scans, start, at, chunk = 0, 0, 2, b""  # behind the marker of the image's start
    while n_scans <= _MAX_SCANS:
        if at - start > len(chunk) - 4:  # a marker and a length may go on in the next chunk
            file.seek(at)
            start, chunk = at, file.read(_CHUNK)
        found = _MARKER.search(chunk, at - start)
        if found is None or found.end() + 2 > len(chunk):
            if len(chunk) < _CHUNK or (found is not None and chunk[found.end() - 1] == _END):
                break
            at = start + (found.start() if found else len(chunk) - 1)
            continue
        marker, at = chunk[found.end() - 1], start + found.end()
        if marker == _END:
            break
        n_scans += marker == _SCAN
        if marker not in (0x01, 0xD8):  # these have no length
            at += max(2, int.from_bytes(chunk[found.end() : found.end() + 2], "big"))
    return n_scans


def _refusal(error, problem, hint=""):
    """Return the error for whatever was raised: an image is not to blame for what the system says."""
    if isinstance(error, OSError) and error.errno not in _BROKEN:
        return ImageError(
            f"{problem} that the system lets be read, got its error: {error.strerror}. Keep the image, check the "
            f"disk, the memory, the number of open files and the permissions, and try again."
        )
    return ImageError(
        f"{problem}, got content that cannot be read as one: {_first_line(error)}. Replace it or leave it out.{hint}"
    )


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


def to_rgb(image, where):
    """Return an opened PIL image in RGB: 16 bits scaled to 8, transparency dropped, turned as its EXIF tag says."""
    image.load()
    _check_size(image, where)  # of formats that only users open, some tell it only now
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):  # older versions of Pillow
        rgb = Image.fromarray(from_16_bits(np.asarray(image)))
    elif mode in ("I", "F") or mode.startswith("I;"):  # Pillow would cut off what exceeds 255
        raise ImageError(
            f"{where} must have pixels of 1, 8 or 16 bits, got 32 bits (mode {mode!r}), whose value of white is "
            f"not known. Scale it to 0 to 255, as in Image.fromarray(np.uint8(np.asarray(image) / white * 255))."
        )
    else:
        # Palettes with transparency go by way of RGBA: the same colours without a warning.
        rgb = image.convert("RGBA") if mode == "P" and "transparency" in image.info else image
    rgb = rgb.convert("RGB")
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image):
    try:
        return image.getexif().get(0x0112)
    except Exception:  # many a camera writes broken tags around a good image
        return None


def is_16_bits(pixels):
    """Say whether an array has pixels of 16 bits, in whichever order of bytes."""
    return pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2


def from_16_bits(pixels):
    """Scale pixels from 0 to 65535 to 8 bits, rounded."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def from_array(pixels, float_scale, where):
    """Return an array (height, width[, channels]) as an RGB image.

    Parameters
    ----------
    pixels : ndarray
        Floats; bools; uint16 from 0 to 65535; other integers from 0 to 255. A fourth channel is dropped.
    float_scale : {None, 1, 255}
        What white is in float pixels; None judges this image by itself.
    where : str
        What messages call it.

    Raises
    ------
    ValueError
        If float pixels exceed the scale.
    """
    if pixels.dtype.kind == "f":
        if float_scale == 1 and pixels.max() > ONE:
            raise ValueError(
                f"{where} must have float pixels from 0 to 1 as in fit, got {pixels.max():g}. Use one scale for "
                f"all images, or convert them to uint8."
            )
        scale = float_scale or (1 if pixels.max() <= ONE else 255)
        pixels = np.rint(np.clip(pixels / scale, 0, 1) * 255).astype(np.uint8)
    elif pixels.dtype.kind == "b":
        pixels = pixels * np.uint8(255)
    elif is_16_bits(pixels):
        pixels = from_16_bits(pixels)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).convert("RGB")
