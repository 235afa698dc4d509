"""Writes the expected numbers of the golden scenarios anew: ``python tests/golden/regenerate.py [NAME]...``.

Prints what changes. A scenario that breaks an invariant is refused, its old numbers stay, and the exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden import golden


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in golden.SCENARIOS]
    if unknown:
        print(f"there is no golden scenario {unknown[0]!r}; there are {', '.join(golden.SCENARIOS)}", file=sys.stderr)
        return 2
    refused = 0
    for name in names or golden.SCENARIOS:
        built, records = golden.run(name)
        try:
            golden.check_invariants(name, built, records)
        except AssertionError as error:
            refused += 1
            print(f"{name}: refused, an invariant does not hold: {error}", file=sys.stderr)
            continue
        found = golden.numbers(records, built.trace)
        lines = golden.differences(golden.read(name) if (golden.EXPECTED / f"{name}.json").exists() else {}, found)
        golden.write(name, found)
        print(f"{name}: {len(lines)} numbers changed", *lines, sep="\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
