"""Workers of one study as Ray tasks: some preview on CPUs, some finetune on GPUs.

    python examples/cluster/ray_workers.py DEFINITION STORAGE ARTIFACTS

On one machine without a GPU, as a trial:

    python examples/cluster/ray_workers.py studies/digits/optimize.py sqlite:///digits.db \
        artifacts --previewers 1 --finetuners 1 --cpus 1 --gpus 0 --trials 20 --patience 60

Ray only places the workers. What each of them does next stands in the study, so that workers may
come, go and die; Ray starts again those whose node is lost. Paths must be the same on all nodes;
relative ones are relative to where this script is started.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Workers of one study as Ray tasks.")
    parser.add_argument("definition", help="file with the study's definition, on all nodes")
    parser.add_argument("storage", help="database that all nodes reach")
    parser.add_argument("artifacts", help="folder that all nodes have, or s3://bucket")
    parser.add_argument("--workdir", default="/tmp/merge", help="on every node (%(default)s)")
    parser.add_argument("--trials", type=int, default=400, help="previews in all (%(default)s)")
    parser.add_argument("--previewers", type=int, default=8, help="workers (%(default)s)")
    parser.add_argument("--finetuners", type=int, default=2, help="workers (%(default)s)")
    parser.add_argument("--cpus", type=int, default=4, help="of each worker (%(default)s)")
    parser.add_argument("--gpus", type=float, default=1, help="of each finetuner (%(default)s)")
    parser.add_argument("--patience", type=float, default=600, help="seconds; see optuna-merge")
    return parser.parse_args(given)


def command(flags: argparse.Namespace, role: str, index: int) -> list[str]:
    """One worker, in a folder of its own."""
    share = -(-flags.trials // flags.previewers) if role == "preview" else flags.trials
    return [
        "optuna-merge", "optimize", flags.definition,
        "--storage", flags.storage, "--artifacts", flags.artifacts,
        "--workdir", f"{flags.workdir}/{role}-{index}", "--role", role,
        "--n-trials", str(share), "--patience", str(flags.patience), "--keep-best", "5",
    ]  # fmt: skip


def main(flags: argparse.Namespace) -> None:
    try:
        import ray
    except ImportError:
        sys.exit("this example needs Ray: pip install ray")
    here = os.getcwd()

    @ray.remote(max_retries=-1)
    def work(role: str, index: int) -> int:
        # The program that was installed for the Python that Ray runs on this node.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = os.environ | {"PATH": path}
        return subprocess.run(command(flags, role, index), cwd=here, env=environment).returncode

    ray.init()
    wanted = {
        "CPU": flags.cpus * (flags.previewers + flags.finetuners),
        "GPU": flags.gpus * flags.finetuners,
    }
    for kind, count in wanted.items():  # Ray itself would wait for them, and not say for what
        if count > (there := ray.cluster_resources().get(kind, 0)):
            print(f"the workers take {count:g} {kind}s, the cluster has {there:g}: some will wait")
    workers = [
        work.options(num_cpus=flags.cpus).remote("preview", index)
        for index in range(flags.previewers)
    ]
    workers += [
        work.options(num_cpus=flags.cpus, num_gpus=flags.gpus).remote("finetune", index)
        for index in range(flags.finetuners)
    ]
    codes = ray.get(workers)
    print(f"{codes.count(0)} of {len(codes)} workers ended well")
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    main(arguments())
