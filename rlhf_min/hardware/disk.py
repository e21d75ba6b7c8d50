"""Write files so that a crash or a full disk leaves the old file or the new one, never a part."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from rlhf_min import InputError


@contextmanager
def writing(path: Path):
    """Context manager: an error of the disk or its rights becomes an InputError about `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write {path} ({reason}): make room or repair the folder, then go on with "
            "--resume; what was saved before is whole"
        ) from error


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(draft: Path, path: Path) -> None:
    """Give a finished draft its final name, durably; a file of that name is replaced."""
    sync(draft)
    os.replace(draft, path)
    with suppress(OSError):  # some network file systems cannot sync a folder
        sync(path.parent)


@contextmanager
def replaced(path: Path):
    """Context manager: the path of a draft to write; it replaces `path` if no error occurs."""
    draft = path.with_name(path.name + ".part")
    with writing(path):
        try:
            yield draft
            move(draft, path)
        finally:
            with suppress(OSError):
                draft.unlink()
