"""The set-up of a process: in processes of their own, since it cannot be undone in this one."""

import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from reverie import runtime

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def run(script: str, **environment: str | Path) -> Any:
    """What `script` prints as JSON in a new process, in which only `environment` decides about the set-up."""
    return run_and_listen(script, **environment)[0]


def run_and_listen(script: str, **environment: str | Path) -> tuple[Any, str]:
    """`run`, and what the process says on its standard error."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("REVERIE_", "JAX_", "XDG_"))}
    command = [sys.executable, "-c", "import json, os, sys\nfrom reverie import runtime\n" + script]
    variables = {**clean, "JAX_PLATFORMS": "cpu", **{name: str(value) for name, value in environment.items()}}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


COMPILE = """
done = runtime.configure()
import jax, jax.monitoring
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
for factor in (3, 5, 7):
    program = lambda x: x * factor + 1
    program.__name__ = f"times_{factor}"
    jax.jit(program)(1.0).block_until_ready()
print(json.dumps([sum(hits), done.compile_cache and str(done.compile_cache)]))
"""


def programs(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*-cache")}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[Path, Path]:
    """The user's cache folder after a first process, and where in it that says its programs are."""
    user = tmp_path_factory.mktemp("user")
    hits, folder = run(COMPILE, XDG_CACHE_HOME=user)
    assert hits == 0
    return user, Path(folder)


def test_a_second_process_compiles_nothing(compiled):
    user, folder = compiled
    first = programs(user)
    assert len(first) >= 3  # even programs as small as these are kept
    assert {path.parent for path in first} == {folder}
    assert folder.parent == user / "reverie" / "xla"
    assert folder.stat().st_mode & 0o077 == 0  # what is in there is executed
    hits, _ = run(COMPILE, XDG_CACHE_HOME=user)
    assert hits == len(first)
    assert programs(user) == first


def test_the_environment_moves_the_cache(tmp_path):
    _, folder = run(COMPILE, REVERIE_COMPILE_CACHE=tmp_path / "mine", XDG_CACHE_HOME=tmp_path / "user")
    assert Path(folder).parent == tmp_path / "mine"
    assert programs(tmp_path / "mine")
    assert not (tmp_path / "user").exists()


def test_the_environment_switches_the_cache_off_and_a_folder_that_jax_was_told_of_stays(tmp_path, monkeypatch):
    """In this process: what JAX is not told, it does not do, and from where it knows a folder is its own affair."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("REVERIE_COMPILE_CACHE", raising=False)
    with monkeypatch.context() as patched:
        patched.setenv("REVERIE_COMPILE_CACHE", "0")
        patched.setattr(jax.config, "update", lambda *_: pytest.fail("JAX was told of a cache"))
        assert runtime.configure() == runtime.Runtime(None)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    try:
        assert runtime.configure() == runtime.Runtime(tmp_path / "jax")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not (tmp_path / "user").exists()


def test_a_cache_that_cannot_be_made_says_how_to_do_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REVERIE_COMPILE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot make the compilation cache .* set REVERIE_COMPILE_CACHE to 0 or a path"):
        runtime._cache_folder()


def test_the_oldest_programs_go_when_the_cache_is_too_large(tmp_path):
    for age, name in enumerate(["a/new-cache", "b/old-cache", "a/oldest-cache"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "a" / "other").write_bytes(b"x" * 1000)
    for limit, names in ((300, {"new", "old", "oldest"}), (250, {"new", "old"}), (200, {"new", "old"}), (0, set())):
        runtime._trim(tmp_path, limit)
        assert {path.name.removesuffix("-cache") for path in programs(tmp_path)} == names
    assert (tmp_path / "a" / "other").exists()


DAMAGES = (lambda x: b"", lambda x: x[:-7], lambda x: x[:99] + bytes([x[99] ^ 1]) + x[100:])


def test_damaged_programs_are_named_once_and_replaced(compiled, tmp_path):
    compile_plainly = "import warnings; from reverie import cli; warnings.showwarning = cli._show_warning\n" + COMPILE
    shutil.copytree(compiled[0], tmp_path, dirs_exist_ok=True)
    whole = sorted(programs(tmp_path))
    assert len(whole) >= len(DAMAGES)
    for path, damage in zip(whole, itertools.cycle(DAMAGES), strict=False):
        path.write_bytes(damage(path.read_bytes()))
    (hits, _), said = run_and_listen(compile_plainly, XDG_CACHE_HOME=tmp_path)
    assert hits == 0
    assert said.count("damaged and is replaced") == len(whole)
    assert "Error reading" not in said
    (hits, _), said = run_and_listen(compile_plainly, XDG_CACHE_HOME=tmp_path)
    assert (hits, said) == (len(whole), "")


RELEASE = """
from pathlib import Path
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
runtime.configure(compile_cache=False)
before = resident()
blocks = [b"x" * 50_000 for _ in range(4000)]  # 200 MB
kept = blocks[::10]
full = resident()
del blocks
freed = resident()
runtime.release_memory()
print(json.dumps([full - before, freed - before, resident() - before]))
"""


@glibc
def test_what_a_compiler_freed_in_pieces_goes_back_to_the_system():
    full, freed, released = run(RELEASE)
    assert full > 150
    assert freed > 150  # kept, and too scattered for a large buffer
    assert released < 60


CALLED_AGAIN = """
runtime.configure(compile_cache=False)
import jax, jax.numpy as jnp
def status(name):
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith(name))
def work(x):  # 80 MB between one product and the next
    return jax.lax.optimization_barrier(jnp.outer(x, x)) @ x
program = jax.jit(work).lower(jnp.ones(4500)).compile()
before, kept = status("VmRSS"), []
for i in range(8):
    kept.append((program(jnp.full(4500, float(i))), b"x" * (40 * i)))
    jax.block_until_ready(kept[-1][0])
print(json.dumps([program.memory_analysis().temp_size_in_bytes >> 20, status("VmHWM") - before]))
"""


@linux
def test_a_program_that_is_called_again_takes_its_memory_once():
    """Where glibc was told to keep large blocks, what is cut off to align one stayed with its thread, the rest was too
    small for the next call, and eight calls could hold eight times the memory."""
    temporary, peak = run(CALLED_AGAIN)
    assert temporary > 70
    assert peak < 1.7 * temporary


def test_other_c_libraries_are_left_alone(monkeypatch):
    def no_library(*arguments):
        raise AssertionError("the C library was called")

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", no_library)
    runtime.release_memory()


def test_importing_does_not_import_jax():
    assert run("print(json.dumps('jax' in sys.modules))") is False


def test_a_platform_that_is_not_there_is_an_error():
    script = """
runtime.configure(compile_cache=False, platform="cpu")
import jax
first = jax.devices()[0].platform
try:
    runtime.configure(compile_cache=False, platform="tpu")
except ValueError as error:
    print(json.dumps([first, str(error)]))
"""
    first, error = run(script)
    assert first == "cpu"
    assert error.startswith("the platform 'tpu' is not available")


def test_a_platform_that_comes_too_late_is_an_error(monkeypatch):
    """JAX cannot change its mind once it works on another platform, and would not say so."""
    cpu, gpu = SimpleNamespace(platform="cpu"), SimpleNamespace(platform="gpu")
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(jax, "devices", lambda platform=None: {None: [gpu], "cuda": [gpu], "cpu": [cpu]}[platform])
    runtime._choose_platform("cuda")
    with pytest.raises(ValueError, match="JAX already works on 'gpu'; choose 'cpu' before its first use"):
        runtime._choose_platform("cpu")


def test_the_processor_has_a_name():
    assert runtime.cpu_model()
