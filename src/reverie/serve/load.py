"""The policy that a configuration names: a rule, or an agent that was exported."""

from pathlib import Path

from reverie.serve.policy import read_described
from reverie.serve.rates import Rule, tuned_rule
from reverie.serve.settings import ADAPTIVE, WEIGHTS, ServeConfig
from reverie.serve.trained import Trained, trained


def load_rule(config: ServeConfig) -> Rule | Trained:
    """The policy that the configuration names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds a policy that makes no weights.
    """
    if config.policy == ADAPTIVE:
        return Rule(config.tau, config.limits.failure)
    path = Path(config.policy)
    if not path.is_file():
        raise FileNotFoundError(f"there is no policy at {path}; the rule by its name is {ADAPTIVE}")
    described, arrays = read_described(path)
    if described.get("kind") == "tuned rule" and described["config"]["rule"] in (ADAPTIVE, WEIGHTS):
        return tuned_rule(described, arrays, config)
    if described.get("kind") == "policy" and "proxy" in described["observation"]:
        return trained(path, described, config)
    raise ValueError(
        f"{path} decides where each request goes, and a proxy takes weights that are held for a while. Policies "
        f"that make weights come from `reverie tune --rule {WEIGHTS}`, or from `reverie train --preset weights` and "
        "`reverie export`"
    )
