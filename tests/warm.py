"""Programs in processes of their own, forked from one that has imported what a run needs.

Importing JAX, Flax, Orbax, Grain and scikit-learn takes a process most of its time. Otherwise each
is as `python` would start it: its own environment, signals, output, memory and exit.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache

from jax_unlearn.runtime.no_torch import ADVISORY, HIDING, import_transformers

# Imported before the fork; none of them may start a thread or a backend of JAX.
MODULES = (
    "flax.nnx",
    "grain.python",
    "jax_unlearn.runs.command_line",
    "jax_unlearn.runtime.orbax_store",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "optax",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "sklearn.pipeline",
    "sklearn.svm",
    "transformers.models.auto.configuration_auto",
    "transformers.models.qwen3_vl.configuration_qwen3_vl",
)
# The number of devices is the one of JAX's variables that may differ from the first process's.
DEVICES = "JAX_NUM_CPU_DEVICES"


class Process:
    """A program, with the part of subprocess.Popen's interface that tests use."""

    def __init__(self, words, env=None):
        """Starts `python WORDS`, where WORDS are -m MODULE or -c PROGRAM, and its arguments."""
        environment = dict(os.environ if env is None else env)
        out, err, status = os.pipe(), os.pipe(), os.pipe()
        request = {"words": [*map(str, words)], "env": environment, "cwd": os.getcwd()}
        writers = [out[1], err[1], status[1]]
        # A packet is received whole or not at all.
        socket.send_fds(server(), [json.dumps(request).encode()], writers)
        for fd in writers:
            os.close(fd)
        self.args = request["words"]
        self.stdout, self.stderr, self._status = (
            os.fdopen(pipe[0], encoding="utf-8") for pipe in (out, err, status)
        )
        self.pid = int(self._status.readline())
        self.returncode = None
        self._readers, self._texts = [], {}

    def poll(self):
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """What it writes until it ends; may be called again after TimeoutExpired."""
        if not self._readers:
            self._readers = [
                threading.Thread(target=self._read, args=(stream,), daemon=True)
                for stream in (self.stdout, self.stderr)
            ]
            for reader in self._readers:
                reader.start()
        self.wait(timeout)
        for reader in self._readers:
            reader.join()
        return self._texts[self.stdout], self._texts[self.stderr]

    def _read(self, stream):
        self._texts[stream] = stream.read()
        stream.close()


def run(words, env=None, timeout=None):
    """As subprocess.run with captured text."""
    process = Process(words, env)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@cache
def server():
    """A socket to the process that forks, started once; it ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # A library with threads of its own could not be forked.
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.Popen(
        [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=os.environ | alone,
    )
    theirs.close()
    assert ours.recv(1) == b"1", "the process that forks others has not started"
    return ours


def serve(connection):
    """Forks for each request; returns in the new process, with what it shall run."""
    # As a run does before its first import of transformers; none of these programs needs torch.
    os.environ.setdefault(ADVISORY, "1")
    HIDING.set(True)
    import_transformers()
    for name in MODULES:
        __import__(name)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, "a module started a thread, which a fork would lose"
    jax_settings = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    # Whoever waits for a program ends when it has told its status, and is not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    connection.send(b"1")
    while True:
        data, given, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not data:
            os._exit(0)
        if os.fork():
            for fd in given:
                os.close(fd)
            continue
        *outputs, status = given
        connection.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        child = os.fork()
        if child:
            for fd in outputs:
                os.close(fd)
            os.write(status, f"{child}\n".encode())
            _, ended = os.waitpid(child, 0)
            os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
            os._exit(0)
        os.close(status)
        request = json.loads(data)
        for fd, standard in zip(outputs, (1, 2), strict=True):
            os.dup2(fd, standard)
            os.close(fd)
        # Python has looked at what was there before.
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", buffering=1, closefd=False)
        os.chdir(request["cwd"])
        set_environment(request["env"], jax_settings)
        return request["words"]


def set_environment(environment, jax_settings):
    """JAX has read its variables when it was imported, so that they must not differ."""
    own = {name: value for name, value in environment.items() if name.startswith("JAX_")}
    devices = own.pop(DEVICES, None)
    assert own == {name: value for name, value in jax_settings.items() if name != DEVICES}
    os.environ.clear()
    os.environ.update(environment)
    if devices is not None:
        import jax

        jax.config.update(DEVICES.lower(), int(devices))


def main():
    kind, what, *arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if kind == "-m":
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c"
        sys.argv = ["-c", *arguments]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
