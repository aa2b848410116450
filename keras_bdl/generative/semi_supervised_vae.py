"""Learning from few labels by a generative model with the class as a latent variable.

Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative
models", 2014.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_bdl.core import dtypes, event_loss, validation
from keras_bdl.core.renamed import renamed
from keras_bdl.core.scopes import BoundScope
from keras_bdl.core.typing import Activation
from keras_bdl.generative import class_sums, few_labels, initialization, observations
from keras_bdl.generative import networks as vae_networks
from keras_bdl.generative.class_queries import SemiSupervisedUse
from keras_bdl.generative.mixed_batches import MixedBatches
from keras_bdl.generative.vae import VAE
from keras_bdl.graphs import heads
from keras_bdl.priors.codes import LatentPrior

PACKAGE = "keras_bdl"


@keras.saving.register_keras_serializable(PACKAGE)
class SemiSupervisedVAE(SemiSupervisedUse):
    """A model p(x | y, z) p(y) p(z) that predicts a class y, known for few examples.

    With L(x, y) = E log p(x | y, z) + log p(y) - KL(q(z | x, y) || p(z)) and uniform
    p(y), the bound of a labelled example is L(x, y), and of an unlabelled example

        sum_y q(y | x) (L(x, y) - log q(y | x)),

    the exact sum over classes. The loss is the negative bound per example plus
    `classifier_weight` times the mean cross-entropy of q(y | x) on labelled examples.

    `fit(x, y)` takes labels, with -1 for unknown ones. From arrays it makes batches
    that all have labelled examples; the bound counts these at their true share.
    The log has `loss`, `reconstruction`, `kl` and `accuracy` (on labelled examples).
    `evaluate` reports this loss of the whole data, independent of the batches.
    `predict` and `model(x)` give q(y | x), `(n, classes)`. If networks have a posterior
    over weights, the bound is one on log p(data), and `evaluate` draws weights.

    With `features=vae`, x is a code of that trained VAE (M1+M2 of the paper): a draw
    in training and the mean at inference. The VAE is frozen (`vae.trainable`).

    Args:
        classifier: Keras model from x to logits `(n, classes)`, or their softmax.
        encoder: Keras model from two inputs, x and one-hot y, to mean and log standard
            deviation of the code, as in `VAE`.
        decoder: Keras model from two inputs, codes `(n, d)` and one-hot y, to the
            likelihood's parameters.
        likelihood, prior, kl_weight, preprocessing, seed: as in `VAE`.
        classifier_weight: float >= 0, or None for .1 examples / labelled examples.
        labeled_share: float in (0, 1), the share of labelled rows in a batch of `fit`
            on arrays.
        summed_classes: integer, or None for all. In training, only this many classes
            of an unlabelled example are summed, those of largest q(y | x), and a class
            drawn from q stands for all others. The gradient stays unbiased, and the
            time of a step falls with the number of classes.
        features: a trained `VAE`, or None.
        num_examples: as in `VAE`.
        **kwargs: as in `keras.Model`.

    Raises:
        TypeError, ValueError: on a wrong argument, or on labels below -1, too large or
            all unknown.

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

    @renamed(beta="kl_weight")
    def __init__(
        self,
        classifier: keras.Model,
        encoder: keras.Model,
        decoder: keras.Model,
        likelihood: str | keras.losses.Loss = "bernoulli",
        prior: str | LatentPrior = "standard_normal",
        kl_weight: float = 1.0,
        classifier_weight: float | None = None,
        labeled_share: float = 0.5,
        summed_classes: int | None = None,
        features: VAE | None = None,
        preprocessing: keras.layers.Layer | None = None,
        seed: int | None = None,
        num_examples: int | None = None,
        **kwargs: Any,
    ) -> None:
        networks = {"classifier": classifier, "encoder": encoder, "decoder": decoder}
        super().__init__(
            networks,
            {"classifier": 1, "encoder": 2, "decoder": 2},
            likelihood,
            prior,
            kl_weight,
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
        validation.optional_integer("summed_classes", summed_classes, least=1)
        self.summed_classes = summed_classes
        # The share of labelled examples in the training data, 0 before it is known.
        self._labeled_fraction = self.add_weight(
            name="labeled_fraction", shape=(), initializer="zeros", trainable=False
        )
        self._accuracy = keras.metrics.Mean(name="accuracy")
        self._classifier_loss = few_labels.ClassifierLoss(classifier_weight)

    @classmethod
    def dense(
        cls,
        input_shape: tuple[int, ...],
        latent_dim: int,
        num_classes: int,
        hidden: Sequence[int] = (500,),
        activation: Activation = "relu",
        likelihood: str | keras.losses.Loss = "bernoulli",
        **options: Any,
    ) -> Self:
        """Makes a model of dense layers.

        Args:
            input_shape: tuple, shape of one example, or of a code with `features`.
            latent_dim: size d of a code.
            num_classes: number of classes.
            hidden: widths of the hidden layers of each network.
            activation: activation of the hidden layers.
            likelihood, **options: as in `SemiSupervisedVAE`. A categorical likelihood
                needs `num_levels`.
        """
        num_classes = validation.integer("num_classes", num_classes, least=2)
        levels = options.pop("num_levels", None)
        outputs = vae_networks.output_shape(
            input_shape, observations.get(likelihood), levels
        )
        classifier, encoder, decoder = vae_networks.dense_with_classes(
            input_shape, outputs, latent_dim, num_classes, hidden, activation
        )
        return cls(classifier, encoder, decoder, likelihood, **options)

    @classmethod
    def on_codes(
        cls, vae: VAE, latent_dim: int, num_classes: int, **options: Any
    ) -> Self:
        """Makes a `dense` model on the codes of a trained VAE: M1+M2 of the paper.

        Inactive entries of either code are noise to this model. Choose both sizes no
        larger than needed, for `vae` its `active_units`.

        Args:
            vae: a trained `VAE`, which is frozen.
            latent_dim, num_classes, **options: as in `dense`.

        Example:

        >>> model = keras_bdl.SemiSupervisedVAE.on_codes(vae, 10, num_classes=10)
        """
        code_size = getattr(vae, "latent_dim", None)
        if code_size is None:
            raise ValueError(
                f"Expected `vae` to be a trained `keras_bdl.VAE`. Received: vae={vae!r}"
            )
        options = {"likelihood": "gaussian", **options}
        return cls.dense((code_size,), latent_dim, num_classes, features=vae, **options)

    def build(self, input_shape: Any) -> None:
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

    def preprocess(self, inputs: Any, training: bool | None = None) -> Any:
        x = super().preprocess(inputs, training)
        if self.features is None:
            return x
        mean, log_stddev = self.features.posterior(self.features.preprocess(x))
        return self.features.latent.draw(mean, log_stddev, 1)[0] if training else mean

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = self.preprocess(inputs, training)
        scope = BoundScope.current()
        if scope is None:
            return ops.softmax(self._logits(x, training), axis=-1)
        if scope.y is None:
            raise ValueError(
                "Expected labels, integers that are -1 where unknown. Received: y=None"
            )
        labels = ops.cast(ops.reshape(scope.y, (-1,)), "int32")
        return self.mean_over_weights(
            lambda: self._bound(x, labels, training), training
        )

    def _logits(self, x, training):
        return dtypes.wide(self._made.classifier(x, training=training))

    def _bound(self, x, labels, training):
        """Returns the bound of each row and its parts in nats, and the classifier's.

        The bound is linear in the terms of the classes, so that these need no common
        draw of weights. In training, separate draws have less variance.
        """
        with self.weights_drawn_once(not training):
            log_q = ops.log_softmax(self._logits(x, training), axis=-1)
            num_summed = self.summed_classes if training else None
            classes, weights = class_sums.terms(
                log_q, labels, num_summed, self.latent.noise
            )
            terms = self._terms(x, classes, training)
        labeled = ops.cast(labels >= 0, log_q.dtype)
        kl_weight = ops.cast(self.latent.current_kl_weight(training), log_q.dtype)
        bounds = -terms["reconstruction"] - kl_weight * terms["kl"]
        bounds = bounds - math.log(self.num_classes)
        bound = class_sums.weighted_sum(bounds, weights)
        entropy = -ops.sum(ops.exp(log_q) * log_q, axis=-1)
        one_hot = class_sums.one_hot(labels, self.num_classes, log_q.dtype)
        hits = ops.equal(ops.cast(ops.argmax(log_q, axis=-1), "int32"), labels)
        return {
            "bound": bound + (1.0 - labeled) * entropy,
            "cross_entropy": -labeled * ops.sum(one_hot * log_q, axis=-1),
            "hits": labeled * ops.cast(hits, labeled.dtype),
            "labeled": labeled,
            **{name: ops.sum(weights * terms[name], axis=-1) for name in terms},
        }

    def _terms(self, x, classes, training):
        """Returns reconstruction and KL for each class, `(n, m)`, in nats."""
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
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the negative bound plus the classifier's loss, updating metrics."""
        labeled = y_pred["labeled"]
        weights = ops.ones_like(labeled)
        if sample_weight is not None:
            weights = event_loss.align_weights(sample_weight, labeled)
        known = ops.cast(self._labeled_fraction, labeled.dtype)
        cross_entropy = weights * y_pred["cross_entropy"]
        loss = -ops.mean(weights * y_pred["bound"])
        if training:
            share = ops.where(known > 0.0, known, ops.mean(labeled))
            loss = loss + few_labels.classifier_loss(
                self.classifier_weight, ops.mean(cross_entropy), share, known
            )
        else:  # `get_metrics_result` adds that of all batches
            self._classifier_loss.update_state(cross_entropy, labeled, known)
        for metric, name in (
            (self._reconstruction, "reconstruction"),
            (self._kl, "kl"),
        ):
            metric.update_state(ops.stop_gradient(y_pred[name]), weights)
        self._accuracy.update_state(y_pred["hits"], weights * labeled)
        return self.add_losses(loss)

    def get_metrics_result(self) -> dict[str, Any]:
        logs = super().get_metrics_result()
        classifier_loss = logs.pop(self._classifier_loss.name)
        if "loss" in logs:
            logs["loss"] = logs["loss"] + classifier_loss
        return logs

    # Training

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does; unknown labels are -1.

        Args:
            x: array `(n, ...)`, or a data set of pairs of x and labels, whose batches
                are used as they are.
            y: labels `(n,)`, integers from -1.
            batch_size, epochs, **kwargs: as in `keras.Model.fit`, but without
                `validation_split`. `validation_data` is a pair of x and labels.

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
        kwargs["shuffle"] = False  # else Keras would shuffle the batches
        return MixedBatches(
            x, labels, batch_size, self.labeled_share, shuffle, self._epoch_seed
        )

    def _epoch_seed(self):
        """Returns integers that set the order of this epoch, from saved variables."""
        key = ops.convert_to_numpy(self.latent.noise.state)[0]
        return int(key), int(self.optimizer.iterations)

    def _checked_batch(self, x, y, sample_weight):
        super()._checked_batch(x, y, sample_weight)
        if not self.built:
            self.build((None, *x.shape[1:]))
        return few_labels.check_labels(x, y, self.num_classes)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does; unknown labels are -1."""
        if hasattr(x, "shape") and self.built:
            y = few_labels.check_labels(x, y, self.num_classes)
        return super().evaluate(x, y, *args, **kwargs)

    # Serialisation

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "classifier_weight": self.classifier_weight,
            "labeled_share": self.labeled_share,
            "summed_classes": self.summed_classes,
            "features": keras.saving.serialize_keras_object(self.features),
        }
