"""What every test shares: shape annotations are checked, and the data beside the checkout is found."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("reverie", "beartype.beartype")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of golden trajectories and real traces that lies beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data folder is not at {folder}")
    return folder
