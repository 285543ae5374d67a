"""Every node has every model, whole, whichever way it came."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.lab
ZEROS = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"


@pytest.mark.parametrize("model", ["downloaded", "copied"])
def test_the_model_is_there_and_whole(host: Host, model: str) -> None:
    file = host.file(f"/var/lib/bramble/models/{model}.gguf")
    assert file.sha256sum == ZEROS
    assert (file.user, file.mode) == ("root", 0o644)
    assert json.loads(host.file(f"/var/lib/bramble/models/{model}.json").content_string)["sha256"] == ZEROS


def test_nothing_half_done_is_left(host: Host) -> None:
    assert host.check_output("find /var/lib/bramble/models/.incoming -name '*.part'") == ""
