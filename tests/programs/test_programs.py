"""Every program is converted, trained, sampled, saved, cloned, exported and back."""

import pytest

from programs.columns import (
    BACKEND,
    can_be_cloned,
    can_be_exported,
    check_clone,
    check_export,
    check_loaded,
    columns,
)
from programs.registry import PROGRAMS

pytestmark = pytest.mark.portable

# One of each subject; the others are run on demand.
TYPICAL = (
    "siamese",
    "embedding_average",
    "bidirectional_lstm",
    "text_transformer",
    "made_in_build",
    "model_without_config",
)


# A small one that the other backends compile too.
TRACED = ("embedding_average",)


def every_program(names):
    def marks(name):
        if name not in names:
            return pytest.mark.slow
        return pytest.mark.every_backend if name in TRACED else ()

    here = [name for name in PROGRAMS if BACKEND in PROGRAMS[name].backends]
    params = [pytest.param(name, marks=marks(name)) for name in here]
    return pytest.mark.parametrize("name", params)


@every_program(TYPICAL)
def test_program(name):
    errors = [error for error in columns(name).errors.values() if error is not None]
    if errors:
        raise ExceptionGroup(f"The program '{name}' fails.", errors)


@every_program(())
def test_the_plain_model_is_saved_cloned_and_exported(name):
    """So that what a Bayesian one cannot do is a fault of the conversion."""
    program = PROGRAMS[name]()
    if program.has_config:
        check_loaded(program.model, program)
    if can_be_cloned(program):
        check_clone(program.model, program)
    if can_be_exported(program):
        check_export(program.model, program)


def test_there_are_programs_enough():
    assert len(PROGRAMS) >= 42
