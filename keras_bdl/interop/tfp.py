"""The only module that imports TensorFlow Probability, in about a second."""

import numpy as np
from keras import backend, ops

try:
    import tensorflow_probability as tfp
except ImportError as error:
    raise ImportError(
        "Distributions need TensorFlow Probability, which cannot be imported: "
        "`pip install 'tensorflow-probability[tf]' tensorflow`."
    ) from error

tfd = tfp.distributions


def make_distribution(name, parameters, validate_args=False):
    """Makes a scalar TensorFlow Probability distribution from the name of its class.

    Raises:
        ValueError: if there is no such distribution, if it refuses the parameters, or
            if it is not one scalar distribution.
    """
    distribution = _make(name, parameters, validate_args)
    if [*distribution.batch_shape, *distribution.event_shape]:
        raise ValueError(
            f"Expected parameters of one scalar distribution. Received: {parameters}"
        )
    return distribution


def code_distribution(name, parameters, validate_args=False):
    """Makes a distribution of one number or of a vector.

    Raises:
        ValueError: as in `make_distribution`.
    """
    distribution = _make(name, parameters, validate_args)
    if [*distribution.batch_shape] or len(distribution.event_shape) > 1:
        raise ValueError(
            "Expected parameters of one distribution of a number or a vector. "
            f"Received: {parameters}"
        )
    return distribution


def make(name, **parameters):
    """Makes a distribution of any shape from the name of its class.

    Raises:
        ValueError: if there is no such distribution or it refuses the parameters.
    """
    return _make(name, parameters, validate_args=False)


def multivariate_student_t(df, loc, scale_tril):
    """Makes a Student-t distribution of a vector, float64.

    Args:
        df: degrees of freedom.
        loc: `(d,)`.
        scale_tril: `(d, d)`, lower triangular. The shape matrix is its product with its
            transpose.
    """
    # The normal distribution makes the same linear operator.
    scale = tfd.MultivariateNormalTriL(loc, scale_tril).scale
    return tfd.MultivariateStudentTLinearOperator(np.float64(df), loc, scale)


def _make(name, parameters, validate_args):
    cls = _distribution_class(name)
    try:
        distribution = cls(**parameters, validate_args=validate_args)
        _ = distribution.batch_shape, distribution.event_shape
    except Exception as error:
        raise ValueError(
            f"`tfp.distributions.{name}` refuses these parameters: {error}. "
            f"Received: {parameters}"
        ) from error
    return distribution


def _distribution_class(name):
    cls = getattr(tfd, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, tfd.Distribution)):
        raise ValueError(
            "Expected the name of a class in `tensorflow_probability.distributions`, "
            f"like 'Horseshoe'. Received: distribution={name!r}"
        )
    return cls


def sample(distribution, shape, seed):
    """Draws samples, which a seed of two integers makes reproducible."""
    return distribution.sample(shape, seed=ops.cast(seed, "int32"))


def from_reals(name, reals, fixed):
    """Makes a distribution, some of whose parameters come from real numbers.

    Tensors of real numbers go through the bijector that the distribution has for the
    parameter, so that a parameter that must be positive is positive.

    Raises:
        ValueError: if there is no such distribution or parameter.
    """
    properties = _distribution_class(name).parameter_properties()
    for parameter in [*reals, *fixed]:
        if parameter not in properties:
            raise ValueError(
                f"Expected parameters of `tfp.distributions.{name}`: "
                f"{sorted(properties)}. Received: {parameter!r}"
            )
    constrained = {
        parameter: properties[parameter].default_constraining_bijector_fn()(values)
        for parameter, values in reals.items()
    }
    return _make(name, {**constrained, **fixed}, validate_args=False)


def independent_normals(parameters):
    """Makes the joint distribution of named independent normals.

    Args:
        parameters: dict from name to `(mean, log_stddev)`, tensors of any backend.
    """

    def as_tensor(x):
        return x if backend.backend() == "tensorflow" else ops.convert_to_numpy(x)

    components = {}
    for name, (mean, log_stddev) in parameters.items():
        mean = as_tensor(ops.convert_to_tensor(mean))
        stddev = as_tensor(ops.exp(log_stddev))
        components[name] = tfd.Independent(
            tfd.Normal(mean, stddev), reinterpreted_batch_ndims=np.ndim(mean)
        )
    return tfd.JointDistributionNamed(components)


def bernoulli_masks(rate, shape):
    """Makes the distribution of `keep`, bits that are 0 with probability `rate`."""
    keep = tfd.Bernoulli(probs=np.full(shape, 1.0 - rate, "float32"))
    independent = tfd.Independent(keep, reinterpreted_batch_ndims=len(shape))
    return tfd.JointDistributionNamed({"keep": independent})
