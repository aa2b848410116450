"""Data of the examples: digits, the same rotated, and letters. No network needed.

Images are float32 `(n, size, size, 1)` in [0, 1], bright on dark.
"""

import pathlib

import numpy as np
from scipy import ndimage

DATASETS = ("digits", "mnist")

# Letters in shapes that no digit has. Left out for their likeness: O o Q D C G U
# (0), I i J j L l T t (1, 7), Z z (2), S s (5), b (6), B (8), P g q (9), Y y (4)
# and a c d e f p u, which small pictures blur into 0, 6 and 9.
LETTERS = "AEFHKMNRVWXhkmnvwx"

# Files that come with matplotlib, so that all machines draw the same letters.
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
)

# Pixels that a digit covers, by image size: the letters are drawn as large.
_GLYPH_SIZES = {8: 8.0, 28: 20.0}
_SUPERSAMPLING = 8


def load(name, data_dir=None):
    """Training and test set: `(x_train, y_train), (x_test, y_test)`.

    Args:
        name: "digits", the 1797 images of 8x8 pixels in scikit-learn, split 75/25
            by classes and always alike; or "mnist", 70,000 of 28x28, from
            tensorflow_datasets.
        data_dir: where tensorflow_datasets keeps MNIST; None is its own default,
            the environment variable TFDS_DATA_DIR.

    Returns:
        Images float32 `(n, size, size, 1)` in [0, 1] and labels int32 `(n,)`.

    Raises:
        FileNotFoundError: if MNIST is not on this machine.
    """
    if name == "digits":
        return _load_digits()
    if name == "mnist":
        return _load_mnist(data_dir)
    raise ValueError(
        f"Expected `name` to be one of {DATASETS}. Received: name={name!r}"
    )


def _load_digits():
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = (digits.images[..., np.newaxis] / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        images,
        digits.target.astype("int32"),
        test_size=0.25,
        random_state=0,
        stratify=digits.target,
    )
    return (x_train, y_train), (x_test, y_test)


def _load_mnist(data_dir):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "MNIST is read by tensorflow_datasets: `pip install tensorflow "
            "tensorflow-datasets`, or take `--dataset digits`."
        ) from error

    def split(name):
        images, labels = tfds.as_numpy(
            tfds.load(
                "mnist",
                split=name,
                data_dir=data_dir,
                batch_size=-1,
                as_supervised=True,
                download=False,
            )
        )
        return images.astype("float32") / 255.0, labels.astype("int32")

    try:
        return split("train"), split("test")
    except (AssertionError, FileNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            "MNIST is not prepared on this machine. Download it once, "
            "`python -c \"import tensorflow_datasets as tfds; tfds.load('mnist')\"`, "
            "or say where it is with `--data-dir` or TFDS_DATA_DIR, or take "
            f"`--dataset digits`, which needs none. Received: data_dir={data_dir!r}"
        ) from error


def rotate(images, degrees):
    """Images turned counter-clockwise about their centre; corners are cut off.

    Args:
        images: `(n, size, size, 1)` in [0, 1].
        degrees: float.
    """
    turned = ndimage.rotate(images, degrees, axes=(2, 1), reshape=False, order=3)
    return np.clip(turned, 0.0, 1.0)  # cubic interpolation overshoots


def distort_half(images, seed):
    """Every second image turned by up to 60 degrees and shifted by up to a seventh.

    Args:
        images: `(n, size, size, 1)` in [0, 1].
        seed: integer.
    """
    rng = np.random.default_rng(seed)
    images = images.copy()
    centre = (images.shape[1] - 1) / 2
    for index in range(1, len(images), 2):
        angle = np.deg2rad(rng.uniform(-60.0, 60.0))
        shift = rng.uniform(-1.0, 1.0, size=2) * images.shape[1] / 7
        turn = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        offset = centre - turn @ (centre + shift)
        images[index, ..., 0] = ndimage.affine_transform(
            images[index, ..., 0], turn, offset, order=1
        )
    return images


def letters(image_size, count, seed):
    """Pictures of the letters in `LETTERS`, as large as the digits.

    Fonts, sizes (75 % to 100 % of a digit's) and shifts (up to 7 % of the image)
    are random.

    Args:
        image_size: pixels, 8 or 28.
        count: number of pictures.
        seed: integer.

    Returns:
        float32 `(count, image_size, image_size, 1)` in [0, 1].
    """
    from matplotlib import font_manager, get_data_path, textpath

    rng = np.random.default_rng(seed)
    folder = pathlib.Path(get_data_path()) / "fonts" / "ttf"
    fonts = [
        font_manager.FontProperties(fname=folder / f"{name}.ttf") for name in FONTS
    ]
    images = np.empty((count, image_size, image_size, 1), "float32")
    for index in range(count):
        letter = rng.choice(list(LETTERS))
        outline = textpath.TextPath((0, 0), letter, prop=fonts[rng.choice(len(fonts))])
        height = _GLYPH_SIZES[image_size] * rng.uniform(0.75, 1.0)
        shift = rng.uniform(-0.07, 0.07, size=2) * image_size
        images[index, ..., 0] = _draw(outline, image_size, height, shift)
    return images


def _draw(outline, image_size, glyph_size, shift):
    """An outline filled in white, its longer side `glyph_size` pixels."""
    from matplotlib import patches, transforms
    from matplotlib.backends import backend_agg
    from matplotlib.figure import Figure

    box = outline.get_extents()
    scale = glyph_size / max(box.width, box.height)
    centre = image_size / 2 + shift
    place = (
        transforms.Affine2D()
        .translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
        .scale(scale)
        .translate(*centre)
        .scale(_SUPERSAMPLING)
    )
    pixels = image_size * _SUPERSAMPLING
    figure = Figure(figsize=(1, 1), dpi=pixels, facecolor="black")
    canvas = backend_agg.FigureCanvasAgg(figure)
    figure.add_artist(
        patches.PathPatch(outline, transform=place, color="white", linewidth=0)
    )
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., 0] / 255.0
    blocks = picture.reshape(image_size, _SUPERSAMPLING, image_size, _SUPERSAMPLING)
    return blocks.mean(axis=(1, 3))
