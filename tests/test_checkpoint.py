"""Checkpoints come back bit for bit, refuse what does not fit, and survive a full disk and a kill."""

import errno
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from reverie.runs import checkpoint


class Counters(NamedTuple):
    steps: int
    rate: float
    done: bool
    label: str
    nothing: None


def training_state(seed: int = 0, width: int = 4) -> dict:
    """One leaf of every kind that a checkpoint has to carry."""
    keys = jax.random.split(jax.random.key(seed), 3)
    model = eqx.nn.MLP(2, 2, width, 1, key=keys[0])
    return {
        "model": model,  # its activations are functions among the leaves
        "optimiser": optax.adam(1e-3).init(eqx.filter(model, eqx.is_array)),
        "key": keys[1],
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), (2, 2)),
        "bfloat16": jax.random.normal(keys[2], (3,), jnp.bfloat16),
        "complex": jnp.array([1 + 2j, jnp.nan]),
        "empty": jnp.zeros((0, 3)),
        "weak": jnp.full((2,), 1.5),
        "host": {
            "float64": np.arange(6.0)[::2] + seed,
            "fortran": np.asfortranarray(np.arange(6).reshape(2, 3) + seed),
        },
        "scalar": np.float32(seed + 0.1),
        "counters": Counters(steps=seed, rate=0.1, done=True, label="é", nothing=None),
    }


def assert_identical(actual, expected):
    """The same structure and, leaf by leaf, the same type, shape, weak type and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other)
        if not isinstance(one, (jax.Array, np.ndarray, np.generic)):
            assert one == other
            continue
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert getattr(one, "weak_type", None) == getattr(other, "weak_type", None)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    state = training_state(seed=1)
    checkpoint.save(tmp_path / "c.safetensors", state, {"config": {"size": [1, None, "x"]}})
    assert_identical(checkpoint.load(tmp_path / "c.safetensors", training_state(seed=2)), state)
    assert checkpoint.read_metadata(tmp_path / "c.safetensors") == {"config": {"size": [1, None, "x"]}}
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_tree_of_shapes_is_enough_to_load_into(tmp_path):
    state = (jax.random.key(3), jnp.full((2,), 2.5), jnp.arange(3))
    checkpoint.save(tmp_path / "c.safetensors", state, {})
    assert_identical(checkpoint.load(tmp_path / "c.safetensors", jax.eval_shape(lambda: state)), state)


def test_leaves_that_were_stored_under_an_older_path_are_found(tmp_path):
    """What a mixture that guesses its task had heard."""
    acting, then, now = (namedtuple("Acting", [each]) for each in ("policy_state", "memory", "heard"))
    both = namedtuple("Both", ["model", "recurrent"])
    checkpoint.save(tmp_path / "c.safetensors", acting(both(then(jnp.full(3, 2.0)), 7)), {})
    loaded = checkpoint.load(tmp_path / "c.safetensors", acting(both(now(jnp.zeros(3)), 0)))
    assert_identical(loaded, acting(both(now(jnp.full(3, 2.0)), 7)))


def test_a_lone_leaf_and_an_empty_tree_are_trees_too(tmp_path):
    for tree in (jnp.ones(2), {}):
        checkpoint.save(tmp_path / "c.safetensors", tree, {})
        assert_identical(checkpoint.load(tmp_path / "c.safetensors", tree), tree)


def test_what_was_loaded_is_free_of_the_file_and_can_be_donated_and_written(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"jax": jnp.arange(1000.0), "numpy": np.arange(1000.0)}, {})
    state = checkpoint.load(path, {"jax": jnp.zeros(1000), "numpy": np.zeros(1000)})
    path.write_bytes(b"\0" * path.stat().st_size)
    state["numpy"][0] = 7.0
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(state["jax"])
    assert state["jax"].is_deleted()
    np.testing.assert_array_equal(doubled, 2 * np.arange(1000.0))
    np.testing.assert_array_equal(state["numpy"][1:], np.arange(1.0, 1000.0))


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(
        path, {"w": jnp.zeros((2, 3)), "n": 1, "gone": jnp.zeros(1), "f": jax.nn.relu, "key": jax.random.key(0)}, {}
    )
    like = {"w": jnp.zeros((2, 4)), "n": 1.0, "new": None, "added": jnp.zeros(2, jnp.bfloat16), "f": jax.nn.silu}
    with pytest.raises(ValueError, match="another configuration") as error:
        checkpoint.load(path, {**like, "key": jax.random.key(0, impl="rbg")})
    assert str(error.value).splitlines()[1:] == [
        "  ['f']: function relu in the file, function silu expected",
        "  ['gone']: float32 [1] in the file, absent expected",
        "  ['key']: key<fry> [] in the file, key<rbg> [] expected",
        "  ['n']: int in the file, float expected",
        "  ['w']: float32 [2, 3] in the file, float32 [2, 4] expected",
        "  ['added']: absent in the file, bfloat16 [2] expected",
    ]


def test_a_long_list_of_differences_is_cut(tmp_path):
    checkpoint.save(tmp_path / "c.safetensors", list(range(100)), {})
    with pytest.raises(ValueError, match="and 80 more"):
        checkpoint.load(tmp_path / "c.safetensors", [])


@pytest.mark.parametrize(
    "leaf", [object(), 1j, np.zeros(2, np.complex128), jnp.zeros(2, jnp.float8_e4m3fn), np.array("x")]
)
def test_a_leaf_that_could_not_be_read_back_is_refused_when_saving(tmp_path, leaf):
    with pytest.raises(TypeError, match=r"\['agent'\]\[0\]: an? .* cannot be stored"):
        checkpoint.save(tmp_path / "c.safetensors", {"agent": [leaf]}, {})
    assert list(tmp_path.iterdir()) == []


def test_missing_and_newer_files_are_named_for_what_they_are(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*c\.safetensors"):
        checkpoint.load(path, {})
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    checkpoint.save(path, jnp.zeros(100), {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format 3 .* reads format 2"):
        checkpoint.load(path, jnp.zeros(100))


def test_a_file_from_before_checksums_is_named_by_its_format(tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"a": np.zeros(1)}, path, metadata={"reverie": json.dumps({"format": 1, "reverie": "0.1.0"})})
    with pytest.raises(ValueError, match=r"format 1 \(reverie 0\.1\.0\).* reads format 2"):
        checkpoint.load(path, jnp.zeros(1))
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        checkpoint.load(path, jnp.zeros(1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint with a leaf of every kind."""
    path = tmp_path_factory.mktemp("whole") / "c.safetensors"
    checkpoint.save(path, training_state(), {"step": 3, "config": {"class": "A", "rate": 0.5}})
    return path


@settings(max_examples=300, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(whole, share, bit):
    """Lengths, header, metadata, names, kinds and every tensor: each bit of the file counts."""
    data = bytearray(whole.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    assert_refused(whole, bytes(data))


@settings(max_examples=100, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_cut_goes_unnoticed(whole, share):
    data = whole.read_bytes()
    assert_refused(whole, data[: int(share * len(data))])


@settings(max_examples=50, deadline=None)
@given(more=st.binary(min_size=1, max_size=99))
def test_nothing_appended_goes_unnoticed(whole, more):
    assert_refused(whole, whole.read_bytes() + more)


def assert_refused(whole: Path, data: bytes) -> None:
    path = whole.with_name("damaged.safetensors")
    path.write_bytes(data)
    for read in (checkpoint.read_metadata, lambda path: checkpoint.load(path, training_state())):
        with pytest.raises(ValueError, match=r"is damaged or not a checkpoint|has checkpoint format"):
            read(path)


def test_the_last_two_checkpoints_stay_and_the_newest_is_the_latest(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    (tmp_path / "step-000000000999.safetensors.txt").touch()
    for step in (0, 5, 12, 101):
        path = checkpoint.save_step(tmp_path, step, {"x": step}, {"note": "n"})
        assert checkpoint.latest(tmp_path) == path
        assert checkpoint.read_metadata(path) == {"note": "n", "step": step}
    assert [checkpoint.read_metadata(path)["step"] for path in sorted(tmp_path.glob("*.safetensors"))] == [12, 101]


@pytest.mark.parametrize("size", [0, 1 << 16])
def test_a_writer_that_fails_half_way_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch, size):
    first = checkpoint.save_step(tmp_path, 1, jnp.ones(3), {})

    def writer(tensors, filename, metadata):
        Path(filename).write_bytes(b"x" * size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", writer)
    for step in (1, 2):
        with pytest.raises(OSError, match=r"the disk is full while writing .*step-0*\d.safetensors\. .* make room"):
            checkpoint.save_step(tmp_path, step, jnp.zeros(3), {})
        assert [path.name for path in tmp_path.iterdir()] == [first.name]
        assert_identical(checkpoint.load(first, jnp.zeros(3)), jnp.ones(3))


def test_the_disk_has_the_contents_before_the_name(tmp_path, monkeypatch):
    """After a power cut a name must never point at contents that did not reach the disk."""
    calls = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), real_sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), real_replace(a, b)))
    checkpoint.save(tmp_path / "c.safetensors", jnp.ones(3), {})
    contents, rename, folder = calls
    assert contents.endswith(".partial/c.safetensors")
    assert (rename, folder) == ("rename", str(tmp_path))


def run(script: str, *arguments: object) -> str:
    """What a Python process that runs `script` says on its standard error."""
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def assert_only_the_first_is_there(folder: Path):
    first = folder / "step-000000000001.safetensors"
    assert checkpoint.latest(folder) == first
    assert [path.name for path in folder.glob("step-*")] == [first.name]
    np.testing.assert_array_equal(checkpoint.load(first, np.zeros(3)), np.ones(3))


def test_a_size_limit_leaves_the_previous_checkpoint_whole(tmp_path):
    checkpoint.save_step(tmp_path, 1, np.ones(3), {})
    limited = """
import resource, sys
from pathlib import Path
import numpy as np
from reverie.runs import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
checkpoint.save_step(Path(sys.argv[1]), 2, np.zeros(1 << 17), {})
"""
    assert "OSError: [Errno 27] a size limit was met while writing" in run(limited, tmp_path)
    assert_only_the_first_is_there(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_really_full_disk_leaves_the_previous_checkpoint_whole(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting a small disk needs root; the size limit above stands in for it")
    try:
        checkpoint.save_step(disk, 1, np.ones(3), {})
        with pytest.raises(OSError, match="the disk is full while writing"):
            checkpoint.save_step(disk, 2, np.zeros(1 << 17), {})
        assert_only_the_first_is_there(disk)
        assert len(list(disk.iterdir())) == 1
        checkpoint.save_step(disk, 3, np.ones(3), {})
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_kill_while_saving_leaves_the_previous_checkpoint_whole_and_no_litter(tmp_path):
    """Killed in the middle of the contents, and between the contents and the name; the next save tidies up."""
    checkpoint.save_step(tmp_path, 1, np.ones(3), {})
    killed = """
import os, signal, sys
from pathlib import Path
import numpy as np
from reverie.runs import checkpoint

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def half(tensors, filename, metadata):
    Path(filename).write_bytes(b"half")
    Path(filename).with_name(".a-temporary-file-of-the-writer").touch()
    die()

for owner, name, deadly in ((checkpoint, "save_file", half), (os, "replace", die)):
    if os.fork() == 0:
        setattr(owner, name, deadly)
        checkpoint.save_step(Path(sys.argv[1]), 2, np.zeros(3), {})
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(status, len(list(Path(sys.argv[1]).glob(".*.partial/*"))), file=sys.stderr)
"""
    assert run(killed, tmp_path) == "-9 2\n-9 1\n"
    assert_only_the_first_is_there(tmp_path)
    checkpoint.save_step(tmp_path, 2, np.ones(3), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:012d}.safetensors" for step in (1, 2)]


def test_the_header_is_plain_json(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"x": jnp.ones(2), "n": 3}, {"step": 1})
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["['x']"]["shape"] == [2]
    stored = json.loads(header["__metadata__"]["reverie"])
    assert stored["leaves"] == {"['n']": "int", "['x']": "float32 [2]"}
    assert stored["scalars"] == {"['n']": 3}
