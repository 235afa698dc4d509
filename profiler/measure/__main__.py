"""``python -m profiler.measure CAMPAIGN --out DIR``: the profiler without the rest of the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from profiler.measure.campaign import load
from profiler.measure.errors import CampaignError

CAMPAIGNS = Path(__file__).parents[1] / "campaigns"


def campaign_file(given: Path | None, device: str | None, *, quick: bool) -> Path:
    """The campaign asked for: a file, the name of a shipped one, or the one for the device."""
    if given is None:
        name = "quick-cpu" if device == "cpu" else ("quick-cuda" if quick else "cuda")
        return CAMPAIGNS / f"{name}.yaml"
    shipped = CAMPAIGNS / f"{given}.yaml"
    return shipped if not given.exists() and shipped.exists() else given


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m profiler.measure", description="Time kernels on this device.")
    parser.add_argument("campaign", nargs="?", type=Path, help="YAML or JSON file, or the name of a shipped campaign")
    parser.add_argument("--out", type=Path, default=Path("measurements"), help="folder of measurements.jsonl")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="instead of the campaign's")
    parser.add_argument("--quick", action="store_true", help="few repeats per point")
    parser.add_argument("--time-limit-s", type=float, help="stop cleanly after so long; run again to go on")
    given = parser.parse_args(arguments)
    try:
        campaign = load(campaign_file(given.campaign, given.device, quick=given.quick))
        if given.device:
            campaign = campaign.with_device(given.device)
        from profiler.measure.runner import run_campaign

        run_campaign(campaign, given.out, time_limit_s=given.time_limit_s, quick=given.quick)
    except CampaignError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}. Measuring needs torch and numpy.", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("interrupted: every finished point is saved; run again to go on.", file=sys.stderr)  # noqa: T201
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
