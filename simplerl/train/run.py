"""The run loop: resume, steps, evaluations, checkpoints and records, until the last step or a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from simplerl.config import Recipe, SFTRecipe
from simplerl.environment import describe_environment, rss_gib
from simplerl.errors import NonFiniteError, RemoteError, WorkerLost
from simplerl.evaluation.held_out import HeldOut, evaluate
from simplerl.seeding import seed_for
from simplerl.storage import checkpoint
from simplerl.storage.records import RunFolder, rollout_row
from simplerl.train.base import Job, StepResult, evaluation_due
from simplerl.train.build import problems, rl, services, sft
from simplerl.train.clock import Clock
from simplerl.train.console import ProgressDisplay, make_display
from simplerl.train.trackers import Trackers
from simplerl.types import Notice, Sampling
from simplerl.verifiers.base import check_verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simplerl.cluster.placement import Placement


class StopRequested(Exception):
    """Raised between rollouts after a signal."""


def train(recipe: Recipe | SFTRecipe, run_dir: Path, *, plain: bool | None = None) -> Path:
    """Start the run of a folder, or resume it. Returns the folder.

    The first SIGINT or SIGTERM ends the run with a checkpoint, a second one at once. `plain`: see `make_display`.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    check_verifier(recipe.verifier)
    folder = RunFolder(run_dir)
    with folder.lock():
        folder.prepare(recipe, describe_environment())
        tokenizer = services.load_tokenizer(recipe)
        early_notices: list[str] = []  # the display needs the job's number of steps
        job = prepare_job(recipe, tokenizer, early_notices.append)
        with make_display(job.steps, plain, columns=job.columns) as display:
            for text in early_notices:
                display.show_notice(text)
            for restarts_left in reversed(range(recipe.cluster.restarts + 1)):
                after_loss = restarts_left < recipe.cluster.restarts
                try:
                    with (
                        services.reserve_placement(recipe, folder.path, after_loss=after_loss) as placement,
                        Session(recipe, folder, display, tokenizer, job, placement) as session,
                        stop_signals(session.request_stop),
                    ):
                        session.run()
                    break
                except WorkerLost as error:
                    if not restarts_left:
                        raise
                    text = (
                        f"{error}; resuming from the last checkpoint, {restarts_left} restarts left (cluster.restarts)"
                    )
                    display.show_notice(text)
                    folder.append_event(len(folder.read_metrics()), "learner lost", text)
    return folder.path


def prepare_job(recipe: Recipe | SFTRecipe, tokenizer: PreTrainedTokenizerBase, notice: Notice) -> Job:
    """Load the data of a recipe. Problems that are left out are counted in notices."""
    if isinstance(recipe, SFTRecipe):
        return sft.supervised_job(recipe, tokenizer, notice)
    return rl.reinforcement_job(recipe, tokenizer, notice)


@contextmanager
def stop_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM call `request_stop`; later ones act as before this context.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        request_stop()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Session:
    """The part of a run between loading the models and the end, a signal, or the loss of a learner."""

    def __init__(
        self,
        recipe: Recipe | SFTRecipe,
        folder: RunFolder,
        display: ProgressDisplay,
        tokenizer: PreTrainedTokenizerBase,
        job: Job,
        placement: Placement | None = None,
    ) -> None:
        self.recipe, self.folder, self.display, self.tokenizer = recipe, folder, display, tokenizer
        self.total_steps = job.steps
        self.stop_requested = False
        self.clock = Clock(display, self._raise_if_stop_requested)
        self.trainer = job.build(self.clock.phase, placement)
        self.held_out = problems.held_out_sets(recipe, tokenizer, display.show_notice)
        self.trackers = Trackers(recipe.track, folder.path, recipe, notice=display.show_notice)
        self.saved_step = -1
        self.steps_done = self._resume()
        self.algorithm_state = self.trainer.algorithm.state()
        self.updates_before_step = self.trainer.learner.updates

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.trackers.close()
        self.trainer.close()
        self._log_service_events()
        if self.trainer.engine is not None:
            self.trainer.engine.close()
        self.trainer.learner.close()
        self.trainer.verifier.close()
        # A reward may be a plain function, which has no `close`.
        getattr(self.trainer.reward, "close", lambda: None)()

    def request_stop(self) -> None:
        """End the run with a checkpoint, after the next rollout or step."""
        self.stop_requested = True

    def _raise_if_stop_requested(self) -> None:
        # Called between rollouts. The step's rollouts are lost, and resuming samples the same ones.
        if self.stop_requested:
            raise StopRequested

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step and export the model, or stop with a checkpoint after a signal.

        Raises what a step raises. `NonFiniteError` and `RemoteError` leave a checkpoint of the step before, if the
        weights are still those of that step.
        """
        try:
            if self._evaluation_due() and not self._is_evaluated():
                self._evaluate()
            while self.steps_done < self.total_steps and not self.stop_requested:
                self._step()
        except StopRequested:
            pass
        except (NonFiniteError, RemoteError):
            self._save_if_not_updated()
            raise
        self._save()
        if self.steps_done == self.total_steps:
            self._export("final")
        else:
            self.display.show_notice(
                f"stopped after step {self.steps_done} of {self.total_steps}; run the same command again to resume"
            )

    def _step(self) -> None:
        self.clock.reset()
        result = self.trainer.step(self.steps_done + 1)
        self.steps_done += 1
        self.algorithm_state = self.trainer.algorithm.state()
        self.updates_before_step = self.trainer.learner.updates
        self._write_records(result)
        if self._evaluation_due():
            self._evaluate()
        if self.steps_done % self.recipe.checkpoint.every == 0:
            self._save()
        every = self.recipe.checkpoint.export_every
        if every and self.steps_done % every == 0:
            self._export(f"step-{self.steps_done:06d}")

    def _write_records(self, result: StepResult) -> None:
        step = self.steps_done
        metrics = result.metrics | self.clock.metrics(result.metrics["tokens/response"])
        metrics["memory/rss_gib"] = rss_gib()
        self._log_service_events()
        for service in filter(None, (self.trainer.engine, self.trainer.verifier)):
            metrics |= service.metrics()
        if result.rows:
            self.folder.write_rollouts(step, result.rows)
        self.folder.append_metrics({"step": step, **dict(sorted(metrics.items()))})
        self.trackers.log(step, metrics)
        self.display.show_step(step, metrics)
        if (shown := result.shown) is not None:
            problem, verdict = shown.rollout.prompt.problem, shown.verdict.label
            self.display.show_sample(problem.question, problem.answer, shown.rollout.text, verdict, shown.reward)

    def _log_service_events(self) -> None:
        """Log lost and restarted engines and verifiers."""
        for service, kind in ((self.trainer.engine, "engine lost"), (self.trainer.verifier, "verifier lost")):
            for text in [] if service is None else service.take_events():
                self._log_event(kind, text)

    def _log_event(self, kind: str, text: str) -> None:
        self.display.show_notice(text)
        self.folder.append_event(self.steps_done, kind, text)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        return evaluation_due(self.recipe, self.steps_done, self.total_steps)

    def _is_evaluated(self) -> bool:
        """True if an earlier session evaluated after the last step."""
        # `_evaluate` writes the validation row first, so a benchmark's row means that the evaluation is complete.
        rows = self.folder.read_evals() if self.held_out else self.folder.read_validation()
        return any(row["step"] == self.steps_done for row in rows)

    def _evaluate(self) -> None:
        step = self.steps_done
        validation = self.trainer.validate()
        rows = [
            self._evaluate_set(held_out, temperature)
            for held_out in self.held_out
            for temperature in self.recipe.eval.temperatures
        ]
        # Rows are written together at the end. A kill before that leaves none; resuming truncates what a kill here
        # leaves.
        if validation is not None:
            self.folder.append_validation({"step": step, **validation})
            self.trackers.log(step, {"validation/loss": validation["loss"]})
            self.display.show_validation(step, validation["loss"])
        for row in rows:
            self.folder.append_eval(row)
        if rows:
            self.trackers.log(step, {f"eval/{r['set']}-t{r['temperature']:g}": r["accuracy"] for r in rows})
            self.display.show_evals(rows)

    def _evaluate_set(self, held_out: HeldOut, temperature: float) -> dict[str, Any]:
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
                step=self.steps_done,
                progress=progress,
            )
        rows = [rollout_row(self.steps_done, graded, 0) for graded in evaluation.graded]
        self.folder.write_eval_responses(self.steps_done, held_out.name, temperature, rows)
        return evaluation.row

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Restore the newest complete checkpoint and truncate later records. Returns the number of steps done."""
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
        self.steps_done = self.saved_step = int(state["step"])
        self.display.resume(self.saved_step)
        for text in notices:
            self._log_event("torn checkpoint", text)
        self._log_event("resumed", f"resuming after step {self.saved_step} of {self.total_steps}, from {path.name}")
        return self.saved_step

    def _save(self) -> None:
        if self.steps_done in (0, self.saved_step):
            return

        def fill(folder: Path) -> dict[str, Any]:
            self.trainer.save(folder)
            learner = self.trainer.learner.save(folder)
            return {"step": self.steps_done, "learner": learner, "algorithm": self.algorithm_state}

        checkpoint.write(self.folder.path, self.steps_done, fill, self.trainer.learner.checkpoint_bytes)
        self.saved_step = self.steps_done
        checkpoint.prune(self.folder.path, self.recipe.checkpoint.keep)

    def _save_if_not_updated(self) -> None:
        """Save a checkpoint after a failed step, unless the step has already updated weights."""
        if self.trainer.learner.updates == self.updates_before_step:
            self._save()
        self.display.show_notice(
            f"step {self.steps_done + 1} failed; the newest checkpoint is of step {max(0, self.saved_step)}"
        )

    def _export(self, name: str) -> None:
        """Write the policy as a `transformers` folder, which appears complete or not at all."""
        from simplerl.storage import atomic

        target = self.folder.path / "exports" / name
        if target.exists():
            return
        with atomic.new_folder(target) as temporary:
            self.trainer.learner.export(temporary)
            self.tokenizer.save_pretrained(temporary)
