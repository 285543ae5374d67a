"""What the gateway knows of each backend while it runs. Plain state, changed by the queue, the exchange and health."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .config import BackendConfig
from .generation import Usage

# Weight of the newest measurement in the moving average of a backend's speed.
SPEED_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Measurement:
    """The speed of the last answer. `at`: Unix time."""

    prompt_tokens_per_second: float
    tokens_per_second: float
    model: str
    at: float


@dataclass(slots=True)
class BackendState:
    """epoch: counts recoveries. A failure that began in an earlier epoch says nothing about the backend of now."""

    config: BackendConfig
    state: Literal["starting", "up", "down"] = "starting"
    epoch: int = 0
    in_flight: int = 0
    requests: int = 0
    bad_answers: int = 0
    last_error: str | None = None
    last: Measurement | None = None
    speed: float = field(default=0.0)
    last_token_at: float = 0.0
    down_at: float = 0.0

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def slots(self) -> int:
        return self.config.slots

    @property
    def up(self) -> bool:
        return self.state == "up"

    def measured(self, usage: Usage, model: str, at: float) -> None:
        """Keeps the speed of an answer that is complete."""
        self.last = Measurement(usage.prompt_tokens_per_second, usage.tokens_per_second, model, at)
        if usage.tokens_per_second > 0:
            old = self.speed or usage.tokens_per_second
            self.speed = old + SPEED_WEIGHT * (usage.tokens_per_second - old)
