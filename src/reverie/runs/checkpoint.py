"""Checkpoints: a pytree in one safetensors file, written whole or not at all, read without executing code.

Arrays (JAX, NumPy, typed random keys) are tensors named by their path in the tree; Python numbers and text, the kind of
every leaf and the caller's metadata are JSON in the header of the same file, so that one rename makes a checkpoint.
That JSON begins with the SHA-256 of the whole file (its own digits taken as 0): what is damaged never loads. Functions
and static fields are not stored: they come from the tree that is loaded into. What is in the tree, and when to save, is
the training loop's to decide.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import reverie
from reverie.files import remove_partial, replacing

FORMAT = 2
"""Version of the layout below; a file of another version is refused."""

_RENAMED = {
    ".policy_state.model.memory": ".policy_state.model.heard",
    ".kept.latents.memory": ".kept.latents.heard",
}
"""How paths of leaves ended once that end otherwise now."""
_DTYPES = {"bool", "bfloat16", "float16", "float32", "float64", "complex64"}
_DTYPES |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_OPENING = rb'{"__metadata__":{"reverie":"{\"sha256\": \"'
_SEAL = slice(8 + len(_OPENING), 8 + len(_OPENING) + 64)  # after the length of the header: 64 hexadecimal digits
_STEP = re.compile(r"step-(\d{1,18})\.safetensors")


def save(path: Path, tree: PyTree, metadata: Mapping[str, Any]) -> None:
    """Write `tree` and `metadata` (anything JSON can hold) to `path`; a file that is there is replaced at the end.

    Raises:
        TypeError: a leaf that cannot be stored, named by its path.
        OSError: the disk is full or not writable; a file that was there is as it was.
    """
    leaves = _leaves(tree)
    header = {
        "sha256": "0" * 64,
        "format": FORMAT,
        "reverie": reverie.__version__,
        "leaves": {name: _kind(name, leaf) for name, leaf in leaves.items()},
        "scalars": {name: leaf for name, leaf in leaves.items() if _is_scalar(leaf)},
        "keys": {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if _is_key(leaf)},
        "weak": [name for name, leaf in leaves.items() if getattr(leaf, "weak_type", False)],
        "metadata": dict(metadata),
    }
    arrays = {
        name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
        for name, leaf in leaves.items()
        if _is_array(leaf)
    }
    text = json.dumps(header)
    with replacing(path) as partial:
        try:
            save_file(arrays, partial, metadata={"reverie": text})
        except SafetensorError as error:
            if (cause := re.search(r"os error (\d+)", str(error))) is None:
                raise
            raise OSError(int(cause[1]), str(error)) from error
        _, seal = _seals(partial)
        with partial.open("r+b") as file:
            file.seek(_SEAL.start)
            file.write(seal)


def load(path: Path, like: PyTree) -> PyTree:
    """Read a checkpoint into the structure of `like`.

    Arguments:
        like: a tree of the same structure, shapes and types as the one saved; its values are not used, and JAX arrays
            may be `jax.ShapeDtypeStruct` (as from `eqx.filter_eval_shape`). Functions are taken from it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, not a checkpoint, of another format, or of another tree (with all differences).
    """
    expected = _leaves(like)
    header = _header(path)
    stored = {_present(name): name for name in header["leaves"]}
    kinds = {name: header["leaves"][old] for name, old in stored.items()}
    if differences := _differences(kinds, {name: _kind(name, leaf) for name, leaf in expected.items()}):
        raise ValueError(
            f"{path} holds another configuration than the one asked for. Load it with the configuration of its own run"
            f" (config.json) and the version that wrote it (reverie {header['reverie']}; this is"
            f" {reverie.__version__}), or start a new run.\n  " + "\n  ".join(differences)
        )
    with safe_open(path, framework="np") as file:
        restored = [_restore(file, header, stored[name], leaf) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata given to `save`."""
    return _header(path)["metadata"]


def save_step(folder: Path, step: int, tree: PyTree, metadata: Mapping[str, Any], keep: int = 2) -> Path:
    """Save the checkpoint of a step in `folder`, then remove all but the newest `keep`; its metadata gains `step`.

    Only one process may save in a folder.
    """
    remove_partial(folder)
    path = folder / f"step-{step:012d}.safetensors"
    save(path, tree, {**metadata, "step": step})
    for old in _steps(folder)[:-keep]:
        old.unlink()
    return path


def latest(folder: Path, upto: int | None = None) -> Path | None:
    """The checkpoint of the highest step in `folder` (up to the step `upto`, if given), None where there is none."""
    return max((path for path in _steps(folder) if upto is None or step_of(path) <= upto), key=step_of, default=None)


def step_of(path: Path) -> int:
    """The step of a checkpoint that `save_step` wrote."""
    return int(path.stem.removeprefix("step-"))


def _steps(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*") if _STEP.fullmatch(path.name)), key=step_of)


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    with path.open("rb") as file:
        start = file.read(4096)
    described = re.search(rb'\\"format\\": (\d+), \\"reverie\\": \\"([\w.+-]+)', start)
    if described is not None and described[1] != b"%d" % FORMAT:
        found, version = (part.decode() for part in described.groups())
        raise ValueError(
            f"{path} has checkpoint format {found} (reverie {version}); this version (reverie {reverie.__version__}) "
            f"reads format {FORMAT}. Use the version that wrote it"
        )
    stored, seal = _seals(path)
    if stored != seal:
        raise ValueError(
            f"{path} is damaged or not a checkpoint (it is not what its checksum says). Remove it to go on from the "
            "checkpoint before it"
        )
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["reverie"])


def _present(name: str) -> str:
    """The path of now of a leaf that was stored under that one."""
    old = next((end for end in _RENAMED if name.endswith(end)), None)
    return name if old is None else name.removesuffix(old) + _RENAMED[old]


def _seals(path: Path) -> tuple[bytes, bytes]:
    """The checksum that a file carries, and the one that its contents have."""
    with path.open("rb") as file:
        start = file.read(_SEAL.stop)
        digest = hashlib.sha256(start[: _SEAL.start] + b"0" * 64)
        while block := file.read(1 << 20):
            digest.update(block)
    return start[_SEAL], digest.hexdigest().encode()


def _leaves(tree: PyTree) -> dict[str, Any]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    if len(leaves) != len(paths):
        raise TypeError("two leaves of the tree have the same path, so that a checkpoint cannot tell them apart")
    return leaves


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic))


def _is_key(leaf: Any) -> bool:
    return _is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_scalar(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float, str)) and not isinstance(leaf, np.generic)


def _kind(name: str, leaf: Any) -> str:
    """What a leaf is, in words that are compared when a checkpoint is loaded."""
    if _is_array(leaf):
        if leaf.dtype.name in _DTYPES or _is_key(leaf):
            return f"{leaf.dtype.name} {list(leaf.shape)}"
        raise TypeError(
            f"{name}: an array of {leaf.dtype} cannot be stored; the types are {', '.join(sorted(_DTYPES))}"
        )
    if _is_scalar(leaf):
        return type(leaf).__name__
    if callable(leaf) and hasattr(leaf, "__qualname__"):
        return f"function {leaf.__qualname__}"
    raise TypeError(
        f"{name}: a {type(leaf).__name__} cannot be stored; a leaf is an array, a random key, a Python number or text,"
        " or a function (which is taken from the tree loaded into). Make it a static field"
    )


def _restore(file: Any, header: Mapping[str, Any], name: str, leaf: Any) -> Any:
    if _is_scalar(leaf):
        return header["scalars"][name]
    if not _is_array(leaf):
        return leaf
    value = file.get_tensor(name)
    if isinstance(leaf, np.ndarray):
        return value
    if isinstance(leaf, np.generic):
        return value[()]
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.array(value), impl=header["keys"][name])
    return _weakly_typed(value) if name in header["weak"] else jnp.array(value)  # a copy, so that it can be donated


def _weakly_typed(value: np.ndarray) -> Array:
    """`value` with JAX's weak type, as `jnp.full(shape, 1.0)` has it: it decides to what later arithmetic promotes."""
    prototype = jnp.asarray({"f": 0.0, "i": 0, "c": 0j}[value.dtype.kind])
    return jax.vmap(partial(jnp.full_like, prototype))(value.ravel()).reshape(value.shape)


def _differences(stored: Mapping[str, str], expected: Mapping[str, str], shown: int = 20) -> list[str]:
    """One line for each leaf that only one side has, or that is of another kind."""
    names = [*stored, *(name for name in expected if name not in stored)]
    lines = [
        f"{name or 'the tree'}: {stored.get(name, 'absent')} in the file, {expected.get(name, 'absent')} expected"
        for name in names
        if stored.get(name) != expected.get(name)
    ]
    return [*lines[:shown], f"… and {len(lines) - shown} more"] if len(lines) > shown else lines
