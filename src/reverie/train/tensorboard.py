"""Event files for TensorBoard, written by the calling thread, so that a full disk is an error and not a silent stop."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # ty: ignore[import-not-found]
from tensorboardX.proto.summary_pb2 import Summary  # ty: ignore[import-not-found]

_FLUSH_SECONDS = 10


class TensorBoard:
    """Appends to the events in `folder`; what earlier processes wrote there beyond step `after` no longer counts."""

    def __init__(self, folder: Path, after: int):
        folder.mkdir(exist_ok=True)
        # The count keeps the files of two processes apart, and in order, that start within one second.
        self._writer = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir())):04d}")
        self._writer.write_event(
            Event(wall_time=time.time(), step=after + 1, session_log=SessionLog(status=SessionLog.START))
        )
        self._flushed = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step; a viewer sees them some seconds later."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring to the disk what was logged."""
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()
