"""The command line: `optuna-merge`, and the same flags for every study's own script."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from optuna_merge._version import __version__
from optuna_merge.commands import guarded as _guarded
from optuna_merge.commands import load_definition as _load_definition
from optuna_merge.commands._existing import check_there, existing_study
from optuna_merge.commands._export import export as export_study
from optuna_merge.commands._fit import fit_summary
from optuna_merge.commands._init import init as init_definition

if TYPE_CHECKING:
    import optuna

    from optuna_merge.definition import StudyDefinition
    from optuna_merge.reports import Dashboard
    from optuna_merge.sharing import Sharing

StudyName = Annotated[str, typer.Option(help="Name of the study; made if it is missing.")]
Storage = Annotated[str, typer.Option(help="sqlite:///FILE, postgresql://..., or env:NAME.")]
NTrials = Annotated[
    Optional[int],  # noqa: UP045 (typer reads it)
    typer.Option(help="Trials to finish; a killed run, started again, finishes what is missing."),
]
TimeoutSeconds = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        help="Seconds after which no new trial is started, but for what is promoted already."
    ),
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
Role = Annotated[
    str,
    typer.Option(
        help="What this worker does: preview (no finetunes), finetune (what is promoted, and the "
        "baselines), or any."
    ),
]
Patience = Annotated[
    float,
    typer.Option(
        help="Seconds without any change in the study after which a finetuning worker ends; a "
        "tenth of them, once all previewing workers have ended."
    ),
]
KeepBest = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Keep only the models of so many of the best finetunes; default: of all."),
]
Race = Annotated[
    bool,
    typer.Option(
        "--race/--no-race",
        help="Stop a preview once it can't reach the promotion threshold any more.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and debugging messages.")]
Definition = Annotated[
    Path,
    typer.Argument(
        help="A YAML file as `optuna-merge init` writes it, or a Python file with a function "
        "`definition() -> StudyDefinition`."
    ),
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
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("study.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    debug: Debug = False,
) -> None:
    """Write a commented YAML definition, to be edited.

    Example: optuna-merge init study.yaml
    """
    _guarded(debug, lambda: init_definition(file, force))


@app.command()
def fit(
    definition: Definition,
    study_name: StudyName = "optuna_merge",
    storage: Storage = "sqlite:///optuna_merge.db",
    workdir: Workdir = Path("workdir"),
    artifacts: Artifacts = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Finetune each task alone and make its posterior.

    Processes with one working folder share the tasks out; with --artifacts, machines do, too.

    Example: optuna-merge fit studies/digits/optimize.py --workdir work
    """
    _guarded(
        debug,
        lambda: _fit(
            _load_definition(definition), study_name, storage, workdir, artifacts, as_json
        ),
    )


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
    role: Role = "any",
    patience: Patience = 600.0,
    keep_best: KeepBest = None,
    race: Race = False,
    as_json: AsJson = False,
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
            workdir,
            n_trials=n_trials,
            timeout=timeout,
            budget=_budget(fraction, max_promotions, max_steps, max_seconds),
            seed=seed,
            artifacts=artifacts,
            role=role,
            patience=patience,
            keep_best=keep_best,
            race=race,
            as_json=as_json,
        ),
    )


@app.command()
def report(
    definition: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="As for optimize. Without it the study alone is read."),
    ] = None,
    study_name: StudyName = "optuna_merge",
    storage: Storage = "sqlite:///optuna_merge.db",
    workdir: Workdir = Path("workdir"),
    as_json: AsJson = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the page there. [default: report-STUDY.html in the workdir]"),
    ] = None,
    csv: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the tables as CSV files into this folder."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the table of a study again, and write it as a page and as JSON.

    Example: optuna-merge report studies/digits/optimize.py --workdir work --html digits.html
    """
    if definition is None:
        _guarded(debug, lambda: _report_study(study_name, storage, html, csv, as_json))
        return

    def again(path: Path) -> None:
        check_there(study_name, storage, workdir)
        found = _load_definition(path)
        _optimize(found, study_name, storage, workdir, html=html, csv=csv, as_json=as_json)

    _guarded(debug, functools.partial(again, definition))


@app.command()
def diagnose(
    study_name: StudyName = "optuna_merge",
    storage: Storage = "sqlite:///optuna_merge.db",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell how far the previews of a study can be trusted, from the study alone.

    Example: optuna-merge diagnose --study-name digits --storage sqlite:///digits.db
    """
    _guarded(debug, lambda: _diagnose(study_name, storage, as_json))


@app.command()
def export(
    definition: Definition,
    out: Annotated[Path, typer.Option(help="Folder of the export; is made.")],
    study_name: StudyName = "optuna_merge",
    storage: Storage = "sqlite:///optuna_merge.db",
    workdir: Workdir = Path("workdir"),
    trial: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Number of a finetuned trial; default: the best one."),
    ] = None,
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="TASK=WEIGHT,...: the merge at these weights, without training."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a study's best model, or another, as a folder for transformers, timm, peft or torch.

    Example: optuna-merge export studies/text/optimize.py --workdir work --out best
    """
    _guarded(
        debug,
        lambda: export_study(
            definition, study_name, storage, workdir, out, trial, weights, force, as_json
        ),
    )


@app.command()
def gc(
    definition: Definition,
    study_name: StudyName = "optuna_merge",
    storage: Storage = "sqlite:///optuna_merge.db",
    workdir: Workdir = Path("workdir"),
    keep_best: KeepBest = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    debug: Debug = False,
) -> None:
    """Remove finetunes and checkpoints that the study can't go on from.

    Task runs and posteriors stay, and what running workers hold.

    Example: optuna-merge gc studies/digits/optimize.py --workdir work --keep-best 5 --dry-run
    """
    _guarded(
        debug,
        lambda: _gc(
            _load_definition(definition), study_name, storage, workdir, keep_best, dry_run
        ),
    )


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
        role: Role = "any",
        patience: Patience = 600.0,
        keep_best: KeepBest = None,
        race: Race = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        _guarded(
            debug,
            lambda: _optimize(
                build(),
                study_name,
                storage,
                workdir,
                n_trials=n_trials,
                timeout=timeout,
                budget=_budget(fraction, max_promotions, max_steps, max_seconds),
                seed=seed,
                artifacts=artifacts,
                role=role,
                patience=patience,
                keep_best=keep_best,
                race=race,
                as_json=as_json,
            ),
        )

    command.__doc__ = (build.__doc__ or "").strip() or None
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(command)
    single()


def main() -> None:
    """Entry point of `optuna-merge`."""
    app()


def _led(work: Callable[..., None]) -> Callable[..., None]:
    """`work` on a definition, by the main process of a launch; the other ones train along."""

    @functools.wraps(work)
    def wrapped(definition: StudyDefinition, *arguments: Any, **options: Any) -> None:
        from optuna_merge.distributed import process_group

        with process_group(definition) as leads:
            if leads:
                work(definition, *arguments, **options)

    return wrapped


@_led
def _fit(
    definition: StudyDefinition,
    study_name: str,
    storage: str,
    workdir: Path,
    artifacts: str | None,
    as_json: bool,
) -> None:
    from optuna_merge.commands._display import fit_shown
    from optuna_merge.fitting import check_writable
    from optuna_merge.fitting import fit as fit_definition
    from optuna_merge.storages import create_storage
    from optuna_merge.study import check_definition, open_study

    check_writable(workdir)
    sharing = None
    if artifacts is not None:
        study = open_study(study_name, create_storage(storage), definition.directions)
        check_definition(study, definition.describe())
        sharing = _sharing(study, artifacts, workdir)
    with fit_shown():
        fitted = fit_definition(definition, workdir, progress=sys.stderr.isatty(), sharing=sharing)
    if as_json:
        typer.echo(json.dumps(fit_summary(fitted), indent=1))
        return
    for name, run in fitted.runs.items():
        metric = run.evaluations[name].metric.value
        typer.echo(f"{name}: {metric:.4f} alone, {run.steps} steps, {run.seconds:.1f} s")


@_led
def _optimize(
    definition: StudyDefinition,
    study_name: str,
    storage: str,
    workdir: Path,
    *,
    n_trials: int | None = 0,
    timeout: float | None = None,
    budget: dict[str, Any] | None = None,
    seed: int | None = None,
    artifacts: str | None = None,
    role: str = "any",
    patience: float = 0.0,
    keep_best: int | None = None,
    race: bool = False,
    html: Path | None = None,
    csv: Path | None = None,
    as_json: bool = False,
) -> None:
    from optuna_merge._files import file_name, write_json
    from optuna_merge.commands._display import fit_shown, shown
    from optuna_merge.fitting import check_writable, fit
    from optuna_merge.garbage import Collector, check_keep_best
    from optuna_merge.objective import Objective
    from optuna_merge.previews import Racing
    from optuna_merge.pruners import PromotionPruner
    from optuna_merge.reports import format_report, make_report
    from optuna_merge.roles import check_role
    from optuna_merge.running import run_trials
    from optuna_merge.samplers import PreviewSampler
    from optuna_merge.storages import create_storage
    from optuna_merge.study import check_definition, open_study, prepare_study

    budget = budget or {}
    # What can be wrong is looked at first: before the task runs, which take long.
    does = check_role(role)
    check_keep_best(keep_best)
    check_writable(workdir)
    obstacle = definition.racing_obstacle if race else None
    if obstacle is not None:
        raise ValueError(f"{obstacle}; leave out --race")
    study = open_study(
        study_name,
        create_storage(storage),
        definition.directions,
        pruner=PromotionPruner(**budget, refinements=definition.refinement_steps, seed=seed),
    )
    check_definition(study, definition.describe())
    sharing = None
    if artifacts is not None:
        sharing = _sharing(study, artifacts, workdir, claims=does != "preview")
    with fit_shown():
        fitted = fit(definition, workdir, progress=sys.stderr.isatty(), sharing=sharing)
    prepare_study(study, fitted)
    search: dict[str, Any] = {"seed": seed, "constraints": fitted.constraints}
    search["score"] = None if definition.is_pareto else fitted.scores
    study.sampler = PreviewSampler(definition.names, **search)
    study.pruner = PromotionPruner(**budget, **search, refinements=definition.refinement_steps)
    racing = Racing() if race else None
    dashboard = _open_dashboard(study, workdir)
    collector = None
    if keep_best is not None:
        collector = Collector(study, definition, workdir, keep_best=keep_best)
    with ExitStack() as screen:
        show = screen.enter_context(shown(study, n_trials))

        def after_trial(trial: optuna.trial.FrozenTrial) -> None:
            show(trial)
            if dashboard is not None:
                dashboard(trial)
            if collector is not None:
                collector.remove()

        def report() -> None:
            screen.close()
            found = make_report(study, fitted)
            path = workdir / f"report-{file_name(study_name)}.json"
            write_json(path, found)
            typer.echo(json.dumps(found, indent=1) if as_json else format_report(found))
            if not as_json:
                typer.echo(f"\nThe same as JSON: {path}")
            if found["counts"]["previews"] or found["counts"]["truths"]:
                page = html or path.with_suffix(".html")
                _write_report(study, page, csv, found)
            if dashboard is not None:
                dashboard.update()

        run_trials(
            study,
            Objective(fitted, racing=racing, progress=sys.stderr.isatty(), role=does),
            workdir=workdir,
            n_trials=n_trials,
            timeout=timeout,
            after_trial=after_trial,
            role=does,
            patience=patience,
            at_end=report,
        )


def _report_study(
    study_name: str, storage: str, html: Path | None, csv: Path | None, as_json: bool
) -> None:
    if as_json:
        raise ValueError("report --json needs the definition: give its file, or leave out --json")
    from optuna_merge._files import file_name

    study = existing_study(study_name, storage)
    _write_report(study, html or Path(f"report-{file_name(study_name)}.html"), csv)


def _write_report(
    study: optuna.Study,
    html: Path,
    csv: Path | None,
    found: dict[str, Any] | None = None,
) -> None:
    from optuna_merge.reports import write_csv, write_html

    write_html(html, study, found)
    typer.echo(f"As a page: {html}", err=True)
    if csv is not None:
        files = write_csv(csv, study, found)
        typer.echo(f"As tables: {', '.join(map(str, files))}", err=True)


def _gc(
    definition: StudyDefinition,
    study_name: str,
    storage: str,
    workdir: Path,
    keep_best: int | None,
    dry_run: bool,
) -> None:
    from optuna_merge.garbage import Collector

    study = existing_study(study_name, storage)
    collector = Collector(study, definition, workdir, keep_best=keep_best)
    found = collector.find() if dry_run else collector.remove()
    for garbage in found:
        made_for = ", ".join(map(str, garbage.trials))
        typer.echo(f"{garbage.path}: {garbage.what} of trial {made_for}, {garbage.size:,} bytes")
    verb = "could be removed" if dry_run else "removed"
    typer.echo(f"{len(found)} files, {sum(g.size for g in found):,} bytes {verb}")


def _sharing(
    study: optuna.Study, artifacts: str, workdir: Path, *, claims: bool = True
) -> Sharing:
    """The fit's work, shared out among the machines of the study."""
    from optuna_merge.artifacts import SharedFiles, open_artifact_store
    from optuna_merge.sharing import StudySharing

    files = SharedFiles(study, open_artifact_store(artifacts), workdir)
    return StudySharing(study, files, workdir, claims=claims)


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


def _open_dashboard(study: optuna.Study, workdir: Path) -> Dashboard | None:
    """Keeps figures and notes with the study, if the dashboard is installed."""
    from optuna_merge.reports import Dashboard

    try:
        return Dashboard(study, workdir)
    except ImportError:  # the extra `dashboard`
        return None


def _diagnose(study_name: str, storage: str, as_json: bool) -> None:
    from optuna_merge.calibration import format_calibration, study_calibration
    from optuna_merge.study import task_names

    study = existing_study(study_name, storage)
    found = study_calibration(study, task_names(study)).as_json()
    typer.echo(json.dumps(found, indent=1) if as_json else format_calibration(found))
