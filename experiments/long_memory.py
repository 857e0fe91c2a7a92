"""Does a longer memory help a balancer? State-space models beside recurrent ones, in worlds that change.

Four world models of R2I's kind and DreamerV3's, each under the same policy with RL2 memory and the same training: the
published ones, which read a fleet as one vector (`flat`), and ours, which keep a state for each server (`set`), once
with GRUs and once with state-space layers in their place. With the fleet in view they meet changing loads and drifting
speeds; with counts alone in view, speeds that they can only infer.

    python experiments/long_memory.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from study import ExamOptions, Study, brief, study

from reverie.evaluate.examination import Exam, of_family, of_levels
from reverie.evaluate.statistics import verdict
from reverie.models.build import ModelConfig
from reverie.models.set_rssm import SetRSSMConfig
from reverie.settings.config import OffPolicyRun, TrainConfig
from reverie.settings.presets import MODELS, Preset, preset


@dataclass(frozen=True)
class LongMemory(Study):
    """The options of this experiment."""

    seeds: int = 2
    """Training seeds of each agent."""
    steps: int = 60_000
    """Environment steps of each training."""
    exam: ExamOptions = field(default_factory=lambda: Exam(episodes=50))

    def plans(self, name: Preset, models: Mapping[str, ModelConfig]) -> list[TrainConfig]:
        """A preset with each of the models, once for each seed."""
        plan = preset("dreamer", name)
        return [
            replace(self._with(plan, kind, model), seed=s) for s in range(self.seeds) for kind, model in models.items()
        ]

    def _with(self, plan: TrainConfig, kind: str, model: ModelConfig) -> TrainConfig:
        assert isinstance(plan.agent, OffPolicyRun)
        usual = preset("dreamer", "learned").agent.algorithm
        algorithm = replace(usual, model=model, reward_scale=plan.agent.algorithm.reward_scale)
        loop = replace(plan.loop, steps=self.steps)
        label = f"{kind}-{plan.fleet.view}"
        return self.larger(replace(plan, agent=replace(plan.agent, algorithm=algorithm), loop=loop, label=label))


SETS: Mapping[str, ModelConfig] = {"set-gru": SetRSSMConfig(), "set-ssm": SetRSSMConfig(cell="ssm")}
FLAT: Mapping[str, ModelConfig] = {"flat-rssm": MODELS["rssm"], "flat-s3m": MODELS["s3m"]}


def main() -> None:
    asked = study(LongMemory, __doc__)
    rows = []
    for name, models, settings in (
        ("learned", SETS | FLAT, (of_levels(asked.exam), of_family("drift", asked.exam))),
        ("hidden", SETS, (of_family("drift", asked.exam), of_family("shifting", asked.exam))),
    ):
        view = preset("dreamer", name).fleet.view
        runs = asked.train(asked.plans(name, models))
        results = verdict([row for setting in settings for row in asked.examined(asked.exam, setting, runs, view)])
        rows += [{"view": view} | row for row in brief(results) if row["level"] is None]
        asked.draw_verdict(f"long_memory_{view}", results)
    asked.publish("long_memory", [row for row in rows if row["role"] == "agent"])


if __name__ == "__main__":
    main()
