"""One image of any kind and format becomes an RGB image; what cannot be decoded is refused by name."""

import errno
import functools
import io
import threading

import numpy as np
from PIL import Image

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
_BOMB = (
    "It guards against small files that fill the memory; make the image smaller, or raise PIL.Image.MAX_IMAGE_PIXELS "
    "if you trust it"
)
_BROKEN = (None, errno.EINVAL)  # of an OSError that the content provokes, as by an offset below 0
_opened = threading.Lock()  # Pillow's lazily opened images must not be loaded by two threads at once


class RefusedError(ValueError):
    """An image that is refused, with the reason and a remedy."""


@functools.cache
def readable_formats():
    """Return those of `FORMATS` that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


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
    ValueError
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
        raise ValueError(f"{where}: there is no such file; check the path") from None
    except (RefusedError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RefusedError(
            f"{where} exceeds the limit of {Image.MAX_IMAGE_PIXELS} pixels: {error} {_BOMB}"
        ) from error
    except Exception as error:  # whatever a broken file provokes in the readers
        formats = f" ({', '.join(readable_formats())} are read)"
        raise _refusal(error, f"{where} cannot be read as an image", formats) from error


def decode_opened(image, where):
    """Return a user's PIL image as an RGB image, turned upright; see `decode_file` for the errors."""
    with _opened:
        try:
            _check_size(image, where)
            return to_rgb(image, where)
        except (RefusedError, MemoryError):
            raise
        except Exception as error:
            raise _refusal(error, f"{where} cannot be decoded") from error


def _check_size(image, where):
    limit, n_pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and n_pixels > limit:
        raise RefusedError(
            f"{where} exceeds the limit of {limit} pixels: it has {image.width} x {image.height} = {n_pixels}. "
            f"{_BOMB}"
        )


def _check_scans(file):
    file.seek(0)
    n_scans = file.read().count(b"\xff\xda")  # inside the data of a scan, 0xff is followed by 0
    if n_scans > _MAX_SCANS:
        raise ValueError(f"it has {n_scans} scans, more than the limit of {_MAX_SCANS}, which takes very long")


def _refusal(error, problem, hint=""):
    """Return the error for whatever was raised: an image is not to blame for what the system says."""
    if isinstance(error, OSError) and error.errno not in _BROKEN:
        return RefusedError(
            f"{problem}, for the system says: {error.strerror}; keep the image, see to the disk, the memory, the "
            f"number of open files and who may read it, and try again"
        )
    return RefusedError(f"{problem}: {_first_line(error)}; replace it or leave it out{hint}")


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
        raise RefusedError(
            f"{where} has 32 bits a pixel (mode {mode!r}), of which nothing says what is white; scale it to 0 to "
            f"255, as in Image.fromarray(np.uint8(np.asarray(image) / white * 255))"
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
                f"{where} has float pixels up to {pixels.max():g}, but the estimator was fitted on float pixels from "
                f"0 to 1; bring all images to one scale, or to uint8"
            )
        scale = float_scale or (1 if pixels.max() <= ONE else 255)
        pixels = np.rint(np.clip(pixels / scale, 0, 1) * 255).astype(np.uint8)
    elif pixels.dtype.kind == "b":
        pixels = pixels * np.uint8(255)
    elif pixels.dtype == np.uint16:
        pixels = from_16_bits(pixels)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).convert("RGB")
