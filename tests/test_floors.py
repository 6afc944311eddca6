"""What setup.cfg allows and what constraints.txt pins belong together."""

import re

from packaging.version import Version

from tests.floors import SETUP, floors


def test_every_requirement_has_a_floor_and_a_tested_version_that_is_not_below():
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", SETUP.with_name("constraints.txt").read_text(), re.MULTILINE)
    tested = {_normal(name): Version(version) for name, version in pinned}
    below = {name: version for name, version in floors().items() if Version(version) > tested[_normal(name)]}
    assert below == {}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
