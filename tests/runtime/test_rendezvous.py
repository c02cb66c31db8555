"""Processes find each other before JAX starts, or each says in one line why not."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.scale.crops import free_port
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.rendezvous import NO_PROXY, meet, pass_by_proxy


def gathered(*processes, seconds=5.0, port=None):
    """What each of several processes, given as (delay, index, number), gets: None or a message."""
    address = f"127.0.0.1:{port or free_port()}"
    found = [None] * len(processes)

    def one(place, delay, index, count):
        time.sleep(delay)
        try:
            meet(address, index, count, seconds)
        except UserError as error:
            found[place] = str(error)

    threads = [
        threading.Thread(target=one, args=(place, *each)) for place, each in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("delays", [(0, 0, 0.5), (0.5, 0, 0)], ids=["late", "process 0 late"])
def test_processes_wait_for_each_other(delays):
    assert gathered(*((delay, i, 3) for i, delay in enumerate(delays))) == [None] * 3
    assert gathered((0, 0, 1)) == [None]


def test_one_that_does_not_come_is_named():
    first, second = gathered((0, 0, 3), (0, 2, 3), seconds=0.6)
    assert first == "--distributed: process 1 did not come within 0.6 s"
    assert second == first or "was not there at" in second
    (alone,) = gathered((0, 1, 2), seconds=0.4)
    assert "process 0 or another process was not there at 127.0.0.1:" in alone


def test_processes_that_do_not_fit_are_told_so():
    count = "process 1 was started with --processes 3, process 0 with 2"
    assert gathered((0, 0, 2), (0, 1, 3)) == [f"--distributed: {count}"] * 2
    twice = gathered((0, 0, 3), (0.2, 1, 3), (0.4, 1, 3))
    assert twice == ["--distributed: two processes have --process-id 1"] * 3
    (wrong,) = gathered((0, 2, 2))
    assert wrong.startswith("--process-id 2: must be from 0 to 1")


def test_a_port_in_use_is_called_so():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (said,) = gathered((0, 0, 1), port=port)
    assert said.startswith(f"--coordinator: port {port} cannot be used")


def test_whatever_else_connects_is_ignored():
    port, found = free_port(), []
    thread = threading.Thread(target=lambda: found.extend(gathered((0, 0, 2), port=port)))
    thread.start()
    time.sleep(0.3)
    for said in (b"GET / HTTP/1.1\r\n\r\n\n", b'{"process": "x"}\n', b"[1]\n"):
        with socket.create_connection(("127.0.0.1", port)) as other:
            other.sendall(said)
    meet(f"127.0.0.1:{port}", 1, 2, 5.0)
    thread.join()
    assert found == [None]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:abc", ":1234", "http://127.0.0.1:1234", "127.0.0.1:70000"]
)
def test_an_address_is_host_and_port(address):
    with pytest.raises(UserError, match="must be HOST:PORT") as caught:
        meet(address, 0, 1, 1.0)
    assert str(caught.value).startswith(f"--coordinator {address}: ")


def test_a_host_without_an_address_is_named():
    with pytest.raises(UserError, match=r"nosuch\.invalid:1234: the host has no address"):
        meet("nosuch.invalid:1234", 1, 2, 1.0)


def test_a_proxy_is_not_used_for_the_coordinator(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.delenv(NO_PROXY, raising=False)
    pass_by_proxy("10.0.0.1")
    assert os.environ[NO_PROXY] == "example.org,10.0.0.1"
    monkeypatch.delenv(NO_PROXY)


WAITING = """
from jax_unlearn.runtime.rendezvous import meet
print("waiting", flush=True)
meet("127.0.0.1:{port}", 0, 2, 60.0)
"""


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_heeded_meanwhile(which):
    program = WAITING.format(port=free_port())
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"waiting\n"
        time.sleep(0.3)
        process.send_signal(which)
        assert process.wait(5) != 0
