"""Exports a SavedModel that computes the posterior predictive without Keras."""

import functools
import os

import keras
from keras import ops

from keras_bdl.core import finding, validation
from keras_bdl.prediction.predict import resolve_outputs
from keras_bdl.prediction.sampler import make_sampler, sample_count


def export(
    model: keras.Model,
    filepath: str | os.PathLike,
    num_samples: int | None = None,
    *,
    outputs: str = "auto",
    mc_dropout: bool = False,
    freeze: bool = False,
    verbose: bool | None = None,
) -> None:
    """Writes a TensorFlow SavedModel with endpoints for mean and predictive.

    The SavedModel needs neither Keras nor keras_bdl. It runs with
    `tf.saved_model.load(filepath)` and `saved_model_cli run`, and takes any number of
    rows.

    The endpoints take the inputs `x` (several inputs are given by their names):

    - `serve` returns `model(x)`, the outputs of the posterior-mean network.
    - `predictive` returns a dict of the posterior predictive. It draws fresh noise in
      every call, also under threads. The keys are

      - for classification `probabilities`, and in nats `predictive_entropy`,
        `expected_entropy` and `mutual_information`;
      - for regression `mean`, `epistemic_stddev` and, if the model predicts noise,
        `aleatoric_stddev`;
      - for a `BayesianRegressor` the fields of its `predict_uncertainty`;
      - for outputs of an unknown kind `mean`, or for several outputs
        `mean_<name or index>`.
    - `predictive_seeded` returns the same, and takes an integer `seed` as its second
      argument. The same seed gives the same answer.

    Args:
        model: built Keras model with at least one sampled layer, or a keras_bdl
            classifier or regressor.
        filepath: folder to write.
        num_samples: positive integer S, number of posterior samples per answer, or
            None for 32, or for all members of an ensemble.
        outputs, mc_dropout: as in `keras_bdl.predict`.
        freeze: whether to store the weights as constants of the graphs. This makes
            small calls faster, most of all with early exits, whose branches then have
            fewer inputs. But the file holds the weights once for every endpoint, and
            its size is limited to 2 GB.
        verbose: as in `keras.Model.export`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if the backend is not TensorFlow, nothing is sampled, the model is
            not built, or an argument is wrong.

    Example:

    >>> keras_bdl.export(model, "served", num_samples=32)
    >>> served = tf.saved_model.load("served")
    >>> served.predictive(x)["mutual_information"]
    >>> served.predictive_seeded(x, tf.constant(1))
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            "A SavedModel that samples is written on the TensorFlow backend; save the "
            "model by `model.save`, and load and export it there. "
            f"Received: backend={backend!r}"
        )
    freeze = validation.boolean("freeze", freeze)
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `model` to be a Keras model. Received: model={model!r}"
        )
    num_samples = sample_count(model, num_samples)
    from keras_bdl.interop import tensorflow

    signature = input_signature(model)
    if hasattr(model, "make_predictive"):
        predict = model.make_predictive(num_samples)
    else:
        predict = _predictive(model, num_samples, outputs, mc_dropout)
    weights = float_weights(model) if freeze else []
    archive = keras.export.ExportArchive()
    if any(hasattr(layer, "save_assets") for layer in finding.flatten_layers(model)):
        archive.track(model)  # for vocabularies, which are not variables
    for name, function, arguments in endpoints(model, predict, signature):
        if freeze:
            function = frozen(function, weights)
        archive.add_endpoint(name, function, input_signature=arguments)
    tensorflow.write_saved_model(archive, filepath, verbose)


def float_weights(model):
    """Returns pairs of a float variable and its value as a NumPy array.

    The integer state of random generators is left out.
    """
    return [
        (variable, ops.convert_to_numpy(variable))
        for variable in model.variables
        if keras.backend.is_float_dtype(variable.dtype)
    ]


def frozen(function, weights):
    """Wraps a function so that its graph has `float_weights` as constants."""

    @functools.wraps(function)  # keeps the names of the inputs
    def run(*args):
        with keras.StatelessScope(state_mapping=weights):
            return function(*args)

    return run


def endpoints(model, predict, signature):
    """Returns triples of a name, a function and the signature of its arguments.

    Args:
        model: Keras model.
        predict: function of inputs and a seed.
        signature: list with the specs of the (nested) inputs.
    """
    from keras_bdl.interop import tensorflow

    def serve(x):
        return model(x, training=False)

    def predictive(x):
        return predict(x, tensorflow.fresh_seed())

    seed = keras.InputSpec(dtype="int32", shape=(), name="seed")
    return (
        ("serve", serve, signature),
        ("predictive", predictive, signature),
        ("predictive_seeded", predict, [*signature, seed]),
    )


def _predictive(model, num_samples, outputs, mc_dropout):
    """Returns a function of inputs and a seed that gives the predictive as a dict."""
    kind = resolve_outputs(model, outputs)
    single = len(keras.tree.flatten(getattr(model, "outputs", None) or [None])) == 1
    reduction = "uncertainty" if kind is not None and single else "mean"
    sampler = make_sampler(model, num_samples, reduction, kind, mc_dropout)

    def predict(x, seed):
        result = sampler.sample(x, seed)
        return result if reduction == "uncertainty" else _named(result)

    return predict


def _named(outputs):
    """Returns means as a flat dict, because a signature can return no other nest."""
    if isinstance(outputs, dict):
        return {f"mean_{name}": output for name, output in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return {f"mean_{index}": output for index, output in enumerate(outputs)}
    return {"mean": outputs}


def mark_called(model):
    """Calls a model symbolically.

    Keras cannot export a model that was loaded and not called since.
    """
    if model.built:
        (inputs,) = input_signature(model)
        model(
            keras.tree.map_structure(
                lambda spec: keras.Input(batch_shape=spec.shape, dtype=spec.dtype),
                inputs,
            )
        )


def input_signature(model):
    """Returns the model's inputs as a list of one nest of `keras.InputSpec`.

    Raises:
        ValueError: if the model does not know their shapes.
    """
    network = finding.described(getattr(model, "sampled_network", model))
    if finding.is_graph(network):
        inputs = finding.graph_input(network)
        name = "x" if isinstance(inputs, keras.KerasTensor) else None
        return [keras.tree.map_structure(lambda t: _spec(t, name), inputs)]
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise ValueError(
            "Expected a model that knows the shape of its inputs; call it on a batch, "
            f"or `model.build(input_shape)`. Received: model={model.name!r}"
        )
    return [
        keras.tree.map_shape_structure(
            lambda shape: keras.InputSpec(dtype="float32", shape=(None, *shape[1:])),
            shapes,
        )
    ]


def _spec(tensor, name):
    return keras.InputSpec(
        dtype=tensor.dtype, shape=(None, *tensor.shape[1:]), name=name or tensor.name
    )
