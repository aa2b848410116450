"""What is expected of a program: one function for each column of the table."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import tempfile
import warnings

import keras
import numpy as np

import keras_bdl
from keras_bdl.layers.bayesian import bayesian_layers
from programs.registry import PROGRAMS, Program

BACKEND = keras.backend.backend()
NUM_SAMPLES = 4


class NotApplicable(Exception):
    """Raised by a column that says nothing of a program."""


@dataclasses.dataclass
class Run:
    """A program on its way through the columns.

    Attributes:
        name: name of the program.
        program: the program, whose model the first column trains.
        bayesian: its model as a Bayesian one, from the second column on.
        share: share of the trainable numbers that have a posterior.
        statistics: names of the variables that move in training without a gradient.
        errors: by column, the exception that it raised, or None.
    """

    name: str
    program: Program | None = None
    bayesian: keras.Model | None = None
    share: float | None = None
    statistics: collections.Counter | None = None
    errors: dict = dataclasses.field(default_factory=dict)


def columns(name):
    """Returns the finished `Run` of a program. It raises no exception of a column."""
    run = Run(name)
    for column in COLUMNS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                column(run)
        except NotApplicable:
            continue
        except Exception as error:
            error.add_note(f"Raised by the column '{column.__name__}' of '{name}'.")
            run.errors[column.__name__] = error
            if column in (plain, converts):
                break  # the others need the models
        else:
            run.errors[column.__name__] = None
    return run


# The columns


def plain(run):
    """The plain model runs and trains."""
    run.program = PROGRAMS[run.name]()
    with eagerly():
        run.statistics = train(run.program.model, run.program)


def converts(run):
    """`to_bayesian` keeps what the trained model computes."""
    run.bayesian, report = converted(run.program, return_report=True)
    assert report.replaced
    check_equal(run.bayesian, run.program.model, run.program)


def share(run):
    """Nearly all of what the plain model trains has a posterior."""
    posteriors = {id(x.posterior): x.posterior for x in bayesian_layers(run.bayesian)}
    shapes = [shape for x in posteriors.values() for shape in x.shapes.values()]
    sampled = sum(int(np.prod(shape)) for shape in shapes)
    trainable = run.program.model.trainable_variables
    run.share = sampled / sum(int(np.prod(v.shape)) for v in trainable)
    assert run.program.least_share <= run.share <= 1.0, f"share {run.share:.2f}"


def fit(run):
    """The Bayesian model trains, and so do its statistics of batches."""
    moved = train(run.bayesian, run.program)
    missing = run.statistics - moved
    assert not missing, f"still: {dict(missing)}"


def samples(run):
    """Draws differ and are repeated by their seed, and narrow ones are the mean."""
    first, again = drawn(run.bayesian, run.program), drawn(run.bayesian, run.program)
    other = drawn(run.bayesian, run.program, seed=1)
    for draws, same, different in zip(first, again, other, strict=True):
        assert draws.shape[:2] == (NUM_SAMPLES, run.program.num_rows)
        np.testing.assert_allclose(draws, same, rtol=1e-5, atol=1e-6)
        assert np.isfinite(draws).all()
        assert differ(draws[0], draws[1]), "equal draws"
        assert differ(draws, different), "equal draws of different seeds"
    narrow = converted(run.program, initial_log_stddev=-20.0)
    expected = outputs_of(run.program.model, run.program)
    with eagerly():
        first = drawn(narrow, run.program)
    for draws, mean in zip(first, expected, strict=True):
        atol = 10.0 * run.program.atol
        np.testing.assert_allclose(draws, np.stack([mean] * 4), rtol=1e-3, atol=atol)


def uncertainty(run):
    """The uncertainty of models of one output is finite, and that of weights seen."""
    if len(outputs_of(run.bayesian, run.program)) > 1:
        raise NotApplicable
    with eagerly():
        result = keras_bdl.predict_uncertainty(
            run.bayesian,
            run.program.x,
            NUM_SAMPLES,
            seed=0,
            outputs=run.program.outputs,
            verbose=0,
        )
    values = [value for value in result if value is not None]
    assert all(np.isfinite(value).all() for value in values)
    assert all(len(value) == run.program.num_rows for value in values)
    assert np.max(result[-1]) > 0.0


def saves(run):
    """A saved model, or a converted one that loads the weights, draws the same."""
    if run.program.has_config:
        loaded = check_loaded(run.bayesian, run.program)
    else:
        loaded = with_weights_of(run.bayesian, converted(PROGRAMS[run.name]()))
        check_equal(loaded, run.bayesian, run.program)
    expected = drawn(run.bayesian, run.program)
    with eagerly():
        again = drawn(loaded, run.program)
    for draws, same in zip(expected, again, strict=True):
        atol = run.program.atol
        np.testing.assert_allclose(same, draws, rtol=1e-4, atol=atol)


def clones(run):
    """A clone has the same layers, and computes the same with the same weights."""
    if not can_be_cloned(run.program):
        raise NotApplicable
    check_clone(run.bayesian, run.program)


def exports(run):
    """The SavedModel of TensorFlow gives what the model gives."""
    if not can_be_exported(run.program):
        raise NotApplicable
    check_export(run.bayesian, run.program)


def to_keras(run):
    """The plain model of the means computes what the Bayesian one does."""
    mean = keras_bdl.to_keras(run.bayesian)
    check_equal(mean, run.bayesian, run.program)
    modules = {type(layer).__module__.split(".")[0] for layer in layers_of(mean)}
    assert "keras_bdl" not in modules
    if run.program.has_config:
        config = keras.saving.serialize_keras_object(mean)
        assert "keras_bdl" not in json.dumps(config, default=str)
    one = keras_bdl.to_keras(run.bayesian, weights="sample", seed=0)
    pairs = zip(outputs_of(one, run.program), outputs_of(mean, run.program))
    assert all(differ(sample, expected) for sample, expected in pairs)


COLUMNS = (
    plain,
    converts,
    share,
    fit,
    samples,
    uncertainty,
    saves,
    clones,
    exports,
    to_keras,
)


# What the columns have in common


@contextlib.contextmanager
def eagerly():
    """Compiles no programs of TensorFlow, where others see that they are right.

    To trace them is what takes longest.
    """
    if BACKEND != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def converted(program, **options):
    return keras_bdl.to_bayesian(
        program.model, num_examples=program.num_rows, **options
    )


def train(model, program):
    """Trains two steps, and counts by name the variables that move by themselves."""
    kept = [v for v in model.non_trainable_variables if "float" in v.dtype]
    trained = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    before = [keras.ops.convert_to_numpy(v) for v in kept]
    # Without XLA, whose compiler takes long; so does the graph of a larger optimizer.
    jit = False if BACKEND == "tensorflow" else "auto"
    model.compile("sgd", program.loss, jit_compile=jit)
    history = model.fit(
        program.x, program.y, batch_size=program.num_rows // 2, verbose=0
    )
    assert np.isfinite(history.history["loss"]).all()
    after = model.trainable_variables
    assert any(not np.array_equal(old, new) for old, new in zip(trained, after))
    return collections.Counter(
        v.name for old, v in zip(before, kept) if not np.array_equal(old, v)
    )


def outputs_of(model, program):
    """Returns the list of the outputs at inference, as NumPy arrays."""
    return [to_numpy(y) for y in keras.tree.flatten(model(program.x, training=False))]


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float32")


def check_equal(model, expected, program):
    pairs = zip(outputs_of(model, program), outputs_of(expected, program), strict=True)
    for output, other in pairs:
        np.testing.assert_allclose(output, other, rtol=1e-4, atol=program.atol)


def drawn(model, program, seed=0):
    """Returns the list of `(samples, rows, ...)` of the outputs."""
    draws = keras_bdl.predict(
        model,
        program.x,
        NUM_SAMPLES,
        return_samples=True,
        outputs="mean",
        seed=seed,
        verbose=0,
    )
    return [np.asarray(y, "float32") for y in keras.tree.flatten(draws)]


def differ(first, second):
    """Whether arrays differ by more than what rounding does."""
    return np.max(np.abs(first - second)) > 1e-5 * np.max(np.abs(first))


def layers_of(model):
    return list(model._flatten_layers())


def kinds(model):
    """Counts the layers by class. A clone is of a class of Keras itself."""
    return collections.Counter(type(layer).__name__ for layer in layers_of(model)[1:])


def check_loaded(model, program):
    """Saves and loads a model, and returns the loaded one, which computes the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        loaded = keras.models.load_model(path, safe_mode=program.safe_mode)
    check_equal(loaded, model, program)
    return loaded


def can_be_cloned(program):
    """Whether Keras clones it: it trusts no function without a name."""
    return program.has_config and program.safe_mode


def check_clone(model, program):
    """Checks that a clone has the same layers, and computes the same with the weights.

    The weights come from a file, because some layers prepare what they read there.
    """
    clone = keras.models.clone_model(model)
    clone(program.x)
    assert kinds(clone) == kinds(model)
    check_equal(with_weights_of(model, clone), model, program)


def with_weights_of(model, other):
    """Gives another model the weights of a model, and returns it."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.weights.h5")
        model.save_weights(path)
        other.load_weights(path)
    return other


def can_be_exported(program):
    return BACKEND == "tensorflow" and program.exports


def check_export(model, program):
    """Checks that the SavedModel of a model computes what the model does."""
    import tensorflow as tf

    options = {}
    if not hasattr(model, "inputs"):
        # Keras does not know the dtypes of the inputs of a subclassed model.
        options["input_signature"] = [keras.tree.map_structure(spec, program.x)]
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False, **options)
        artifact = tf.saved_model.load(folder)
        x = keras.tree.map_structure(tf.convert_to_tensor, program.x)
        served = keras.tree.flatten(artifact.serve(x))
    for output, expected in zip(served, outputs_of(model, program), strict=True):
        np.testing.assert_allclose(
            to_numpy(output), expected, rtol=1e-4, atol=program.atol
        )


def spec(array):
    return keras.InputSpec(shape=(None, *array.shape[1:]), dtype=str(array.dtype))
