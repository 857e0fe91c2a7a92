"""Whether seeds are trained faster side by side in one program than one after the other.

    python benchmarks/seeds.py [--seeds 4] [--chunks 5] [--preset paper]

Counted are updates of all seeds per CPU-second (on a GPU look at those per second on the clock), with their experience
and replay, without compilation. Without a preset, sizes are tiny, where batching has the most to win: Dreamer with the
`tiny` RSSM on 2 streams, A2C with 16 units on 8 streams.

Needs nothing but Reverie itself.
"""

import argparse
import time
from dataclasses import replace

from reverie.runtime import configure

configure()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from reverie.agents.a2c import A2CConfig  # noqa: E402
from reverie.agents.actor_critic import NetworkConfig  # noqa: E402
from reverie.agents.dreamer import DreamerConfig  # noqa: E402
from reverie.models.rssm import RSSMConfig  # noqa: E402
from reverie.runs.build import build  # noqa: E402
from reverie.settings import presets  # noqa: E402
from reverie.settings.config import OffPolicyRun, OnPolicyRun, TrainConfig, WorldConfig  # noqa: E402
from reverie.train.off_policy import OffPolicyConfig  # noqa: E402
from reverie.train.on_policy import OnPolicyConfig  # noqa: E402
from reverie.train.seeds import side_by_side  # noqa: E402

MODEL = RSSMConfig(units=32, deter=64, stoch=8, classes=4, depth=1, blocks=4)
TINY = {
    "dreamer": OffPolicyRun(
        DreamerConfig(model=MODEL, memory=16, units=16, layers=1, dream_length=5, starts=8),
        OffPolicyConfig(streams=2, capacity=2000, batch=4, length=16, ratio=8.0),
        chunk=20,
    ),
    "a2c": OnPolicyRun(
        A2CConfig(network=NetworkConfig(units=16)), OnPolicyConfig(streams=8, steps=8, workers=1), chunk=200
    ),
}


class Timed:
    """A training program and what its chunks took."""

    def __init__(self, trainer, key):
        self.state = trainer.init(key)
        self.train = jax.jit(trainer.train, donate_argnums=0).lower(self.state).compile()
        self.cpu, self.wall = [], []

    def chunk(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.state, _ = jax.block_until_ready(self.train(self.state))
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="how many are trained")
    parser.add_argument("--chunks", type=int, default=5, help="counted calls of each program")
    parser.add_argument("--preset", choices=["cpu", "learned", "paper"], help="settings instead of tiny ones")
    arguments = parser.parse_args()
    print(f"{arguments.seeds} seeds on {jax.devices()[0].device_kind}")
    print(f"{'':22} {'updates per CPU-second':>30} {'updates per second':>30}")
    print(f"{'':22} {'in turn':>10} {'together':>10} {'ratio':>8} {'in turn':>11} {'together':>10} {'ratio':>7}")
    for name, tiny in TINY.items():
        if arguments.preset is None:
            config = TrainConfig(tiny, WorldConfig(family="easy", tasks=4, jobs=100))
        elif arguments.preset in presets.PRESETS[name]:
            config = presets.preset(name, arguments.preset)
        else:
            continue
        trainers = [build(replace(config, seed=seed)) for seed in range(arguments.seeds)]
        keys = [jax.random.key(seed) for seed in range(arguments.seeds)]
        alone, together = Timed(trainers[0], keys[0]), Timed(side_by_side(trainers), jnp.stack(keys))
        for _ in range(arguments.chunks + 1):  # in turn, so that a noisy machine is noisy to both; the first warms up
            alone.chunk()
            together.chunk()
        updates = trainers[0].updates
        rates = [
            (updates / np.median(one[1:]), arguments.seeds * updates / np.median(all_of_them[1:]))
            for one, all_of_them in ((alone.cpu, together.cpu), (alone.wall, together.wall))
        ]
        (a, b), (c, d) = rates
        print(f"{name:22} {a:10.1f} {b:10.1f} {b / a:8.2f} {c:11.1f} {d:10.1f} {d / c:7.2f}", flush=True)


if __name__ == "__main__":
    main()
