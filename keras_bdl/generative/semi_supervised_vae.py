"""Learning from few labels: a generative model with the class as a latent variable.

Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative
models", 2014.
"""

import math

import keras
from keras import ops

from keras_bdl import losses
from keras_bdl.core import dtypes, validation
from keras_bdl.core.scopes import BoundScope
from keras_bdl.generative import few_labels, initialization, observations
from keras_bdl.generative import networks as vae_networks
from keras_bdl.generative.base import GenerativeModel
from keras_bdl.generative.class_queries import SemiSupervisedUse
from keras_bdl.generative.mixed_batches import MixedBatches
from keras_bdl.graphs import heads
from keras_bdl.ops import estimators

PACKAGE = "keras_bdl"

# A finite log-probability of which the exponential is 0.
_IMPOSSIBLE = -1e4


@keras.saving.register_keras_serializable(PACKAGE)
class SemiSupervisedVAE(SemiSupervisedUse, GenerativeModel):
    """p(x | y, z) p(y) p(z) with a class y that few examples tell; predicts classes.

    With L(x, y) = E log p(x | y, z) + log p(y) - KL(q(z | x, y) || p(z)) and uniform
    p(y), the bound of a labelled example is L(x, y), of an unlabelled one

        sum_y q(y | x) (L(x, y) - log q(y | x)),

    the exact sum over classes. The loss is the negative bound per example plus
    `classifier_weight` times the mean cross-entropy of q(y | x) on labelled examples.

    `fit(x, y)` takes labels with -1 where there is none. Of arrays it makes batches
    with labelled examples in every one; the bound counts them at their true share.
    The log has `loss`, `reconstruction`, `kl` and `accuracy` (on labelled examples).
    `evaluate` reports this loss of the whole data, whatever the batches.
    `predict` and `model(x)` give q(y | x), `(n, classes)`. Where networks have a
    posterior over weights the bound is one of log p(data), and `evaluate` draws them.

    With `features=vae`, x is a code of that trained VAE (M1+M2 of the paper), drawn
    in training and its mean at inference; the VAE is frozen (`vae.trainable`).

    Args:
        classifier: Keras model from x to logits `(n, classes)`, or their softmax.
        encoder: Keras model of two inputs, x and one-hot y, to mean and log standard
            deviation of the code, as in `VAE`.
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
        num_examples: as in `VAE`.
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
        num_examples=None,
        **kwargs,
    ):
        networks = {"classifier": classifier, "encoder": encoder, "decoder": decoder}
        super().__init__(
            networks,
            {"classifier": 1, "encoder": 2, "decoder": 2},
            likelihood,
            prior,
            beta,
            preprocessing,
            seed,
            num_examples,
            **kwargs,
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
        self._classifier_loss = few_labels.ClassifierLoss(classifier_weight)

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
        if getattr(vae, "latent_dim", None) is None:
            raise ValueError(
                f"Expected `vae` to be a trained `keras_bdl.VAE`. Received: vae={vae!r}"
            )
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
        self.num_classes = vae_networks.check_classifier(self._made.classifier(x))
        if (self.summed_classes or 0) >= self.num_classes:
            raise ValueError(
                "Expected `summed_classes` to be less than the number of classes, "
                f"{self.num_classes}, or None. "
                f"Received: summed_classes={self.summed_classes!r}"
            )
        y = keras.Input((self.num_classes,))
        self.latent.build(vae_networks.code_shapes(self.encoder([x, y])))
        codes = keras.Input((self.latent.prior.latent_dim,))
        outputs = self.decoder([codes, y])
        vae_networks.check_outputs(outputs, x.shape, self.observation)
        self.observation.read_head(self.decoder)
        self.decoded_shape = tuple(outputs.shape)
        self._tell_num_examples()
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
        scope = BoundScope.current()
        if scope is None:
            return ops.softmax(self._logits(x, training), axis=-1)
        if scope.y is None:
            raise ValueError(
                "Expected labels, integers that are -1 where there is none. "
                "Received: y=None"
            )
        labels = ops.cast(ops.reshape(scope.y, (-1,)), "int32")
        return self.mean_over_weights(
            lambda: self._bound(x, labels, training), training
        )

    def _logits(self, x, training):
        return dtypes.wide(self._made.classifier(x, training=training))

    def _bound(self, x, labels, training):
        """Of each row the bound and its parts in nats, and of labels the classifier's.

        The bound is linear in the terms of the classes: these need no common draw of
        weights in training, where draws of their own have less variance.
        """
        with self.weights_drawn_once(not training):
            log_q = ops.log_softmax(self._logits(x, training), axis=-1)
            classes, weights = self._classes(log_q, labels, training)
            terms = self._terms(x, classes, training)
        labeled = ops.cast(labels >= 0, log_q.dtype)
        kl_weight = ops.cast(self.latent.current_kl_weight(training), log_q.dtype)
        bounds = -terms["reconstruction"] - kl_weight * terms["kl"]
        bounds = bounds - math.log(self.num_classes)
        # Weights sum to one, so the origin of the bounds is free; that of a likely
        # class gives the gradient through the weights less variance.
        origin = ops.stop_gradient(bounds[:, :1])
        bound = ops.sum(weights * (bounds - origin), axis=-1) + origin[:, 0]
        entropy = -ops.sum(ops.exp(log_q) * log_q, axis=-1)
        one_hot = self._one_hot(labels, log_q.dtype)
        hits = ops.equal(ops.cast(ops.argmax(log_q, axis=-1), "int32"), labels)
        return {
            "bound": bound + (1.0 - labeled) * entropy,
            "cross_entropy": -labeled * ops.sum(one_hot * log_q, axis=-1),
            "hits": labeled * ops.cast(hits, labeled.dtype),
            "labeled": labeled,
            **{name: ops.sum(weights * terms[name], axis=-1) for name in terms},
        }

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
        outputs = dtypes.wide(self.decoder([codes, y], training=training))
        return {
            name: ops.reshape(values, (-1, num_classes))
            for name, values in {
                "reconstruction": -self.observation.log_prob(dtypes.wide(x), outputs),
                "kl": self.latent.kl(mean, log_stddev),
            }.items()
        }

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The negative bound per example and the classifier's loss; the metrics."""
        labeled = y_pred["labeled"]
        weights = ops.ones_like(labeled)
        if sample_weight is not None:
            weights = losses.align_weights(sample_weight, labeled)
        known = ops.cast(self._labeled_fraction, labeled.dtype)
        cross_entropy = weights * y_pred["cross_entropy"]
        loss = -ops.mean(weights * y_pred["bound"])
        if training:
            share = ops.where(known > 0.0, known, ops.mean(labeled))
            loss = loss + few_labels.classifier_loss(
                self.classifier_weight, ops.mean(cross_entropy), share, known
            )
        else:  # joins the loss of all batches in `get_metrics_result`
            self._classifier_loss.update_state(cross_entropy, labeled, known)
        for metric, name in (
            (self._reconstruction, "reconstruction"),
            (self._kl, "kl"),
        ):
            metric.update_state(ops.stop_gradient(y_pred[name]), weights)
        self._accuracy.update_state(y_pred["hits"], weights * labeled)
        return self.add_losses(loss)

    def get_metrics_result(self):
        logs = super().get_metrics_result()
        classifier_loss = logs.pop(self._classifier_loss.name)
        if "loss" in logs:
            logs["loss"] = logs["loss"] + classifier_loss
        return logs

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
        initialization.check(self, x)
        self._read_num_examples(x, kwargs)
        if hasattr(x, "shape"):
            if not self.built:
                self.build((None, *x.shape[1:]))
            if self.optimizer is not None and not int(self.optimizer.iterations):
                initialization.check_decoder(self)
            held_out = kwargs.get("validation_data")
            if isinstance(held_out, (tuple, list)) and len(held_out) > 1:
                x_val, y_val, *weights = held_out
                y_val = self._checked_batch(x_val, y_val, *weights or [None])
                kwargs["validation_data"] = (x_val, y_val, *weights)
            x, y = self._mixed(x, y, batch_size or 32, kwargs), None
            batch_size = None
        else:
            self._labeled_fraction.assign(few_labels.labeled_fraction(x))
        return super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)

    def _mixed(self, x, y, batch_size, kwargs):
        few_labels.check_options(kwargs)
        labels = few_labels.check_labels(x, y, self.num_classes)
        few_labels.check_some(labels)
        self._labeled_fraction.assign((labels >= 0).mean())
        x, shuffle = ops.convert_to_numpy(x), kwargs.pop("shuffle", True)
        kwargs["shuffle"] = False  # the order of batches, which Keras would shuffle
        return MixedBatches(
            x, labels, batch_size, self.labeled_share, shuffle, self._epoch_seed
        )

    def _epoch_seed(self):
        """What sets the order of this epoch, of variables that are saved."""
        key = ops.convert_to_numpy(self.latent.noise.state)[0]
        return int(key), int(self.optimizer.iterations)

    def _checked_batch(self, x, y, sample_weight):
        super()._checked_batch(x, y, sample_weight)
        if not self.built:
            self.build((None, *x.shape[1:]))
        return few_labels.check_labels(x, y, self.num_classes)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`; labels are -1 where there is none."""
        if hasattr(x, "shape") and self.built:
            y = few_labels.check_labels(x, y, self.num_classes)
        return super().evaluate(x, y, *args, **kwargs)

    # Serialisation

    def get_config(self):
        return {
            **super().get_config(),
            "classifier_weight": self.classifier_weight,
            "labeled_share": self.labeled_share,
            "summed_classes": self.summed_classes,
            "features": keras.saving.serialize_keras_object(self.features),
        }
