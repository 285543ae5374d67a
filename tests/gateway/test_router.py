"""Names to routes, and the choice among free backends."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bramble.gateway.config import BackendConfig, ModelConfig
from bramble.gateway.errors import BadRequestError, ModelNotFoundError
from bramble.gateway.router import Catalogue, Route, Target, choose


@dataclass
class Backend:
    up: bool = True
    in_flight: int = 0
    slots: int = 1
    speed: float = 5.0


ROUTE = Route("m", tuple(Target(name, "m") for name in "abc"))


@pytest.mark.parametrize(
    ("a", "b", "c", "exclude", "chosen"),
    [
        (Backend(), Backend(), Backend(), "", "a"),
        (Backend(speed=3), Backend(speed=9), Backend(speed=5), "", "b"),
        (Backend(speed=9), Backend(speed=0), Backend(speed=5), "", "b"),
        (Backend(in_flight=1), Backend(up=False), Backend(), "", "c"),
        (Backend(), Backend(), Backend(), "a", "b"),
        (Backend(in_flight=1, slots=2, speed=99), Backend(), Backend(in_flight=1), "", "b"),
        (Backend(in_flight=1, slots=4), Backend(in_flight=1, slots=2), Backend(in_flight=1), "", "a"),
        (Backend(in_flight=1), Backend(in_flight=1), Backend(up=False), "", None),
        (Backend(), Backend(), Backend(), "abc", None),
    ],
)
def test_choose(a: Backend, b: Backend, c: Backend, exclude: str, chosen: str | None) -> None:
    target = choose(ROUTE, {"a": a, "b": b, "c": c}, frozenset(exclude))
    assert (target.backend if target else None) == chosen


def catalogue() -> Catalogue:
    big = ModelConfig(name="Big", context=8192, capabilities=("completion", "tools", "thinking"))
    small = ModelConfig(name="small:1b", context=2048)
    other = ModelConfig(name="big:latest", context=4096, capabilities=("completion", "tools"))
    return Catalogue(
        [
            BackendConfig(name="pi1", kind="llama_server", url="http://a", models=(big, small)),
            BackendConfig(name="pi2", kind="llama_server", url="http://b", models=(other,)),
        ]
    )


@pytest.mark.parametrize("name", ["Big", "big", "big:latest", "BIG:LATEST"])
def test_a_name_is_found_with_and_without_its_default_tag(name: str) -> None:
    assert [target.backend for target in catalogue().resolve(name).targets] == ["pi1", "pi2"]


@pytest.mark.parametrize("name", ["small", "small:latest", "big:8b", ""])
def test_another_tag_is_another_model(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        catalogue().resolve(name)


def test_only_what_all_backends_can_do_is_promised() -> None:
    model = catalogue().model("big")
    assert (model.context, model.capabilities) == (4096, ("completion", "tools"))
    assert [model.name for model in catalogue().models()] == ["Big", "small:1b"]


def test_a_request_beyond_the_model_is_refused() -> None:
    assert catalogue().resolve("big", frozenset({"completion", "tools"}))
    with pytest.raises(BadRequestError, match="'big' does not support thinking, vision"):
        catalogue().resolve("big", frozenset({"completion", "thinking", "vision"}))
