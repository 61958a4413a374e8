"""Whether the labelling projects that a run asks are there, and their tasks suit its images."""

from __future__ import annotations

from collections.abc import Mapping

from tastemaker.config.schema import Config
from tastemaker.errors import ConfigError
from tastemaker.rewards.base import Reward, functions
from tastemaker.rewards.labelers.reward import LabelersReward, require_fit
from tastemaker.rewards.labelers.settings import least_size


def require_labelers_fit(config: Config, trained: Reward, others: Mapping[str, Reward], processes: int) -> None:
    """Asks the labelling apps of the rewards for their projects.

    Raises RewardError where one does not answer or the images of a prompt cannot be put into its tasks, and ConfigError
    where several processes would each have a part of a prompt's images.
    """
    evaluated = [("evaluation.per_prompt", config.evaluation.per_prompt)]
    sampled = [("sampling.per_prompt", config.sampling.per_prompt)] if not config.pairs.sources else []
    checked = [(trained, [*sampled, *evaluated]), *((reward, evaluated) for reward in others.values())]
    for reward, counts in checked:
        for one in functions({reward.name: reward}).values():
            if not isinstance(one.function, LabelersReward):
                continue
            project = one.function.project()
            require_fit(one.name, project, counts)
            if processes > 1 and least_size(project.mode) > 1:
                raise ConfigError(
                    f"the reward {one.name} has mode {project.mode}, which compares images of one prompt, but "
                    f"{processes} processes each have a part of them: use one process, or a project of mode rate"
                )
