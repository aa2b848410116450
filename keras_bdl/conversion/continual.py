"""Trains a network on more data: the old posterior becomes the new prior."""

import keras

from keras_bdl.conversion import convert
from keras_bdl.core import stochastic
from keras_bdl.graphs.copy import ModelCopier


def prior_from_posterior(model: keras.Model) -> keras.Model:
    """Returns a copy of a trained model whose prior is the posterior of that model.

    For data D1 and then D2, independent given the weights, Bayes' rule is

        p(w | D1, D2) = p(D2 | w) p(w | D1) / p(D2 | D1).

    The copy uses the trained posterior in place of p(w | D1). The prior of each weight
    is N(mean, stddev^2) with the mean and standard deviation of the trained posterior.
    The posterior of the copy starts there too, so that `kl()` is 0 up to rounding.
    Train the copy on D2 only. D1 is no longer needed.

    The update is as exact as the posterior is. A mean-field posterior drops
    correlations: for linear models with Gaussian noise, the variances become those of
    the best mean-field posterior given all data, but the means do not.

    Layers without a posterior, and biases with `bias_posterior=False`, are copied with
    their weights. No prior keeps these weights near their start: to keep such a layer
    as it is, set `trainable = False` on it. The same holds for the noise that a
    `BayesianRegressor` learns. Its standardisation is kept, as in every later `fit`.

    Priors are saved with the model. This includes subclassed models, whose class must
    have a config.

    Args:
        model: built Keras model of layers with Gaussian posteriors of independent
            weights (`VariationalDense` and the like, `Bayesian`) and plain layers, or a
            `BayesianClassifier` or `BayesianRegressor` around such a model.

    Returns:
        Model of the same class, not compiled. Its number of examples is unknown,
        because it is that of the new data. A keras_bdl model takes the number from the
        data in `fit`; for another model, call `set_num_examples`. Priors of classes
        other than `Normal` become Normal.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if the model is not built, has no layer with a posterior over
            weights, has a layer whose posterior cannot be such a prior
            (`SparseVDDense`, dropout and latent layers), or is a keras_bdl model of
            another kind.

    Example:

    >>> classifier.fit(x_monday, y_monday, epochs=100)
    >>> classifier = keras_bdl.prior_from_posterior(classifier)
    >>> classifier.compile("adam")
    >>> classifier.fit(x_tuesday, y_tuesday, epochs=100)  # takes N from the new data

    Reference: Nguyen, Li, Bui and Turner, "Variational continual learning", 2018,
    eq. 2 and 4.
    """
    if hasattr(type(model), "prior_from_posterior"):
        return model.prior_from_posterior()
    convert.check_is_built_model(model)
    if type(model).__module__.startswith(f"{stochastic.PACKAGE}."):
        raise ValueError(
            "Expected a plain Keras model with keras_bdl layers, a "
            "`BayesianClassifier` or a `BayesianRegressor`; give a network of this "
            f"model (such as `model.network`) by itself. Received: model={model!r}"
        )
    layers = stochastic.whole_layers(model)
    if not layers:
        raise ValueError(
            "Expected `model` to have layers with a posterior over weights; make "
            "them by `keras_bdl.to_bayesian`. "
            f"Received: model={model!r}"
        )
    return ModelCopier(layers, lambda layer: layer.posterior_as_prior()).copy(model)
