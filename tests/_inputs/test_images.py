"""Every container of images that is accepted, and every input error with its index, path and remedy."""

import collections
import enum
import io
import pathlib
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from skve._inputs.images import check_images
from tests._inputs.test_labels import Arrow, Column
from tests.toys import image_files, toy_classifier

COLOUR = np.arange(3 * 8 * 10 * 3, dtype=np.uint8).reshape(3, 8, 10, 3)
GREY = np.arange(3 * 8 * 10, dtype=np.uint8).reshape(3, 8, 10)
TENSOR = torch.from_numpy(COLOUR.copy()).permute(0, 3, 1, 2)


def pixels(sequence):
    return np.stack([np.asarray(sequence[index]) for index in range(len(sequence))])


def grey_as_rgb(images=GREY):
    return np.repeat(images[..., None], 3, axis=-1)


@pytest.fixture
def paths(tmp_path):
    """Three PNG files with the colour images."""
    found = []
    for index, image in enumerate(COLOUR):
        found.append(tmp_path / f"image{index}.png")
        Image.fromarray(image).save(found[-1])
    return found


# ------------------------------------------------------------------------------------------ containers


def object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


COLOUR_KINDS = {
    "uint8 array": lambda: COLOUR,
    "int64 array": lambda: COLOUR.astype(np.int64),
    "array not contiguous": lambda: np.asfortranarray(COLOUR),
    "read-only array": lambda: np.frombuffer(COLOUR.tobytes(), np.uint8).reshape(COLOUR.shape),
    "memory map": lambda: COLOUR.view(np.memmap),
    "float array to 255": lambda: COLOUR.astype(np.float32),
    "float array to 1": lambda: COLOUR / 255,
    "float16 array to 1": lambda: (COLOUR / 255).astype(np.float16),
    "list of arrays": lambda: list(COLOUR),
    "tuple of arrays": lambda: tuple(COLOUR),
    "nested lists": lambda: COLOUR.tolist(),
    "array of objects": lambda: object_array(list(COLOUR)),
    "array of objects that NumPy took apart": lambda: np.array(
        [Image.fromarray(image) for image in COLOUR], dtype=object
    ),
    "array of floats as objects": lambda: (COLOUR / 255).astype(object),
    "PIL images": lambda: [Image.fromarray(image) for image in COLOUR],
    "tensor": lambda: TENSOR,
    "float tensor": lambda: TENSOR.float() / 255,
    "bfloat16 tensor to 255": lambda: TENSOR.to(torch.bfloat16),
    "tensor with gradient": lambda: TENSOR.double().requires_grad_(),
    "list of tensors": lambda: list(TENSOR),
    "Series of arrays": lambda: pd.Series(list(COLOUR)),
    "Series of PIL images": lambda: pd.Series([Image.fromarray(image) for image in COLOUR], index=[7, 5, 3]),
    "DataFrame of arrays": lambda: pd.DataFrame({"image": list(COLOUR)}),
    "mixed kinds": lambda: [COLOUR[0], Image.fromarray(COLOUR[1]), TENSOR[2]],
}


@pytest.mark.parametrize("kind", COLOUR_KINDS)
def test__check_images__colour_images_of_any_kind__same_pixels(kind):
    sequence = check_images(COLOUR_KINDS[kind]())
    assert len(sequence) == 3
    assert sequence[0].mode == "RGB"
    tolerance = 1 if "bfloat16" in kind or "float16" in kind else 0  # eight bits of them are rounded
    np.testing.assert_allclose(pixels(sequence).astype(int), COLOUR, atol=tolerance, rtol=0)


GREY_KINDS = {
    "array": lambda: GREY,
    "array with a channel": lambda: GREY[..., None],
    "array of objects that NumPy took apart": lambda: np.array(list(GREY), dtype=object),
    "list of arrays": lambda: list(GREY),
    "PIL images": lambda: [Image.fromarray(image) for image in GREY],
    "tensor": lambda: torch.from_numpy(GREY)[:, None],
    "list of tensors": lambda: [torch.from_numpy(image) for image in GREY],
    "list of tensors with a channel": lambda: [torch.from_numpy(image)[None] for image in GREY],
}


@pytest.mark.parametrize("kind", GREY_KINDS)
def test__check_images__grey_images_of_any_kind__three_equal_channels(kind):
    assert np.array_equal(pixels(check_images(GREY_KINDS[kind]())), grey_as_rgb())


def test__check_images__images_with_transparency__colours_kept():
    with_alpha = np.concatenate([COLOUR, np.full((3, 8, 10, 1), 100, np.uint8)], axis=-1)
    assert np.array_equal(pixels(check_images(with_alpha)), COLOUR)
    assert np.array_equal(pixels(check_images(torch.from_numpy(with_alpha).permute(0, 3, 1, 2))), COLOUR)


def polars_frame(names):
    polars = pytest.importorskip("polars")
    return polars.DataFrame({"path": names})


class Names(str, enum.Enum):  # noqa: UP042 - not a StrEnum: its members' str() is their names
    pass


PATH_KINDS = {
    "strings": lambda paths: [str(path) for path in paths],
    "paths": list,
    "array of strings": lambda paths: np.array([str(path) for path in paths]),
    "new string array": lambda paths: np.array([str(path) for path in paths], dtype=np.dtypes.StringDType()),
    "array of objects": object_array,
    "column of strings": lambda paths: np.array([[str(path)] for path in paths]),
    "Series": lambda paths: pd.Series([str(path) for path in paths], index=[5, 6, 7]),
    "Series of strings": lambda paths: pd.Series([str(path) for path in paths], dtype="string"),
    "DataFrame": lambda paths: pd.DataFrame({"path": [str(path) for path in paths]}, index=[9, 8, 7]),
    "polars frame": lambda paths: polars_frame([str(path) for path in paths]),
    "polars column": lambda paths: polars_frame([str(path) for path in paths])["path"],
    "polars categories": lambda paths: as_polars([str(path) for path in paths], "Categorical"),
    "deque": collections.deque,
    "values of a dict": lambda paths: dict(enumerate(paths)).values(),
    "Categorical": lambda paths: pd.Categorical([str(path) for path in paths]),
    "column of datasets": lambda paths: Column(paths),
    "array of pyarrow": lambda paths: Arrow([str(path) for path in paths]),
    "enum of strings": lambda paths: list(Names("Names", {f"N{i}": str(path) for i, path in enumerate(paths)})),
    "polars column of bytes": lambda paths: polars_frame([path.read_bytes() for path in paths])["path"],
    "bytes": lambda paths: [path.read_bytes() for path in paths],
    "bytearrays": lambda paths: [bytearray(path.read_bytes()) for path in paths],
    "Series of bytes": lambda paths: pd.Series([path.read_bytes() for path in paths]),
    "array of bytes as objects": lambda paths: object_array([path.read_bytes() for path in paths]),
    "files in memory": lambda paths: [io.BytesIO(path.read_bytes()) for path in paths],
    "files in memory, just written": lambda paths: [written(path) for path in paths],
    "open files": lambda paths: [open(path, "rb") for path in paths],  # noqa: SIM115 - left open by users, too
    "stream without seek": lambda paths: [Stream(path.read_bytes()) for path in paths],
    "mixed": lambda paths: [str(paths[0]), paths[1].read_bytes(), io.BytesIO(paths[2].read_bytes())],
}


def as_polars(values, kind):
    polars = pytest.importorskip("polars")
    return polars.Series("path", values, dtype=getattr(polars, kind))


def written(path):
    file = io.BytesIO()
    file.write(path.read_bytes())
    return file  # its position is at the end


class Stream:
    def __init__(self, content):
        self.content = content

    def read(self):
        return self.content


@pytest.mark.parametrize("kind", PATH_KINDS)
def test__check_images__paths_of_any_kind__files_are_read(paths, kind):
    assert np.array_equal(pixels(check_images(PATH_KINDS[kind](paths))), COLOUR)


def test__check_images__polars_pixels__as_the_array():
    polars = pytest.importorskip("polars")
    column = polars.Series("image", COLOUR, dtype=polars.Array(polars.UInt8, (8, 10, 3)))
    assert np.array_equal(pixels(check_images(column)), COLOUR)
    assert np.array_equal(pixels(check_images(polars.DataFrame({"image": column}))), COLOUR)


def test__check_images__open_files__read_at_once_and_pickled(paths):
    files = [open(path, "rb") for path in paths]  # noqa: SIM115
    sequence = check_images(files)
    for file in files:
        file.close()
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(sequence))), COLOUR)


def test__fit__open_files_and_bytes__as_paths_and_again(images, tmp_path):
    X, y = images
    paths = image_files(X, tmp_path)
    files = [io.BytesIO(path.read_bytes()) for path in paths]
    classifier = toy_classifier().fit(files, y)
    expected = toy_classifier().fit(paths, y).predict_proba(paths)
    for again in (files, [path.read_bytes() for path in paths]):
        assert np.array_equal(classifier.predict_proba(again), expected)


SIXTEEN = np.arange(3 * 8 * 10 * 3, dtype=np.uint16).reshape(3, 8, 10, 3) * 91


@pytest.mark.parametrize("kind", ["array", "list", "tensor", "rows"])
def test__check_images__16_bits__divided_by_257(kind):
    X = {"array": SIXTEEN, "list": list(SIXTEEN), "rows": SIXTEEN.reshape(3, -1)}.get(kind)
    if kind == "tensor":
        X = torch.from_numpy(SIXTEEN).permute(0, 3, 1, 2)
    got = pixels(check_images(X, image_shape=(8, 10, 3) if kind == "rows" else None))
    assert np.array_equal(got, np.rint(SIXTEEN / 257).astype(np.uint8))
    assert got.max() > 200


@pytest.mark.parametrize("kind", ["array", "list", "rows"])
def test__check_images__16_bits_of_the_other_byte_order__same_pixels(kind):
    other = SIXTEEN.astype(SIXTEEN.dtype.newbyteorder())
    X = {"array": other, "list": list(other), "rows": other.reshape(3, -1)}[kind]
    got = pixels(check_images(X, image_shape=(8, 10, 3) if kind == "rows" else None))
    assert np.array_equal(got, np.rint(SIXTEEN / 257).astype(np.uint8))
    with pytest.raises(ValueError, match=r"got pixels of type >?u(int16|2) up to 255 only"):
        check_images(np.minimum(other, 255).astype(other.dtype))


@pytest.mark.parametrize("X", [np.ma.array(COLOUR, mask=COLOUR > 200), [np.ma.array(GREY[0], mask=GREY[0] > 50)]])
def test__check_images__masked_pixels__value_error(X):
    with pytest.raises(ValueError, match="must have no masked elements"):
        check_images(X)


def test__check_images__black_16_bit_image__is_black():
    assert pixels(check_images(np.zeros((2, 8, 10), np.uint16))).max() == 0


def test__check_images__12_bits_in_16__warns_in_fit_only():
    with pytest.warns(UserWarning, match=r"uint16 pixels of X reach only 4080 .*nearly black. Stretch them"):
        check_images(GREY.astype(np.uint16) // 15 * 272)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_images(GREY.astype(np.uint16) // 15 * 272, learn=False)


ROW_KINDS = {
    "array": lambda rows: rows,
    "floats": lambda rows: rows / 255,
    "list of lists": lambda rows: rows.tolist(),
    "tensor": torch.from_numpy,
    "DataFrame": pd.DataFrame,
}


@pytest.mark.parametrize("kind", ROW_KINDS)
def test__check_images__rows_with_image_shape__as_images(kind):
    rows = ROW_KINDS[kind](COLOUR.reshape(3, -1))
    assert np.array_equal(pixels(check_images(rows, image_shape=(8, 10, 3))), COLOUR)
    grey = ROW_KINDS[kind](GREY.reshape(3, -1))
    assert np.array_equal(pixels(check_images(grey, image_shape=[8, 10])), grey_as_rgb())


def test__check_images__images_of_different_sizes__each_its_own():
    sequence = check_images([COLOUR[0], COLOUR[1, :5], GREY[2, :, :4]])
    assert [image.size for image in (sequence[0], sequence[1], sequence[2])] == [(10, 8), (10, 5), (4, 8)]


def test__take__subset__same_images_in_order():
    for X in (COLOUR, list(COLOUR)):
        assert np.array_equal(pixels(check_images(X).take(np.array([2, 0]))), COLOUR[[2, 0]])


def test__image_sequence__rotated_photograph__turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(COLOUR[0]).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(check_images([tmp_path / "turned.png"])[0]), np.rot90(COLOUR[0], -1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test__image_sequence__pil_modes__become_rgb(mode):
    image = Image.fromarray(GREY[0]).convert("RGB").convert(mode)
    got = np.asarray(check_images([image])[0])
    assert got.shape == (8, 10, 3)
    if mode not in ("1", "P"):  # few colours only
        assert np.abs(got.astype(int) - grey_as_rgb()[0]).max() <= 8


# ----------------------------------------------------------------------------------------------- errors


def closed_file():
    file = io.BytesIO(b"image")
    file.close()
    return file


VALUE_ERRORS = {
    "empty list": ([], "X must have at least one image, got 0 sample"),
    "empty array": (np.zeros((0, 4, 5)), "X must have at least one image"),
    "empty frame": (pd.DataFrame({"path": []}), "X must have at least one image"),
    "rows without image_shape": (
        np.zeros((3, 80)),
        r"must have shape .*, got \(3, 80\)\. Rows of pixels need image_shape",
    ),
    "one grey image": (GREY[0], r"must have shape \(n, height, width.*, got \(8, 10\)"),
    "one colour image": (COLOUR[0], r"looks like one colour image\. Pass X\[None\]"),
    "one image as a tensor": (TENSOR[0], r"tensor of shape \(3, 8, 10\).*X\[None\] one image"),
    "grey images as a tensor": (torch.zeros(1, 8, 10), r"shape \(1, 8, 10\).*X\[:, None\] makes grey images"),
    "five axes": (np.zeros((1, 2, 8, 10, 3)), r"got \(1, 2, 8, 10, 3\)"),
    "two channels": (
        COLOUR[..., :2],
        r"must have 1, 3 or 4 channels as last axis, got 2 channels \(shape \(3, 8, 10, 2\)\)",
    ),
    "channels first": (np.moveaxis(COLOUR, -1, 1), r"as last axis, got 10 channels .*looks channels-first"),
    "channels last in a tensor": (torch.from_numpy(COLOUR), r"must have shape \(n, channels, height, width\)"),
    "five channels in one image": (
        [COLOUR[0], np.zeros((8, 10, 5))],
        r"X\[1\] must have 1, 3 or 4 channels .*, got 5 channels",
    ),
    "no pixel": (np.zeros((3, 0, 10, 3), np.uint8), "at least 1 pixel, got shape"),
    "NaN": (
        np.where(np.arange(3)[:, None, None] == 2, np.nan, GREY),
        r"X\[2\] must have finite pixels, got one that contains NaN or infinity",
    ),
    "infinity in a list": (
        [GREY[0], np.full((8, 10), np.inf)],
        r"X\[1\] must have finite pixels, got one that contains NaN or infinity",
    ),
    "negative floats": (GREY - 1.0, "float pixels from 0 to 1 or 0 to 255, got -1 to 238"),
    "standardised floats": ([GREY / 255, GREY[0] / 50 - 2], r"X\[0\]|X\[1\] must have float pixels .*, got -2"),
    "large floats": (GREY * 300.0, "float pixels from 0 to 1 or 0 to 255, got 0 to"),
    "8 bits in 16": (
        GREY.astype(np.uint16),
        r"X must use the range .* got pixels of type uint16 up to 239 only, .*X.astype\(np.uint8\) for the first",
    ),
    "8 bits in 16 in a list": ([GREY[0].astype(np.uint16)], "got pixels of type uint16 up to 79 only"),
    "32 bits": (
        GREY.astype(np.int32) * 200,
        "must have integer pixels .*, got pixels of type int32 from 0 to 47800",
    ),
    "both layouts": (
        np.zeros((2, 3, 9, 3), np.uint8),
        r"got shape \(2, 3, 9, 3\), which may be 3 x 9 pixels with 3 channels last.* 9 x 3 pixels with 3",
    ),
    "both layouts in a tensor": (
        torch.zeros(2, 1, 28, 1),
        "may be 1 x 28 pixels .* or 28 x 1 pixels with 1 channels",
    ),
    "both layouts in a list": (
        [COLOUR[0], np.zeros((4, 9, 3))],
        r"X\[1\] must have .*, got shape \(4, 9, 3\), which may be 4 x 9",
    ),
    "both layouts in a list of tensors": (
        [torch.zeros(3, 9, 4)],
        r"X\[0\] must have .*, got shape \(3, 9, 4\), which may be 3 x 9",
    ),
    "closed file": (
        [closed_file()],
        r"X\[0\] must be an open file, .*closed.* Pass its path or bytes",
    ),
    "bytes of no image": (
        [b"image"],
        r"X\[0\] \(5 bytes\) must be an image file, got .*\. Replace it or leave it out",
    ),
    "empty file": ([io.BytesIO()], r"X\[0\] \(0 bytes\) must be an image file"),
    "negative integers": (GREY.astype(int) - 5, "pixels of type int64 from -5"),
    "complex": (GREY * 1j, "pixels of type complex128"),
    "two columns": (
        pd.DataFrame({"a": ["x.png"], "b": ["y.png"]}),
        "X must have one column of paths or images, got 2 columns",
    ),
    "paths in three axes": (np.full((1, 1, 3), "a.png", object), r"one column .*, got shape \(1, 1, 3\)"),
    "missing pixels as objects": (np.full((3, 8, 10), None), r"one column .*, got shape \(3, 8, 10\)"),
    "two columns of strings": (np.array([["a.png", "b.png"]]), r"one column .*, got shape \(1, 2\)"),
    "no such file": (
        ["no_such_file.png"],
        r"X\[0\] = 'no_such_file.png' must be a file, got a path that does not exist",
    ),
    "32-bit PIL image": (
        [Image.fromarray(GREY[0].astype(np.int32))],
        r"X\[0\] must .*, got 32 bits .*mode 'I'.* Scale it",
    ),
    "float PIL image": (
        [Image.fromarray(GREY[0] / np.float32(255))],
        r"X\[0\] must .*, got 32 bits .*mode 'F'.* Scale it",
    ),
}


@pytest.mark.parametrize("kind", VALUE_ERRORS)
def test__check_images__bad_values__value_error_says_what_and_where(kind):
    X, message = VALUE_ERRORS[kind]
    with pytest.raises(ValueError, match=message):
        pixels(check_images(X))


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return TENSOR[index], index


TYPE_ERRORS = {
    "None": (None, "X must be paths, bytes or open files of images, .*, got a NoneType"),
    "number": (3, "X must be paths, .*, got a int"),
    "one path": ("image.png", r"X must be a list of images, got one str\. Pass \[X\]"),
    "one Path": (pathlib.Path("image.png"), "got one .*Path"),
    "one PIL image": (Image.fromarray(COLOUR[0]), "got one Image"),
    "dictionary": ({"image": COLOUR}, "got a dict"),
    "generator": ((image for image in COLOUR), "got a generator"),
    "dataset": (Pairs(), r"got a torch Pairs. Pass the images instead; .*image for image, label in dataset"),
    "subset": (torch.utils.data.Subset(Pairs(), [0]), "got a torch Subset"),
    "loader": (torch.utils.data.DataLoader(Pairs()), "got a torch DataLoader"),
    "missing image": ([COLOUR[0], None], r"X\[1\] must be a path, PIL image or array, got None of type NoneType"),
    "missing path": (pd.Series(["image.png", np.nan])[[1]], r"X\[0\] must be .*, got nan of type float"),
    "numbers": ([1, 2], r"X\[0\] must be .*, got 1 of type int"),
    "the bytes of one image": (b"image", r"got one bytes\. Pass \[X\]"),
    "one open file": (io.BytesIO(b"image"), r"got one BytesIO\. Pass \[X\]"),
    "file of text": (
        [io.StringIO("image")],
        r"X\[0\] must be a file that gives bytes, got str. Open it in binary mode",
    ),
    "array of bytes": (
        np.array([b"image"]),
        r"list of bytes, got an array of \|S5, which cuts zeros off the end",
    ),
    "dictionaries": ([{"image": COLOUR[0]}], "of type dict"),
    "ragged lists": ([[[1, 2], [3]]], r"X\[0\] must have rows of equal length, got a list that is no array"),
}


@pytest.mark.parametrize("kind", TYPE_ERRORS)
def test__check_images__bad_types__type_error_says_what_is_wanted(kind):
    X, message = TYPE_ERRORS[kind]
    with pytest.raises(TypeError, match=message):
        check_images(X)


@pytest.mark.parametrize(
    ("image_shape", "message"),
    [
        ((8, 11), r"X must have shape \(n, 88\) for image_shape=\(8, 11\), got \(3, 240\)"),
        ((240,), r"image_shape must be \(height, width\) or \(height, width, channels\)"),
        ((-8, -10, 3), r"must be \(height, width\)"),
        ((8.0, 10, 3), r"must be \(height, width\)"),
        ("ab", r"must be \(height, width\)"),
        ((8, 6, 5), "5 channels"),
        ((80, 3), r"image_shape must .* \(80, 3, 1\) for grey ones of width 3"),
    ],
)
def test__check_images__image_shape_that_does_not_fit__value_error(image_shape, message):
    with pytest.raises(ValueError, match=message):
        check_images(COLOUR.reshape(3, -1), image_shape=image_shape)


def test__check_images__four_axes_with_image_shape__value_error():
    with pytest.raises(ValueError, match=r"shape \(n, 240\) for image_shape=\(8, 10, 3\), got \(3, 8, 10, 3\)"):
        check_images(COLOUR, image_shape=(8, 10, 3))


def test__image_sequence__unreadable_file__value_error_names_index_and_path(paths, tmp_path):
    paths[1].write_bytes(b"this is no image")
    with pytest.raises(ValueError, match=r"X\[1\] = '.*image1.png' must be an image file"):
        pixels(check_images(paths))


def test__image_sequence__truncated_file__value_error_names_index_and_path(paths):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(paths[2])
    paths[2].write_bytes(paths[2].read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"X\[2\] = '.*image2.png' must be an image file"):
        pixels(check_images(paths))


def test__image_sequence__directory__value_error(tmp_path):
    with pytest.raises(ValueError, match=r"X\[0\] = .* must be a file, got a folder\. Pass the files in it"):
        check_images([tmp_path])


def test__image_sequence__file_gone_after_the_check__value_error(paths):
    sequence = check_images(paths)
    paths[0].unlink()
    with pytest.raises(ValueError, match=r"X\[0\] = '.*image0.png' must be a file, got a path that does not exist"):
        sequence[0]


def test__take__unreadable_file__index_of_the_users_x(paths):
    paths[2].write_bytes(b"this is no image")
    with pytest.raises(ValueError, match=r"X\[2\] = '.*image2.png'"):
        check_images(paths).take([0, 2])[1]


# ---------------------------------------------------------------------------------------- float scales


def test__float_scale__learned__one_only_if_no_pixel_exceeds_it():
    assert check_images(COLOUR / 255).float_scale == 1
    assert check_images(COLOUR.astype(float)).float_scale == 255
    assert check_images([COLOUR[0] / 255, COLOUR[1] * 1.0]).float_scale == 255
    assert check_images(COLOUR).float_scale is None


def test__float_scale__dark_images_later__read_on_the_scale_of_the_fit():
    dark = np.full((1, 8, 10, 3), 1.0)
    assert np.asarray(check_images(dark, float_scale=255)[0]).max() == 1
    assert np.asarray(check_images(dark, float_scale=1)[0]).max() == 255


@pytest.mark.parametrize("scale", [1, 255])
def test__predict__float_images__as_the_same_uint8_images(images, scale):
    X, y = images
    classifier = toy_classifier().fit(X / 255 * scale, y)
    assert np.array_equal(classifier.predict_proba(X / 255 * scale), classifier.predict_proba(X))


def test__predict__other_float_scale__value_error_names_the_index(images):
    X, y = images
    classifier = toy_classifier().fit(X / 255, y)
    with pytest.raises(ValueError, match=r"X\[0\] must have float pixels from 0 to 1 as in fit, got .* Use one"):
        classifier.predict(X.astype(float))


def test__predict__floats_after_a_fit_on_bytes__same_predictions(images):
    X, y = images
    classifier = toy_classifier().fit(X, y)
    assert np.array_equal(classifier.predict_proba(X / 255), classifier.predict_proba(X))
