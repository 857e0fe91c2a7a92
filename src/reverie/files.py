"""Files that are written whole or not at all, by one process at a time, and read with an error that names them.

Everything that Reverie keeps (checkpoints, tables, configurations, reports) is written through `replacing`, so a kill,
a power cut or a full disk leaves the previous version as it was. What the files mean is decided elsewhere.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, is nested beyond reason or has a number of thousands of digits.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, or damaged: {error}") from error


@contextmanager
def locked(path: Path, what: str) -> Generator[None]:
    """Hold the lock file `path`, alone, until the block is left; `what` it is for is said to those who come second.

    Raises:
        BlockingIOError: another process holds it.
        IsADirectoryError: a folder lies in its place.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path} should be a file, and is a folder: remove it")
    with path.open("a+", encoding="utf-8", errors="replace") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            message = f"{what} is being written by {lock.read() or 'another process'}; wait or stop it"
            raise BlockingIOError(error.errno, message) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


SEALS = "SHA256SUMS"
"""In a folder of tables: their checksums, as the program sha256sum writes and checks them."""


def seal(folder: Path, names: Iterable[str]) -> None:
    """Put down the checksums of files, beside those that the folder has."""
    found = {name: digest for name, digest in seals(folder).items() if (folder / name).exists()}
    found |= {name: _checksum(folder / name) for name in names}
    write_text(folder / SEALS, "".join(f"{digest}  {name}\n" for name, digest in sorted(found.items())))


def forget_damaged(folder: Path) -> None:
    """Put down only the checksums of files that are there and whole: what is gone or damaged is to be made anew."""
    found = seals(folder)
    if found != (whole := {name: digest for name, digest in found.items() if is_sealed(folder, name)}):
        write_text(folder / SEALS, "".join(f"{digest}  {name}\n" for name, digest in sorted(whole.items())))


def is_sealed(folder: Path, name: str) -> bool:
    """Whether a file is there and is what was sealed: neither damaged nor edited."""
    return (folder / name).is_file() and seals(folder).get(name) == _checksum(folder / name)


def seals(folder: Path) -> dict[str, str]:
    """The checksums that were put down, by the names of the files."""
    path = folder / SEALS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
