"""Let the processes of a run find each other before JAX connects them.

JAX's own waiting cannot be interrupted, and ends in an abort of the whole process. Here process 0
listens at the coordinator's port, the others connect to it, and JAX starts when all are there.
"""

import json
import os
import socket
import time
from contextlib import ExitStack
from typing import Any

from jax_unlearn.runtime.errors import UserError

# Longest wait within one call, so that signals are handled.
TICK = 0.2
# Seconds in which a process that has connected must say who it is.
HELLO_SECONDS = 5.0
LONGEST_MESSAGE = 4096
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
NO_PROXY = "no_grpc_proxy"


def meet(coordinator: str, process: int, processes: int, seconds: float) -> None:
    """Wait until all processes are there.

    Args:
        coordinator: HOST:PORT of process 0.
        process: index of this process.
        processes: number of processes.
        seconds: longest wait.

    Raises:
        UserError: the address or the index cannot be, the port is in use, two processes have the
            same index or other numbers of processes, or some did not come in time.
    """
    host, port = parsed(coordinator)
    if not 0 <= process < processes:
        raise UserError(
            f"--process-id {process}: must be from 0 to {processes - 1}, with --processes "
            f"{processes}"
        )
    pass_by_proxy(host)
    until = time.monotonic() + seconds
    if process == 0:
        gather(port, processes, until, seconds)
    else:
        report(host, port, process, processes, until, seconds)


def parsed(coordinator: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; an IPv6 address is in brackets.

    Raises:
        UserError: it is not of that form, or the host has no address.
    """
    host, found, port = coordinator.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (found and host and "/" not in host and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator {coordinator}: must be HOST:PORT, such as 10.0.0.1:1234")
    try:
        socket.getaddrinfo(host, int(port))
    except OSError as error:
        raise UserError(
            f"--coordinator {coordinator}: the host has no address ({error})"
        ) from error
    return host, int(port)


def pass_by_proxy(host: str) -> None:
    """Connect to the coordinator without an HTTP proxy, which JAX's connection would use."""
    if any(os.environ.get(name) for name in PROXIES):
        hosts = os.environ.get(NO_PROXY) or os.environ.get("no_proxy") or ""
        os.environ[NO_PROXY] = ",".join(filter(None, [hosts, host]))


def gather(port: int, processes: int, until: float, seconds: float) -> None:
    """Process 0: wait for the others, check what they say, and let all of them start."""
    with ExitStack() as stack:
        server = stack.enter_context(listening(port))
        arrived: dict[int, socket.socket] = {}
        while len(arrived) < processes - 1:
            if time.monotonic() > until:
                missing = sorted({*range(1, processes)} - {*arrived})
                fault = f"process {', '.join(map(str, missing))} did not come within {seconds:g} s"
                end(arrived, fault)
            try:
                other, _ = server.accept()
            except TimeoutError:
                continue
            stack.enter_context(other)
            # Whatever else connects to the port, such as a scanner, says something else.
            if not (said := hello(other)):
                continue
            number, theirs = said["process"], said["processes"]
            if theirs != processes:
                fault = f"process {number} was started with --processes {theirs}, process 0 with "
                end({**arrived, number: other}, f"{fault}{processes}")
            if number == 0 or number in arrived:
                end({**arrived, -1: other}, f"two processes have --process-id {number}")
            arrived[number] = other
        for other in arrived.values():
            other.sendall(b'{"start": true}\n')
        for other in arrived.values():
            # The other side closes first, so that no closed connection occupies our port.
            other.settimeout(HELLO_SECONDS)
            other.recv(1)


def listening(port: int) -> socket.socket:
    """A socket that listens at a port of all addresses.

    Raises:
        UserError: it cannot, since another program does.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"--coordinator: port {port} cannot be used ({error.strerror or error}); choose another"
        ) from error
    server.settimeout(TICK)
    return server


def hello(other: socket.socket) -> dict[str, int] | None:
    """What a process that has connected says of itself; None if it is not one of ours."""
    try:
        said = receive(other, time.monotonic() + HELLO_SECONDS)
        return {name: int(said[name]) for name in ("process", "processes")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def end(others: dict[int, socket.socket], fault: str) -> None:
    """Tell the fault to all that have come, and raise it.

    Raises:
        UserError: always.
    """
    for other in others.values():
        # One that has gone meanwhile need not be told.
        other.settimeout(HELLO_SECONDS)
        try:
            other.sendall(json.dumps({"fault": fault}).encode() + b"\n")
        except OSError:
            continue
    raise UserError(f"--distributed: {fault}")


def report(
    host: str, port: int, process: int, processes: int, until: float, seconds: float
) -> None:
    """Any other process: tell process 0 who this is, and wait until all are there."""
    about = json.dumps({"process": process, "processes": processes}).encode() + b"\n"
    while time.monotonic() < until:
        try:
            with socket.create_connection((host, port), timeout=HELLO_SECONDS) as server:
                server.sendall(about)
                said = receive(server, until)
        except (OSError, ValueError):
            # Not there yet, or gone again.
            time.sleep(TICK)
            continue
        if "fault" in said:
            raise UserError(f"--distributed: {said['fault']}")
        return
    raise UserError(
        f"--distributed: process 0 or another process was not there at {host}:{port} within "
        f"{seconds:g} s; start all of them, and check --coordinator"
    )


def receive(other: socket.socket, until: float) -> dict[str, Any]:
    """Receive one line of JSON.

    Raises:
        OSError: the other side has closed, or it takes too long.
        ValueError: it is no such line.
    """
    other.settimeout(TICK)
    data = b""
    while not data.endswith(b"\n"):
        if time.monotonic() > until or len(data) > LONGEST_MESSAGE:
            raise TimeoutError
        try:
            part = other.recv(LONGEST_MESSAGE)
        except TimeoutError:
            continue
        if not part:
            raise ConnectionError
        data += part
    return dict(json.loads(data))
