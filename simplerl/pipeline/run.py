"""A whole pipeline: every stage in turn, what is done and unchanged skipped, what was begun gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from simplerl.environment import describe
from simplerl.formatting import long_clock
from simplerl.pipeline import stages
from simplerl.pipeline.folder import PipelineFolder
from simplerl.pipeline.plan import Plan, Task

Say = Callable[[str], None]


def run(plan: Plan, *, plain: bool | None = None, say: Say = print) -> bool:
    """Does what is left to do; a line per stage. False where a signal stopped it: the same call goes on from there."""
    folder = PipelineFolder(plan.root)
    with folder.lock():
        folder.prepare(plan.recipe, describe())
        return all(settle(task, folder, plain=plain, say=say) for task in plan.tasks)


def settle(task: Task, folder: PipelineFolder, *, plain: bool | None, say: Say) -> bool:
    """Brings one stage to its end, however far it was. Returns whether it is there."""
    standing = folder.standing(task)
    if standing == "done":
        say(f"{task.name}: skipped, done and unchanged ({long_clock(folder.seconds(task))})")
        return True
    if standing == "changed":
        say(f"{task.name}: changed; what it made before is kept in {folder.supersede(task)}")
    seconds, done = session(task, folder, plain=plain, say=say)
    if done:
        say(f"{task.name}: {task.stage.run} done in {long_clock(seconds)}, {task.product}")
    else:
        say(f"{task.name}: {task.stage.run} stopped after {long_clock(seconds)}; the same command goes on from there")
    return done


def session(task: Task, folder: PipelineFolder, *, plain: bool | None, say: Say) -> tuple[float, bool]:
    """One process's part of a stage: how long it took, and whether the stage is done now."""
    folder.begin(task)
    started, done = time.monotonic(), False
    try:
        with suppress(KeyboardInterrupt):
            stages.do(task, plain=plain, notice=say)
            done = task.product.exists()
    finally:
        seconds = time.monotonic() - started
        folder.end(task, seconds, done=done)
    return seconds, done
