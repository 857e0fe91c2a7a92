"""Going on in worlds outside JAX: what their copies on the host are doing is no part of a state that is saved.

So a run that goes on from a checkpoint begins new episodes there: the one case in which its numbers are not those of an
unbroken run. All else (the policy, replay, updates) is the program of `off_policy.py`, compiled as ever.
"""

import jax
import jax.numpy as jnp

from reverie.envs.outside.worlds import OutsideWorlds
from reverie.train.collect import Collector


def go_on(worlds: OutsideWorlds, collector: Collector) -> Collector:
    """Streams that were loaded, as they go on in these copies: episodes are cut off, and the next ones are seeded."""
    collector = cut_off(collector)
    key, worlds_key = jax.random.split(collector.key)
    worlds.go_on(int(jax.random.bits(worlds_key)))
    return collector._replace(key=key)


def cut_off(collector: Collector) -> Collector:
    """Streams whose episodes end where they are, truncated, so that the next step begins others.

    Their returns do not count, as they are those of parts of episodes.
    """
    timesteps = collector.timesteps
    return collector._replace(
        timesteps=timesteps._replace(is_last=jnp.ones_like(timesteps.is_last)),
        score=jnp.where(timesteps.is_last, collector.score, jnp.nan),
    )
