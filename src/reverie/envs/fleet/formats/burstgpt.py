"""BurstGPT (Wang et al., KDD 2025): CSV, times in seconds. A failed request has no response tokens, and stays a job."""

from reverie.envs.fleet.formats.core import Jobs, Text, token_jobs

_COLUMNS = "Timestamp", "Request tokens", "Response tokens"


def read(text: Text) -> Jobs | None:
    if not text.has_columns(*_COLUMNS):
        return None
    return token_jobs(text, "BurstGPT", text.csv(*_COLUMNS), _COLUMNS, unit="s")
