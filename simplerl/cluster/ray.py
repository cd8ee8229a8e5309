"""What is asked of Ray: a cluster, actors, their results and their deaths. All that a release may break is here."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from simplerl import plugins
from simplerl.config import ClusterConfig
from simplerl.errors import ClusterError, DependencyError, InputLost, WorkerLost

START = 600.0
"""Seconds in which a new process must begin to run; it may wait for its node, and imports much."""
PAUSE = 0.05
"""Seconds of what comes in that are looked at together."""

ANYWHERE: Mapping[str, Any] = {"scheduling_strategy": "SPREAD"}
"""Where a process goes that needs no GPU."""


def start(config: ClusterConfig) -> None:
    """Joins a cluster, or begins one on this machine. Raises `ClusterError` where no cluster answers."""
    ray = _ray()
    if not ray.is_initialized():
        # Left to itself Ray would join what another run began on this machine, and end with it.
        address = os.environ.get("RAY_ADDRESS", "local") if config.ray == "auto" else config.ray
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise ClusterError(
                f"cluster.ray={config.ray}: no cluster answers there ({error}); "
                "begin one with `ray start --head`, or use cluster.ray=auto"
            ) from error
    for name, module in list(sys.modules.items()):
        if name.startswith(plugins.USER):  # other processes cannot import a user's own file by name
            ray.cloudpickle.register_pickle_by_value(module)


def _ray() -> Any:
    # Its own count of GPUs must not hide them from processes that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise DependencyError(f"cluster.ray needs Ray ({error}); pip install 'simplerl[ray]'") from error
    return ray


class Actor:
    """One process that runs an object's methods, one at a time; whether it lives can be asked meanwhile."""

    def __init__(self, cls: type, config: ClusterConfig, where: Mapping[str, Any], *arguments: Any) -> None:
        self.heartbeat_timeout = config.heartbeat_timeout
        # Those of one kind share a machine's cores; learners and engines take turns.
        threads = max(1, (os.cpu_count() or 1) // max(config.learners, config.engines))
        options = {
            "num_cpus": 0,  # they may outnumber the cores
            "max_concurrency": 1,
            "concurrency_groups": {"life": 1},
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
            **where,
        }
        self._handle = _ray().remote(**options)(_alive(cls)).remote(*arguments)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A reference to what the method will return."""
        return getattr(self._handle, method).remote(*arguments, **named)

    def stream(self, method: str, *arguments: Any) -> Any:
        """References to what the method yields, as a generator that `ready` can watch."""
        return getattr(self._handle, method).options(num_returns="streaming").remote(*arguments)

    def ask(self) -> Any:
        """A reference that is there once the actor has said that it lives."""
        return self._handle.alive.options(concurrency_group="life").remote()

    def kill(self) -> None:
        _ray().kill(self._handle, no_restart=True)


def _alive(cls: type) -> type:
    class Living(cls):  # type: ignore[misc]
        def alive(self) -> int:
            return os.getpid()

    Living.__name__, Living.__qualname__ = cls.__name__, cls.__qualname__  # what a process is called while it works
    return Living


def reserve(count: int, seconds: int) -> Any | None:
    """A group of so many GPUs, on few nodes; None where they are not free in time."""
    group = _ray().util.placement_group([{"GPU": 1}] * count, strategy="PACK")
    if any(group.wait(1) for _ in range(seconds)):  # a longer wait would not notice Ctrl-C
        return group
    release(group)
    return None


def release(group: Any) -> None:
    """Gives a group's GPUs back; what still runs there is killed."""
    _ray().util.remove_placement_group(group)


def nodes() -> set[str]:
    """Those that are there."""
    return {node["NodeID"] for node in _ray().nodes() if node["Alive"]}


def host(node: str) -> str:
    """The name of the machine that a node is."""
    return next((each["NodeManagerHostname"] for each in _ray().nodes() if each["NodeID"] == node), node)


def nodes_of(group: Any) -> dict[int, str]:
    """Where each GPU of a group is."""
    return _ray().util.placement_group_table(group)["bundles_to_node_id"]


def by_node(group: Any) -> list[int]:
    """The numbers of a group's GPUs, node by node, the node with most of them first."""
    node = nodes_of(group)
    sizes = Counter(node.values())
    return sorted(node, key=lambda bundle: (-sizes[node[bundle]], node[bundle], bundle))


def with_gpu(group: Any, bundle: int, share: float) -> Mapping[str, Any]:
    """Where a process goes that gets this GPU of a group, or a share of it, and sees no other."""
    strategy = _ray().util.scheduling_strategies.PlacementGroupSchedulingStrategy
    return {"num_gpus": share, "scheduling_strategy": strategy(group, placement_group_bundle_index=bundle)}


def gpus() -> tuple[float, float]:
    """GPUs of the cluster, and how many of them nobody holds."""
    return _ray().cluster_resources().get("GPU", 0), _ray().available_resources().get("GPU", 0)


def cores() -> tuple[float, float]:
    """Processor cores of the cluster, as its nodes count them, and how many of them nobody holds."""
    return _ray().cluster_resources().get("CPU", 0), _ray().available_resources().get("CPU", 0)


def on_each(nodes: Iterable[str], function: Callable[..., Any], *arguments: Any, seconds: float) -> dict[str, Any]:
    """What a function gives on each node, of those that answer in time. It is sent with all of its module."""
    ray, there = _ray(), list[Any]()
    ray.cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task, fixed = ray.remote(function), {"num_cpus": 0, "max_retries": 0}
    asked = {task.options(**fixed, scheduling_strategy=on(node, soft=False)).remote(*arguments): node for node in nodes}
    if asked:
        there, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    found = {}
    for reference in there:
        with suppress(WorkerLost):  # the node went away
            found[asked[reference]] = get(reference)
    return found


def own_address() -> str:
    """Where other nodes reach this one."""
    return _ray().util.get_node_ip_address()


def put(value: Any) -> Any:
    """A reference to an object that any actor can read."""
    return _ray().put(value)


def get(reference: Any) -> Any:
    """What a reference, or each of a list, stands for.

    Raises `WorkerLost` where its actor died, `InputLost` where another did that made what it needed, else what the
    method raised.
    """
    exceptions = _ray().exceptions
    try:
        return _ray().get(reference)
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, exceptions.ObjectLostError):
            raise InputLost(
                f"weights or a batch went with the process that made them ({type(cause).__name__})"
            ) from error
        raise cause from error  # whose text is the traceback there
    except exceptions.RayError as error:
        raise WorkerLost(str(error).partition("\n")[0]) from error


def ready(references: Sequence[Any], seconds: float) -> list[Any]:
    """Those that are there; waits for the first, but no longer than so many seconds, and `PAUSE` for the others.

    Ray's cost of looking grows with the references, not with what is there: one look for each would be quadratic.
    """
    references, wait = list(references), _ray().wait
    there, others = wait(references, num_returns=1, timeout=seconds)
    if there and others:
        there, _ = wait(references, num_returns=len(references), timeout=PAUSE)
    return there


def begun(actors: Sequence[Actor]) -> list[Actor]:
    """The same, once their processes run: from then on silence means that one is lost."""
    for number, (actor, reference) in enumerate([(actor, actor.ask()) for actor in actors]):
        if not ready([reference], START):
            actor.kill()
            raise WorkerLost(f"process {number} of {len(actors)} did not begin in {START:.0f} s")
        get(reference)
    return list(actors)


def answer(actor: Actor, reference: Any) -> Any:
    """What a call of this actor gives, as `get`; raises `WorkerLost` where it does not say that it lives."""
    while not ready([reference], actor.heartbeat_timeout):
        if lost([actor]):
            raise WorkerLost("it does not answer")
    return get(reference)


def lost(actors: Sequence[Actor]) -> list[int]:
    """The numbers of those that do not say in time that they live; they are killed, so that none comes back."""
    asked = [actor.ask() for actor in actors]
    there, gone = set(_ray().wait(asked, num_returns=len(asked), timeout=actors[0].heartbeat_timeout)[0]), []
    for number, (actor, reference) in enumerate(zip(actors, asked, strict=True)):
        try:
            if reference not in there:
                raise WorkerLost("no answer")
            get(reference)
        except WorkerLost:
            gone.append(number)
            actor.kill()
    return gone


def all_of(actors: Sequence[Actor], method: str, *arguments: Any, **named: Any) -> list[Any]:
    """The method's results of every actor. Raises `WorkerLost` if one died, else the first failure."""
    return answers(actors, [actor.call(method, *arguments, **named) for actor in actors])


def answers(actors: Sequence[Actor], references: Sequence[Any]) -> list[Any]:
    """What calls of these actors give, which depend on each other. Raises as `all_of`."""
    results = {}
    while waiting := [reference for reference in references if reference not in results]:
        there = ready(waiting, actors[0].heartbeat_timeout)
        if not there and (gone := lost(actors)):
            raise WorkerLost(f"worker {gone[0]} of {len(actors)} does not answer")
        try:
            results.update(zip(there, get(there), strict=True))
        except BaseException as error:
            # What a rank says when another has died is of no use: its connection broke.
            if gone := lost(actors):
                said = str(error).strip().rpartition("\n")[2]
                raise WorkerLost(f"worker {gone[0]} of {len(actors)} is gone ({said})") from error
            raise
    return [results[reference] for reference in references]
