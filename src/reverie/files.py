"""Writing a file whole or not at all.

Everything that Reverie keeps (checkpoints, tables, configurations, reports) is written through `replacing`, so a kill,
a power cut or a full disk leaves the previous version as it was. What the files mean is decided elsewhere.
"""

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a size limit was met",
}


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a temporary path to write to; it takes the place of `path` in one step when the block ends without error.

    The folder of `path` must exist. What was written has reached the disk when the block is left.

    Raises:
        OSError: the disk is full, or not writable; `path` is then as it was before.
    """
    # A folder, because some writers make temporary files of their own beside the file that they write.
    folder = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial = folder / path.name
    try:
        with explained(path):
            folder.mkdir(exist_ok=True)
            yield partial
            partial.chmod(folder.stat().st_mode & 0o666)  # as the umask says, whatever the writer chose
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)  # the new name itself
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half written in `folder`, in which no other process may be writing."""
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial)


@contextmanager
def explained(path: Path) -> Generator[None]:
    """Say of a disk that is full which file was being written and what to do."""
    try:
        yield
    except OSError as error:
        if (cause := _FULL.get(error.errno or 0)) is None:
            raise
        message = f"{cause} while writing {path}. What was saved before is whole: make room, then resume"
        raise OSError(error.errno, message) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
