"""Bayesian layers with the kernel and bias of the Keras layer that they replace."""

from keras_bdl.core.copies import (
    assign_copy,
    check_weights,
    copy_activation,
    live_config,
)
from keras_bdl.layers.bayesian import BayesianLayer


class DropInLayer(BayesianLayer):
    """Makes itself of `keras_class`, and that of itself."""

    @classmethod
    def replaces(cls, layer):
        return type(layer) is cls.keras_class

    @classmethod
    def obstacle(cls, layer):
        return obstacle(layer)

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
        if not cls.replaces(layer) or not layer.built:
            raise ValueError(
                f"`{cls.__name__}.from_keras` expected a built "
                f"`keras.layers.{cls.keras_class.__name__}`. Received: layer={layer!r}"
            )
        check_plain(layer, cls.obstacle(layer))
        config = live_config(cls.keras_class, layer)
        config |= {"kernel_regularizer": None, "bias_regularizer": None}
        bayesian = cls(**{**config, **options})
        bayesian.build(layer.get_build_config()["input_shape"])
        assign_copy(bayesian._kernel, layer.kernel)
        if layer.bias is not None:
            assign_copy(bayesian.bias, layer.bias)
        copy_activation(layer, bayesian)
        return bayesian

    def mean_kernel(self):
        """The kernel at inference."""
        return self.kernel

    def inference_weights(self):
        others = [w for w in super().inference_weights() if w is not self._kernel]
        return [self.mean_kernel(), *others]

    def plain_layer(self, kernel, bias):
        """The built Keras layer with these weights; `bias` is None without one."""
        plain = self.keras_class.from_config(live_config(self.keras_class, self))
        plain.build(self.get_build_config()["input_shape"])
        assign_copy(plain.kernel, kernel)
        if bias is not None:
            assign_copy(plain.bias, bias)
        copy_activation(self, plain)
        return plain


def obstacle(layer):
    """Why a plain layer with a kernel cannot be given a posterior, or None."""
    for name in ("kernel_constraint", "bias_constraint"):
        if getattr(layer, name) is not None:
            return f"has a {name}"
    if getattr(layer, "quantization_mode", None):
        return "is quantized"
    if getattr(layer, "lora_enabled", False):
        return "has LoRA weights"
    return None


def check_plain(layer, reason):
    """Refuses to convert a plain layer where there is a reason against it."""
    if reason is not None:
        raise ValueError(
            f"Layer '{layer.name}' {reason}, which a posterior cannot keep. "
            f"Received: layer={layer!r}"
        )


def check_conversion(layer, weights):
    """Refuses to convert a layer that is not built, or to unknown weights."""
    check_weights(weights)
    if not layer.built:
        raise ValueError(
            "Expected a built layer; call it on a batch first. "
            f"Received: layer={layer.name!r}"
        )


def refuse_sample(layer):
    """Refuses one draw of what multiplies another layer's weights."""
    raise ValueError(
        "A draw of noise by itself is no plain Keras layer; convert with "
        f"weights='mean'. Received: weights='sample', layer={layer.name!r}"
    )
