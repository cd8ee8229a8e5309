"""Calls to Ray: clusters, actors, results and failures. A run calls Ray nowhere else."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from simplerl import plugins
from simplerl.config import ClusterConfig
from simplerl.errors import ClusterError, DependencyError, InputLost, WorkerLost

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.placement_group import PlacementGroup

T = TypeVar("T")
Reference = TypeVar("Reference", bound="ObjectRef | Stream")

Stream = Iterator["ObjectRef"]
"""References to what a generator method yields."""

START_TIMEOUT = 600.0
"""Seconds in which a new process must start. It may wait for its node, and it imports large packages."""

GATHER_SECONDS = 0.05
"""Seconds that `wait_any` waits for more results after the first."""

ActorOptions = Mapping[str, object]
"""Ray's options for an actor: its resources, and the node it runs on."""

ANY_NODE: ActorOptions = {"scheduling_strategy": "SPREAD"}
"""Options of a process that needs no GPU: Ray spreads such processes over the nodes."""


def connect(config: ClusterConfig) -> None:
    """Join a cluster, or start one on this machine. Raises `ClusterError` if no cluster answers at `cluster.ray`."""
    ray = _import_ray()
    if not ray.is_initialized():
        # Without an address Ray would join a cluster that another run started on this machine, and end with it.
        address = os.environ.get("RAY_ADDRESS", "local") if config.ray == "auto" else config.ray
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise ClusterError(
                f"cluster.ray={config.ray}: no cluster answers at that address ({error}); "
                "start one with `ray start --head`, or set cluster.ray=auto"
            ) from error
    for name, module in list(sys.modules.items()):
        if name.startswith(plugins.USER_MODULE_PREFIX):  # other processes cannot import a user's own file by name
            ray.cloudpickle.register_pickle_by_value(module)


def _import_ray() -> ModuleType:
    # By default Ray hides every GPU from a process that requests none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise DependencyError(f"cluster.ray needs Ray ({error}); pip install 'simplerl[ray]'") from error
    return ray


class Actor:
    """A process that runs the methods of one object, one at a time. It sends heartbeats while a method runs."""

    def __init__(self, cls: type, config: ClusterConfig, options: ActorOptions, *arguments: object) -> None:
        """Start a process that builds `cls(*arguments)`. Returns at once, see `wait_until_started`."""
        self.heartbeat_timeout = config.heartbeat_timeout
        # Learners share a machine's cores with each other, and so do engines. The two kinds take turns.
        threads = max(1, (os.cpu_count() or 1) // max(config.learners, config.engines))
        all_options = {
            "num_cpus": 0,  # processes may outnumber the cores
            "max_concurrency": 1,
            "concurrency_groups": {"heartbeat": 1},
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
            **options,
        }
        self._handle = _import_ray().remote(**all_options)(_with_heartbeat(cls)).remote(*arguments)

    def call(self, method: str, *arguments: object, **named: object) -> Any:
        """Run a method and return its result. Raises as `result_of`."""
        return result_of(self, self.submit(method, *arguments, **named))

    def submit(self, method: str, *arguments: object, **named: object) -> ObjectRef:
        """Start a method and return a reference to its result."""
        return getattr(self._handle, method).remote(*arguments, **named)

    def stream(self, method: str, *arguments: object) -> Stream:
        """Start a generator method and return references to what it yields. `wait_any` can wait for the next."""
        return getattr(self._handle, method).options(num_returns="streaming").remote(*arguments)

    def heartbeat(self) -> ObjectRef:
        """Request a heartbeat: a reference to the process's id, ready once the process has answered."""
        return self._handle.heartbeat.options(concurrency_group="heartbeat").remote()

    def kill(self) -> None:
        _import_ray().kill(self._handle, no_restart=True)


def _with_heartbeat(cls: type) -> type:
    def heartbeat(self: object) -> int:
        return os.getpid()

    # The same name as `cls`: Ray puts it into the process's title.
    return type(
        cls.__name__, (cls,), {"heartbeat": heartbeat, "__module__": __name__, "__qualname__": cls.__qualname__}
    )


def create_gpu_group(count: int, seconds: int) -> PlacementGroup | None:
    """Reserve GPUs, on as few nodes as possible. None: they were not free within `seconds`."""
    group = _import_ray().util.placement_group([{"GPU": 1}] * count, strategy="PACK")
    if any(group.wait(1) for _ in range(seconds)):  # one long wait would not notice Ctrl-C
        return group
    remove_gpu_group(group)
    return None


def remove_gpu_group(group: PlacementGroup) -> None:
    """Free a group's GPUs and kill the processes that still use them."""
    _import_ray().util.remove_placement_group(group)


def alive_nodes() -> set[str]:
    """Ids of the nodes that are alive."""
    return {node["NodeID"] for node in _import_ray().nodes() if node["Alive"]}


def host_name(node: str) -> str:
    """Host name of a node, or its id if Ray does not know it."""
    return next((each["NodeManagerHostname"] for each in _import_ray().nodes() if each["NodeID"] == node), node)


def node_of_gpu(group: PlacementGroup) -> dict[int, str]:
    """Node id of each GPU of a group, by the GPU's number in the group."""
    return _import_ray().util.placement_group_table(group)["bundles_to_node_id"]


def gpus_by_node(group: PlacementGroup) -> list[int]:
    """Numbers of a group's GPUs, node by node; the node with most of them comes first."""
    node = node_of_gpu(group)
    sizes = Counter(node.values())
    return sorted(node, key=lambda gpu: (-sizes[node[gpu]], node[gpu], gpu))


def gpu_options(group: PlacementGroup, gpu: int, share: float) -> ActorOptions:
    """Options of a process that gets a share of one GPU of a group, and sees no other GPU."""
    strategy = _import_ray().util.scheduling_strategies.PlacementGroupSchedulingStrategy
    return {"num_gpus": share, "scheduling_strategy": strategy(group, placement_group_bundle_index=gpu)}


def gpu_counts() -> tuple[float, float]:
    """GPUs of the cluster, and how many of them are free."""
    return _import_ray().cluster_resources().get("GPU", 0), _import_ray().available_resources().get("GPU", 0)


def core_counts() -> tuple[float, float]:
    """CPU cores of the cluster, as its nodes count them, and how many of them are free."""
    return _import_ray().cluster_resources().get("CPU", 0), _import_ray().available_resources().get("CPU", 0)


def run_on_nodes(nodes: Iterable[str], function: Callable[..., T], *arguments: object, seconds: float) -> dict[str, T]:
    """Run a function on each node. Returns results by node, without nodes that do not answer within `seconds`.

    The function is sent with its module's code, so that a node needs no installation of this package.
    """
    ray = _import_ray()
    ray.cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(function).options
    node_of = {
        task(num_cpus=0, max_retries=0, scheduling_strategy=on_node(node, soft=False)).remote(*arguments): node
        for node in nodes
    }
    results: dict[str, T] = {}
    if not node_of:
        return results
    finished, _ = ray.wait(list(node_of), num_returns=len(node_of), timeout=seconds)
    for reference in finished:
        with suppress(WorkerLost):  # the node is gone
            results[node_of[reference]] = get(reference)
    return results


def own_ip_address() -> str:
    """Address at which other nodes reach this one."""
    return _import_ray().util.get_node_ip_address()


def put(value: object) -> ObjectRef:
    """Copy an object into Ray's store; every actor can read the reference."""
    return _import_ray().put(value)


def get(reference: ObjectRef | Sequence[ObjectRef]) -> Any:
    """The object of a reference, or the objects of several.

    Raises `WorkerLost` if the actor died, `InputLost` if an input of the method died with the actor that made it, and
    otherwise what the method raised.
    """
    exceptions = _import_ray().exceptions
    try:
        return _import_ray().get(reference)
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, exceptions.ObjectLostError):
            raise InputLost(
                f"weights or a batch were lost with the process that made them ({type(cause).__name__})"
            ) from error
        raise cause from error  # the text of `error` is the traceback in the other process
    except exceptions.RayError as error:
        raise WorkerLost(str(error).partition("\n")[0]) from error


def wait_any(references: Sequence[Reference], seconds: float) -> list[Reference]:
    """Wait for the first reference that is ready, at most `seconds`; return all that are ready `GATHER_SECONDS` later.

    One call of `ray.wait` costs time in proportion to the references it is given, however few are ready. A call for
    each result would make n results cost n^2.
    """
    pending, wait = list(references), _import_ray().wait
    ready, others = wait(pending, num_returns=1, timeout=seconds)
    if ready and others:
        ready, _ = wait(pending, num_returns=len(pending), timeout=GATHER_SECONDS)
    return ready


def wait_until_started(actors: Sequence[Actor]) -> None:
    """Wait until every actor has sent its first heartbeat. From then on a missing heartbeat means a lost process.

    Raises `WorkerLost` after `START_TIMEOUT`.
    """
    for number, (actor, reference) in enumerate([(actor, actor.heartbeat()) for actor in actors]):
        if not wait_any([reference], START_TIMEOUT):
            actor.kill()
            raise WorkerLost(
                f"process {number} of {len(actors)} did not start within {START_TIMEOUT:.0f} s; "
                "`ray status` shows which resources the cluster lacks"
            )
        get(reference)


def result_of(actor: Actor, reference: ObjectRef) -> Any:
    """Wait for the result of a method. Raises as `get`, and `WorkerLost` if the actor sends no heartbeat in time."""
    while not wait_any([reference], actor.heartbeat_timeout):
        if kill_unresponsive([actor]):
            raise WorkerLost(no_heartbeat(actor))
    return get(reference)


def no_heartbeat(actor: Actor) -> str:
    """Text of an error for an actor that `kill_unresponsive` has killed."""
    return f"no heartbeat within {actor.heartbeat_timeout:g} s, see cluster.heartbeat_timeout"


def kill_unresponsive(actors: Sequence[Actor]) -> list[int]:
    """Kill actors that send no heartbeat in time; return their numbers.

    A process that hangs is killed so that it cannot come back later.
    """
    heartbeats = [actor.heartbeat() for actor in actors]
    timeout = actors[0].heartbeat_timeout
    ready = set(_import_ray().wait(heartbeats, num_returns=len(heartbeats), timeout=timeout)[0])
    lost = []
    for number, (actor, reference) in enumerate(zip(actors, heartbeats, strict=True)):
        try:
            if reference not in ready:
                raise WorkerLost(no_heartbeat(actor))
            get(reference)
        except WorkerLost:
            lost.append(number)
            actor.kill()
    return lost


def call_all(actors: Sequence[Actor], method: str, *arguments: object, **named: object) -> list[Any]:
    """Run a method in every actor and return all results. Raises as `results_of`."""
    return results_of(actors, [actor.submit(method, *arguments, **named) for actor in actors])


def results_of(actors: Sequence[Actor], references: Sequence[ObjectRef]) -> list[Any]:
    """Wait for results of methods that need each other, such as one collective operation.

    Raises `WorkerLost` if an actor is lost, otherwise the first failure.
    """
    results = {}
    while pending := [reference for reference in references if reference not in results]:
        ready = wait_any(pending, actors[0].heartbeat_timeout)
        if not ready and (lost := kill_unresponsive(actors)):
            raise WorkerLost(f"worker {lost[0]} of {len(actors)} is lost: {no_heartbeat(actors[lost[0]])}")
        try:
            results.update(zip(ready, get(ready), strict=True))
        except BaseException as error:
            # A lost rank breaks the connections of the others, so their errors say less than its loss.
            if lost := kill_unresponsive(actors):
                last_line = str(error).strip().rpartition("\n")[2]
                raise WorkerLost(f"worker {lost[0]} of {len(actors)} is lost ({last_line})") from error
            raise
    return [results[reference] for reference in references]
