"""Corrupted versions of images and texts, at five strengths.

In the manner of CIFAR-10-C (Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261): each item gets one of
the kinds of corruption, in turn, so that one figure stands for all of them. The corruption of an item depends on its
place and the strength only.
"""

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

# Of strengths 1 to 5.
BRIGHTNESS = (1.3, 1.6, 2.0, 2.5, 3.0)  # factor
BLUR = (0.01, 0.02, 0.03, 0.045, 0.06)  # standard deviation, in sides of the image
QUALITY = (40, 20, 12, 7, 4)  # of JPEG
NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)  # standard deviation, in ranges of a channel
WORDS = (0.1, 0.2, 0.35, 0.5, 0.7)  # share of the words


def corrupt(items, strength, *, texts):
    """Return corrupted items; with strength 0 as they are.

    Parameters
    ----------
    items : list of str, of arrays (height, width, 3) of bytes, or of PIL images
    strength : int
        From 0 to 5.
    texts : bool
        Whether strings are texts, or else the paths of images.
    """
    if not strength:
        return items
    kinds = TEXTS if texts else IMAGES
    corrupted = []
    for index, item in enumerate(items):
        work = kinds[index % len(kinds)]
        if isinstance(item, str) and not texts:
            item = Image.open(item).convert("RGB")
        elif isinstance(item, np.ndarray):
            item = Image.fromarray(item).convert("RGB")
        corrupted.append(work(item, strength - 1, np.random.default_rng([strength, index])))
    return corrupted


def brightness(image, level, rng):
    return ImageEnhance.Brightness(image).enhance(BRIGHTNESS[level])


def blur(image, level, rng):
    return image.filter(ImageFilter.GaussianBlur(BLUR[level] * max(image.size)))


def jpeg(image, level, rng):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY[level])
    return Image.open(stream).convert("RGB")


def noise(image, level, rng):
    pixels = np.asarray(image) + 255 * NOISE[level] * rng.standard_normal((*image.size[::-1], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def typos(text, level, rng):
    """Swap two neighbouring letters of a word."""

    def swap(word):
        at = rng.integers(max(1, len(word) - 1))
        return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]

    return _some_words(text, level, rng, swap)


def capitals(text, level, rng):
    return _some_words(text, level, rng, str.upper)


def dropped(text, level, rng):
    kept = [word for word, chosen in _chosen(text, level, rng) if not chosen]
    return " ".join(kept) or next(iter(text.split()), text)


def _some_words(text, level, rng, change):
    return " ".join(change(word) if chosen else word for word, chosen in _chosen(text, level, rng))


def _chosen(text, level, rng):
    words = text.split()
    return list(zip(words, rng.random(len(words)) < WORDS[level], strict=True))


IMAGES, TEXTS = (brightness, blur, jpeg, noise), (typos, capitals, dropped)
