"""A hook of MkDocs: the README as the first page, an API page for each room, links into the code led to those pages.

The pages themselves are the files that are read in the repository: nothing is written twice.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "reverie"
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of `docs/`."""
    for name in ("README", "CONTRIBUTING", "CHANGELOG"):
        page = "index.md" if name == "README" else f"{name.lower()}.md"
        files.append(File.generated(config, page, content=(ROOT / f"{name}.md").read_text()))
    texts = {path.stem: path.read_text() for path in sorted((PACKAGE / "help").glob("*.txt"))}
    commands = "\n".join(f"## {name}\n\n```text\n{text}```\n" for name, text in texts.items())
    files.append(File.generated(config, "commands.md", content=f"# Commands and their options\n\n{commands}"))
    for room, modules in sorted(rooms().items()):
        body = "\n\n".join(f"::: {module}" for module in modules)
        files.append(File.generated(config, f"api/{room}.md", content=f"# {room}\n\n{body}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead links to files of the repository to the pages that stand for them; what has no page becomes plain text."""
    source = page.file.src_uri
    here = posixpath.dirname("" if source in ("index.md", "contributing.md", "changelog.md") else f"docs/{source}")

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link[1]))
        if not (ROOT / target).exists():
            return link[0]  # MkDocs says that it is broken
        place = _page_of(target)
        if place is None:
            return "]" + f"{{: title='{target}, in the repository'}}"
        start = posixpath.dirname(source)
        return f"]({posixpath.relpath(place, start or '.')}{link[2] or ''})"

    return _without_link(_LINK.sub(led, markdown))


def rooms() -> dict[str, list[str]]:
    """The modules of each room; those beside the rooms are `reverie`."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1].startswith("__") or not path.stat().st_size:
            continue
        found.setdefault(parts[0] if len(parts) > 1 else "reverie", []).append(".".join(("reverie", *parts)))
    return found


def _page_of(target: str) -> str | None:
    """The page, as MkDocs names it, that shows a file or folder of the repository; None where there is none."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        return "index.md" if target == "README.md" else target.lower()
    if target.startswith("src/reverie/"):
        parts = Path(target).relative_to("src/reverie").parts
        return f"api/{parts[0]}.md" if not parts[0].endswith(".py") else "api/reverie.md"
    return None


def _without_link(markdown: str) -> str:
    """Text in brackets whose link was taken away, without the brackets."""
    return re.sub(r"\[([^\]\[]*)\]\{: title='[^']*'\}", r"\1", markdown)
