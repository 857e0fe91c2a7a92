"""Training on two devices gives the numbers of one; two are played by the CPU, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reverie.commands import train
from reverie.train.devices import first_devices


def test_two_devices_give_the_result_of_one_and_resume_each_other(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("two_devices.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_devices_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"devices must lie in 1 \.\. \d+, as this process sees .*; got 99\."):
        first_devices(99)


def test_seeds_or_devices_are_asked_for_not_both(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--seeds", "2", "--devices", "2"])
    assert "--seeds 2 runs on one device" in " ".join(capsys.readouterr().err.split())
