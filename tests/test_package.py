"""What a package index shows of the README leads somewhere, with and without a known address of the repository."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
RELATIVE = re.compile(r"\]\((?!https?://|#)")


@pytest.fixture
def readme(monkeypatch):
    """The function of the build; what builds packages need not be installed for it."""
    interface = ModuleType("interface")
    interface.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.readme


@pytest.mark.parametrize("url", [None, "https://example.org/us/reverie"])
def test_the_readme_has_no_link_that_an_index_cannot_follow(readme, url):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert RELATIVE.search(text)  # there is something to do
    shown = readme(text, url)
    assert not RELATIVE.search(shown)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", shown)
    if url is None:
        assert pictures == []
        assert "The same jobs under the best rule" not in shown  # of the picture that is not there
    else:
        assert pictures == [f"{url}/raw/main/docs/pictures/fleet.gif"]
        for target in re.findall(re.escape(url) + r"/(?:blob|raw)/main/([^)#]+)", shown):
            assert (ROOT / target).exists(), target
    prose = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
    assert prose.sub(r"\1", shown)[-300:] == prose.sub(r"\1", text)[-300:]  # nothing else is touched
