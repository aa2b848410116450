"""What tests need of a backend and Keras does not offer."""

import keras
import numpy as np


def gradients(fn, arrays):
    """Gradients of a scalar function of tensors, on the current backend.

    Args:
        fn: function of as many tensors as there are arrays, returns a scalar.
        arrays: where to take the gradients, made float32.

    Returns:
        List of NumPy arrays, zero where `fn` does not depend on the argument.
    """
    arrays = [np.asarray(a, "float32") for a in arrays]
    return [np.asarray(g) for g in _GRADIENTS[keras.backend.backend()](fn, arrays)]


def _tensorflow(fn, arrays):
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(a) for a in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = fn(*tensors)
    return tape.gradient(value, tensors, unconnected_gradients="zero")


def _jax(fn, arrays):
    import jax

    tensors = [jax.numpy.asarray(a) for a in arrays]
    return jax.grad(fn, argnums=tuple(range(len(tensors))))(*tensors)


def _torch(fn, arrays):
    import torch

    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    return torch.autograd.grad(fn(*tensors), tensors, materialize_grads=True)


def compiled(fn):
    """A function without side effects, compiled where the backend does that."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(fn)
    return traced(fn)


def traced(fn):
    """A function that may assign variables, as a graph on TensorFlow."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(fn, autograph=False)
    return fn


_GRADIENTS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
