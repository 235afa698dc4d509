"""Room for replicas: which places are taken, which hold the weights, what faults have taken away."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cluster.elastic import GroupLife
from simulator.cluster.life import Life, State


class Places:
    """A *place* (slot) is room for one replica of a group: its GPUs. A group whose faults are a recording of nodes has
    nodes by name, too, and as many replicas as there are nodes.
    """

    def __init__(self, groups: Sequence[GroupLife], member: Sequence[int]) -> None:
        """member: group of each place."""
        self._groups, self._member = groups, member
        self.nodes: list[dict[str, Life | None] | None] = [None] * len(groups)  # those of a group that has a recording
        self._here: list[Life | None] = [None] * len(member)
        self._kept: set[int | str] = set()  # places, or nodes, that have loaded the weights
        self._down = [0] * len(groups)  # places that cannot be taken

    def __len__(self) -> int:
        return len(self._member)

    def at(self, slot: int) -> Life | None:
        """The replica in a place."""
        return self._here[slot]

    def everybody(self, *states: State) -> list[Life]:
        """Replicas in these states, by place."""
        return [life for life in self._here if life is not None and life.state in states]

    def alive(self, group: int, *states: State) -> list[Life]:
        """Those of a group."""
        return [life for life in self.everybody(*states) if life.group == group]

    def capacity(self, group: int) -> int:
        """Replicas that there is room for now."""
        nodes = self.nodes[group]
        room = self._groups[group].max_replicas - self._down[group]
        return room if nodes is None else min(room, len(nodes))

    def change(self, group: int, places: int) -> None:
        """So many places more (or less) can be taken."""
        self._down[group] -= places

    def take(self, group: int, now: float) -> Life | None:
        """A new replica in a free place, where the weights are if anywhere; None: there is none."""
        slots = [s for s, g in enumerate(self._member) if g == group and self._here[s] is None]
        nodes = self.nodes[group]
        names = [""] if nodes is None else [name for name, life in nodes.items() if life is None]
        if not slots or not names:
            return None
        slot = next((s for s in slots if s in self._kept), slots[0])
        node = next((name for name in names if name in self._kept), names[0])
        life = self._here[slot] = Life(group, slot, now, node)
        if nodes is not None:
            nodes[node] = life
        return life

    def leave(self, life: Life) -> None:
        """Its place is free."""
        self._here[life.slot] = None
        nodes = self.nodes[life.group]
        if nodes is not None and nodes.get(life.node) is life:
            nodes[life.node] = None
        if life.why != "scaled in":
            self._kept.discard(life.node or life.slot)  # what comes back is another node

    def loaded(self, life: Life) -> None:
        """It has loaded the weights: who starts here later may find them."""
        self._kept.add(life.node or life.slot)

    def is_warm(self, life: Life) -> bool:
        """Whether weights had been loaded where it starts."""
        return (life.node or life.slot) in self._kept
