"""Learning from few labels: a generative model with the class as a latent variable.

Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative
models", 2014.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_bdl import heads, losses, sampling, training, validation
from keras_bdl.layers import base
from keras_bdl.models import observations, vae_networks, vae_start
from keras_bdl.models.generative_model import BoundScope, GenerativeModel
from keras_bdl.models.mixed_batches import MixedBatches
from keras_bdl.ops import estimators

PACKAGE = "keras_bdl"

# The weight of the classifier's own loss: this many times examples per label.
_CLASSIFIER_WEIGHT = 0.1

# A finite log-probability of which the exponential is 0.
_IMPOSSIBLE = -1e4


@keras.saving.register_keras_serializable(PACKAGE)
class SemiSupervisedVAE(GenerativeModel):
    """p(x | y, z) p(y) p(z) with a class y that few examples tell; predicts classes.

    With L(x, y) = E log p(x | y, z) + log p(y) - KL(q(z | x, y) || p(z)) and uniform
    p(y), the bound of a labelled example is L(x, y), of an unlabelled one

        sum_y q(y | x) (L(x, y) - log q(y | x)),

    the exact sum over classes. The loss is the negative bound per example plus
    `classifier_weight` times the mean cross-entropy of q(y | x) on labelled examples.

    `fit(x, y)` takes labels with -1 where there is none. Of arrays it makes batches
    with labelled examples in every one; the bound counts them at their true share.
    The log has `loss`, `reconstruction`, `kl` and `accuracy` (on labelled examples).
    `predict` and `model(x)` give q(y | x), `(n, classes)`.

    With `features=vae`, x is a code of that trained VAE (M1+M2 of the paper), drawn
    in training and its mean at inference; the VAE is frozen (`vae.trainable`).

    Args:
        classifier: Keras model from x to logits `(n, classes)`, or their softmax.
        encoder: Keras model of two inputs, x and one-hot y, to mean and log standard
            deviation of the code, `(n, 2 d)`.
        decoder: Keras model of two inputs, codes `(n, d)` and one-hot y, to the
            likelihood's parameters.
        likelihood, prior, beta, preprocessing, seed: as in `VAE`.
        classifier_weight: float >= 0, or None: .1 examples / labelled examples.
        labeled_share: float in (0, 1), labelled rows in a batch of `fit` on arrays.
        summed_classes: integer, or None for all. In training, only this many classes
            of an unlabelled example are summed, those of largest q(y | x), and one
            drawn from q stands for all others. The gradient stays unbiased, and a
            step takes as much less time as there are fewer classes.
        features: a trained `VAE`, or None.
        **kwargs: of `keras.Model`.

    Raises:
        TypeError, ValueError: on a wrong argument; on labels below -1 or too large,
            or none at all.

    Example:

    >>> model = keras_bdl.SemiSupervisedVAE.dense((784,), 50, num_classes=10)
    >>> model.compile("adam")
    >>> y = np.where(is_known, y_train, -1)
    >>> model.fit(x_train, y, epochs=100, batch_size=200)
    >>> model.predict(x_test).argmax(axis=-1)

    Reference: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with
    deep generative models", 2014, eq. 6 to 9; `ops.estimators.partial_enumeration`.
    """

    outputs_kind = "probabilities"

    def __init__(
        self,
        classifier,
        encoder,
        decoder,
        likelihood="bernoulli",
        prior="standard_normal",
        beta=1.0,
        classifier_weight=None,
        labeled_share=0.5,
        summed_classes=None,
        features=None,
        preprocessing=None,
        seed=None,
        **kwargs,
    ):
        networks = {"classifier": classifier, "encoder": encoder, "decoder": decoder}
        super().__init__(
            networks, likelihood, prior, beta, preprocessing, seed, **kwargs
        )
        if not (features is None or hasattr(features, "posterior")):
            raise TypeError(
                "Expected `features` to be a `keras_bdl.VAE` or None. "
                f"Received: features={features!r}"
            )
        self.features = features
        if features is not None:
            features.trainable = False
        self.labeled_share = validation.share("labeled_share", labeled_share)
        if classifier_weight is not None:
            validation.number("classifier_weight", classifier_weight, least=0.0)
        self.classifier_weight = classifier_weight
        if summed_classes is not None:
            validation.integer("summed_classes", summed_classes, least=1)
        self.summed_classes = summed_classes
        # Of the training data: the labelled examples' share, 0 before it is known.
        self._labeled_fraction = self.add_weight(
            name="labeled_fraction", shape=(), initializer="zeros", trainable=False
        )
        self._accuracy = keras.metrics.Mean(name="accuracy")

    @classmethod
    def dense(
        cls,
        input_shape,
        latent_dim,
        num_classes,
        hidden=(500,),
        activation="relu",
        likelihood="bernoulli",
        **options,
    ):
        """A model of dense layers.

        Args:
            input_shape: tuple, shape of one example; of a code where there are
                `features`.
            latent_dim: d, numbers of a code.
            num_classes: number of classes.
            hidden: widths of the hidden layers of each network.
            activation: of the hidden layers.
            likelihood, **options: of `SemiSupervisedVAE`. A categorical likelihood
                needs `num_levels`.
        """
        num_classes = validation.integer("num_classes", num_classes, least=2)
        levels = options.pop("num_levels", None)
        outputs = vae_networks.output_shape(
            input_shape, observations.get(likelihood), levels
        )
        networks = vae_networks.dense_with_classes(
            input_shape, outputs, latent_dim, num_classes, hidden, activation
        )
        return cls(*networks, likelihood, **options)

    @classmethod
    def on_codes(cls, vae, latent_dim, num_classes, **options):
        """`dense` on the codes of a trained VAE: M1+M2 of the paper.

        Numbers of either code that are not active are noise to this model. Choose
        both dimensions no larger than needed: of `vae`, its `active_units`.

        Args:
            vae: a trained `VAE`; it is frozen.
            latent_dim, num_classes, **options: as in `dense`.

        Example:

        >>> model = keras_bdl.SemiSupervisedVAE.on_codes(vae, 10, num_classes=10)
        """
        options = {"likelihood": "gaussian", **options}
        shape = (vae.latent_dim,)
        return cls.dense(shape, latent_dim, num_classes, features=vae, **options)

    def build(self, input_shape):
        if self.built:
            return
        self.example_shape = tuple(input_shape[1:])
        x = keras.Input(batch_shape=input_shape)
        if self.preprocessing is not None:
            x = self.preprocessing(x)
        if self.features is not None:
            self.features.build(input_shape)
            x = keras.Input((self.features.latent_dim,))
        self.classifier(x)  # builds it
        self._made.classifier = heads.logits_network(self.classifier, "classifier")
        self.num_classes = self._made.classifier(x).shape[-1]
        losses.check_logits(self.num_classes)
        if (self.summed_classes or 0) >= self.num_classes:
            raise ValueError(
                "Expected `summed_classes` to be less than the number of classes, "
                f"{self.num_classes}, or None. "
                f"Received: summed_classes={self.summed_classes!r}"
            )
        y = keras.Input((self.num_classes,))
        self.latent.build(self.encoder([x, y]).shape)
        codes = keras.Input((self.latent.prior.latent_dim,))
        outputs = self.decoder([codes, y]).shape
        vae_networks.check_outputs(outputs, x.shape, self.observation)
        self.observation.read_head(self.decoder)
        self.built = True

    # The forward pass and the bound

    def preprocess(self, inputs, training=None):
        x = super().preprocess(inputs, training)
        if self.features is None:
            return x
        mean, log_stddev = self.features.posterior(self.features.preprocess(x))
        return self.features.latent.draw(mean, log_stddev, 1)[0] if training else mean

    def call(self, inputs, training=None):
        x = self.preprocess(inputs, training)
        logits = base.wide(self._made.classifier(x, training=training))
        scope = BoundScope.current()
        if scope is None:
            return ops.softmax(logits, axis=-1)
        log_q = ops.log_softmax(logits, axis=-1)
        if scope.y is None:
            raise ValueError(
                "Expected labels, integers that are -1 where there is none. "
                "Received: y=None"
            )
        labels = ops.cast(ops.reshape(scope.y, (-1,)), "int32")
        classes, weights = self._classes(log_q, labels, training)
        terms = self._terms(x, classes, training)
        return {"log_q": log_q, "weights": weights, **terms}

    def _one_hot(self, labels, dtype):
        """Rows of labels, of the first class where there is none."""
        return ops.one_hot(ops.maximum(labels, 0), self.num_classes, dtype=dtype)

    def _classes(self, log_q, labels, training):
        """Classes that the bound sums, one-hot `(n, m, classes)`, and their weights.

        The weights `(n, m)` are q(y | x), or 1 for the label where there is one.
        """
        log_label = _IMPOSSIBLE * (1.0 - self._one_hot(labels, log_q.dtype))
        log_q = ops.where(ops.expand_dims(labels, -1) < 0, log_q, log_label)
        if self.summed_classes is None or not training:
            every = ops.eye(self.num_classes, dtype=log_q.dtype)
            return ops.ones_like(ops.expand_dims(log_q, -1)) * every, ops.exp(log_q)
        classes, weights = estimators.partial_enumeration(
            log_q, self.summed_classes, self.latent.noise
        )
        return self._one_hot(classes, log_q.dtype), weights

    def _terms(self, x, classes, training):
        """Reconstruction and KL for each class, `(n, m)`, in nats."""
        num_classes = classes.shape[1]
        y = ops.reshape(classes, (-1, self.num_classes))
        x = ops.repeat(x, num_classes, axis=0)
        parameters = self.encoder([x, ops.cast(y, x.dtype)], training=training)
        mean, log_stddev = self.latent.parameters(parameters)
        codes = self.latent.draw(mean, log_stddev, 1)[0]
        outputs = base.wide(self.decoder([codes, y], training=training))
        return {
            name: ops.reshape(values, (-1, num_classes))
            for name, values in {
                "reconstruction": -self.observation.log_prob(base.wide(x), outputs),
                "kl": self.latent.kl(mean, log_stddev),
            }.items()
        }

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The negative bound per example and the classifier's loss; the metrics."""
        log_q = y_pred["log_q"]
        labels = ops.cast(ops.reshape(y, (-1,)), "int32")
        labeled = ops.cast(labels >= 0, log_q.dtype)
        kl_weight = ops.cast(self.latent.current_kl_weight(training), log_q.dtype)
        bounds = -y_pred["reconstruction"] - kl_weight * y_pred["kl"]
        bounds = bounds - math.log(self.num_classes)
        # Weights sum to one, so the origin of the bounds is free; that of a likely
        # class gives the gradient through the weights less variance.
        weights, origin = y_pred["weights"], ops.stop_gradient(bounds[:, :1])
        supervised = ops.sum(weights * (bounds - origin), axis=-1) + origin[:, 0]
        unsupervised = supervised - ops.sum(ops.exp(log_q) * log_q, axis=-1)
        one_hot = self._one_hot(labels, log_q.dtype)
        cross_entropy = -ops.sum(one_hot * log_q, axis=-1)

        ones = ops.ones_like(labeled)
        if sample_weight is not None:
            ones = losses.align_weights(sample_weight, labeled)

        def mean(values, of):
            return ops.sum(ones * of * values) / ops.maximum(ops.sum(of), 1.0)

        share = ops.mean(labeled)
        known = ops.cast(self._labeled_fraction, labeled.dtype)
        if training:
            share = ops.where(known > 0.0, known, share)
        factor = self.classifier_weight
        if factor is None:
            factor = _CLASSIFIER_WEIGHT / ops.where(known > 0.0, known, 1.0)
        loss = -share * mean(supervised, labeled)
        loss = loss - (1.0 - share) * mean(unsupervised, 1.0 - labeled)
        loss = loss + factor * mean(cross_entropy, labeled)

        for metric, name in (
            (self._reconstruction, "reconstruction"),
            (self._kl, "kl"),
        ):
            values = ops.sum(weights * y_pred[name], axis=-1)
            metric.update_state(ops.stop_gradient(values), ones)
        hits = ops.equal(ops.cast(ops.argmax(log_q, axis=-1), "int32"), labels)
        self._accuracy.update_state(ops.cast(hits, labeled.dtype), ones * labeled)
        return self.add_losses(loss)

    # Training

    def fit(self, x=None, y=None, batch_size=None, epochs=1, **kwargs):
        """As `keras.Model.fit`; labels are -1 where there is none.

        Args:
            x: array `(n, ...)`, or a data set of pairs of x and labels, of which the
                batches are taken as they are.
            y: labels `(n,)`, integers from -1.
            batch_size, epochs, **kwargs: as in `keras.Model.fit`, but for
                `validation_split`; `validation_data` is a pair of x and labels.

        Raises:
            ValueError: on labels that do not fit, or `validation_split`.
        """
        vae_start.check(self, x)
        if hasattr(x, "shape"):
            if not self.built:
                self.build((None, *x.shape[1:]))
            x, y = self._mixed(x, y, batch_size or 32, kwargs), None
            batch_size = None
        return super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)

    def _mixed(self, x, y, batch_size, kwargs):
        for name in ("validation_split", "sample_weight", "class_weight"):
            value = kwargs.get(name)
            if value is not None and not (np.isscalar(value) and value == 0.0):
                raise ValueError(
                    f"`SemiSupervisedVAE.fit` takes no `{name}`. Received: {name}"
                )
        labels = self._labels(x, y)
        is_labeled = labels >= 0
        if not is_labeled.any():
            raise ValueError(
                "Expected a label for some examples, from 0; -1 marks those without. "
                "Received: y with none"
            )
        self._labeled_fraction.assign(is_labeled.mean())
        shuffle = kwargs.pop("shuffle", True)
        x = ops.convert_to_numpy(x)
        return MixedBatches(x, labels, batch_size, self.labeled_share, shuffle)

    def _labels(self, x, y):
        labels = np.zeros(0) if y is None else ops.convert_to_numpy(y)
        numbers = labels.dtype.kind in "biuf" and labels.size > 0
        fits = numbers and labels.size == len(x) == len(labels)
        fits = fits and np.array_equal(labels, labels.round())
        if not fits or labels.min() < -1 or labels.max() >= self.num_classes:
            span = f"from {labels.min()} to {labels.max()}" if numbers else labels.dtype
            raise ValueError(
                f"Expected labels `({len(x)},)`, integers from -1 (unknown) to "
                f"{self.num_classes - 1}. Received: y of shape {np.shape(y)}, {span}"
            )
        return labels.reshape(-1).astype("int32")

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`; labels are -1 where there is none."""
        vae_start.check(self, x)
        if hasattr(x, "shape") and self.built:
            y = self._labels(x, y)
        with training.weights_kept(self):
            return super().evaluate(x, y, *args, **kwargs)

    # Use

    def sample(self, num, label=None, seed=None, noise=False):
        """New data of a class, `(num, ...)`, NumPy.

        Args:
            num: integer.
            label: class index, or integers `(num,)`; None draws classes.
            seed: integer for repeatable results.
            noise: whether to draw from p(x | y, z) in place of its mean; of the codes
                where there are `features`, of which then the mean is decoded.
        """
        num = validation.integer("num", num, least=1)
        if not self.built:
            raise ValueError(
                "Expected a built model: `fit` or `build` first. "
                f"Received: model={self.name!r}"
            )
        rng = np.random.default_rng(seed)
        if label is None:
            label = rng.integers(0, self.num_classes, num)
        labels = np.broadcast_to(np.asarray(label), (num,))
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"Expected `label` from 0 to {self.num_classes - 1}. "
                f"Received: label={label!r}"
            )
        generator = sampling.NoiseGenerator(int(rng.integers(2**31)), "sample")
        codes = self.latent.prior.draw(num, generator)
        one_hot = ops.one_hot(labels, self.num_classes, dtype=codes.dtype)
        outputs = base.wide(self.decoder([codes, one_hot], training=False))
        if validation.boolean("noise", noise):
            values = self.observation.draw(outputs, generator)
        else:
            values = self.observation.mean(outputs)
        values = ops.convert_to_numpy(values)
        return values if self.features is None else self.features.decode(values)

    def get_config(self):
        return {
            **super().get_config(),
            "classifier_weight": self.classifier_weight,
            "labeled_share": self.labeled_share,
            "summed_classes": self.summed_classes,
            "features": keras.saving.serialize_keras_object(self.features),
        }
