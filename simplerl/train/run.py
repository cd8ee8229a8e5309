"""A whole run: resume, steps, evaluations, checkpoints, records, a clean end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simplerl.config import Recipe, SFTRecipe
from simplerl.environment import describe, rss_gib
from simplerl.errors import NonFiniteError, RemoteError, WorkerLost
from simplerl.evaluation.held_out import HeldOut, evaluate
from simplerl.seeding import seed_for
from simplerl.storage import checkpoint
from simplerl.storage.records import RunFolder, rollout_row
from simplerl.train.base import Job, StepResult, evaluation_due
from simplerl.train.build import problems, rl, services, sft
from simplerl.train.clock import Clock
from simplerl.train.console import View, make_view
from simplerl.train.trackers import Trackers
from simplerl.types import Sampling
from simplerl.verifiers.base import check_verifier

if TYPE_CHECKING:
    from simplerl.cluster.placement import Placement


class Stopped(Exception):
    """A signal asked the run to end."""


def train(recipe: Recipe | SFTRecipe, run_dir: Path, *, plain: bool | None = None) -> Path:
    """Trains, or goes on with, the run of a folder; returns the folder.

    A signal (SIGINT, SIGTERM) ends it with a checkpoint; a second one at once.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    check_verifier(recipe.verifier)
    folder = RunFolder(run_dir)
    with folder.lock():
        folder.prepare(recipe, describe())
        tokenizer = services.load_tokenizer(recipe)
        early: list[str] = []
        job = prepare(recipe, tokenizer, early.append)
        with make_view(job.steps, plain, columns=job.columns) as view:
            for text in early:
                view.notice(text)
            for left in reversed(range(recipe.cluster.restarts + 1)):
                try:
                    with (
                        services.reserved(recipe, folder.path, again=left < recipe.cluster.restarts) as place,
                        Run(recipe, folder, view, tokenizer, job, place) as run,
                        stop_signals(run.request_stop),
                    ):
                        run.go()
                    break
                except WorkerLost as error:
                    if not left:
                        raise
                    text = f"{error}; going on from the last checkpoint, as often as {left} times (cluster.restarts)"
                    view.notice(text)
                    folder.append_event(len(folder.read_metrics()), "learner lost", text)
    return folder.path


def prepare(recipe: Recipe | SFTRecipe, tokenizer: Any, notice: Callable[[str], None]) -> Job:
    """What a recipe of either kind asks for."""
    if isinstance(recipe, SFTRecipe):
        return sft.supervised_job(recipe, tokenizer, notice)
    return rl.reinforcement_job(recipe, tokenizer, notice)


@contextmanager
def stop_signals(request: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `request`; the second SIGINT or SIGTERM acts as if nothing had been set up."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        request()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Run:
    """One process's part of a run."""

    def __init__(
        self,
        recipe: Recipe | SFTRecipe,
        folder: RunFolder,
        view: View,
        tokenizer: Any,
        job: Job,
        place: Placement | None = None,
    ) -> None:
        self.recipe, self.folder, self.view, self.tokenizer, self.steps = recipe, folder, view, tokenizer, job.steps
        self.stopping = False
        self.clock = Clock(view, self._leave_if_stopping)
        self.trainer = job.build(self.clock.phase, place)
        self.held_out = problems.held_out_sets(recipe, tokenizer, view.notice)
        self.trackers = Trackers(recipe.track, folder.path, recipe, notice=view.notice)
        self.saved = -1
        self.done = self._resume()
        self.algorithm_state = self.trainer.algorithm.state()
        self.updates_before = self.trainer.learner.updates

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.trackers.close()
        self.trainer.close()
        self._tell_of_losses()
        if self.trainer.engine is not None:
            self.trainer.engine.close()
        self.trainer.learner.close()
        self.trainer.verifier.close()
        # A reward may be a plain function.
        getattr(self.trainer.reward, "close", lambda: None)()

    def request_stop(self) -> None:
        self.stopping = True

    def _leave_if_stopping(self) -> None:
        """Called between rollouts: what was sampled so far is not needed, the step is repeated on resume."""
        if self.stopping:
            raise Stopped

    # --- the loop -------------------------------------------------------------------------------------------------

    def go(self) -> None:
        try:
            if self._evaluation_due() and not self._evaluated():
                self._evaluate()
            while self.done < self.steps and not self.stopping:
                self._step()
        except Stopped:
            pass
        except (NonFiniteError, RemoteError):
            self._save_if_untouched()
            raise
        self._save()
        if self.done == self.steps:
            self._export("final")
        else:
            self.view.notice(f"stopped after step {self.done} of {self.steps}; the same command goes on from there")

    def _step(self) -> None:
        self.clock.reset()
        result = self.trainer.step(self.done + 1)
        self.done += 1
        self.algorithm_state = self.trainer.algorithm.state()
        self.updates_before = self.trainer.learner.updates
        self._record(result)
        if self._evaluation_due():
            self._evaluate()
        if self.done % self.recipe.checkpoint.every == 0:
            self._save()
        every = self.recipe.checkpoint.export_every
        if every and self.done % every == 0:
            self._export(f"step-{self.done:06d}")

    def _record(self, result: StepResult) -> None:
        metrics = result.metrics | self.clock.metrics(result.metrics["tokens/response"])
        metrics["memory/rss_gib"] = rss_gib()
        self._tell_of_losses()
        for service in filter(None, (self.trainer.engine, self.trainer.verifier)):
            metrics |= service.metrics()
        if result.rows:
            self.folder.write_rollouts(self.done, result.rows)
        self.folder.append_metrics({"step": self.done, **dict(sorted(metrics.items()))})
        self.trackers.log(self.done, metrics)
        self.view.step_done(self.done, metrics)
        if (shown := result.shown) is not None:
            problem = shown.rollout.prompt.problem
            self.view.sample(problem.question, problem.answer, shown.rollout.text, shown.verdict.label, shown.reward)

    def _tell_of_losses(self) -> None:
        """Engines and verifiers that were lost and begun anew since this was last asked."""
        for service, kind in ((self.trainer.engine, "engine lost"), (self.trainer.verifier, "verifier lost")):
            for text in [] if service is None else service.take_events():
                self._tell(kind, text)

    def _tell(self, kind: str, text: str) -> None:
        self.view.notice(text)
        self.folder.append_event(self.done, kind, text)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        return evaluation_due(self.recipe, self.done, self.steps)

    def _evaluated(self) -> bool:
        """Whether an earlier session evaluated after the step done last."""
        # The validation is written first, so the rows of the benchmarks say that all is there.
        rows = self.folder.read_evals() if self.held_out else self.folder.read_validation()
        return any(row["step"] == self.done for row in rows)

    def _evaluate(self) -> None:
        validation = self.trainer.validate()
        rows = [
            self._evaluate_one(held_out, temperature)
            for held_out in self.held_out
            for temperature in self.recipe.eval.temperatures
        ]
        # All rows of an evaluation follow each other, so that a kill in between leaves none or is cut on resume.
        if validation is not None:
            self.folder.append_validation({"step": self.done, **validation})
            self.trackers.log(self.done, {"validation/loss": validation["loss"]})
            self.view.validated(self.done, validation["loss"])
        for row in rows:
            self.folder.append_eval(row)
        if rows:
            self.trackers.log(self.done, {f"eval/{r['set']}-t{r['temperature']:g}": r["accuracy"] for r in rows})
            self.view.eval_done(rows)

    def _evaluate_one(self, held_out: HeldOut, temperature: float) -> dict[str, Any]:
        limit = self.recipe.eval.max_tokens or self.recipe.response_limit
        sampling = Sampling(max_tokens=limit, temperature=temperature, stop=self.recipe.stop)
        trainer = self.trainer
        assert trainer.engine is not None
        with self.clock.phase("eval", len(held_out.prompts)) as progress:
            evaluation = evaluate(
                held_out,
                sampling,
                trainer.engine,
                trainer.verifier,
                trainer.reward,
                seed=seed_for(self.recipe.seed, "eval", f"{temperature:g}"),
                step=self.done,
                progress=progress,
            )
        rows = [rollout_row(self.done, graded, 0) for graded in evaluation.graded]
        self.folder.write_eval_responses(self.done, held_out.name, temperature, rows)
        return evaluation.row

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Restores the newest whole checkpoint; what came after it never happened. Returns the steps done."""
        found = checkpoint.latest(self.folder.path)
        if found is None:
            self.folder.truncate_after(-1)
            return 0
        path, notices = found
        state = checkpoint.load_state(path)
        self.trainer.restore(path)
        self.trainer.learner.restore(path, state["learner"])
        self.trainer.algorithm.restore(state["algorithm"])
        if self.trainer.engine is not None:
            self.trainer.engine.load_weights(self.trainer.learner.weights(), version=state["step"])
        self.folder.truncate_after(state["step"])
        self.done = self.saved = int(state["step"])
        self.view.resumed(self.saved)
        for text in notices:
            self._tell("torn checkpoint", text)
        self._tell("taken up again", f"going on after step {self.saved} of {self.steps}, from {path.name}")
        return self.saved

    def _save(self) -> None:
        if self.done in (0, self.saved):
            return

        def fill(folder: Path) -> dict[str, Any]:
            self.trainer.save(folder)
            learner = self.trainer.learner.save(folder)
            return {"step": self.done, "learner": learner, "algorithm": self.algorithm_state}

        checkpoint.write(self.folder.path, self.done, fill, self.trainer.learner.checkpoint_bytes)
        self.saved = self.done
        checkpoint.prune(self.folder.path, self.recipe.checkpoint.keep)

    def _save_if_untouched(self) -> None:
        """After a step that broke off: the weights are those of the step before only if it made no update yet."""
        if self.trainer.learner.updates == self.updates_before:
            self._save()
        self.view.notice(f"step {self.done + 1} was not done; the newest checkpoint is of step {max(0, self.saved)}")

    def _export(self, name: str) -> None:
        """The policy as a `transformers` folder, whole or not at all."""
        from simplerl.storage import atomic

        target = self.folder.path / "exports" / name
        if target.exists():
            return
        with atomic.new_folder(target) as temporary:
            self.trainer.learner.export(temporary)
            self.tokenizer.save_pretrained(temporary)
