"""Workers of one study as Ray tasks: some preview on CPUs, some finetune on GPUs.

    python examples/cluster/ray_workers.py DEFINITION STORAGE ARTIFACTS

Ray only places the workers. What each of them does next stands in the study, so that workers may
come, go and die; Ray starts again those whose node is lost.
"""

from __future__ import annotations

import subprocess
import sys

PREVIEWERS, FINETUNERS, TRIALS = 8, 2, 400


def command(
    definition: str, storage: str, artifacts: str, role: str, index: int, trials: int
) -> list[str]:
    """One worker, in a folder of its own."""
    return [
        "optuna-merge", "optimize", definition,
        "--storage", storage, "--artifacts", artifacts, "--workdir", f"/tmp/merge/{role}-{index}",
        "--role", role, "--n-trials", str(trials), "--keep-best", "5",
    ]  # fmt: skip


def main(definition: str, storage: str, artifacts: str) -> None:
    try:
        import ray
    except ImportError:
        sys.exit("this example needs Ray: pip install ray")

    @ray.remote(max_retries=-1)
    def work(role: str, index: int, trials: int) -> int:
        done = subprocess.run(command(definition, storage, artifacts, role, index, trials))
        return done.returncode

    ray.init()
    workers = [
        work.options(num_cpus=4).remote("preview", i, TRIALS // PREVIEWERS)
        for i in range(PREVIEWERS)
    ]
    workers += [
        work.options(num_cpus=4, num_gpus=1).remote("finetune", i, TRIALS)
        for i in range(FINETUNERS)
    ]
    codes = ray.get(workers)
    print(f"{codes.count(0)} of {len(codes)} workers ended well")


if __name__ == "__main__":
    main(*sys.argv[1:])
