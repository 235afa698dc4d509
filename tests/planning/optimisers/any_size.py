"""An optimiser from outside the package: of some batch sizes it believes in the largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulator.planning.optimisers import Candidate, Design, Optimiser
from simulator.scenario.spec import Positive, spec


@spec
class Options:
    sizes: tuple[Positive, ...] = (2, 8)
    """max_num_seqs to choose from."""


class AnySize(Optimiser[Options]):
    """Believes in ten requests/s per sequence."""

    Options = Options

    def search(self) -> Sequence[Candidate]:
        base = self.question.scenario
        found = []
        for size in sorted(self.options.sizes, reverse=True):
            design = Design(replace(base, engine=replace(base.engine, max_num_seqs=size)))
            found.append(Candidate(f"{size} sequences", 10.0 * size, {"size": size}, design))
        return [*found, Candidate("none at all", reason="nobody would be served.")]
