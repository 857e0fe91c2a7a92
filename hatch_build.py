"""What a package index shows: the README with links that hold there, and where the project lives.

Links in the README are relative, as they should be in a repository. An index knows nothing of the files beside it. Set
REVERIE_URL to the address of the repository (as in https://github.com/OWNER/NAME) when building for an index, and links
and pictures lead there; without it links become plain text and pictures are left out, as nothing could show them.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")
"""A link or a picture (with !) that is relative: its text and its target."""


_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)\n\n\*[^*]+\*\n\n")
"""A picture and what is said of it."""


def readme(text: str, url: str | None) -> str:
    """The README for an index, which has no files beside it."""

    def absolute(found: re.Match[str]) -> str:
        picture, said, target = found.groups()
        if url is None:
            return said
        return f"{picture}[{said}]({url}/{'raw' if picture else 'blob'}/main/{target})"

    return _LINK.sub(absolute, _PICTURE.sub("", text) if url is None else text)


class CustomMetadataHook(MetadataHookInterface):
    """Fills the fields that pyproject.toml calls dynamic."""

    def update(self, metadata: dict) -> None:
        url = os.environ.get("REVERIE_URL", "").rstrip("/") or None
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme(text, url)}
        metadata["urls"] = {} if url is None else {"Repository": url, "Changelog": f"{url}/blob/main/CHANGELOG.md"}
