"""The command line: `optuna-merge`, and the same flags for every study's own script."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from optuna_merge._version import __version__

if TYPE_CHECKING:
    import optuna

    from optuna_merge.definition import StudyDefinition

StudyName = Annotated[str, typer.Option(help="Name of the study; made if it is missing.")]
Storage = Annotated[str, typer.Option(help="sqlite:///FILE, postgresql://..., or env:NAME.")]
NTrials = Annotated[
    Optional[int],  # noqa: UP045 (typer reads it)
    typer.Option(help="Trials to finish; a killed run, started again, finishes what is missing."),
]
TimeoutSeconds = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Seconds after which no new trial is started."),
]
Workdir = Annotated[Path, typer.Option(help="Folder of task runs, posteriors and finetunes.")]
Fraction = Annotated[float, typer.Option(help="Promoted finetunes per preview.")]
MaxPromotions = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Cap on promoted finetunes of the whole study."),
]
MaxSteps = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Cap on training steps of all promoted finetunes together."),
]
MaxSeconds = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Cap on seconds of all promoted finetunes together."),
]
Seed = Annotated[Optional[int], typer.Option(help="Seed of the search.")]  # noqa: UP045
Artifacts = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Folder or s3://bucket through which working folders share the fit."),
]
Race = Annotated[
    bool,
    typer.Option(
        "--race/--no-race",
        help="Stop a preview once it can't reach the promotion threshold any more.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and debugging messages.")]
Definition = Annotated[
    Path, typer.Argument(help="A Python file with a function `definition() -> StudyDefinition`.")
]

app = typer.Typer(
    help="Choose task weights for multitask finetuning through Bayesian model-merging previews.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def fit(definition: Definition, workdir: Workdir = Path("workdir"), debug: Debug = False) -> None:
    """Finetune each task alone and make its posterior.

    Example: optuna-merge fit studies/digits/optimize.py --workdir work
    """
    _guarded(debug, lambda: _fit(_load_definition(definition), workdir))


@app.command()
def optimize(
    definition: Definition,
    study_name: StudyName = "optuna_merge",
    storage: Storage = "sqlite:///optuna_merge.db",
    n_trials: NTrials = 100,
    timeout: TimeoutSeconds = None,
    workdir: Workdir = Path("workdir"),
    fraction: Fraction = 0.25,
    max_promotions: MaxPromotions = None,
    max_steps: MaxSteps = None,
    max_seconds: MaxSeconds = None,
    seed: Seed = None,
    artifacts: Artifacts = None,
    race: Race = False,
    debug: Debug = False,
) -> None:
    """Preview many task weights, finetune at the best, print the table.

    Example: optuna-merge optimize studies/digits/optimize.py --n-trials 50 --workdir work
    """
    _guarded(
        debug,
        lambda: _optimize(
            _load_definition(definition),
            study_name,
            storage,
            n_trials,
            timeout,
            workdir,
            _budget(fraction, max_promotions, max_steps, max_seconds),
            seed,
            artifacts,
            race,
        ),
    )


@app.command()
def report(
    definition: Definition,
    study_name: StudyName = "optuna_merge",
    storage: Storage = "sqlite:///optuna_merge.db",
    workdir: Workdir = Path("workdir"),
    debug: Debug = False,
) -> None:
    """Print the table of a study again.

    Example: optuna-merge report studies/digits/optimize.py --workdir work
    """
    _guarded(
        debug,
        lambda: _optimize(
            _load_definition(definition),
            study_name,
            storage,
            0,
            None,
            workdir,
            {},
            None,
            None,
            False,
        ),
    )


@app.command()
def diagnose(
    study_name: StudyName = "optuna_merge",
    storage: Storage = "sqlite:///optuna_merge.db",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Tell how far the previews of a study can be trusted, from the study alone.

    Example: optuna-merge diagnose --study-name digits --storage sqlite:///digits.db
    """
    _guarded(debug, lambda: _diagnose(study_name, storage, as_json))


def script(
    build: Callable[[], StudyDefinition], *, name: str, n_trials: int, fraction: float = 0.25
) -> None:
    """Run a study's script: the flags are the same for every study.

    Args:
        build: Makes the study's definition; called after the flags are known to be right.
        name: Default of `--study-name`, and of the SQLite file.
        n_trials: Default of `--n-trials`.
        fraction: Default of `--fraction`.
    """

    def command(
        study_name: StudyName = name,
        storage: Storage = f"sqlite:///{name}.db",
        n_trials: NTrials = n_trials,
        timeout: TimeoutSeconds = None,
        workdir: Workdir = Path("workdir") / name,
        fraction: Fraction = fraction,
        max_promotions: MaxPromotions = None,
        max_steps: MaxSteps = None,
        max_seconds: MaxSeconds = None,
        seed: Seed = None,
        artifacts: Artifacts = None,
        race: Race = False,
        debug: Debug = False,
    ) -> None:
        _guarded(
            debug,
            lambda: _optimize(
                build(),
                study_name,
                storage,
                n_trials,
                timeout,
                workdir,
                _budget(fraction, max_promotions, max_steps, max_seconds),
                seed,
                artifacts,
                race,
            ),
        )

    command.__doc__ = (build.__doc__ or "").strip() or None
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(command)
    single()


def main() -> None:
    """Entry point of `optuna-merge`."""
    app()


def _fit(definition: StudyDefinition, workdir: Path) -> None:
    from optuna_merge.fitting import fit as fit_definition

    fitted = fit_definition(definition, workdir)
    for name, run in fitted.runs.items():
        metric = run.evaluations[name].metric.value
        typer.echo(f"{name}: {metric:.4f} alone, {run.steps} steps, {run.seconds:.1f} s")


def _optimize(
    definition: StudyDefinition,
    study_name: str,
    storage: str,
    n_trials: int | None,
    timeout: float | None,
    workdir: Path,
    budget: dict[str, Any],
    seed: int | None,
    artifacts: str | None,
    race: bool,
) -> None:
    from optuna_merge._files import write_json
    from optuna_merge.artifacts import SharedFiles, open_artifact_store
    from optuna_merge.fitting import check_writable, fit
    from optuna_merge.objective import Objective
    from optuna_merge.previews import Racing, racing_obstacle
    from optuna_merge.pruners import PromotionPruner
    from optuna_merge.report import format_report, make_report
    from optuna_merge.running import run_trials
    from optuna_merge.samplers import PreviewSampler
    from optuna_merge.storages import create_storage
    from optuna_merge.study import open_study, prepare_study

    # What can be wrong is looked at first: before the task runs, which take long.
    check_writable(workdir)
    obstacle = racing_obstacle(definition.tasks) if race else None
    if obstacle is not None:
        raise ValueError(f"{obstacle}; leave out --race")
    study = open_study(
        study_name,
        create_storage(storage),
        definition.directions,
        pruner=PromotionPruner(**budget, refinements=definition.refinement_steps, seed=seed),
    )
    shared = None
    if artifacts is not None:
        shared = SharedFiles(study, open_artifact_store(artifacts), workdir)
        shared.pull()
    fitted = fit(definition, workdir, progress=sys.stderr.isatty())
    prepare_study(study, fitted)
    search: dict[str, Any] = {"seed": seed, "constraints": fitted.constraints}
    search["score"] = None if definition.is_pareto else fitted.scores
    study.sampler = PreviewSampler(definition.names, **search)
    study.pruner = PromotionPruner(**budget, **search, refinements=definition.refinement_steps)
    if shared is not None:
        shared.push(fitted.files)
    run_trials(
        study,
        Objective(fitted, racing=Racing() if race else None, progress=sys.stderr.isatty()),
        workdir=workdir,
        n_trials=n_trials,
        timeout=timeout,
    )
    found = make_report(study, fitted)
    path = workdir / f"report-{study_name}.json"
    write_json(path, found)
    typer.echo(format_report(found))
    typer.echo(f"\nThe same as JSON: {path}")
    if found["counts"]["truths"]:
        _show_in_dashboard(study)


def _budget(
    fraction: float, max_promotions: int | None, max_steps: int | None, max_seconds: float | None
) -> dict[str, Any]:
    """What of `PromotionPruner` the flags set."""
    return {
        "fraction": fraction,
        "max_promotions": max_promotions,
        "max_steps": max_steps,
        "max_seconds": max_seconds,
    }


def _show_in_dashboard(study: optuna.Study) -> None:
    """Keep the plot of previews and truths with the study, if the dashboard is installed."""
    try:
        from optuna_dashboard import save_plotly_graph_object

        from optuna_merge.visualization import plot_front, plot_preview_truth

        if len(study.directions) == 1:
            figure, name = plot_preview_truth(study), "preview-truth"
        else:
            figure, name = plot_front(study), "front"
    except ImportError:  # the extra `dashboard`
        return
    save_plotly_graph_object(study, figure, graph_object_id=name)


def _diagnose(study_name: str, storage: str, as_json: bool) -> None:
    from optuna_merge.calibration import format_calibration, study_calibration
    from optuna_merge.storages import create_storage
    from optuna_merge.study import load_study, task_names

    study = load_study(study_name, create_storage(storage))
    found = study_calibration(study, task_names(study)).as_json()
    typer.echo(json.dumps(found, indent=1) if as_json else format_calibration(found))


def _guarded(debug: bool, work: Callable[[], None]) -> None:
    """Run `work`; what a user can get wrong ends with a message and exit code 1, no traceback."""
    from optuna_merge.exceptions import OptunaMergeError

    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("httpx", "filelock", "urllib3", "matplotlib", "fsspec", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        work()
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    except (OptunaMergeError, ValueError, TypeError, OSError, ImportError) as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _load_definition(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"no file {path}; give a Python file with a function definition()")
    spec = importlib.util.spec_from_file_location("optuna_merge_user_definition", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    if not hasattr(module, "definition"):
        raise ValueError(f"{path} has no function definition() -> StudyDefinition")
    return module.definition()
