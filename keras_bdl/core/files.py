"""Writing files whole or not at all."""

import contextlib
import os
import pathlib
import secrets
import shutil


@contextlib.contextmanager
def replaced(path):
    """Opens a file for bytes beside `path`, which becomes `path` once all is written.

    If an error comes in between, what was at `path` stays and nothing else is left.
    """
    path = pathlib.Path(os.path.realpath(path))  # a link stays one
    if not path.parent.is_dir() or (
        path.exists() and not (path.is_file() and os.access(path, os.W_OK))
    ):
        with path.open("wb") as file:  # a device, or the error that belongs to it
            yield file
        return
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
