"""Which backend serves a request. Pure: values in, a choice out.

`Catalogue.resolve` turns a model name into a Route, once per request. `choose` picks a target of the route each time a
slot may be free (late binding). A virtual model will be a name whose route has targets with different models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from .config import BackendConfig, ModelConfig, canonical_name
from .errors import BadRequestError, ModelNotFoundError


@dataclass(frozen=True, slots=True)
class Target:
    """A model on a backend."""

    backend: str
    model: str


@dataclass(frozen=True, slots=True)
class Route:
    """The targets that may serve a request, in order of preference."""

    model: str
    targets: tuple[Target, ...]


class Occupancy(Protocol):
    """What the choice needs to know of a backend. `speed`: tokens per second when it last generated, 0 if unknown."""

    @property
    def up(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def speed(self) -> float: ...


class Catalogue:
    """The models of all backends, each name once."""

    def __init__(self, backends: Iterable[BackendConfig]) -> None:
        self._models: dict[str, ModelConfig] = {}
        self._targets: dict[str, list[Target]] = {}
        for backend in backends:
            for model in backend.models:
                key = canonical_name(model.name)
                known = self._models.get(key)
                # Promise only what every backend of this name can keep: the smallest context, the common capabilities.
                self._models[key] = (
                    model
                    if known is None
                    else replace(
                        known,
                        context=min(known.context, model.context),
                        capabilities=tuple(word for word in known.capabilities if word in model.capabilities),
                    )
                )
                self._targets.setdefault(key, []).append(Target(backend.name, model.name))

    def models(self) -> tuple[ModelConfig, ...]:
        """All models, in the order of the configuration."""
        return tuple(self._models.values())

    def model(self, name: str) -> ModelConfig:
        """Raises ModelNotFoundError."""
        try:
            return self._models[canonical_name(name)]
        except KeyError:
            raise ModelNotFoundError(name) from None

    def targets(self, name: str) -> tuple[Target, ...]:
        """Where a model is. Raises ModelNotFoundError."""
        self.model(name)
        return tuple(self._targets[canonical_name(name)])

    def resolve(self, name: str, needs: frozenset[str] = frozenset()) -> Route:
        """The route of a request. Raises ModelNotFoundError, BadRequestError when the model cannot do that.

        An explicit name is served by that model or not at all, never by a smaller one.
        """
        model = self.model(name)
        missing = sorted(needs.difference(model.capabilities))
        if missing:
            raise BadRequestError(f"'{name}' does not support {', '.join(missing)}")
        return Route(model.name, self.targets(name))


def choose(route: Route, backends: Mapping[str, Occupancy], exclude: frozenset[str] = frozenset()) -> Target | None:
    """The target to use now, or None to wait: the least loaded backend with a free slot, the fastest among equals.

    A backend whose speed is unknown comes first, so that it gets measured.
    """

    def preference(target: Target) -> tuple[float, float]:
        backend = backends[target.backend]
        return backend.in_flight / backend.slots, -(backend.speed or math.inf)

    free = [
        target
        for target in route.targets
        if target.backend not in exclude
        and backends[target.backend].up
        and backends[target.backend].in_flight < backends[target.backend].slots
    ]
    return min(free, key=preference, default=None)
