"""What every test shares: shape annotations are checked, programs are compiled quickly and once, data are found."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

MEASURES = ["clusters", "forgetting"]
"""Of the experiments: what has tests of its own."""
install_import_hook(["reverie", *MEASURES], "beartype.beartype")

# How long an example takes is the machine's affair: a busy one is no fault of ours.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Most of the time of these tests goes into compiling small programs that run once: they are hardly optimised, here and
# in the processes that tests start. Before JAX is imported.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1".strip()
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

# Where Python is to leave no bytecode beside the sources, it is kept here: each of the processes that tests start would
# otherwise compile JAX and all else anew, which takes it longer than what it is started for.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left alone with one of these at the end; what runs beside
    other tests is begun before all of them, and waited for after the slow ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    beside = {item.path for item in items if item.get_closest_marker("waits")}

    def place(item: pytest.Item) -> int:
        if item.get_closest_marker("waits"):
            return 2
        return 0 if item.path in beside else 1 if item.path in slow else 3

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What runs longer than it takes to compile is worth optimising."""
    import jax

    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("optimised") is None)


@pytest.fixture(scope="session", autouse=True)
def _compiled_once() -> None:
    """Programs are kept on disk, for the other worker and the next run of the tests. What was imported is no garbage:
    to look for some among a million objects takes a sixth of the time of tracing."""
    from reverie import runtime

    runtime.configure()
    gc.freeze()
    gc.set_threshold(50_000)


MOST_MAPS = 15_000
"""Of a worker that goes on with the programs that it has; a file of tests loads far fewer than are left then."""


@pytest.fixture(scope="module", autouse=True)
def _programs_unloaded() -> Iterator[None]:
    """Every program that is loaded takes some of the memory maps of the process, of which Linux allows 65,530: a worker
    that kept those of all tests crashed when it loaded one of the last. While there are few they are kept, as a file
    uses hundreds of the small ones that the files before it have used."""
    yield
    import jax

    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def few_rules(monkeypatch) -> None:
    """Where all rules would be opponents, three are: each takes a second to compile; `test_rules.py` plays them all."""
    from reverie.evaluate import opponents
    from reverie.policies.rules import rules

    few = ("random", "jsq", "least-work")
    monkeypatch.setattr(
        opponents, "rules", lambda speeds, sizes, names=None: rules(speeds, sizes, few if names is None else names)
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of golden trajectories and real traces that lies beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data folder is not at {folder}")
    return folder
