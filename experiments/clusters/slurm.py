"""A suite on a Slurm cluster, through dask-jobqueue (``pip install "flr-bench[dask]" dask-jobqueue``).

    python experiments/clusters/slurm.py --suite main --jobs 8 --partition cpu --time 08:00:00
    python experiments/clusters/slurm.py --suite main --jobs 4 --partition gpu --gpus 1 -- --profile gpu
    python experiments/clusters/slurm.py --jobs 2 --partition cpu --show      # the job script, and nothing else

Run it where ``sbatch`` works and where the compute nodes can reach this machine (a login node, or a job of its own):
the scheduler lives in this process.  What follows ``--`` goes to ``flr-bench run``.  Every job of Slurm is one worker
that computes one cell at a time, with as many cores as a cell has threads.

Data: the folder of --runs should be on a file system that the nodes see; they write there then.  Where they do
not, cells are sent back.  Set FLR_BENCH_WORKER_DIR to a node's local disk for prepared data.  The environment of the
job must be the same as here: the same checkout and packages (a worker whose commit, version or torch differs is
refused by name).

An interrupted suite, or one whose jobs hit their time limit, goes on when it is started again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any


def arguments(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Ours, and those for ``flr-bench run``."""
    own, _, rest = " ".join(given).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="smoke")
    parser.add_argument("--jobs", type=int, default=2, help="workers; Slurm starts them as it has room")
    parser.add_argument("--partition", required=True)
    parser.add_argument("--account")
    parser.add_argument("--time", default="04:00:00", help="of one worker; a cell that it cuts off runs again")
    parser.add_argument("--cores", type=int, default=1, help="threads of a cell, as the profile says")
    parser.add_argument("--memory", default="8GB", help="of one worker")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of one worker: 0 or 1")
    parser.add_argument("--interface", help="network interface that the nodes share, e.g. ib0")
    parser.add_argument("--show", action="store_true", help="print the job script and submit nothing")
    return parser.parse_args(own.split()), rest.split()


def cluster_options(options: argparse.Namespace) -> dict[str, Any]:
    """What ``dask_jobqueue.SLURMCluster`` is given."""
    gpu = [f"--gres=gpu:{options.gpus}"] if options.gpus else []
    return {
        "queue": options.partition,
        "account": options.account,
        "walltime": options.time,
        "cores": 1,  # cells side by side in one worker, not CPU cores
        "processes": 1,
        "job_cpu": options.cores,
        "memory": options.memory,
        "interface": options.interface,
        "python": sys.executable,
        "job_extra_directives": gpu,
        "worker_extra_args": ["--memory-limit", "0", *(["--resources", f"GPU={options.gpus}"] if options.gpus else [])],
        "job_script_prologue": [f"export OMP_NUM_THREADS={options.cores}"],
    }


def main() -> int:
    """Start workers and run the suite on them."""
    options, rest = arguments(sys.argv[1:])
    from dask_jobqueue import SLURMCluster

    with SLURMCluster(**cluster_options(options)) as cluster:
        if options.show:
            sys.stdout.write(cluster.job_script())
            return 0
        cluster.scale(jobs=options.jobs)
        command = [sys.executable, "-m", "flr_bench.cli", "run", "--suite", options.suite]
        command += ["--dask", cluster.scheduler_address, *rest]
        return subprocess.run(command, check=False).returncode  # noqa: S603 - our own interpreter


if __name__ == "__main__":
    sys.exit(main())
