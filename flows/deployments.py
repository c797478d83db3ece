"""The Prefect server and the runner that ``python -m flows.serve`` starts, and the deployments that they offer."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from uuid import UUID

from flows.environment import DEFAULT_PORT  # before Prefect, which reads the environment as it is imported

# isort: split
from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType

from flows.api import api_problem
from flows.dataset_flow import build_dataset
from flows.dataset_report import dataset_report
from flows.server import api_url, api_url_set, authorized_by, check_port, check_prefect, is_healthy, prefect_server
from pipeline.errors import UserError

STOP_TIMEOUT_SECONDS = 20.0
"""How long the runs have to record how they ended."""


def _server(stack: ExitStack, port: int) -> str:
    """The URL of a running server's API; starts a server if none answers. Raises :class:`UserError` for a port that cannot be used."""
    check_prefect()
    if url_of_user := os.environ.get("PREFECT_API_URL"):
        return url_of_user
    url = api_url(port)
    if is_healthy(url):
        if (problem := api_problem(url, authorized_by())) is not None:
            raise UserError(f"{problem}, or choose another port with --port")
    else:
        check_port(port)
        print(f"Starting a Prefect server on port {port}", flush=True)  # noqa: T201
        stack.enter_context(prefect_server(port))
    stack.enter_context(api_url_set(url))
    return url


async def _run_until_interrupted(runner: Runner, deployments: Sequence[RunnerDeployment], welcome: str) -> None:
    """Runs the deployments until Ctrl-C, then waits until the runs have recorded how they ended; ``prefect.serve`` kills them.

    ``welcome`` is printed once the deployments are registered.
    """
    deployment_ids: list[UUID] = []
    for deployment in deployments:
        deployment_id = runner.add_deployment(deployment)
        deployment_ids.append(await deployment_id if inspect.isawaitable(deployment_id) else deployment_id)
    print(welcome, flush=True)  # noqa: T201
    started = datetime.now(UTC)
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    runner_task = asyncio.create_task(runner.start())
    interrupt_task = asyncio.create_task(interrupted.wait())
    await asyncio.wait({runner_task, interrupt_task}, return_when=asyncio.FIRST_COMPLETED)
    loop.remove_signal_handler(signal.SIGINT)  # so that a second Ctrl-C ends the process at once
    if not runner_task.done():
        await _wait_for_runs(deployment_ids, started)
    interrupt_task.cancel()
    runner_task.cancel()
    with suppress(asyncio.CancelledError):
        await runner_task


async def _wait_for_runs(deployment_ids: Sequence[UUID], since: datetime) -> None:
    """Waits up to ``STOP_TIMEOUT_SECONDS`` until no run that began after ``since`` is running.

    The terminal has sent Ctrl-C to the runs too, so that they are ending.
    """
    running = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=list(deployment_ids)),
        start_time=FlowRunFilterStartTime(after_=since),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
    )
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    async with get_client() as client:
        while time.monotonic() < deadline and await client.read_flow_runs(flow_run_filter=running):
            await asyncio.sleep(0.3)


def serve(port: int, limit: int) -> None:
    """Serves the deployments until Ctrl-C, ``limit`` runs at a time.

    Raises UserError for a port or server that cannot be used, HearscapeError where the server failed.
    """
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        url = _server(stack, port)
        deployments = [
            RunnerDeployment.from_flow(flow, name=flow.name, entrypoint_type=EntrypointType.MODULE_PATH)
            for flow in (build_dataset, dataset_report)
        ]
        variable = "" if url == api_url(DEFAULT_PORT) else f"PREFECT_API_URL={url} "
        welcome = f"UI:   {url.removesuffix('/api')}\nRun:  {variable}prefect deployment run {build_dataset.name}"
        asyncio.run(_run_until_interrupted(Runner(name="hearscape", limit=limit), deployments, welcome))
