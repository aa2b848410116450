"""More data for a trained network: yesterday's posterior as today's prior."""

import keras

from keras_bdl.conversion import convert
from keras_bdl.core import stochastic
from keras_bdl.graphs.copy import ModelCopier


def prior_from_posterior(model: keras.Model) -> keras.Model:
    """A copy of a trained model whose prior is the posterior of that model.

    For data D1 and then D2, independent given the weights, Bayes' rule is

        p(w | D1, D2) = p(D2 | w) p(w | D1) / p(D2 | D1).

    In place of p(w | D1) the copy has the trained posterior: each weight's prior is
    N(mean, stddev^2) of the posterior, where its own posterior starts, so that
    `kl()` is 0 but for rounding. Train the copy on D2 alone; D1 is not needed any more.

    This is exact as far as the posterior is. A mean-field one drops correlations: for
    linear models with Gaussian noise the variances end as those of the best mean-field
    posterior given all data, the means do not.

    Layers without a posterior, and biases with `bias_posterior=False`, are copied with
    their weights. Nothing holds these to where they start: set `trainable = False` on
    such a layer that is to stay. So it is with the noise that a `BayesianRegressor`
    learns; its standardisation is kept, as in every later `fit`.

    Priors are saved with the model, also with a subclassed one, whose class must have a
    config.

    Args:
        model: built Keras model of `VariationalDense`, `VariationalConv1D`,
            `VariationalConv2D`, `VariationalConv3D` and plain layers; or a
            `BayesianClassifier` or `BayesianRegressor` around one.

    Returns:
        Model of the same class, not compiled. It does not know the number of examples,
        which is that of the new data: a keras_bdl model reads it off them, another is
        told by `set_num_examples`. Priors of classes other than `Normal` become Normal.

    Raises:
        TypeError: if it is no Keras model.
        ValueError: if it is not built, has no layer with a posterior over weights, has
            a layer whose posterior cannot be such a prior (`SparseVDDense`, dropout and
            latent layers), or is a keras_bdl model of another kind.

    Example:

    >>> classifier.fit(x_monday, y_monday, epochs=100)
    >>> classifier = keras_bdl.prior_from_posterior(classifier)
    >>> classifier.compile("adam")
    >>> classifier.fit(x_tuesday, y_tuesday, epochs=100)  # reads the new N off the data

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
    layers = stochastic.stochastic_layers(model)
    if not layers:
        raise ValueError(
            "Expected `model` to have layers with a posterior over weights; make "
            "them by `keras_bdl.to_bayesian`. "
            f"Received: model={model!r}"
        )
    return ModelCopier(layers, lambda layer: layer.posterior_as_prior()).copy(model)
