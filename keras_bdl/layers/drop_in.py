"""Bayesian layers with the kernel and bias of the Keras layer that they replace."""

from keras_bdl.layers.base import copy_activation, live_config
from keras_bdl.layers.weight_posterior import BayesianLayer


class DropInLayer(BayesianLayer):
    """Makes itself of `keras_class`, and that of itself."""

    @classmethod
    def from_keras(cls, layer, **options):
        """This layer with the means of a built Keras layer's weights.

        Regularizers are dropped: the prior takes their place.

        Args:
            layer: a built layer of the class that this one replaces.
            **options: arguments of this class, such as `num_examples`.

        Raises:
            ValueError: if the layer is of another class, or not built, or has
                constraints.
        """
        if type(layer) is not cls.keras_class or not layer.built:
            raise ValueError(
                f"`{cls.__name__}.from_keras` expected a built "
                f"`keras.layers.{cls.keras_class.__name__}`. Received: layer={layer!r}"
            )
        config = layer.get_config()
        config |= {"kernel_regularizer": None, "bias_regularizer": None}
        bayesian = cls.from_config({**config, **options})
        bayesian.build(layer.get_build_config()["input_shape"])
        bayesian._kernel.assign(layer.kernel)
        if layer.bias is not None:
            bayesian.bias.assign(layer.bias)
        return bayesian

    def plain_layer(self, kernel, bias):
        """The built Keras layer with these weights; `bias` is None without one."""
        plain = self.keras_class.from_config(live_config(self.keras_class, self))
        plain.build(self.get_build_config()["input_shape"])
        plain.kernel.assign(kernel)
        if bias is not None:
            plain.bias.assign(bias)
        copy_activation(self, plain)
        return plain


def check_conversion(layer, weights):
    """Refuses to convert a layer that is not built, or to unknown weights."""
    if weights not in ("mean", "sample"):
        raise ValueError(
            "Expected `weights` to be 'mean' or 'sample'. "
            f"Received: weights={weights!r}"
        )
    if not layer.built:
        raise ValueError(
            "Expected a built layer; call it on a batch first. "
            f"Received: layer={layer.name!r}"
        )
