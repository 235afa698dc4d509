"""The ``vllm`` policy makes the decisions the real scheduler logged, step for step."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cluster.schedule_log import check_schedule, read_schedule_log

HERE = Path(__file__).parent / "vllm_logs"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vllm_scheduler"
LOGS = sorted(HERE.glob("*.jsonl.gz")) + sorted(SHARED.glob("*.jsonl.gz"))


@pytest.mark.parametrize("step_mode", [True, False], ids=["step", "span"])
@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_every_step_of_the_real_scheduler_is_reproduced(path: Path, step_mode: bool) -> None:
    found = check_schedule(read_schedule_log(path), step_mode=step_mode)
    assert found.ok, f"{found.matched} of {found.total} steps, then {found.difference}"
    assert found.matched == found.total > 0


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the reference data's vllm_scheduler folder beside the repository"
)
def test_all_eighteen_reference_logs_are_there() -> None:
    assert len(list(SHARED.glob("*.jsonl.gz"))) == 18
