"""Writing files completely or not at all."""

import contextlib
import os
import pathlib
import secrets
import shutil


@contextlib.contextmanager
def replaced(path):
    """Opens a binary file beside `path`, and renames it to `path` at the end.

    If an error occurs before that, the old file at `path` stays and the new file is
    removed.
    """
    path = pathlib.Path(os.path.realpath(path))  # a link stays a link
    if not path.parent.is_dir() or (
        path.exists() and not (path.is_file() and os.access(path, os.W_OK))
    ):
        with path.open("wb") as file:  # writes to a device, or raises the right error
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
