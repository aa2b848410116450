"""The only module that imports JAX."""

import jax
from jax import numpy as jnp


def output_gradients(function):
    """Returns outputs, and the gradients of their columns by marked tensors.

    Args:
        function: function of `mark`, which it calls on tensors of the computation and
            takes its result in their place. It returns outputs `(rows, columns)` and
            other tensors. Its rows are independent.

    Returns:
        The outputs; the other tensors; and of each marked tensor the gradients of the
        sums over rows, `(columns, *shape)`.
    """
    marked = []

    def run(probes):
        rest = iter(probes)
        return function(lambda y: y + next(rest))

    def find_shapes():
        def mark(y):
            marked.append(jax.ShapeDtypeStruct(y.shape, y.dtype))
            return y

        return function(mark)[0]

    jax.eval_shape(find_shapes)
    zeros = [jnp.zeros(s.shape, s.dtype) for s in marked]
    outputs, pull, others = jax.vjp(run, zeros, has_aux=True)
    columns = jnp.eye(outputs.shape[-1], dtype=outputs.dtype)
    rows = jnp.broadcast_to(columns[:, None], (len(columns), *outputs.shape))
    (gradients,) = jax.vmap(pull)(rows)
    return outputs, others, gradients
