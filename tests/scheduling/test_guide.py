"""The developer guide's policy works as it stands, from outside the package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import PolicyError
from simulator.scheduling import POLICIES
from tests.scheduling.test_policies import serve
from traces.trace import Trace

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-policy.md"


def test_the_policy_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    assert code is not None
    (tmp_path / "guide_policy.py").write_text(code[1], "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    trace = Trace(np.array([0.0, 0.1, 0.2]), np.array([100, 1000, 10]), np.array([200, 50, 50]))
    name = "guide_policy:ShortPromptsFirst"
    eager, patient = (
        serve(trace, name, max_num_seqs=1, options={"patience_s": s}).requests.scheduled for s in (2.0, 0.05)
    )
    assert eager[2] < eager[1] and patient[1] < patient[2]
    with pytest.raises(PolicyError, match="patience_s"):
        serve(trace, name, options={"patience": 2.0})


def test_every_policy_that_ships_is_in_its_table() -> None:
    listed = re.findall(
        r"^\| `([a-z0-9-]+)` \|",
        GUIDE.read_text("utf-8").split("## The policies that ship")[1].split("\n\n")[1],
        re.MULTILINE,
    )
    assert sorted(listed) == sorted(name for name in POLICIES.names() if not name.startswith("test-"))
