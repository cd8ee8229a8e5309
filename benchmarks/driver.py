"""What a step costs the driver of a cluster of up to 1,024 GPUs, without the GPUs: the driver's own work in real Ray.

    python benchmarks/driver.py [--gpus 8,32,128,512,1024] [--series fixed,weak] [--over 60] [--profile 1024]

`RemoteEngines` and `RemoteLearner` are the real ones; half of the GPUs are engines, half are ranks. Both are fakes,
many in each of `--processes` processes, which answer at once with responses of the published recipe's sizes, in as many
messages as if they ended evenly over a minute; `--over` waits for that minute. Weights are names and sizes. Prints JSON
lines, then Markdown tables: medians of the steps after a warm-up. CPU is that of the driver's process, all threads.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pickle
import pstats
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from _contest import emit, print_table
from _fakes import RESPONSE, FakeEngine, FakeLearner, Multiplexed, Parcel, begin_hosts, counts, make_prompts, streamed
from _machine import description

from simplerl.algorithms import grpo, ppo
from simplerl.batch.batch import collate
from simplerl.cluster import engines, learner, ray
from simplerl.cluster.placement import Placement
from simplerl.config import ClusterConfig, load_recipe
from simplerl.engines.base import generate
from simplerl.rollouts.grade import make_requests, split_into_groups
from simplerl.seeding import permutation
from simplerl.train.metrics import response_rows, rollout_metrics, score_metrics
from simplerl.train.trainer import check_mismatch
from simplerl.types import GradedRollout, Rollout, Sampling, Verdict

SAMPLES, MINIBATCH = 8, 128
"""Responses per prompt and rows per update of the published recipe; it has 1,024 prompts per step."""
MINUTE = 60.0
"""Seconds over which responses end, and of a step that the driver's share is said of."""
CLUSTER = ("weight sync", "rollout", "score", "update", "heartbeats")
ALONE = ("requests", "collate", "credit, GRPO", "credit, PPO", "minibatches", "records")
"""Phases that speak to the cluster, and the driver's own."""
RECIPE = load_recipe("simplerl-zero-qwen2.5-math-7b")
Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--gpus", default="8,32,128,512,1024")
    made.add_argument("--series", default="fixed,weak", help="fixed: --responses; weak: 16 for each engine")
    made.add_argument("--responses", type=int, default=8192)
    made.add_argument("--prompt", type=int, default=100, help="tokens of a prompt")
    made.add_argument("--processes", type=int, default=8, help="that hold the fakes")
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--warm-up", type=int, default=1)
    made.add_argument("--over", type=float, default=0.0, help="seconds over which responses really end; 0: at once")
    made.add_argument("--profile", type=int, help="one step with so many GPUs under cProfile, and nothing else")
    return made.parse_args()


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Meter:
    """What each phase of a step cost. A phase entered again adds to what it has."""

    seconds: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    cpu: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    messages: Counter[str] = field(default_factory=Counter)
    put: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, cpu, begun = counts.copy(), time.process_time(), time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begun
        self.cpu[name] += time.process_time() - cpu
        self.messages[name] += sum(counts[kind] - before[kind] for kind in ("calls", "heartbeats"))
        self.put[name] += counts["bytes put"] - before["bytes put"]


def cpu_of_ray() -> float:
    """CPU seconds so far of this node's raylet and of the head's store of records, which are not the driver."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    ticks = 0
    for child in children:
        name, _, rest = Path(f"/proc/{child}/stat").read_text().rpartition(")")
        if "(raylet" in name or "(gcs_server" in name:
            ticks += sum(map(int, rest.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


# --- a step -----------------------------------------------------------------------------------------------------------


class Cluster:
    """The driver's side of so many GPUs, half of them engines."""

    def __init__(self, options: argparse.Namespace, gpus: int) -> None:
        config = ClusterConfig(ray="auto", engines=gpus // 2, learners=gpus // 2)
        make: Any = partial(FakeEngine, seconds=options.over or MINUTE, wait=bool(options.over))
        self.engines = engines.RemoteEngines(make, config, Placement())
        self.learner = learner.RemoteLearner(FakeLearner, config, "cpu", Placement())
        self.grpo = grpo.GRPO(grpo.Config(), 3000)
        self.ppo = ppo.PPO(ppo.Config(), 3000)

    def close(self) -> None:
        self.engines.close()
        self.learner.close()

    def step(self, prompts: list[Any], step: int) -> tuple[Meter, Row]:
        """What `RLTrainer.step` does but for grading, whose work is the verifiers' processes', and the probe."""
        meter = Meter()
        with meter.phase("weight sync"):
            self.engines.load_weights(self.learner.weights(), step)
        with meter.phase("requests"):
            sampling = Sampling(3000, temperature=0.6, n=SAMPLES, stop=("</s>", "<|im_end|>", "<|endoftext|>"))
            requests = make_requests(prompts, sampling, 42, "sample", step)
        streamed()
        with meter.phase("rollout"):
            rollouts = generate(self.engines, requests)
        meter.messages["rollout"] += streamed()
        groups = list(split_into_groups([graded(r, n) for n, r in enumerate(rollouts)], SAMPLES))
        with meter.phase("collate"):
            batch = collate(groups)
        with meter.phase("score"):
            scored = self.learner.score(batch)
        with meter.phase("credit, GRPO"):
            self.grpo.compute_advantages(scored)
        with meter.phase("credit, PPO"):
            credited, _ = self.ppo.compute_advantages(scored)
        self.update(meter, credited, step)
        with meter.phase("records"):
            score_metrics(scored)
            rollout_metrics([each for group in groups for each in group])
            response_rows(step, groups, credited)
        with meter.phase("heartbeats"):
            assert ray.kill_unresponsive([*self.engines._workers, *self.learner._ranks]) == []
        assert self.engines.metrics()["cluster/engines_lost"] == 0
        return meter, {"rollout": rollouts, "scored": scored}

    def update(self, meter: Meter, credited: Any, step: int) -> None:
        with meter.phase("minibatches"):
            order = permutation(len(credited), 42, "minibatch", step, 0)
            rows = [torch.tensor(order[first : first + MINIBATCH]) for first in range(0, len(order), MINIBATCH)]
        with meter.phase("update"):
            self.learner.train(credited, rows, self.ppo, check=partial(check_mismatch, RECIPE, {}))


def graded(rollout: Rollout, number: int) -> GradedRollout:
    right = number % 3 == 0
    return GradedRollout(rollout, Verdict("correct" if right else "wrong", "42", "exact"), 1.0 if right else -0.5)


def got(meter: Meter, results: Row) -> dict[str, float]:
    """Bytes that came back: those of rollouts from the mean of 256 messages of one, those of scores exactly."""
    rollouts = results["rollout"]
    some = rollouts[:: max(1, len(rollouts) // 256)]
    one = sum(len(pickle.dumps([r], protocol=5)) for r in some) / len(some)
    return {"rollout": one * len(rollouts), "score": float(len(pickle.dumps(results["scored"], protocol=5)))}


# --- series -----------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, series: str, gpus: int) -> Row:
    """The medians of a number of GPUs, as one row."""
    responses = options.responses if series == "fixed" else 16 * (gpus // 2)
    prompts = make_prompts(responses // SAMPLES, options.prompt)
    cluster = Cluster(options, gpus)
    meters, ray_cpu, came = list[Meter](), list[float](), dict[str, float]()
    for step in range(options.warm_up + options.repeats):
        before = cpu_of_ray()
        meter, results = cluster.step(prompts, step)
        if step >= options.warm_up:
            meters.append(meter)
            ray_cpu.append(cpu_of_ray() - before)
            came = came or got(meter, results)
            emit(series=series, gpus=gpus, step=step, cpu=meter.cpu, seconds=meter.seconds, ray_cpu=ray_cpu[-1])
    cluster.close()
    row = {"series": series, "gpus": gpus, "responses": responses, "steps": len(meters), "over": options.over}
    for kind in ("cpu", "seconds", "messages", "put"):
        row[kind] = {name: median(getattr(m, kind)[name] for m in meters) for name in (*CLUSTER, *ALONE)}
    row |= {"got": came, "ray_cpu": median(ray_cpu)}
    emit(**row)
    return row


def total(row: Row, kind: str, names: tuple[str, ...] = CLUSTER + ALONE) -> float:
    """The sum over phases; a step has one algorithm, here PPO, and asks of life only in silence."""
    return sum(row[kind].get(name, 0.0) for name in names if name not in ("credit, GRPO", "heartbeats"))


def print_series(rows: list[Row]) -> None:
    head = ("GPUs", "responses", *CLUSTER[:4], "driver's own", "CPU s/step", f"of {MINUTE:.0f} s")
    table = [
        [
            f"{row['gpus']:,}",
            f"{row['responses']:,}",
            *(f"{row['cpu'][name]:.2f}" for name in CLUSTER[:4]),
            f"{total(row, 'cpu', ALONE):.2f}",
            f"{total(row, 'cpu'):.1f}",
            f"{100 * total(row, 'cpu') / MINUTE:.0f} %",
        ]
        for row in rows
    ]
    print_table(head, table)
    head = ("GPUs", "messages/step", "weight sync", "rollout", "score", "update", "wall s/step", "messages/s")
    head = (*head, "put MB", "got MB", "raylet, GCS CPU s")
    table = [
        [
            f"{row['gpus']:,}",
            f"{total(row, 'messages'):,.0f}",
            *(f"{row['messages'][name]:,.0f}" for name in CLUSTER[:4]),
            f"{total(row, 'seconds'):.1f}",
            f"{total(row, 'messages') / total(row, 'seconds', CLUSTER):,.0f}",
            f"{total(row, 'put') / 1e6:.0f}",
            f"{sum(row['got'].values()) / 1e6:.0f}",
            f"{row['ray_cpu']:.1f}",
        ]
        for row in rows
    ]
    print_table(head, table)
    head = ("GPUs", *(f"{name}, CPU s" for name in ALONE), "all heartbeats once, CPU s")
    names = (*ALONE, "heartbeats")
    print_table(head, [[f"{row['gpus']:,}", *(f"{row['cpu'][name]:.2f}" for name in names)] for row in rows])
    for share in (0.1, 1.0):
        print(f"\n{100 * share:.0f} % of {MINUTE:.0f} s: {reached(rows, share * MINUTE)}")


def reached(rows: list[Row], limit: float) -> str:
    """From how many GPUs on the driver's CPU exceeds a limit, between two measured ones or beyond by their line."""
    points = [(row["gpus"], total(row, "cpu")) for row in rows]
    if points[0][1] >= limit:
        return f"exceeded with {points[0][0]} GPUs, the fewest measured"
    if len(points) == 1:
        return "not reached"
    above = next((n for n, (_, cpu) in enumerate(points) if cpu >= limit), len(points) - 1)
    (left, low), (right, high) = points[above - 1], points[above]
    if high <= low:
        return "not reached, and the cost does not grow"
    gpus = left + (limit - low) * (right - left) / (high - low)
    return f"at {gpus:,.0f} GPUs, " + ("between two measured" if gpus <= right else "by the line of the last two")


def profile(options: argparse.Namespace) -> None:
    prompts = make_prompts(options.responses // SAMPLES, options.prompt)
    cluster = Cluster(options, options.profile)
    cluster.step(prompts, 0)
    profiler = cProfile.Profile()
    profiler.runcall(cluster.step, prompts, 1)
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(30)
    cluster.close()


@contextmanager
def stand_ins() -> Iterator[None]:
    """Actors are fakes from here on, and what is put into the store is counted."""
    put: Callable[[Any], Any] = ray.put
    with (
        mock.patch.object(engines, "Actor", Multiplexed),
        mock.patch.object(learner, "Actor", Multiplexed),
        mock.patch.object(ray, "put", lambda value: put(Parcel(value))),
    ):
        yield


def main() -> None:
    options = arguments()
    emit(**description())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    # The fakes take the cores that on a cluster are the driver's; the node must not be given up for its silence.
    os.environ["RAY_health_check_failure_threshold"] = "100"  # noqa: SIM112
    sizes = [options.profile] if options.profile else [int(value) for value in options.gpus.split(",")]
    ray.connect(ClusterConfig(ray="auto"))
    begin_hosts(options.processes, threads=-(-max(sizes) // options.processes) + 2)
    with stand_ins():
        if options.profile:
            profile(options)
            return
        for series in options.series.split(","):
            rows = [measure(options, series, gpus) for gpus in sizes]
            print(f"\n{series}: responses of {RESPONSE} tokens on average, after prompts of {options.prompt}")
            print_series(rows)


if __name__ == "__main__":
    main()
