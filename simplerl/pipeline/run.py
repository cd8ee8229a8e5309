"""A whole pipeline: stages run in order; finished and unchanged ones are skipped, started ones resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from simplerl.environment import describe_environment
from simplerl.formatting import long_clock
from simplerl.pipeline import stages
from simplerl.pipeline.folder import PipelineFolder
from simplerl.pipeline.plan import Plan, Task

Say = Callable[[str], None]


def run(plan: Plan, *, plain: bool | None = None, say: Say = print) -> bool:
    """Run what is left, one line per stage. Returns False if a signal stopped it; the same call resumes."""
    folder = PipelineFolder(plan.root)
    with folder.lock():
        folder.prepare(plan.recipe, describe_environment())
        return all(settle(task, folder, plain=plain, say=say) for task in plan.tasks)


def settle(task: Task, folder: PipelineFolder, *, plain: bool | None, say: Say) -> bool:
    """Run or resume one stage. Returns True if it is done."""
    standing = folder.standing(task)
    if standing == "done":
        say(f"{task.name}: skipped, done and unchanged ({long_clock(folder.seconds(task))})")
        return True
    if standing == "changed":
        say(f"{task.name}: changed; its earlier output is in {folder.supersede(task)}")
    seconds, done = session(task, folder, plain=plain, say=say)
    if done:
        say(f"{task.name}: {task.stage.run} done in {long_clock(seconds)}, {task.product}")
    else:
        say(f"{task.name}: {task.stage.run} stopped after {long_clock(seconds)}; run the same command again to resume")
    return done


def session(task: Task, folder: PipelineFolder, *, plain: bool | None, say: Say) -> tuple[float, bool]:
    """One session of a stage: its seconds, and True if the stage is done."""
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
