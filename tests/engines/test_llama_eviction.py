"""Which models are kept in memory: a simulation of many requests over the pure decisions, and rows for single ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.engines.llama_cpp.eviction import Plan, Tenant, decide


def test_the_least_recently_used_idle_model_goes() -> None:
    old, new = Tenant("old", 40, loaded=True, used=1), Tenant("new", 40, loaded=True, used=2)
    assert decide([new, old, Tenant("x", 50, waiting_since=3)], 100).unload == ("old",)
    assert decide([new, replace(old, running=1), Tenant("x", 50, waiting_since=3)], 100).unload == ("new",)


def test_nothing_goes_while_there_is_room() -> None:
    plan = decide([Tenant("a", 40, loaded=True), Tenant("b", 60, waiting_since=1)], 100)
    assert (plan.unload, plan.load) == ((), "b")


def test_a_busy_model_is_closed_and_not_unloaded() -> None:
    plan = decide([Tenant("a", 60, loaded=True, running=2), Tenant("b", 60, waiting_since=1)], 100)
    assert plan == Plan(closed=frozenset({"a"}))


def test_who_came_before_the_one_that_room_is_made_for_is_let_in() -> None:
    busy = Tenant("a", 60, loaded=True, running=1, waiting_since=1)
    assert decide([busy, Tenant("b", 60, waiting_since=2)], 100).admit == ("a",)
    assert decide([replace(busy, waiting_since=3), Tenant("b", 60, waiting_since=2)], 100).admit == ()


def test_what_can_never_fit_is_refused() -> None:
    assert decide([Tenant("a", 101, waiting_since=1)], 100).refuse == ("a",)
    assert decide([Tenant("a", 101, preload=True)], 100).refuse == ("a",)
    assert decide([Tenant("a", 101)], 100).idle, "nobody asked for it"


def test_the_first_ones_are_preloaded_as_long_as_they_fit() -> None:
    tenants = [Tenant(name, 40, preload=True) for name in "abc"]
    plan = decide(tenants, 100)
    assert plan.load == "a"
    plan = decide([replace(tenants[0], loaded=True), *tenants[1:]], 100)
    assert plan.load == "b"
    plan = decide([*(replace(one, loaded=True) for one in tenants[:2]), tenants[2]], 100)
    assert (plan.load, plan.unload, plan.settle) == (None, (), True)


def test_models_that_grew_make_room_and_a_single_one_is_left_alone() -> None:
    grown = [Tenant("a", 80, loaded=True, used=1), Tenant("b", 80, loaded=True, used=2)]
    assert decide(grown, 100).unload == ("a",)
    assert decide([Tenant("a", 180, loaded=True)], 100).idle


# ------------------------------------------------------------------------------------------------- a simulation

LIMIT = 100
NAMES = "abcd"


@dataclass
class World:
    """Does what is decided, and checks it. queues: when each waiting request came, by model."""

    tenants: dict[str, Tenant]
    queues: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in NAMES})
    closed: frozenset[str] = frozenset()
    now: float = 0.0
    served: int = 0
    refused: int = 0

    def ask(self, name: str) -> None:
        self.now += 1
        tenant = self.tenants[name]
        if tenant.loaded and not self.queues[name] and name not in self.closed:
            self._begin(name, 1)
        else:
            self.queues[name].append(self.now)
        self.settle()

    def finish(self, name: str) -> None:
        if self.tenants[name].running:
            self._change(name, running=self.tenants[name].running - 1)
            self.settle()

    def leave(self, name: str) -> None:
        """The oldest request that waits gives up."""
        if self.queues[name]:
            self.queues[name].pop(0)
            self.settle()

    def settle(self) -> None:
        for _ in range(50):
            for name, queue in self.queues.items():
                self._change(name, waiting_since=queue[0] if queue else None)
            plan = decide(list(self.tenants.values()), LIMIT)
            self.closed = plan.closed
            if plan.idle:
                return
            self._do(plan)
        raise AssertionError("it never comes to rest")

    def _do(self, plan: Plan) -> None:
        for name in plan.refuse:
            assert self.tenants[name].size > LIMIT
            self._change(name, preload=False)
            self.refused += len(self.queues[name])
            self.queues[name].clear()
        for name in plan.admit:
            assert self.tenants[name].loaded
            self._begin_all(name)
        for name in plan.unload:
            assert not self.tenants[name].running, "a busy model was unloaded"
            self._change(name, loaded=False)
        if plan.load is not None:
            assert not self.tenants[plan.load].loaded
            self._change(plan.load, loaded=True, preload=False)
            self._begin_all(plan.load)
        if plan.settle:
            for name in NAMES:
                self._change(name, preload=False)
        loaded = [one.size for one in self.tenants.values() if one.loaded]
        assert sum(loaded) <= LIMIT

    def _begin_all(self, name: str) -> None:
        self._begin(name, len(self.queues[name]))
        self.queues[name].clear()

    def _begin(self, name: str, number: int) -> None:
        self.served += number
        self._change(name, running=self.tenants[name].running + number, used=self.now)

    def _change(self, name: str, **values: object) -> None:
        self.tenants[name] = replace(self.tenants[name], **values)  # type: ignore[arg-type]


STEPS = st.lists(st.tuples(st.sampled_from(["ask", "ask", "finish", "leave"]), st.sampled_from(NAMES)), max_size=60)
SIZES = st.lists(st.integers(1, 120), min_size=len(NAMES), max_size=len(NAMES))


@given(SIZES, STEPS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_never_over_the_limit_never_a_busy_one_and_everybody_is_served(
    sizes: list[int], steps: list[tuple[str, str]], preload: bool
) -> None:
    world = World({name: Tenant(name, size, preload=preload) for name, size in zip(NAMES, sizes, strict=True)})
    world.settle()
    for what, name in steps:
        getattr(world, what)(name)
    for _ in range(sum(map(len, world.queues.values())) + 1):  # all work ends: then nobody may be left waiting
        for name in NAMES:
            while world.tenants[name].running:
                world.finish(name)
    assert not any(world.queues.values())
    left = sum(what == "leave" for what, _ in steps)
    asked = sum(what == "ask" for what, _ in steps)
    assert asked - left <= world.served + world.refused <= asked


@given(SIZES.map(lambda sizes: [min(size, LIMIT) for size in sizes]), st.sampled_from(NAMES))
@settings(max_examples=100, deadline=None)
def test_a_stream_of_requests_for_others_starves_nobody(sizes: list[int], victim: str) -> None:
    """Each of the others always has a request at work: one ends only after the next was asked for."""
    world = World({name: Tenant(name, size) for name, size in zip(NAMES, sizes, strict=True)})
    others = [name for name in NAMES if name != victim]
    for name in others:
        world.ask(name)
    world.ask(victim)
    for _ in range(20):
        for name in others:
            world.ask(name)
            world.finish(name)
        if not world.queues[victim]:
            return
    raise AssertionError(f"{victim} was never served")


@given(
    st.lists(
        st.builds(
            Tenant,
            st.just("?"),
            st.integers(1, 200),
            st.booleans(),
            st.integers(0, 2),
            st.none() | st.floats(0, 10),
            st.floats(0, 10),
        ),
        max_size=6,
    )
)
@settings(max_examples=500, deadline=None)
def test_any_state_at_all(drawn: list[Tenant]) -> None:
    """Models may have grown to any size."""
    tenants = [
        replace(one, name=str(index), running=one.running if one.loaded else 0) for index, one in enumerate(drawn)
    ]
    by_name = {one.name: one for one in tenants}
    plan = decide(tenants, LIMIT)
    for name in plan.unload:
        assert by_name[name].loaded
        assert not by_name[name].running
        assert name not in plan.admit
    after = [one for one in tenants if one.loaded and one.name not in plan.unload]
    if plan.load is not None:
        assert not plan.unload
        assert sum(one.size for one in after) + by_name[plan.load].size <= LIMIT
    idle = sum(one.size for one in tenants if one.loaded and not one.running and one.name not in plan.admit)
    total = sum(one.size for one in tenants if one.loaded)
    heads = [one for one in tenants if not one.loaded and one.waiting_since is not None and one.size <= LIMIT]
    if heads and total - idle == 0:
        assert plan.load or plan.unload or plan.refuse or plan.admit, "somebody waits, and nothing happens"
