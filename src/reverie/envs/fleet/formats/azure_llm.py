"""Azure's LLM inference traces of 2023 and 2024 (Patel et al., Splitwise, ISCA 2024): CSV, times in ISO 8601."""

from reverie.envs.fleet.formats.core import Jobs, Text, token_jobs

_COLUMNS = "TIMESTAMP", "ContextTokens", "GeneratedTokens"


def read(text: Text) -> Jobs | None:
    if not (text.has_columns("ContextTokens") or text.has_columns("GeneratedTokens")):
        return None
    return token_jobs(text, "Azure LLM inference", text.csv(*_COLUMNS), _COLUMNS)
