"""``python -m profiler.serve run|compare``: serve on this device; hold the simulator against what was served."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from profiler.measure.errors import CampaignError

CAMPAIGNS = Path(__file__).parents[1] / "campaigns"


def experiment_file(given: Path) -> Path:
    """A file, or the name of a shipped experiment."""
    shipped = CAMPAIGNS / f"{given}.yaml"
    return shipped if not given.exists() and shipped.exists() else given


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m profiler.serve", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="serve the loads of an experiment (needs torch)")
    run.add_argument("experiment", type=Path, help="YAML or JSON file, or the name of a shipped one (serve-cpu)")
    run.add_argument("--out", type=Path, default=Path("measurements"))
    run.add_argument("--time-limit-s", type=float, help="start no further engine after so long")
    compare = commands.add_parser("compare", help="predict and compare (needs the simulator, no torch)")
    compare.add_argument("served", type=Path, nargs="+", help="served-*.json")
    compare.add_argument("--kernels", type=Path, nargs="+", required=True, help="measurements.jsonl of the same device")
    compare.add_argument("--calibration", default="auto", help="as hardware.calibration of a scenario")
    compare.add_argument("--out", type=Path, default=Path("comparison"))
    given = parser.parse_args(arguments)
    try:
        if given.command == "run":
            from profiler.serve.run import serve
            from profiler.serve.spec import load

            serve(load(experiment_file(given.experiment)), given.out, time_limit_s=given.time_limit_s)
            return 0
        from profiler.serve.compare import compare as run_compare

        print(run_compare(given.served, given.kernels, given.out, given.calibration))  # noqa: T201
    except (CampaignError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
