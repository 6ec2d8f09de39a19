"""Images in batches, decoded, resized, augmented and normalised for the network."""

import collections
import concurrent.futures

import numpy as np
import torch

from skve._inputs import pipeline
from skve._inputs.image_augmentation import augment
from skve._runtime.device import reader_threads

_KEPT_BYTES = 1024**3
LARGEST_KEYED = 6  # pixels by which images in memory go, for one of the network's: their key takes 4 % of a pass
_RESIZED_PIXELS = 2**24  # an image that is far longer than wide is resized to a multiple of what is cut out of it


class ImagePipeline:
    """Turns images into the network's batches: decode, resize, crop; then augment and normalise.

    Parameters
    ----------
    images : ImageSequence
    preprocess : dict
        timm's data configuration.
    device : torch.device
    augment : {"light", "strong"}, callable or None
    keep : bool
        Whether images will be read again and again, so that decoded ones should be kept, up to 1 GiB.
    """

    def __init__(self, images, preprocess, device, *, augment=None, keep=False):
        import timm.data

        self.images, self.device, self.augment = images, device, augment
        shape = tuple(preprocess["input_size"])
        self._resized = _Resized(shape[1:], preprocess["crop_pct"], preprocess["crop_mode"])
        self._resize = timm.data.create_transform(
            input_size=shape,
            is_training=False,
            use_prefetcher=True,  # gives uint8 tensors; normalised below, after augmentation
            interpolation=preprocess["interpolation"],
            crop_pct=preprocess["crop_pct"],
            crop_mode=preprocess["crop_mode"],
        )
        self._mean = torch.tensor(preprocess["mean"], dtype=torch.float32, device=device).reshape(1, -1, 1, 1)
        self._std = torch.tensor(preprocess["std"], dtype=torch.float32, device=device).reshape(1, -1, 1, 1)
        self._grey, self._n_pixels = shape[0] == 1, shape[1] * shape[2]
        self._kept: dict[int, torch.Tensor] = {}
        self._keep = keep and len(images) * int(np.prod(shape)) <= _KEPT_BYTES

    def __len__(self):
        return len(self.images)

    impossible = None  # an image can have any label
    mean_size = 1.0  # what the rows that a layer multiplies grow with: samples

    @property
    def same_each_epoch(self):
        """Whether images are not augmented."""
        return self.augment is None

    def content_keys(self):
        """Return a key for each image, None for those in memory that are large beside the network's input."""
        n_pixels = LARGEST_KEYED * self._n_pixels
        return [self.images.content_key(index, n_pixels) for index in range(len(self.images))]

    def size(self, indices):
        """Return the number of samples in the batch of these images."""
        return len(indices)

    def batches(self, batch_size, generator):
        """Return the indices of each batch, in a random order if there is a generator."""
        return pipeline.index_batches(len(self.images), batch_size, generator)

    def load(self, indices):
        """Return the images at `indices`, decoded and resized, as uint8 of shape (n, channels, side, side)."""
        return torch.stack([self._read(int(index)) for index in indices])

    def load_each(self, batches, ahead):
        """Yield what `load` returns for each batch; threads read the files of the next `ahead` batches meanwhile."""
        n_threads = reader_threads(self.device)
        if n_threads == 0:
            yield from map(self.load, batches)
            return
        pool = concurrent.futures.ThreadPoolExecutor(n_threads, "skve-reader")
        try:
            begun: collections.deque[list] = collections.deque()
            for indices in batches:
                begun.append([(int(index), self._begin(int(index), pool)) for index in indices])
                if len(begun) > ahead:
                    yield self._finish(begun.popleft())
            yield from map(self._finish, begun)
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, index, pool):
        slow = index not in self._kept and self.images.is_encoded(index)
        return pool.submit(self._read, index) if slow else None

    def _finish(self, begun):
        """Return a batch; what no thread has taken up yet is read here. Errors come in the order of the images."""
        done = [
            _completed(self._read, index) if future is None or future.cancel() else future for index, future in begun
        ]
        return torch.stack([future.result() for future in done])

    def _read(self, index):
        pixels = self._kept.get(index)
        if pixels is None:
            image = self.images[index]
            self._resized.check(image.size, self.images.where(index))
            pixels = self._resize(image.convert("L") if self._grey else image)
            if self._keep:
                self._kept[index] = pixels
        return pixels

    def check_labels(self, codes, name):
        """Do nothing: an image can have any label."""

    def prepare(self, raw, generator):
        """Return the network's input on its device: scaled, augmented where a generator is given, normalised."""
        images = raw.to(self.device).float() / 255
        if generator is not None and self.augment is not None:
            images = augment(images, self.augment, generator)
        return ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)


class _Resized:
    """How many pixels an image has after resizing, before the network's input is cut out of it.

    Parameters
    ----------
    sides : tuple of int
        Height and width of the network's input.
    crop_pct, crop_mode
        timm's.

    Raises
    ------
    ValueError
        If even a square has too many pixels.
    """

    def __init__(self, sides, crop_pct, crop_mode):
        self._sides = [side / crop_pct for side in sides]
        self._keeps_ratio = crop_mode == "center"  # and the shorter side of the input
        self._limit = max(_RESIZED_PIXELS, 4 * sides[0] * sides[1])
        if self._sides[0] * self._sides[1] > self._limit:
            raise ValueError(
                f"preprocess_['crop_pct'] must leave a resized image at most {self._limit} pixels, got {crop_pct!r} "
                f"for an input of {sides[0]} x {sides[1]} pixels. Check the configuration of the backbone."
            )

    def check(self, size, where):
        """Raise ValueError if an image of that width and height has too many pixels after resizing."""
        width, height = size
        scale = max(self._sides) / min(width, height)
        if self._keeps_ratio and width * height * scale**2 > self._limit:
            raise ValueError(
                f"{where} must have at most {self._limit} pixels when it is resized for the backbone, got an image "
                f"of {width} x {height}, which becomes {round(width * scale)} x {round(height * scale)}. Crop it."
            )


def _completed(function, argument):
    future: concurrent.futures.Future = concurrent.futures.Future()
    try:
        future.set_result(function(argument))
    except Exception as error:
        future.set_exception(error)
    return future
