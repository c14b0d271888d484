"""How much may go wrong before a run stops, and how long a worker may be silent."""

from __future__ import annotations

from dataclasses import dataclass

from xmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What is done about items that fail and workers that hang."""

    max_quarantined: float = 0.25
    """Largest share of a run's items that may be quarantined; beyond, the finished run fails."""
    stuck_after_s: float = 3600.0
    """Seconds that a worker may take for one shard before it is ended and the shard tried again; 0: any time."""
    frozen_after_s: float = 300.0
    """Seconds without a sign of life after which a worker is ended."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 <= self.max_quarantined <= 1 or self.stuck_after_s < 0 or self.frozen_after_s <= 0:
            raise InputError(
                "faults needs max_quarantined between 0 and 1, stuck_after_s >= 0 and frozen_after_s > 0; got "
                f"{self.max_quarantined}, {self.stuck_after_s}, {self.frozen_after_s}."
            )
