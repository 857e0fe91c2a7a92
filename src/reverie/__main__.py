"""The command `reverie`, also by `python -m reverie`: an interrupt that comes while it is read ends the process there
and then, as the system does, without a traceback."""

import signal
import sys

_is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # one that is ignored stays so
if _is_usual:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from reverie.cli import main  # noqa: E402

if _is_usual:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    sys.exit(main())
