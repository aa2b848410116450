"""Wrong arguments end in errors that name them; right ones survive a config.

Hypothesis draws the values. A refusal is a ValueError or TypeError raised in
keras_bdl that names the argument and says what was received: nothing may reach
a backend and fail there. `VALUES` lists the values that still slip through.
"""

import functools
import importlib.util
import inspect
import json
import math
import pathlib
import re
import traceback

import hypothesis
import keras
import numpy as np
import pytest
from contract import FITTED, LayerContract, slow, to_numpy
from hypothesis import strategies as st

import keras_bdl
from keras_bdl import callbacks, losses, metrics, priors
from keras_bdl.core import stochastic

pytestmark = pytest.mark.portable

BACKEND = keras.backend.backend()
PACKAGE = pathlib.Path(keras_bdl.__file__).parent

only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="TFPPrior works on TensorFlow only"
)

# --- Values ------------------------------------------------------------------

texts = st.text(max_size=8)
containers = st.one_of(
    st.lists(st.integers(), max_size=2),
    st.tuples(st.floats()),
    st.dictionaries(texts, st.integers(), max_size=1),
)
oddities = st.sampled_from([object(), np.array([1, 2]), b"1", 1j, len, Ellipsis])
booleans = st.sampled_from([True, False, np.True_])
any_floats = st.floats() | st.floats(width=32).map(np.float32)
not_integers = texts | containers | oddities | booleans | any_floats
not_numbers = st.none() | texts | containers | oddities | booleans
not_booleans = not_numbers.filter(lambda x: not isinstance(x, bool)) | st.integers()
not_finite = st.sampled_from([math.nan, math.inf, -math.inf])

below_zero = st.sampled_from([-1, -1e-30]) | st.floats(max_value=-1e-30)
below_one = st.integers(-2, 0) | st.integers(max_value=0) | st.just(np.int64(0))
counts = st.integers(1, 10**9) | st.integers(1, 99).map(np.int64)
finite = st.floats(-100, 100) | st.integers(-100, 100)
positive = st.floats(1e-3, 1e3) | st.integers(1, 100)
not_finite_numbers = (not_numbers, not_finite)
not_positive = (*not_finite_numbers, st.just(0.0), below_zero, below_one)

not_positive_or_none = tuple(
    kind.filter(lambda x: x is not None) for kind in not_positive
)
shares = st.floats(1e-3, 0.999)
not_shares = (*not_positive, st.floats(min_value=1.0) | st.integers(1, 5))

PRIORS = {
    "Normal": {"mean": finite, "stddev": positive},
    "LearnedNormal": {"initial_stddev": positive},
    "NormalPerWeight": {"initial_stddev": positive},
    "ScaleMixture": {
        "weight": st.floats(1e-3, 0.999),
        "stddev1": positive,
        "stddev2": positive,
    },
    "Laplace": {"mean": finite, "scale": positive},
    "StudentT": {"df": positive, "mean": finite, "scale": positive},
    "LogUniform": {},
}
PRIOR_NAMES = ("normal", "learned_normal", "scale_mixture", "laplace", "student_t")
ESTIMATORS = ("local_reparameterization", "flipout", "reparameterization")


def make_prior(name):
    return st.builds(getattr(priors, name), **PRIORS[name])


# Values of the Bayesian arguments by name: several kinds of wrong ones, and right
# ones. A layer with an argument of its own adds a row.
LAYER_ARGUMENTS = {
    "prior": (
        (st.none(), texts, st.integers(), st.lists(texts, max_size=1), oddities),
        st.sampled_from(PRIOR_NAMES)
        | st.sampled_from(sorted(PRIORS)).flatmap(make_prior),
    ),
    "posterior": (
        (st.none(), texts, st.integers(), st.lists(texts, max_size=1), oddities),
        st.sampled_from(["gaussian", "low_rank"]),
    ),
    "num_examples": ((not_integers, below_one), st.none() | counts),
    "kl_weight": (
        (*not_finite_numbers, below_zero),
        st.floats(0, 1e6) | st.integers(0, 10),
    ),
    "sample_at_inference": ((not_booleans,), st.booleans()),
    "bias_posterior": ((not_booleans,), st.booleans()),
    "seed": ((not_integers,), st.none() | st.integers()),
    "estimator": (
        (texts, st.integers() | booleans, st.lists(texts, max_size=1)),
        st.sampled_from((None, *ESTIMATORS)),
    ),
    "initial_log_stddev": (
        (
            *not_finite_numbers,
            st.floats(max_value=-40, exclude_max=True) | st.just(-41),
            st.floats(min_value=10, exclude_min=True) | st.just(11),
        ),
        st.floats(-40, 10) | st.integers(-40, 10),
    ),
    "kl_form": (
        (texts, st.none() | st.integers() | booleans, st.lists(texts, max_size=1)),
        st.sampled_from(["exact", "approximate"]),
    ),
    "threshold": (not_finite_numbers, finite),
    "length_scale": (not_positive, positive),
    "initial_rate": (not_shares, shares),
    "rate": (not_shares, shares),
    "temperature": (not_positive_or_none, st.none() | positive),
    "alpha_per": (
        (texts, st.none() | st.integers() | booleans, st.lists(texts, max_size=1)),
        st.sampled_from(["layer", "unit", "weight"]),
    ),
    "prune_in_training": ((not_booleans,), st.booleans()),
    "objective": (
        (texts, st.none() | st.integers() | booleans, st.lists(texts, max_size=1)),
        st.sampled_from(["map", "elbo"]),
    ),
    "exit_threshold": (not_shares, shares),
    "halting_heads": (
        (texts.filter(bool), st.integers(), st.lists(st.integers(), min_size=2)),
        st.none(),
    ),
    "skip": ((not_booleans,), st.booleans()),
}
# Recurrent layers that are in CI by another one, because each costs seconds.
LONG = ("SimpleRNN", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")

# Where a layer's argument of a name has other values.
OF_LAYER = {
    ("EarlyExitResBlock", "estimator"): (
        (texts, st.none() | st.integers() | booleans, st.lists(texts, max_size=1)),
        st.sampled_from(["concrete", "expected", "score_function", "enumerate"]),
    ),
    ("EarlyExitResBlock", "temperature"): (not_positive, positive),
    **{
        (f"Variational{name}", "estimator"): (
            (texts, st.sampled_from(ESTIMATORS[:-1]), st.integers() | booleans),
            st.sampled_from((None, ESTIMATORS[-1])),
        )
        for name in (*LONG, "LSTM")
    },
}


def argument(layer_class, name):
    """Kinds of wrong values, and right ones."""
    if name == "initial_log_stddev" and layer_class.startswith(
        ("Variational", "BayesianWrapper")
    ):
        wrong, right = LAYER_ARGUMENTS[name]
        wrong = tuple(kind.filter(lambda x: x is not None) for kind in wrong)
        return wrong, st.none() | right  # None: as the posterior has it
    return OF_LAYER.get((layer_class, name), LAYER_ARGUMENTS[name])


# --- Checks ------------------------------------------------------------------


def each(strategy, check, max_examples=25):
    """Runs a check on values of a strategy, the same ones every time."""

    @hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(value):
        check(value)

    run()


def assert_refused(call, name, value):
    """`call(**{name: value})` raises an error that names the argument."""
    try:
        call(**{name: value})
    except (ValueError, TypeError) as error:
        message = str(error)
        assert re.search(rf"\b{name}\b", message), message
        assert "Received" in message
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        assert pathlib.Path(last).is_relative_to(PACKAGE), last
    else:
        pytest.fail(f"accepted: {name}={value!r}")


def assert_all_refused(call, num_values=15, **wrong):
    """Refuses, argument by argument, every kind of wrong values."""
    for name, kinds in wrong.items():
        for values in kinds if isinstance(kinds, tuple) else (kinds,):
            each(values, functools.partial(assert_refused, call, name), num_values)


def assert_round_trip(thing):
    """The config is JSON and makes an equal object."""
    config = json.dumps(thing.get_config())
    copy = type(thing).from_config(json.loads(config))
    assert json.dumps(copy.get_config()) == config
    return copy


# --- Layers ------------------------------------------------------------------


# Of other layers the arguments are checked by the same code as of these: there a few
# values show that it is called.
WHOLE = (
    "VariationalDense",
    "SparseVDDense",
    "ConcreteDropout",
    "VariationalGaussianDropout",
    "DropConnectDense",
    "EarlyExitResBlock",
)


def num_values(layer_class, many, few):
    return many if layer_class in WHOLE else few


@functools.cache
def first_cases():
    """The first case of the contract of every layer, by class name."""
    cases = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("layers/test_*.py")):
        spec = importlib.util.spec_from_file_location(f"fuzzed_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, LayerContract):
                for case in value.cases:
                    cases.setdefault(type(case.make()).__name__, case)
    return cases


def own_arguments(case, refused=False):
    """Arguments of a layer that the Keras layer has not; or those it refuses."""
    own = set()
    for cls in type(case.make()).__mro__:
        if cls.__module__.startswith("keras_bdl") and "__init__" in vars(cls):
            parameters = inspect.signature(cls.__init__).parameters.values()
            own |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    missing = own - set(LAYER_ARGUMENTS)
    assert not missing, f"give LAYER_ARGUMENTS a row for {sorted(missing)}"
    taken = own & set(case.make().get_config())
    return sorted(own - taken if refused else taken)


def built(case, **options):
    layer = case.make(**options)
    layer.build((None, *case.input_shape))
    return layer


# Groups take the arguments of their layers; their own tests are tables.
every_layer = pytest.mark.parametrize(
    "layer_class",
    [
        slow(name) if name.removeprefix("Variational") in LONG else name
        for name, cls in sorted(stochastic.REGISTRY.items())
        if not issubclass(cls, stochastic.StochasticGroup) and name not in FITTED
    ],
)
few_or_more = pytest.mark.parametrize("times", [1, slow(2)])


@few_or_more
@every_layer
def test_layers_refuse_wrong_values(layer_class, times):
    case = first_cases()[layer_class]
    wrong = {name: argument(layer_class, name)[0] for name in own_arguments(case)}
    few = times * num_values(layer_class, 8, 2)
    assert_all_refused(functools.partial(built, case), few, **wrong)
    for name in own_arguments(case, refused=True):
        assert_all_refused(case.make, few, **{name: argument(layer_class, name)[1]})
    with pytest.raises((ValueError, TypeError), match="no_such_argument"):
        case.make(no_such_argument=1)


@few_or_more
@every_layer
def test_layers_take_right_values_and_round_trip(layer_class, times):
    case = first_cases()[layer_class]
    right = {name: argument(layer_class, name)[1] for name in own_arguments(case)}

    def check(options):
        layer = built(case, **options)
        if case.has_kl:
            assert math.isfinite(float(to_numpy(layer.kl())))
        config = layer.get_config()
        for name, value in options.items():
            if name != "prior":
                assert config[name] == value
        copy = assert_round_trip(layer)
        copy.build((None, *case.input_shape))
        assert [v.shape for v in copy.variables] == [v.shape for v in layer.variables]

    few = times * num_values(layer_class, 6, 2)
    each(st.fixed_dictionaries(right), check, max_examples=few)


@few_or_more
@every_layer
def test_keras_arguments_end_as_in_the_keras_layer(layer_class, times):
    """What Keras takes we take, unless we refuse it with a message of our own."""
    case = first_cases()[layer_class]
    if not (case.drop_in and case.has_kl):
        pytest.skip("takes no arguments of the Keras layer")
    junk = st.one_of(
        st.none(),
        st.sampled_from(["relu", "same", "zeros", "l2", "non_neg", "nope"]),
        st.integers(-2, 4),
        st.floats(-2, 4),
        st.lists(st.integers(-1, 3), max_size=4).map(tuple),
    )

    def outcome(make, options):
        try:
            make(**options).build((None, *case.input_shape))
        except Exception as error:
            return error
        return None

    def check(name, value):
        plain = outcome(case.plain, {name: value})
        ours = outcome(case.make, {name: value})
        if ours is not None and type(ours) is not type(plain):
            assert isinstance(ours, (ValueError, TypeError)), repr(ours)
            assert re.search(rf"\b{name}\b.*Received", str(ours), re.DOTALL)
        else:
            assert type(plain) is type(ours)

    for name in sorted(set(case.plain().get_config()) - {"name"}):
        few = times * num_values(layer_class, 4, 2)
        each(junk, functools.partial(check, name), max_examples=few)


# --- Priors ------------------------------------------------------------------


def test_priors_refuse_wrong_values():
    for name, right in PRIORS.items():
        wrong = {
            argument: not_finite_numbers if values is finite else not_positive
            for argument, values in right.items()
        }
        if name == "ScaleMixture":
            wrong["weight"] += (st.just(1) | st.floats(min_value=1.0),)
        assert_all_refused(getattr(priors, name), **wrong)
        with pytest.raises(TypeError, match="argument"):
            getattr(priors, name)(no_such_argument=1)


def test_priors_take_right_values_and_round_trip():
    def check(prior):
        copy = assert_round_trip(prior)
        assert repr(copy) == repr(prior)
        layer = keras_bdl.VariationalDense(2, prior=copy)
        layer.build((None, 3))
        assert math.isfinite(float(to_numpy(layer.kl())))

    for name in PRIORS:
        each(make_prior(name), check, max_examples=8)


def test_every_prior_is_fuzzed():
    subclasses = {cls.__name__ for cls in priors.Prior.__subclasses__()}
    public = {name for name in subclasses if hasattr(priors, name)}
    assert public == {*PRIORS, "TFPPrior"}


@only_tensorflow
def test_tfp_prior_refuses_unknown_distributions_and_parameters():
    names = texts | st.sampled_from(["normal", "mvn_tril", "DISTRIBUTION"])
    assert_all_refused(priors.TFPPrior, distribution=names)
    for parameters in ({"loc": 0.0}, {"bogus": 1.0}, {"loc": "x", "scale": 1.0}):
        with pytest.raises(ValueError, match="parameters.*Received"):
            priors.TFPPrior("Normal", **parameters)


@only_tensorflow
def test_tfp_prior_round_trips():
    prior = priors.TFPPrior("StudentT", df=3.0, loc=0, scale=0.5)
    assert_round_trip(prior)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="there TFPPrior works")
def test_tfp_prior_is_refused_elsewhere():
    with pytest.raises(ValueError, match=f"TensorFlow.*Received.*{BACKEND}"):
        priors.TFPPrior("Horseshoe", scale=1.0)


# --- Callbacks, metrics, losses ----------------------------------------------


def make_warmup(epochs=2, start_epoch=0):
    return callbacks.KLWarmup(epochs, start_epoch)


def test_kl_warmup_refuses_wrong_values():
    assert_all_refused(
        make_warmup,
        epochs=(not_integers, st.none(), st.integers(-2, 0)),
        start_epoch=(not_integers, st.none(), st.integers(-3, -1)),
    )


def test_kl_warmup_takes_right_values():
    def check(pair):
        epochs, start = pair
        warmup = callbacks.KLWarmup(epochs, start)
        factors = [warmup.factor(epoch) for epoch in range(start + epochs + 3)]
        assert factors == sorted(factors)
        assert factors[start] == 0.0 and factors[start + epochs] == 1.0
        assert factors[-1] == 1.0

    each(st.tuples(st.integers(1, 50), st.integers(0, 50)), check)


METRICS = sorted(
    name
    for name, value in vars(metrics).items()
    if isinstance(value, type)
    and issubclass(value, keras.metrics.Metric)
    and not name.startswith("_")
    # Of numbers and of codes, not of predictions.
    and value not in (metrics.ExpectedDepth, metrics.ActiveUnits)
)


def test_metrics_refuse_wrong_values():
    for name in METRICS:
        wrong = {"from_logits": not_booleans}
        if name == "ExpectedCalibrationError":
            wrong["num_bins"] = (not_integers, st.none(), st.integers(-2, 0))
        assert_all_refused(getattr(metrics, name), **wrong)
        with pytest.raises((TypeError, ValueError), match="no_such_argument"):
            getattr(metrics, name)(no_such_argument=1)


def test_active_units_refuse_wrong_values():
    assert_all_refused(
        functools.partial(metrics.ActiveUnits, num_units=3), threshold=not_positive
    )
    assert_all_refused(metrics.ActiveUnits, num_units=(not_integers, below_one))


def test_metrics_take_right_values_and_round_trip():
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5]], "float32")

    def check(name, options):
        metric = assert_round_trip(getattr(metrics, name)(**options))
        metric.update_state(np.array([1, 0]), probabilities)
        assert math.isfinite(float(to_numpy(metric.result())))

    for name in METRICS:
        right = {"from_logits": st.booleans(), "name": st.sampled_from(["a", "nll"])}
        if name == "ExpectedCalibrationError":
            right["num_bins"] = st.integers(1, 40)
        values = st.fixed_dictionaries(right)
        each(values, functools.partial(check, name), max_examples=5)


def test_the_loss_names_a_wrong_reduction():
    with pytest.raises(ValueError, match="reduction.*Received"):
        losses.CategoricalNLL(reduction="no such reduction")
    assert_round_trip(losses.CategoricalNLL(reduction="sum", name="loss"))


# --- Models and functions ----------------------------------------------------


def make_network(units=2, **options):
    layer = keras_bdl.VariationalDense(units, **options)
    return keras.Sequential([keras.Input((3,)), layer])


@pytest.fixture
def network():
    return make_network(num_examples=4)


@pytest.fixture
def classifier(network):
    classifier = keras_bdl.BayesianClassifier(network, num_samples=2)
    classifier.compile()
    return classifier


def test_classifier_refuses_wrong_values(network):
    def make(network=network, **options):
        return keras_bdl.BayesianClassifier(network, **options)

    assert_all_refused(
        make,
        network=(not_numbers, st.integers(), st.just(keras.layers.Dense(2))),
        num_samples=(not_integers, st.none(), below_one),
        num_latent_samples=(not_integers, st.none(), st.integers(max_value=1)),
        num_examples=(not_integers, below_one),
    )
    assert_refused(make, "network", make_network(units=1))
    for loss in ("mse", keras.losses.MeanSquaredError(), len):
        assert_refused(make().compile, "loss", loss)


def test_classifier_takes_right_values_and_round_trips():
    def check(options):
        classifier = keras_bdl.BayesianClassifier(make_network(), **options)
        copy = assert_round_trip(classifier)
        assert copy.num_samples == options["num_samples"]
        (layer,) = stochastic.stochastic_layers(copy)
        assert layer.num_examples == options["num_examples"]

    right = {
        "num_samples": counts,
        "num_examples": st.none() | counts,
        "num_latent_samples": st.integers(2, 99),
    }
    each(st.fixed_dictionaries(right), check, max_examples=6)


def test_regressor_refuses_wrong_values(network):
    def make(network=network, **options):
        return keras_bdl.BayesianRegressor(network, **options)

    assert_all_refused(
        make,
        network=(not_numbers, st.integers(), st.just(keras.layers.Dense(2))),
        noise=(not_numbers, st.integers()),
        num_samples=(not_integers, st.none(), below_one),
        num_latent_samples=(not_integers, st.none(), st.integers(max_value=1)),
        num_examples=(not_integers, below_one),
        normalize=not_booleans,
        mc_dropout=not_booleans,
    )
    assert_refused(make, "network", make_network(units=1))
    for loss in ("mse", keras.losses.MeanSquaredError(), len):
        assert_refused(make().compile, "loss", loss)
    predicts = functools.partial(make().predict_uncertainty, INPUTS, verbose=0)
    outside = st.lists(below_zero | st.floats(min_value=1.0), min_size=1, max_size=2)
    wrong = not_numbers.filter(lambda x: not isinstance(x, (list, tuple)))
    assert_all_refused(predicts, quantiles=(outside, wrong, any_floats, st.just(())))


def test_regressor_takes_right_values_and_round_trips():
    def check(options):
        regressor = keras_bdl.BayesianRegressor(make_network(), **options)
        copy = assert_round_trip(regressor)
        for name, value in options.items():
            assert getattr(copy, name) == value

    right = {
        "noise": st.sampled_from(["heteroscedastic", "homoscedastic", "student_t"]),
        "num_samples": counts,
        "num_examples": st.none() | counts,
        "normalize": st.booleans(),
        "mc_dropout": st.booleans(),
    }
    each(st.fixed_dictionaries(right), check, max_examples=6)


def test_set_num_examples_refuses_wrong_values(network):
    call = functools.partial(keras_bdl.set_num_examples, network)
    assert_all_refused(call, num_examples=(not_integers, st.none(), below_one))
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert_refused(_set_seven, "model", plain)

    def check(count):
        keras_bdl.set_num_examples(network, count)
        assert network.layers[0].num_examples == count

    each(counts, check)


def _set_seven(model):
    return keras_bdl.set_num_examples(model, 7)


INPUTS = np.ones((4, 3), "float32")


def predicts(function, model):
    """A prediction function of a small model, with its options left open."""
    return functools.partial(function, model, INPUTS, verbose=0)


@pytest.mark.parametrize("function", [keras_bdl.predict, keras_bdl.predict_uncertainty])
def test_prediction_refuses_wrong_options(function, network):
    call = predicts(function, network)
    texts_and_lists = (texts, st.lists(texts, max_size=1))
    assert_all_refused(call, outputs=(*texts_and_lists, st.none(), st.integers()))
    call = functools.partial(call, outputs="logits")
    assert_all_refused(call, num_samples=(not_integers, below_one))
    assert_all_refused(functools.partial(call, num_samples=2), seed=not_integers)
    for model in (None, "model", 3, keras.layers.Dense(2)):
        assert_refused(
            lambda model: function(model, INPUTS, outputs="mean"), "model", model
        )
    with pytest.raises(TypeError, match="no_such_option"):
        call(no_such_option=1)


def test_what_the_outputs_are_must_be_known_or_said(network):
    call = predicts(keras_bdl.predict_uncertainty, network)
    assert_refused(call, "outputs", "auto")  # the network is not compiled
    three = make_network(units=3)
    with pytest.raises(ValueError, match="mean_and_log_stddev.*Received"):
        predicts(keras_bdl.predict_uncertainty, three)(outputs="mean_and_log_stddev")


def test_a_model_without_anything_to_sample_is_refused():
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    for mc_dropout in (False, True):
        with pytest.raises(ValueError, match="mc_dropout.*Received"):
            keras_bdl.predict(plain, INPUTS, mc_dropout=mc_dropout)


def test_classifier_predictions_refuse_wrong_options(classifier):
    for method in (classifier.predict, classifier.predict_uncertainty):
        call = functools.partial(method, INPUTS, verbose=0)
        truthy = (texts | any_floats).filter(bool)
        below = st.integers(max_value=-1)
        assert_all_refused(call, num_samples=(truthy, below), seed=not_integers)


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": np.int64(2), "seed": 0},
        {"num_samples": 1, "seed": -1, "return_samples": True},
        {"num_samples": 3, "seed": 2**40, "outputs": "logits", "batch_size": 3},
        {"num_samples": 2, "outputs": "mean_and_log_stddev", "mc_dropout": True},
    ],
    ids=str,
)
def test_predict_takes_right_options(network, options):
    outputs = predicts(keras_bdl.predict, network)(**options)
    leading = (options["num_samples"],) if "return_samples" in options else ()
    assert outputs.shape == (*leading, 4, 2)
    assert np.isfinite(outputs).all()


# --- What slipped through, once or still --------------------------------------


def dense(**options):
    """A layer whose KL must be a number if its arguments were taken."""
    layer = keras_bdl.VariationalDense(2, **options)
    layer.build((None, 3))
    kl = float(to_numpy(layer.kl_weight)) * float(to_numpy(layer.kl()))
    assert math.isfinite(kl), f"accepted, and the KL is {kl}"
    assert kl / float(to_numpy(layer._num_examples) or 1.0) > 0.0


def dense_with(prior):
    return lambda **arguments: dense(prior=getattr(priors, prior)(**arguments))


def classifier_of(network):
    """A classifier of a network that has nothing to sample."""
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name=network)
    return keras_bdl.BayesianClassifier(plain)


def predict(**options):
    network = make_network(num_examples=4)
    return keras_bdl.predict(network, INPUTS, **{"num_samples": 2, **options})


def classifier_method(name):
    def call(**options):
        classifier = keras_bdl.BayesianClassifier(make_network(num_examples=4))
        return getattr(classifier, name)(INPUTS, **options)

    return call


def tfp_normal(scale):
    return dense_with("TFPPrior")(distribution="Normal", loc=0.0, scale=scale)


HUGE = 10**400  # an integer that no float holds
FOUND = [
    # Overflow and underflow, in Python and in float32:
    ("num_examples", 10**40, dense),
    ("kl_weight", HUGE, dense),
    ("kl_weight", 1e39, dense),
    ("mean", HUGE, dense_with("Normal")),
    ("mean", 1e39, dense_with("Normal")),
    ("stddev", 1e-40, dense_with("Normal")),
    ("initial_stddev", 1e-40, dense_with("LearnedNormal")),
    ("scale", 1e-40, dense_with("Laplace")),
    ("df", 1e-40, dense_with("StudentT")),
    ("df", 1e39, dense_with("StudentT")),
    # No message of ours, or none that named the argument:
    ("prior", {"class_name": "Normal", "config": {}}, dense),
    ("model", "nope", _set_seven),
    ("model", None, _set_seven),
    ("network", "plain", classifier_of),
    ("stddev", 1e-25, dense_with("Normal")),  # its square underflows
    ("mean", 1e25, dense_with("Normal")),
    ("scale", 1e-25, dense_with("StudentT")),
    ("batch_size", "3", predict),
    ("batch_size", 2.5, predict),
    ("batch_size", 0, predict),
    # Taken without a word:
    ("num_samples", 0, classifier_method("predict")),
    ("num_samples", 0, classifier_method("predict_uncertainty")),
    ("return_samples", "False", predict),
    ("mc_dropout", "no", predict),
]
FOUND_IN_TFP_PRIOR = [
    ("distribution", 3, dense_with("TFPPrior")),
    ("scale", -1.0, tfp_normal),
    ("scale", math.nan, tfp_normal),
    ("scale", [1.0, 2.0], tfp_normal),
]


def test_values_that_once_slipped_through_are_refused():
    for name, value, call in FOUND:
        assert_refused(call, name, value)


@only_tensorflow
def test_parameters_that_once_slipped_through_tfp_prior_are_refused():
    for name, value, call in FOUND_IN_TFP_PRIOR:
        assert_refused(call, name, value)


# --- Exact models ------------------------------------------------------------


def test_exact_models_refuse_wrong_values():
    """As estimators of scikit-learn do, in `fit`."""

    def coin(**options):
        return keras_bdl.models.BetaBernoulli(**options).fit([0, 1])

    def die(alpha):
        return keras_bdl.models.DirichletCategorical(alpha).fit([0, 1])

    def line(**options):
        model = keras_bdl.models.BayesianLinearRegression(**options)
        return model.fit([[0.0], [1.0]], [0.0, 1.0])

    assert_all_refused(coin, alpha=not_positive, beta=not_positive)
    assert_all_refused(die, alpha=(*not_positive, st.just([1.0]), st.just([1.0, 0.0])))
    assert_all_refused(
        line,
        prior_precision=not_positive,
        noise_precision=not_positive,
        fit_intercept=not_booleans,
    )


def test_last_layer_refuses_wrong_values():
    inputs = keras.Input((3,))
    network = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    x = np.eye(3, dtype="float32")

    def fit(**options):
        options = {"kind": "regression", **options}
        return keras_bdl.fit_last_layer(network, x, x[:, :2], verbose=0, **options)

    assert_all_refused(
        fit,
        kind=(texts, st.integers()),
        prior_precision=not_positive,
        noise_precision=not_positive,
        probit=not_booleans,
        num_samples=(not_integers, below_one),
        batch_size=(not_integers, below_one),
    )
