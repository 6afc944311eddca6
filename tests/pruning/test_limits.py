"""Free memory: what torch holds of a GPU and does not use is free too."""

import pytest
import torch

from pruning.errors import ScoreError
from pruning.limits import available_bytes, check_bytes, written_bytes


def test_what_torch_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 40)
    assert available_bytes(device) == 120
    check_bytes("this", 120, device, "")
    with pytest.raises(ScoreError, match=r"^this: needs 121 bytes, and 120 bytes are free: give less$"):
        check_bytes("this", 121, device, "give less")


def test_the_machine_has_some_and_other_devices_do_not_say() -> None:
    free = available_bytes(torch.device("cpu"))
    assert free is None or free > 2**20
    assert available_bytes(torch.device("meta")) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (3.2e9, "3.2 GB"), (4e15, "4,000,000.0 GB")],
)
def test_numbers_are_written_in_their_unit(count: float, text: str) -> None:
    assert written_bytes(count) == text
