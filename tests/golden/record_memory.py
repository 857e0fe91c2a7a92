"""Record episodes of popgym 1.0.7 and bsuite 0.3.6 into `memory.npz`, which `tests/test_memory_worlds.py` plays again.

Run it where both packages are installed (they are no dependencies of Reverie):

    python -m pip install popgym==1.0.7 bsuite==0.3.6
    python tests/golden/record_memory.py

For each episode `NAME/INDEX`: what chance decided when it began, the actions, and what came back at each step, the
opening observation first. Actions are those of a player who knows the answer and gives another now and then.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from bsuite.environments.discounting_chain import DiscountingChain
from bsuite.environments.memory_chain import MemoryChain
from popgym.envs import autoencode, concentration, repeat_previous

FOLDER = Path(__file__).parent
CARD_GAMES = {
    "repeat_previous": (repeat_previous, "RepeatPrevious"),
    "autoencode": (autoencode, "Autoencode"),
    "concentration": (concentration, "Concentration"),
}


def name_suit(env, rng) -> int:
    """The right suit in RepeatPrevious and Autoencode, where there is one to name."""
    hand = env.deck.hands.get("player") or env.deck.hands.get("system")
    back = env.k if hasattr(env, "k") else 1
    return int(env.deck.suits_idx[hand[-back]]) if len(hand) >= back else int(rng.integers(4))


def find_pair(env, rng) -> int:
    """A card that makes a pair with the one in hand, or any that still lies face down."""
    values = env.deck_idx_type[env.deck.idx]
    hidden = [i for i in range(len(values)) if i not in env.deck["face_up_idx"] + env.deck["in_play_idx"]]
    in_hand = env.deck["in_play_idx"]
    fitting = [i for i in hidden if not in_hand or values[i] == values[in_hand[0]]]
    return int(rng.choice(fitting or hidden))


def play_cards(env, seed: int, skill: float, answer: Callable) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    # RepeatPrevious and Autoencode deal from the end of the deck.
    cards = getattr(env, "deck_idx_type", env.deck.suits_idx)[env.deck.idx]
    cards = cards if hasattr(env, "deck_idx_type") else cards[::-1]
    rows, actions, over = [(np.ravel(observation), 0.0, False, False)], [], False
    while not over:
        action = answer(env, rng) if rng.random() < skill else int(rng.integers(env.action_space.n))
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append((np.ravel(observation), reward, terminated, truncated))
        actions.append(action)
        over = terminated or truncated
    return {"chance": cards, "actions": np.asarray(actions)} | stacked(rows)


def play_chain(env, chance: np.ndarray, answer: int, seed: int) -> dict[str, np.ndarray]:
    rng, timestep = np.random.default_rng(seed), env.reset()
    if isinstance(env, MemoryChain):
        chance = np.append(env._context, env._query)
        answer = int(env._context[env._query]) if answer else 1 - int(env._context[env._query])
    rows, actions = [(np.ravel(timestep.observation), 0.0, False, False)], []
    while not timestep.last():
        ends = isinstance(env, MemoryChain) and env._timestep == env._memory_length
        opens = isinstance(env, DiscountingChain) and env._timestep == 0
        action = answer if ends or opens else int(rng.integers(env.action_spec().num_values))
        timestep = env.step(action)
        rows.append((np.ravel(timestep.observation), timestep.reward, timestep.last(), False))
        actions.append(action)
    return {"chance": chance, "actions": np.asarray(actions)} | stacked(rows)


def stacked(rows: list[tuple]) -> dict[str, np.ndarray]:
    observation, reward, terminated, truncated = (np.asarray(x) for x in zip(*rows, strict=True))
    return {"observation": observation, "reward": reward, "terminated": terminated, "truncated": truncated}


def episodes():
    """Names and episodes."""
    for game, (module, title) in CARD_GAMES.items():
        answer = find_pair if game == "concentration" else name_suit
        for level in ("Easy", "Medium", "Hard"):
            for index, skill in enumerate((1.0, 0.9, 0.0)):
                env = getattr(module, title + level)()
                yield f"{game}/{level.lower()}/{index}", play_cards(env, 10 + index, skill, answer)
    for length, bits in [(1, 1), (2, 1), (3, 1), (30, 1), (100, 1), (2, 2), (2, 7), (2, 40)]:
        for index in range(4):
            env = MemoryChain(length, bits, seed=index)
            yield f"memory_chain/{length}-{bits}/{index}", play_chain(env, np.zeros(0), index % 2, index)
    for bonus in range(5):
        for arm in range(5):
            yield f"discounting_chain/{bonus}/{arm}", play_chain(DiscountingChain(bonus), np.array(bonus), arm, arm)


def small(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int8) if np.issubdtype(x.dtype, np.integer) else x


if __name__ == "__main__":
    arrays = {f"{name}/{key}": small(x) for name, episode in episodes() for key, x in episode.items()}
    np.savez_compressed(FOLDER / "memory.npz", **arrays)
