"""Checks of data before training, and initialization by the mean of the data."""

import keras
import numpy as np
from keras import ops

from keras_bdl.core import dtypes
from keras_bdl.generative import observations
from keras_bdl.graphs import heads
from keras_bdl.training.data import num_training_rows

# The most rows that are read of a data set that is not an array; more add little.
_MOST_ROWS = 10_000
_CHUNK = 1000
# The number of codes that show whether a decoder gives probabilities.
_NUM_CODES = 64

# After these operations the bias of a layer is not in the order of the outputs.
_REORDERS = ("Permute", "Transpose", "RepeatVector")


def check(vae, x):
    """Refuses data that are NaN, infinite, of another shape or out of range.

    It checks all of an array, and the first batches of a data set.

    Raises:
        TypeError, ValueError: on such data.
    """
    check_shape(vae, x)
    for rows in _chunks(vae, x):
        vae.observation.check(rows)
        if vae.observation.is_categorical and vae.built:
            vae.observation.check_levels(rows, vae.decoded_shape[-1])


def check_shape(vae, x):
    """Refuses arrays of another shape or kind, and values that are not data.

    Raises:
        TypeError, ValueError: on such a value.
    """
    if x is None or isinstance(x, (set, frozenset, str, bytes, int, float)):
        _refuse_data(x)
    if not hasattr(x, "shape"):
        return
    if not x.shape or x.shape[0] == 0:
        raise ValueError(
            "Expected x with rows, `(n, ...)`, n at least 1. "
            f"Received: x of shape {tuple(x.shape)}"
        )
    dtype = str(getattr(x, "dtype", ""))
    if "complex" in dtype:
        raise TypeError(
            "Expected x to be an array of real numbers `(n, ...)`. "
            f"Received: x of dtype {dtype}"
        )
    expected = getattr(vae, "example_shape", None)  # known once the model is built
    if expected is not None:
        shape = tuple(x.shape[1:])
        fits = [a in (b, None) for a, b in zip(expected, shape)]
        if len(shape) != len(expected) or not all(fits):
            raise ValueError(
                f"Expected x of shape {('n', *expected)}, as the model was built. "
                f"Received: x of shape {tuple(x.shape)}"
            )


def _refuse_data(x):
    raise TypeError(
        "Expected x to be one array `(n, ...)` or a data set. "
        f"Received: x of type {type(x).__name__}"
    )


def check_decoder(model):
    """Refuses outputs that look like probabilities where logits are expected.

    Only values show it if a decoder has no graph or averages sigmoids.

    Args:
        model: built generative model. Its decoder takes codes, or codes and one-hot
            classes if the model has `num_classes`.

    Raises:
        ValueError: on such outputs.
    """
    takes_logits = isinstance(model.observation, observations.LogitsObservation)
    if not takes_logits or model.observation.activation != heads.LINEAR:
        return
    codes = np.random.default_rng(0).normal(
        size=(_NUM_CODES, model.latent.prior.latent_dim)
    )
    codes = codes.astype("float32")
    num_classes = getattr(model, "num_classes", None)
    if num_classes is not None:
        classes = np.arange(_NUM_CODES) % num_classes
        codes = [codes, np.eye(num_classes, dtype="float32")[classes]]
    outputs = ops.convert_to_numpy(dtypes.wide(model.decoder(codes, training=False)))
    if model.observation.looks_like_probabilities(outputs):
        raise ValueError(
            "Expected `decoder` to give logits. Its outputs for "
            f"{_NUM_CODES} random codes all look like probabilities, so that their "
            "link would be applied twice; remove its last activation. "
            f"Received: decoder={model.decoder.name!r}, with outputs from "
            f"{outputs.min():.3g} to {outputs.max():.3g}"
        )


def start(vae, x, extent):
    """Sets pseudo-inputs, and the decoder's last bias if it is zero, by the data.

    `extent` has the options of `fit` that determine the training rows.
    """
    if hasattr(x, "shape"):
        x = x[: num_training_rows(len(x), **extent)]
    chunks = [chunk for chunk in _chunks(vae, x, training=True)]
    if not chunks:
        return
    rows = np.concatenate(chunks)
    if not vae.built:
        vae.build((None, *_first_batch(x).shape[1:]))
    check_decoder(vae)
    vae.latent.prior.start(rows)
    _start_bias(vae, rows)


def _start_bias(vae, rows):
    layer = _last_layer(vae.decoder)
    if layer is None or np.any(ops.convert_to_numpy(layer.bias)):
        return
    values = rows.reshape(len(rows), -1)
    if np.prod(layer.bias.shape) != np.prod(vae.decoded_shape[1:]):
        values = rows.reshape(-1, rows.shape[-1])  # a bias for each channel
        if layer.bias.shape[0] != vae.decoded_shape[-1]:
            return
    elif vae.observation.num_parameters > 1:
        values = rows.reshape(len(rows), *rows.shape[1:])
    bias = vae.observation.bias(values.mean(axis=0), values.var(axis=0))
    if bias is not None:
        layer.bias.assign(np.reshape(bias, layer.bias.shape))


def _last_layer(decoder):
    """Returns the layer that gives the decoder's outputs if it has a bias, or None."""
    head = heads.find(decoder)
    if head is None or any(type(x).__name__ in _REORDERS for x in head.behind):
        return None
    bias = getattr(head.layer, "bias", None)  # in a user's layer it may be anything
    return head.layer if isinstance(bias, keras.Variable) else None


def _chunks(vae, x, training=False):
    """Yields preprocessed rows of the data as NumPy arrays, but none of a generator."""
    if hasattr(x, "shape"):
        x = np.asarray(x) if not hasattr(x, "numpy") else ops.convert_to_numpy(x)
        if x.dtype.kind not in "biuf" or x.ndim < 2:
            raise TypeError(
                "Expected x to be an array of numbers `(n, ...)`. "
                f"Received: x of dtype {x.dtype}, shape {x.shape}"
            )
        vae.observation.check_finite(x)
        batches = (x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK))
        left = len(x)
    elif isinstance(x, keras.utils.PyDataset) or hasattr(x, "__next__"):
        batches = [_first_batch(x)] if isinstance(x, keras.utils.PyDataset) else []
        left = _MOST_ROWS
    elif hasattr(x, "__iter__") and not isinstance(x, (list, tuple, dict, str)):
        batches, left = map(_first, x), _MOST_ROWS
    else:
        _refuse_data(x)
    for batch in batches:
        yield ops.convert_to_numpy(vae.preprocess(batch, training=training))
        left -= len(batch)
        if left <= 0:
            return


def _first_batch(x):
    if hasattr(x, "shape"):
        return x
    if isinstance(x, keras.utils.PyDataset):
        return _first(x[0])
    return _first(next(iter(x)))


def _first(batch):
    return batch[0] if isinstance(batch, (list, tuple)) else batch
