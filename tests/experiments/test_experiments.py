"""Every experiment that comes along: each of its jobs is a configuration that can run."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.configuration import CONF, validate
from tests.experiments.running import composed

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def swept(name: str) -> dict[str, list[str]]:
    """What the experiment sweeps: field -> overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
    params = config.hydra.sweeper.get("params") or {}
    if "optuna" in str(config.hydra.sweeper._target_):  # which draws values out of ranges
        return {}
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return {
        one.key_or_group: [f"{one.key_or_group}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line]
        for one in parsed
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_job_is_a_configuration(name: str) -> None:
    params = swept(name)
    first = {key: values[0] for key, values in params.items()}
    jobs = [first, *({**first, key: value} for key, values in params.items() for value in values[1:])]
    for job in jobs:
        config = validate(composed(f"experiment={name}", *job.values()))
        assert config.name in (name, "adaptation")  # whose folder experiment=adaptation_inputs shares
    assert len(jobs) == 1 + sum(len(values) - 1 for values in params.values())
