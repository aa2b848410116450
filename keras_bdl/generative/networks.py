"""Encoders and decoders for vectors and images."""

import math

import keras

from keras_bdl import losses
from keras_bdl.core import validation


def output_shape(input_shape, observation, num_levels=None):
    """Returns the shape of a decoder's outputs for data of `input_shape`.

    Raises:
        TypeError: if `input_shape` is not a tuple.
        ValueError: if a categorical likelihood has no `num_levels`.
    """
    if not isinstance(input_shape, (list, tuple)) or not input_shape:
        raise TypeError(
            "Expected `input_shape` to be a tuple, the shape of one example. "
            f"Received: input_shape={input_shape!r}"
        )
    shape = tuple(validation.integer("input_shape", n, least=1) for n in input_shape)
    if observation.is_categorical:
        if num_levels is None:
            raise ValueError(
                "A categorical likelihood needs `num_levels`, the number of values "
                "that x can have. Received: num_levels=None"
            )
        return (*shape, validation.integer("num_levels", num_levels, least=2))
    return (*shape[:-1], observation.num_parameters * shape[-1])


def check_num_inputs(name, network, count):
    """Refuses a network that is known to have another number of inputs.

    Raises:
        ValueError: on such a network.
    """
    inputs = getattr(network, "inputs", None)
    if inputs is not None and len(inputs) != count:
        raise ValueError(
            f"Expected `{name}` to be a model of as many inputs as the class needs: "
            f"{count}. Received: a model of {len(inputs)} inputs"
        )


def code_shapes(outputs):
    """Returns the shape of an encoder's symbolic outputs, or a pair of shapes.

    Raises:
        ValueError: if they are neither one tensor `(n, 2 d)` nor two `(n, d)`.
    """
    is_pair = isinstance(outputs, (list, tuple)) and len(outputs) == 2
    parts = outputs if is_pair else [outputs]
    if not all(hasattr(part, "shape") and len(part.shape) == 2 for part in parts):
        raise ValueError(
            "Expected an encoder with one output `(n, 2 d)`, d means and then d log "
            "standard deviations of the code, or two `(n, d)`. "
            f"Received: {_described(outputs)}"
        )
    return keras.tree.map_structure(lambda part: tuple(part.shape), outputs)


def check_classifier(outputs):
    """Returns the number of classes of a classifier's symbolic outputs.

    Raises:
        ValueError: if they are not one tensor `(n, classes)` of 2 or more classes.
    """
    if not hasattr(outputs, "shape") or len(outputs.shape) != 2:
        raise ValueError(
            "Expected a classifier with one output, logits `(n, classes)`. "
            f"Received: {_described(outputs)}"
        )
    losses.check_logits(outputs.shape[-1])
    return outputs.shape[-1]


def _described(outputs):
    """Describes symbolic outputs for an error message."""
    shapes = keras.tree.map_structure(lambda part: tuple(part.shape), outputs)
    if hasattr(outputs, "shape"):
        return f"an output of shape {shapes}"
    return f"{len(outputs)} outputs ({type(outputs).__name__}) of shapes {shapes}"


def check_outputs(outputs, x, observation):
    """Refuses a decoder whose symbolic outputs do not fit data of shape `(n, ...)`.

    Raises:
        ValueError: on such outputs.
    """
    if not hasattr(outputs, "shape"):
        raise ValueError(
            "Expected a decoder with one output; join the parameters of each value by "
            "`keras.layers.Concatenate`, in the order that the likelihood has. "
            f"Received: {_described(outputs)}"
        )
    outputs, x = tuple(outputs.shape)[1:], tuple(x)[1:]
    if observation.is_categorical:
        expected, fits = (*x, "levels"), outputs[:-1] == x
    else:
        expected = (*x[:-1], observation.num_parameters * x[-1])
        fits = outputs == expected
    if not fits:
        raise ValueError(
            f"Expected a decoder with outputs of shape {expected} for data of shape "
            f"{x} and {type(observation.loss).__name__}. "
            f"Received: outputs of shape {outputs}"
        )


def _widths(name, widths, least):
    """Returns widths of layers as a tuple of at least `least` integers.

    Raises:
        TypeError, ValueError: on other values.
    """
    is_sequence = hasattr(widths, "__iter__")
    if not is_sequence or isinstance(widths, (str, bytes, dict, set)):
        raise TypeError(
            f"Expected `{name}` to be a tuple of integers, the width of each layer, "
            f"such as (64,) for one. Received: {name}={widths!r}"
        )
    widths = tuple(validation.integer(name, n, least=1) for n in widths)
    if len(widths) < least:
        raise ValueError(
            f"Expected `{name}` to have the width of at least one layer. "
            f"Received: {name}={widths!r}"
        )
    return widths


def _check_hidden(latent_dim, activation):
    """Refuses a wrong size of the code or a wrong activation.

    Raises:
        TypeError, ValueError: on such a value.
    """
    validation.integer("latent_dim", latent_dim, 1, 10**6)
    try:
        keras.activations.get(activation)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Expected `activation` to be a function, a layer or a name that Keras "
            f"knows. Received: activation={activation!r}"
        ) from error


def dense(input_shape, outputs_shape, latent_dim, hidden, activation):
    """Makes an encoder and a decoder of dense layers; the decoder mirrors the encoder.

    Raises:
        TypeError, ValueError: on a wrong argument.
    """
    hidden = _widths("hidden", hidden, least=0)
    _check_hidden(latent_dim, activation)
    encoder = keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            *(keras.layers.Dense(n, activation=activation) for n in hidden),
            keras.layers.Dense(2 * latent_dim),
        ],
        name="encoder",
    )
    decoder = keras.Sequential(
        [
            keras.Input((latent_dim,)),
            *(keras.layers.Dense(n, activation=activation) for n in hidden[::-1]),
            keras.layers.Dense(math.prod(outputs_shape)),
            keras.layers.Reshape(outputs_shape),
        ],
        name="decoder",
    )
    return encoder, decoder


def convolutional(input_shape, outputs_shape, latent_dim, filters, activation):
    """Makes an encoder and a decoder of convolutions on channels-last images.

    The convolutions have stride 2.

    Raises:
        TypeError, ValueError: on a wrong argument, if the data are not images, or if
            the configuration is channels-first.
    """
    filters = _widths("filters", filters, least=1)
    _check_hidden(latent_dim, activation)
    if len(input_shape) != 3 or len(outputs_shape) != 3:
        raise ValueError(
            "Expected images `(height, width, channels)` and a likelihood without an "
            "axis of its own. Received: shapes of input and output "
            f"{tuple(input_shape)}, {tuple(outputs_shape)}"
        )
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "`VAE.convolutional` makes channels-last networks. "
            "Received: image_data_format='channels_first'"
        )
    height, width = input_shape[:2]
    factor = 2 ** len(filters)
    small = (-(-height // factor), -(-width // factor))
    options = {"strides": 2, "padding": "same", "activation": activation}
    encoder = keras.Sequential(
        [
            keras.Input(input_shape),
            *(keras.layers.Conv2D(n, 3, **options) for n in filters),
            keras.layers.Flatten(),
            keras.layers.Dense(2 * latent_dim),
        ],
        name="encoder",
    )
    spare = (small[0] * factor - height, small[1] * factor - width)
    crop = [(n // 2, n - n // 2) for n in spare]
    decoder = keras.Sequential(
        [
            keras.Input((latent_dim,)),
            keras.layers.Dense(math.prod(small) * filters[-1], activation=activation),
            keras.layers.Reshape((*small, filters[-1])),
            *(keras.layers.Conv2DTranspose(n, 3, **options) for n in filters[::-1]),
            keras.layers.Conv2D(outputs_shape[-1], 3, padding="same"),
            keras.layers.Cropping2D(crop),
        ],
        name="decoder",
    )
    return encoder, decoder


def dense_with_classes(
    input_shape, outputs_shape, latent_dim, num_classes, hidden, activation
):
    """Makes a classifier, an encoder and a decoder of dense layers.

    Encoder and decoder also take the class.

    Raises:
        TypeError, ValueError: on a wrong argument.
    """
    hidden = _widths("hidden", hidden, least=0)
    _check_hidden(latent_dim, activation)

    def stack(x, widths, outputs):
        for width in widths:
            x = keras.layers.Dense(width, activation=activation)(x)
        return keras.layers.Dense(outputs)(x)

    def join(*parts):
        return keras.layers.Concatenate()([keras.layers.Flatten()(p) for p in parts])

    x, y = keras.Input(input_shape), keras.Input((num_classes,))
    z = keras.Input((latent_dim,))
    logits = stack(keras.layers.Flatten()(x), hidden, num_classes)
    code = stack(join(x, y), hidden, 2 * latent_dim)
    outputs = stack(join(z, y), hidden[::-1], math.prod(outputs_shape))
    outputs = keras.layers.Reshape(outputs_shape)(outputs)
    return (
        keras.Model(x, logits, name="classifier"),
        keras.Model([x, y], code, name="encoder"),
        keras.Model([z, y], outputs, name="decoder"),
    )
