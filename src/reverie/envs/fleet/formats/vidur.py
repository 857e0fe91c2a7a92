"""Traces of the simulator Vidur (Agrawal et al., MLSys 2024): CSV, times in seconds."""

from reverie.envs.fleet.formats.core import Jobs, Text, token_jobs

_COLUMNS = "arrived_at", "num_prefill_tokens", "num_decode_tokens"


def read(text: Text) -> Jobs | None:
    if not text.has_columns(*_COLUMNS):
        return None
    return token_jobs(text, "Vidur", text.csv(*_COLUMNS), _COLUMNS, unit="s")
