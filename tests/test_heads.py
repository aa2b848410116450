"""What a network ends in: found in every structure, and taken for what it is."""

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import layers, ops
from scipy import special

import keras_bdl
from keras_bdl.graphs import heads

pytestmark = pytest.mark.portable

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
Dense = layers.Dense


def stack(*parts, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *parts])


def graph(function, shape=(4,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, function(inputs))


@keras.saving.register_keras_serializable("tests")
class OwnBlock(layers.Layer):
    """A layer of the user's own, with an activation that is not its last."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.relu
        self.dense = Dense(3)

    def call(self, x):
        return self.dense(self.activation(x))


def shared_relu(x):
    relu = layers.ReLU()
    return relu(Dense(3)(relu(Dense(4)(x))))


HEADS = {
    "none": (lambda: stack(Dense(3)), "linear"),
    "argument": (lambda: stack(Dense(3, activation="softmax")), "softmax"),
    "posterior": (
        lambda: stack(keras_bdl.VariationalDense(3, activation="softmax")),
        "softmax",
    ),
    "last layer": (
        lambda: stack(keras_bdl.BayesianLastLayer(3), layers.Softmax()),
        "softmax",
    ),
    "wrapped": (
        lambda: stack(keras_bdl.ConcreteDropout(Dense(3, activation="sigmoid"))),
        "sigmoid",
    ),
    "softmax layer": (lambda: stack(Dense(3), layers.Softmax()), "softmax"),
    "activation layer": (
        lambda: stack(Dense(3), layers.Activation("sigmoid")),
        "sigmoid",
    ),
    "ReLU": (lambda: stack(Dense(3), layers.ReLU()), "ReLU"),
    "PReLU": (lambda: stack(Dense(3), layers.PReLU()), "PReLU"),
    "layer as argument": (
        lambda: stack(Dense(3, activation=layers.LeakyReLU())),
        "LeakyReLU",
    ),
    "nested": (lambda: stack(stack(Dense(3, activation="softmax"))), "softmax"),
    "behind nested": (
        lambda: graph(lambda x: layers.Softmax()(stack(Dense(3))(x))),
        "softmax",
    ),
    "behind reshape": (
        lambda: stack(
            Dense(4, activation="sigmoid"),
            layers.Reshape((2, 2)),
            layers.Permute((2, 1)),
            layers.Dropout(0.1),
        ),
        "sigmoid",
    ),
    "behind MCDropout": (
        lambda: stack(Dense(3, activation="relu"), keras_bdl.MCDropout(0.1)),
        "relu",
    ),
    "image": (
        lambda: stack(
            layers.Conv2DTranspose(1, 3, activation="sigmoid"),
            layers.Cropping2D(1),
            shape=(4, 4, 2),
        ),
        "sigmoid",
    ),
    "every position": (
        lambda: stack(
            layers.TimeDistributed(Dense(3, activation="softmax")), shape=(5, 4)
        ),
        "softmax",
    ),
    "operation": (lambda: graph(lambda x: ops.softmax(Dense(3)(x))), "softmax"),
    "function": (lambda: stack(Dense(3, activation=ops.softmax)), "softmax"),
    "lambda": (
        lambda: stack(Dense(3), layers.Lambda(lambda x: ops.sigmoid(x))),
        "sigmoid",
    ),
    "scaled": (lambda: stack(Dense(3), layers.Lambda(lambda x: 2.0 * x)), "linear"),
    "capped": (
        lambda: stack(Dense(3, activation=lambda x: 9.0 * ops.tanh(x / 9.0))),
        "linear",
    ),
    "two": (
        lambda: stack(Dense(3, activation="relu"), layers.Softmax()),
        "relu, then softmax",
    ),
    "shared": (lambda: graph(shared_relu), "ReLU"),
    "sum": (
        lambda: graph(
            lambda x: layers.Add()([Dense(3, "relu")(x), Dense(3, "relu")(x)])
        ),
        "linear",
    ),
    "normalised": (
        lambda: stack(Dense(3, activation="relu"), layers.BatchNormalization()),
        "linear",
    ),
    "own layer": (lambda: stack(OwnBlock()), "linear"),
    "early exit": (
        lambda: stack(
            keras_bdl.EarlyExitResBlock(
                [Dense(4, activation="relu") for _ in range(2)], prior_rate=0.5
            )
        ),
        "linear",
    ),
    "over positions": (
        lambda: stack(Dense(3), layers.Softmax(axis=1), shape=(5, 4)),
        "softmax over axis 1",
    ),
    "moved": (
        lambda: stack(Dense(4, activation="softmax"), layers.Reshape((2, 2))),
        "softmax of another axis than the last",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_activation_is_found(name):
    make, expected = HEADS[name]
    network = make()
    assert heads.find(network).activation == expected


def test_the_network_is_left_as_it_is():
    inner = Dense(3, activation="softmax")
    network = graph(lambda x: stack(inner)(x))
    before = network.layers[1].output
    logits = heads.logits_network(network)
    assert network.layers[1].output is before
    assert logits.layers[1] is network.layers[1]
    assert heads.find(keras.Model()) is None


def test_logits_are_those_before_the_activation():
    z = np.array([[-60.0, 0.0, 3.0], [12.0, -80.0, 1.0]], "float32")
    p = ops.softmax(ops.convert_to_tensor(z), axis=-1)
    logits = to_numpy(heads.logits(p, "softmax")).astype("float64")
    exact = special.log_softmax(z.astype("float64"), axis=-1)
    inside = exact > -87.0
    np.testing.assert_allclose(logits[inside], exact[inside], rtol=1e-5, atol=1e-6)
    z = np.linspace(-80.0, 8.0, 23).astype("float32")
    p = ops.sigmoid(ops.convert_to_tensor(z))
    np.testing.assert_allclose(to_numpy(heads.logits(p, "sigmoid")), z, atol=1e-3)
    for kind in ("softmax", "sigmoid"):
        ends = heads.logits(ops.convert_to_tensor(np.array([0, 1], "float32")), kind)
        assert np.isfinite(to_numpy(ends)).all()
    wide = heads.Logits("sigmoid")(np.array([[0.25]], "float32"))
    np.testing.assert_allclose(to_numpy(wide), [[0.0, -np.log(3.0)]], rtol=1e-6)


def classifier(activation, behind=(), units=2):
    keras.utils.set_random_seed(0)
    last = keras_bdl.VariationalDense(units, activation=activation, seed=2, name="last")
    network = stack(
        keras_bdl.VariationalDense(5, activation="relu", seed=1, name="first"),
        last,
        *behind,
    )
    model = keras_bdl.BayesianClassifier(network, num_samples=4)
    model.compile(keras.optimizers.Adam(0.05))
    return model


@pytest.mark.eager
def test_a_softmax_network_is_the_network_of_logits(tmp_path):
    plain = classifier(None)
    plain.fit(X, Y, epochs=3, shuffle=False, verbose=0)
    model = classifier(None, [layers.Softmax()])
    model.fit(X, Y, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        model.history.history["loss"], plain.history.history["loss"], rtol=1e-4
    )
    for answer in (
        lambda m: m.predict(X, seed=0, verbose=0),
        lambda m: m.predict_uncertainty(X, seed=0, verbose=0).mutual_information,
        lambda m: m.evaluate(X, Y, verbose=0),
        lambda m: to_numpy(ops.log_softmax(m(X))),
    ):
        np.testing.assert_allclose(answer(model), answer(plain), atol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(loaded(X)), to_numpy(model(X)), atol=1e-6)
    rows = to_numpy(model.to_keras()(X)).sum(axis=-1)  # the network, with its softmax
    np.testing.assert_allclose(rows, 1.0, atol=1e-6)


@pytest.mark.eager
def test_masked_positions_stay_masked_behind_a_softmax():
    x = np.random.default_rng(0).normal(size=(6, 5, 3)).astype("float32")
    x[:, 3:] = 0.0
    y = np.zeros((6, 5), "int32")
    y[:, 3:] = 1
    losses = []
    for activation in (None, "softmax"):
        network = stack(
            layers.Masking(),
            keras_bdl.VariationalDense(
                2, activation=activation, initial_log_stddev=-12.0
            ),
            shape=(5, 3),
        )
        network.layers[-1].kernel.assign(np.ones((3, 2)) * [[1.0, -1.0]])
        model = keras_bdl.BayesianClassifier(network, num_samples=2, num_examples=6)
        model.compile()
        losses.append(model.test_on_batch(x, y)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_one_sigmoid_unit_is_a_classifier_of_two_classes():
    model = classifier("sigmoid", units=1)
    history = model.fit(X, Y, epochs=10, verbose=0).history
    assert history["accuracy"][-1] > 0.8
    assert model.predict(X, verbose=0).shape == (48, 2)
    p = to_numpy(model.network(X))
    np.testing.assert_allclose(
        to_numpy(ops.softmax(model(X)))[:, 1:], p, rtol=1e-4, atol=1e-6
    )


def test_a_softmax_that_shows_no_graph_is_seen_by_its_outputs():
    class Subclassed(keras.Model):
        def __init__(self, activation):
            super().__init__()
            self.dense = keras_bdl.VariationalDense(2)
            self.last = layers.Activation(activation)

        def call(self, x):
            return self.last(self.dense(x))

    model = keras_bdl.BayesianClassifier(Subclassed("softmax"), num_examples=48)
    model.compile()
    with pytest.raises(ValueError, match="outputs are probabilities.*Received"):
        model.fit(X, Y, verbose=0)
    model = keras_bdl.BayesianClassifier(Subclassed("linear"), num_examples=48)
    model.compile()
    model.fit(X, Y, verbose=0)


def regressor(activation, noise="heteroscedastic", **options):
    network = stack(Dense(2, activation=activation))
    return keras_bdl.BayesianRegressor(network, noise, **options)


def vae(activation, likelihood, outputs):
    encoder = stack(Dense(2))
    decoder = stack(Dense(outputs, activation=activation), shape=(1,))
    return keras_bdl.VAE(encoder, decoder, likelihood)


def semi_supervised(activation):
    model = keras_bdl.SemiSupervisedVAE.dense((4,), 1, num_classes=2, hidden=(3,))
    network = stack(Dense(2, activation=activation))
    model = keras_bdl.SemiSupervisedVAE(network, model.encoder, model.decoder)
    model.build((None, 4))


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: classifier("relu"), "logits.*without activation.*ends in relu"),
        (lambda: classifier("sigmoid"), "independently.*sigmoid of 2 units"),
        (lambda: classifier(None, [layers.ELU()]), "ends in ELU"),
        (lambda: regressor("softplus"), "log standard deviations.*in softplus"),
        (lambda: regressor("tanh", "homoscedastic", normalize=True), "standardised"),
        (lambda: regressor("relu", "student_t"), "locations.*ends in relu"),
        (lambda: vae("relu", "bernoulli", 4), "or their sigmoid.*ends in relu"),
        (lambda: vae("sigmoid", "gaussian", 8), "any sign.*ends in sigmoid"),
        (lambda: vae("tanh", "discretized_logistic", 8), "ends in tanh"),
        (lambda: vae("relu", keras_bdl.losses.GaussianNLL(0.1), 4), "means.*relu"),
        (lambda: semi_supervised("relu"), "`classifier` to give logits.*in relu"),
    ],
)
def test_another_activation_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_softmax_called_on_other_shapes_before_is_seen():
    softmax = layers.Softmax()
    inputs = keras.Input((4,))
    gated = inputs * softmax(layers.Dense(4)(inputs))
    network = keras.Model(inputs, softmax(keras_bdl.VariationalDense(3)(gated)))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    logits = keras_bdl.BayesianClassifier(network)(x)
    np.testing.assert_allclose(
        to_numpy(keras.ops.softmax(logits)), to_numpy(network(x)), atol=1e-6
    )


def test_probabilities_that_the_graph_hides_are_seen_by_their_values():
    inputs = keras.Input((4,))
    parts = [layers.Softmax()(keras_bdl.VariationalDense(3)(inputs)) for _ in range(2)]
    model = keras_bdl.BayesianClassifier(keras.Model(inputs, layers.Average()(parts)))
    model.compile("sgd")
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    with pytest.raises(ValueError, match="outputs are probabilities.*Received"):
        model.fit(x, np.zeros(20, "int32"), verbose=0)


class Decoder(keras.Model):
    """A user's decoder, which shows no graph."""

    def __init__(self, shape, activation, **kwargs):
        super().__init__(**kwargs)
        self.dense = Dense(int(np.prod(shape)))
        self.fold = layers.Reshape(shape)
        self.link = layers.Activation(activation)

    def build(self, input_shape):
        self.dense.build((None, 2 if isinstance(input_shape, tuple) else 5))

    def call(self, inputs):
        if isinstance(inputs, (list, tuple)):
            inputs = ops.concatenate(inputs, axis=-1)
        return self.link(self.fold(self.dense(inputs)))


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize(
    "likelihood, activation, shape",
    [("bernoulli", "sigmoid", (6,)), ("categorical", "softmax", (6, 3))],
)
@pytest.mark.eager
def test_probabilities_of_a_decoder_without_a_graph_are_seen(
    likelihood, activation, shape, classes
):
    x = np.random.default_rng(0).integers(0, 2, (40, 6)).astype("float32")
    for name in (activation, "linear"):
        decoder = Decoder(shape, name)
        if classes:
            inputs = keras.Input((6,)), keras.Input((3,))
            code = Dense(4)(layers.Concatenate()(inputs))
            encoder = keras.Model(inputs, code)
            model = keras_bdl.SemiSupervisedVAE(
                stack(Dense(3), shape=(6,)), encoder, decoder, likelihood=likelihood
            )
            data = (x, np.arange(40) % 3)
        else:
            encoder = stack(Dense(4), shape=(6,))
            model, data = keras_bdl.VAE(encoder, decoder, likelihood), (x,)
        model.compile("sgd")
        if name == "linear":
            model.fit(*data, verbose=0)
        else:
            with pytest.raises(ValueError, match="`decoder` to give logits.*Received"):
                model.fit(*data, verbose=0)


def test_the_branch_of_deviations_has_no_activation():
    inputs = keras.Input((4,))
    mean, deviation = (Dense(1, activation="softplus")(inputs) for _ in range(2))
    with pytest.raises(ValueError, match="log standard deviations.*softplus"):
        keras_bdl.BayesianRegressor(
            keras.Model(inputs, layers.Concatenate()([mean, deviation]))
        )
    free = layers.Dense(1)(inputs)
    keras_bdl.BayesianRegressor(keras.Model(inputs, layers.Concatenate()([mean, free])))


def test_activations_of_means_alone_are_taken():
    regressor("softplus", "homoscedastic")
    vae("sigmoid", keras_bdl.losses.GaussianNLL(0.1), 4)
    semi_supervised("softmax")


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
@pytest.mark.eager
def test_a_vae_with_a_link_at_its_end_is_the_vae_of_logits(likelihood):
    link, shape = {"bernoulli": ("sigmoid", (6,)), "categorical": ("softmax", (6, 3))}[
        likelihood
    ]
    x = np.random.default_rng(0).integers(0, 2, (40, 6)).astype("float32")
    x[:, 0] = 0.0
    answers = []
    for activation in ("linear", link):
        keras.utils.set_random_seed(0)
        decoder = stack(
            Dense(int(np.prod(shape))),
            layers.Reshape(shape),
            layers.Activation(activation),
            shape=(2,),
        )
        encoder = stack(Dense(4), shape=(6,))
        model = keras_bdl.VAE(encoder, decoder, likelihood, seed=0)
        model.compile(keras.optimizers.Adam(0.02))
        loss = model.fit(x, epochs=2, shuffle=False, verbose=0).history["loss"]
        drawn = model.sample(5, seed=0, with_noise=True)
        log_prob = model.log_prob(x, num_samples=20, seed=0, verbose=0)
        answers.append(
            [*loss, *model.reconstruct(x).ravel(), *drawn.ravel(), *log_prob]
        )
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-3, atol=1e-4)
