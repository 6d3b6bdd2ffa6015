"""train(), adapt() and build_cache() in a process of their own, whose threads wait without spinning. For the CLI.

OpenMP's threads spin while they wait for each other. Beside other work a training then takes 5 to 10 times as long,
since the spinning takes the CPUs from the threads that are waited for. Passive waiting keeps its fair share, and costs
a training 11 % on an idle machine. It would cost llama.cpp a factor 3, and one process has one way of waiting
(benchmarks/LOG.md). So inference keeps its own process and its own way.

Knows nothing of training.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from memdec_edge.child import run_in_child
from memdec_edge.machine import usable_cpus
from memdec_edge.options import AdaptOptions, CacheOptions, TrainOptions

from .report import CacheReport, Speed, TrainReport

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # of libgomp; of the libomp of LLVM and Intel


def train_apart(options: TrainOptions) -> TrainReport:
    """train() in a process of its own, which ends when this one does. Raises what train() raises, and WorkerError.

    Variables of the environment that set waiting or threads win over options.cache.spin. Under `accelerate launch` or
    `torchrun` the training runs in this process, which is one of several.
    """
    report: TrainReport = _apart(".pipeline", "train", options, spin=options.cache.spin)
    return report


def adapt_apart(options: AdaptOptions) -> TrainReport:
    """adapt() in a process of its own, as train_apart() does it."""
    report: TrainReport = _apart(".adapting", "adapt", options, spin=options.training.cache.spin)
    return report


def build_cache_apart(options: CacheOptions) -> CacheReport:
    """build_cache() in a process of its own, as train_apart() does it."""
    report: CacheReport = _apart(".knn.build", "build_cache", options, spin=options.spin)
    return report


def measure_speed_apart(teacher: Path, block: int, batch: int) -> Speed:
    """measure_speed() in a process of its own, as train_apart() does it."""
    speed: Speed = _apart(".speed", "measure_speed", teacher, block, batch, spin=False)
    return speed


def _apart(module: str, name: str, *arguments: Any, spin: bool) -> Any:
    if "RANK" in os.environ:
        return getattr(import_module(module, __package__), name)(*arguments)
    return run_in_child(f"{__package__}{module}:{name}", *arguments, environment=surroundings(spin))


def surroundings(spin: bool) -> dict[str, str]:
    """The variables that the child's environment has beside this one's."""
    wanted = {} if spin else dict(PASSIVE)
    if (cpus := usable_cpus()) < (os.cpu_count() or 1):  # OpenMP does not see the quota of a container
        wanted["OMP_NUM_THREADS"] = str(cpus)
    return {name: value for name, value in wanted.items() if name not in os.environ}
