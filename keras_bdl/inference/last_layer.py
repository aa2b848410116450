"""The posterior of a trained network's last layer, with all other layers unchanged.

Snoek et al., "Scalable Bayesian optimization using deep neural networks", 2015
(regression); MacKay, "The evidence framework applied to classification networks", 1992
(classification).
"""

from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import linalg

from keras_bdl.core import validation
from keras_bdl.exact.linear_regression import EVIDENCE, BayesianLinearRegression
from keras_bdl.inference import laplace, trained
from keras_bdl.inference.trained import VALUES
from keras_bdl.layers.last_layer import BayesianLastLayer
from keras_bdl.models.classifier import BayesianClassifier
from keras_bdl.models.regressor import BayesianRegressor
from keras_bdl.training import data

_MAX_WEIGHTS = 20_000  # whose joint covariance has 1.6 GB
_BLOCK_VALUES = 2**22  # in the features that a regression takes at a time


def fit_last_layer(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    kind: str = "auto",
    prior_precision: float | str = EVIDENCE,
    noise_precision: float | str = EVIDENCE,
    probit: bool = False,
    num_samples: int = 100,
    batch_size: int = 256,
    verbose: int | str = "auto",
) -> BayesianClassifier | BayesianRegressor:
    """Gives a trained Keras model uncertainty in one pass over its training data.

    The last Dense layer becomes a `BayesianLastLayer`. All layers before it, in
    inference mode, give its features phi. If there is a bias, a one is appended to phi.

    Regression: each output is a Bayesian linear regression on the features. Its
    posterior is exact, and the posterior mean gives the new weights. Prior and noise
    precision are those of highest evidence. The bias has a flat prior.

    Classification: Laplace's approximation at the trained weights w,

        N(w, (H + alpha I)^-1),  H = sum_n (diag(p_n) - p_n p_n') (x) phi_n phi_n',

    of all weights jointly, without a Kronecker approximation of the sum. alpha
    maximises the evidence, log p(y | w) - alpha/2 w'w + P/2 log alpha -
    1/2 log det(H + alpha I), of all P weights with the bias. Laplace's approximation
    holds at the mode of log p(y | w) - alpha/2 w'w. A flat loss alone does not show
    that w is this mode: early stopping ends before it, and without weight decay,
    classes that can be separated have none. The spreads are then those of the data
    around the weights as they are. To reach the mode, train to the end with
    `kernel_regularizer=L2(l)` and the same `bias_regularizer` on the last layer, and
    pass `prior_precision=2 * l * n` for n training examples.

    Args:
        model: trained Sequential or functional model with one output. Its last layer is
            a Dense without activation or with softmax or sigmoid, which may also be a
            layer after it. The model is copied and not changed.
        x: training inputs, an array or several as the model takes them; or a
            `tf.data.Dataset` or `keras.utils.PyDataset` of batches of pairs of inputs
            and targets.
        y: targets `(n,)` or `(n, d)`; labels `(n,)`, `(n, 1)` or one-hot.
        kind: "regression" or "classification". "auto" means classification if the
            model has a softmax, a sigmoid or a cross-entropy loss, and regression for
            any other loss.
        prior_precision: alpha, a positive float, or "evidence". In regression the
            prior is N(0, 1 / alpha) whatever the noise precision beta.
        noise_precision: regression only: one over the noise variance, or "evidence".
        probit: classification only: whether the mean call `model(x)` gives logits
            whose softmax is about the predictive mean, without sampling.
        num_samples: number of posterior samples of `predict` and `evaluate`.
        batch_size: number of rows of arrays that are taken at a time.
        verbose: 0 for no progress bar.

    Returns:
        Compiled `BayesianClassifier` or `BayesianRegressor`, which can predict,
        evaluate, save and export. `model.network.layers` ends in the
        `BayesianLastLayer`. For a binary model with one output, the classifier has two
        logits, of which the first is 0.

    Raises:
        TypeError: if the model is not a Keras model.
        ValueError: on a model that does not end as described, targets that do not fit
            it, features that are not finite, or more than 20,000 weights in the last
            layer of a classifier.

    Example:

    >>> bayesian = keras_bdl.fit_last_layer(model, x_train, y_train)
    >>> probabilities = bayesian.predict(x_test)
    >>> bayesian.predict_uncertainty(x_test).mutual_information  # nats
    """
    dense, behind, kind = trained.head_of(model, x, kind)
    num_samples = validation.integer("num_samples", num_samples, least=1)
    if validation.boolean("probit", probit) and kind == VALUES:
        raise ValueError(
            "`probit` is for classification: a regression model does not need it. "
            f"Received: probit={probit}"
        )
    trained.check_noise_precision(kind, noise_precision)

    features, _ = trained.with_last(
        model, dense, behind, keras.layers.Identity(name=dense.name)
    )
    batches = data.TrainingPairs(x, y, batch_size, verbose)
    if kind == VALUES:
        layer, noise_stddev = _regression(
            dense, features, batches, prior_precision, noise_precision
        )
    else:
        layer = _laplace(dense, features, batches, prior_precision, probit)

    network, shared = trained.with_last(model, dense, behind, layer)
    as_it_was = {part: part.trainable for part in shared}
    network.trainable = False  # other features would need another posterior
    for part, trainable in as_it_was.items():
        part.trainable = trainable
    bayesian = trained.predictive(network, kind, num_samples)
    if kind == VALUES:
        bayesian.observation_noise.log_scale.assign(np.log(noise_stddev))
    return bayesian


# The features


def _features(model, x):
    phi = ops.convert_to_numpy(model.predict_on_batch(x)).astype("float64")
    if phi.ndim != 2:
        raise ValueError(
            "Expected features `(n, d)` before the last layer; put a "
            "`keras.layers.Flatten` before it, and none after it. "
            f"Received: features of shape {phi.shape}"
        )
    if not np.isfinite(phi).all():
        raise ValueError(
            "Expected finite features before the last layer. Received: NaN or infinity"
        )
    return phi


# Regression


def _regression(dense, features, batches, prior_precision, noise_precision):
    """Returns the layer with the exact posterior and the noise standard deviations."""
    units = dense.units
    models = [
        BayesianLinearRegression(prior_precision, noise_precision, dense.use_bias)
        for _ in range(units)
    ]
    held = []

    def learn():
        phi, y = (np.concatenate(parts) for parts in zip(*held))
        for index, model in enumerate(models):
            model.partial_fit(phi, y[:, index])
        held.clear()

    for x, y in batches:
        phi = _features(features, x)
        y = y.reshape(len(y), -1)
        if y.shape != (len(phi), units):
            raise ValueError(
                f"Expected targets `(n, {units})`. Received: y of shape {y.shape}"
            )
        held.append((phi, y))
        if sum(part.size for part, _ in held) >= _BLOCK_VALUES:
            learn()  # in blocks, because each call costs an eigendecomposition
    if held:
        learn()

    layer = _make_layer(dense, units, phi.shape[1], "per_output", probit=False)
    means, factors = zip(*(model.weights_and_factor() for model in models))
    stddevs = np.array([model.noise_precision_ for model in models]) ** -0.5
    _assign(layer, np.stack(means), np.stack(factors) * stddevs[:, None, None])
    return layer, stddevs


# Classification


def _laplace(dense, features, batches, prior_precision, probit):
    """Returns the layer with Laplace's approximation at the trained weights."""
    if not isinstance(prior_precision, str) or prior_precision != EVIDENCE:
        prior_precision = validation.positive("prior_precision", prior_precision)
    weights = [ops.convert_to_numpy(w).astype("float64") for w in dense.get_weights()]
    mean = np.vstack(weights)  # (d, units)
    binary = dense.units == 1
    size, units = mean.shape
    if mean.size > _MAX_WEIGHTS:
        raise ValueError(
            f"The joint covariance of {mean.size} weights would hold {mean.size}^2 "
            f"numbers; {_MAX_WEIGHTS} weights at most. Put a narrower layer before the "
            f"last, or replace it by `to_bayesian`. Received: {size} x {units} weights"
        )
    hessian = np.zeros((units, units, size, size))
    for x, y in batches:
        phi = _features(features, x)
        trained.check_labels(y, len(phi), units)
        if dense.use_bias:
            phi = np.hstack([phi, np.ones((len(phi), 1))])
        laplace.add_hessian(hessian, phi, phi @ mean)
    factor = laplace.covariance_factor(
        hessian, None if prior_precision == EVIDENCE else prior_precision, mean
    )
    if binary:  # a softmax of two logits, of which the first is exactly 0
        mean = np.hstack([np.zeros_like(mean), mean])
        factor = linalg.block_diag(np.zeros_like(factor), factor)
    units = mean.shape[1]
    layer = _make_layer(dense, units, size - dense.use_bias, "full", probit)
    _assign(layer, mean.T, factor[None])
    return layer


# The layer


def _make_layer(dense, units, input_dim, covariance, probit):
    layer = BayesianLastLayer(
        units,
        use_bias=dense.use_bias,
        covariance=covariance,
        probit=probit,
        name=dense.name,
        dtype=dense.dtype_policy,
    )
    layer.build((None, input_dim))
    return layer


def _assign(layer, mean, factor):
    """Sets means `(units, d)`, the bias last, and factors."""
    kernel = mean.T
    if layer.use_bias:
        kernel, bias = kernel[:-1], kernel[-1]
        layer.bias.assign(bias)
    layer.kernel.assign(kernel)
    layer.factor.assign(factor)
