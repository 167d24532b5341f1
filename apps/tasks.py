"""Tasks that workers do, in this process or spread by Ray Data over actors and machines.

A worker is made once for each process and turns a task, a dict fit for JSON, into tables of flat columns. The caller
alone writes what comes back, so nothing is stored twice, whatever happens to an actor or its machine: Ray does its
task anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..base.checks import set_size
from ..base.dependencies import extra

EXIT_PROBLEMS = 3
"""The exit status of a run that came to its end and could not read everything."""

Task = Mapping[str, Any]

BLOCK_BYTES = 2**30
"""Ray cuts the results of a task into blocks of this size: one block a task, since tasks are smaller."""


CONNECT_S = 10.0
"""Seconds in which a machine that exists answers."""


class Worker(Protocol):
    """The doer of tasks. Its tables are Arrow tables."""

    def __call__(self, task: Task) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Pool:
    """Actors of Ray Data that share the work.

    Attributes:
        address: a running cluster of which this machine is a node: 'auto' or 'host:6379'; None takes the one that this
            process is connected to, or that the environment's RAY_ADDRESS names, or starts Ray on this machine.
        actors: their number; None is as many as the cluster's cores or GPUs are enough for.
        cpus, gpus: cores and GPUs of each actor.
    """

    address: str | None = None
    actors: int | None = None
    cpus: int = 1
    gpus: int = 0

    def __post_init__(self) -> None:
        if self.address is not None and "://" in self.address:  # Ray Data does not run through Ray's client
            raise ValueError(f"ray: expected 'auto' or host:port, and a node to run on; got {self.address!r}")
        if self.actors is not None:
            set_size(self, "actors", "actors")
        set_size(self, "cpus", "cpus")
        set_size(self, "gpus", "gpus", least=0)


def add_pool_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command whose work can be shared."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="share the work by Ray Data: on the cluster at ADDRESS, or on this machine",
    )
    parser.add_argument("--actors", type=int, help="with --ray: their number; default: as many as there are cores for")
    parser.add_argument("--actor-cpus", type=int, default=1, help="with --ray: cores of an actor; default: 1")
    parser.add_argument("--actor-gpus", type=int, default=0, help="with --ray: GPUs of an actor; default: 0")


def pool_of(options: argparse.Namespace) -> Pool | None:
    """The pool that the options ask for. Raises ValueError for options of a pool without `--ray`."""
    if options.ray is None:
        if (options.actors, options.actor_cpus, options.actor_gpus) != (None, 1, 0):
            raise ValueError("--actors, --actor-cpus and --actor-gpus belong to --ray")
        return None
    return Pool(options.ray or None, options.actors, options.actor_cpus, options.actor_gpus)


def run_tasks(make_worker: Callable[[], Worker], tasks: Sequence[Task], pool: Pool | None = None) -> Iterator[Any]:
    """The Arrow tables of all tasks, in any order.

    Args:
        make_worker: makes a worker; with a pool it is pickled and called in each actor.
        pool: None does the tasks one by one in this process.

    Raises:
        ImportError: without Ray, naming the extra that brings it.
        ConnectionError: no cluster answers at the address.
        RuntimeError: a worker raised; the message is its own.
    """
    if pool is not None:
        yield from _run_on_ray(make_worker, tasks, pool)
        return
    worker = make_worker()
    for task in tasks:
        yield from worker(task)


class Actor:
    """A worker in a process of Ray: takes and gives what Ray Data passes between processes."""

    def __init__(self, make_worker: Callable[[], Worker], cpus: int) -> None:
        torch.set_num_threads(cpus)
        self._worker = make_worker()

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[Any]:
        for text in batch["task"]:
            yield from self._worker(json.loads(text))


def _run_on_ray(make_worker: Callable[[], Worker], tasks: Sequence[Task], pool: Pool) -> Iterator[Any]:
    if not tasks:
        return
    ray, data = extra("ray", "ray"), extra("ray.data", "ray")
    _connect(ray, pool)
    rows = data.from_items([{"task": json.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
    rows.context.target_max_block_size = BLOCK_BYTES  # of this dataset and what it becomes, not of the caller's
    rows.context.enable_progress_bars = False
    results = rows.map_batches(
        Actor,
        fn_constructor_args=(make_worker, pool.cpus),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=_actors(ray, pool, len(tasks))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # Ray tells of its plans
    try:
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error  # what the worker raised, without Ray's account of where
        raise RuntimeError(f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}") from error
    finally:
        logger.setLevel(level)


def _connect(ray: Any, pool: Pool) -> None:
    """Connect to a cluster, or start one, unless this process is connected."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # Ray would replace Python's print
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice of Ray's
    # Ray's processes begin with a fork and an exec, after which nothing of Lance is left.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    # Without an address Ray would join whatever cluster was started last on this machine.
    address = pool.address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("local", "auto"):
        _check_answers(address)
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")


def _check_answers(address: str) -> None:
    """Raise ConnectionError unless something listens at host:port, for which Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConnectionError(f"ray: no cluster answers at {address}: {error}") from None


def _actors(ray: Any, pool: Pool, tasks: int) -> int:
    resources = ray.cluster_resources()
    fitting = int(resources.get("CPU", 1)) // pool.cpus
    if pool.gpus:
        fitting = min(fitting, int(resources.get("GPU", 0)) // pool.gpus)
    if fitting < 1:
        raise ValueError(
            f"ray: an actor needs {pool.cpus} cores and {pool.gpus} GPUs, more than the cluster has: {resources}"
        )
    return min(pool.actors or fitting, fitting, tasks)
