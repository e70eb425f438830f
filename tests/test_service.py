"""The README's pre-forking server: streams stepped together get what each would get alone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import tidegate as tg
from test_readme import SNIPPETS

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="sockets that keep messages apart are Linux's"
)

SECONDS = 30  # longer than any answer takes


class Client:
    """One live stream, and what it would give alone."""

    def __init__(self, layer, open_sockets):
        self.alone = layer.stream()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        open_sockets.enter_context(self.socket)
        self.socket.settimeout(SECONDS)
        self.socket.connect("service")

    def send(self, rng):
        frame = rng.standard_normal((1, 128), np.float32)
        self.socket.send(frame)
        self.wanted = self.alone.step(frame).tobytes()

    def check(self):
        assert self.socket.recv(1 << 16) == self.wanted


(SOURCE,) = (snippet for snippet in SNIPPETS if "os.fork" in snippet)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Two workers behind the socket "service" in the folder that is now the current one."""
    (tmp_path / "server.py").write_text(SOURCE, encoding="utf-8")
    # A socket's path may not be long.
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "server.py", "service", "2"], start_new_session=True
    )
    try:
        yield process
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def connect(server):
    """Makes clients, once the server listens."""
    layer = tg.LSTM(128, 128, seed=0)
    end = time.monotonic() + SECONDS
    with contextlib.ExitStack() as open_sockets:
        while True:
            try:
                Client(layer, open_sockets)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
        yield lambda: Client(layer, open_sockets)


def test_every_client_gets_what_its_stream_alone_gives(connect, rng):
    # More than the first rows of both workers.
    clients = [connect() for _ in range(40)]
    for turn in range(30):
        company = [client for client in clients if rng.random() < 0.4]
        for client in company:
            client.send(rng)
        for client in company:
            client.check()
        # The next one has its row, but not its state.
        leaver = clients.pop(rng.integers(len(clients)))
        if turn % 3:
            leaver.socket.close()
        else:
            leaver.socket.send(b"nonsense")
            assert leaver.socket.recv(1) == b""
        clients.append(connect())


class FullListener:
    """A listener with a client in its queue and one descriptor left in the process."""

    def __init__(self, listener):
        self.listener = listener
        self.accepts = 0
        self.client_left = False

    def fileno(self):
        return self.listener.fileno()

    def accept(self):
        self.accepts += 1
        if self.accepts == 1:
            return self.listener.accept()
        if self.client_left:
            raise StopIteration  # ends the worker: it accepts again
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_worker_without_descriptors_waits_for_a_client_to_leave(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    program = {"__name__": "server"}
    exec(SOURCE, program)
    layer = tg.LSTM(128, 128, seed=0)
    with contextlib.ExitStack() as open_sockets:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        open_sockets.enter_context(listener)
        listener.bind("service")
        listener.listen()
        full = FullListener(listener)
        served, waiting = (Client(layer, open_sockets) for _ in range(2))
        ended = []

        def work():
            try:
                program["serve"](layer, full)
            except StopIteration:
                ended.append(True)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        for _ in range(200):
            served.send(rng)
            served.check()
        # Once a quiet second at most, not whenever a frame comes: the queue is never empty.
        assert 1 <= full.accepts < 100
        full.client_left = True
        served.socket.close()
        worker.join(SECONDS)
        assert ended
        waiting.socket.close()
