"""Old names of public arguments, which work with a warning for one release."""

import functools
import inspect
import warnings


def renamed(**names):
    """Lets a function take arguments by their old names too.

    Args:
        **names: the new name of each old one.

    Raises:
        TypeError: of the decorated function, if an argument is given by both names.

    Example:

    >>> @renamed(num="num_samples")
    ... def sample(num_samples):
    ...     return num_samples
    >>> sample(num=3)
    3
    """

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            for old, new in names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(
                        f"Expected `{new}`, of which `{old}` is the old name, once. "
                        f"Received: {new}={kwargs[new]!r}, {old}={kwargs[old]!r}"
                    )
                warnings.warn(
                    f"The argument `{old}` is `{new}` now.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        # Keras reads the arguments of a layer's constructor, and not through a wrapper.
        call.__signature__ = inspect.signature(function)
        return call

    return decorate
