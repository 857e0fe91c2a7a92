"""The command line: quick help, plain errors, machine-readable output, and every command on something tiny."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

import reverie
from reverie import cli
from reverie.agents.actor_critic import NetworkConfig
from reverie.agents.a2c import A2CConfig
from reverie.agents.dreamer import DreamerConfig
from reverie.models.set_rssm import SetRSSMConfig
from reverie.train import presets
from reverie.train.config import CurveConfig, DreamerRun, OnPolicyRun, TrainConfig, WorldConfig
from reverie.train.dreaming import DreamingConfig
from reverie.train.loop import LoopConfig
from reverie.train.on_policy import OnPolicyConfig

EXAM = ["--episodes", "6", "--jobs", "30"]
TINY_WORLD = WorldConfig(family="hard", tasks=2, jobs=20)
TINY = {
    "dreamer": {
        "cpu": TrainConfig(
            DreamerRun(
                DreamerConfig(
                    model=SetRSSMConfig(units=8, deter=8, stoch=2, world_deter=8, world_stoch=2, classes=4),
                    memory=8,
                    units=8,
                    layers=1,
                    horizon=3,
                    starts=4,
                ),
                DreamingConfig(streams=2, capacity=200, batch=2, length=8, ratio=4.0),
                chunk=2,
            ),
            TINY_WORLD,
            LoopConfig(steps=40, evaluate_every=8),
            CurveConfig(episodes=2, jobs=10),
        ),
    },
    "a2c": {
        "cpu": TrainConfig(
            OnPolicyRun(A2CConfig(NetworkConfig(units=8)), OnPolicyConfig(streams=4, steps=8), chunk=2),
            TINY_WORLD,
            LoopConfig(steps=256, evaluate_every=64, save_every=0.0),
            CurveConfig(episodes=2, jobs=10),
        ),
    },
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "PRESETS", TINY)
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "reverie", *words], capture_output=True, text=True, check=False)


def fails(capsys, *words: str) -> str:
    """What a call that must fail says on standard error."""
    assert cli.main(list(words)) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def answer(capsys, *words: str):
    """The JSON that a call prints, and nothing else, on standard output."""
    assert cli.main([*words, "--output", "json"]) == 0
    return json.loads(capsys.readouterr().out)
