"""Event files for TensorBoard, written by the calling thread, so that a full disk is an error and not a silent stop."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog  # ty: ignore[import-not-found]
from tensorboardX.proto.summary_pb2 import Summary  # ty: ignore[import-not-found]
from tensorboardX.record_writer import RecordWriter

_FLUSH_SECONDS = 10


class TensorBoard:
    """Appends to the events in `folder`; what earlier processes wrote there beyond step `after` no longer counts."""

    def __init__(self, folder: Path, after: int):
        folder.mkdir(exist_ok=True)
        # The count keeps the files of two processes apart, and in order, that start within one second.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{len(list(folder.iterdir())):04d}"
        self._file = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        self._write(step=after + 1, session_log=SessionLog(status=SessionLog.START))
        self._flushed = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step; a viewer sees them some seconds later."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(step=step, summary=Summary(value=values))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring to the disk what was logged."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write out the rest; the file is closed even where the disk is full and this fails."""
        self._file.close()

    def _write(self, **content: object) -> None:
        self._file.write(Event(wall_time=time.time(), **content).SerializeToString())
