"""The fault proxy does what tests believe it does."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxy import ACK, DELIVER, Frames, Method, Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """In front of a server that sends everything back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo(client: socket.socket) -> None:
            with client:
                try:
                    while data := client.recv(65536):
                        client.sendall(data)
                except OSError:
                    pass

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=echo, args=(client,), daemon=True).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with Proxy(listener.getsockname()[1]) as between:
                yield between
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=10)


def received(client: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer at the end of the stream."""
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def test_it_closes_what_is_idle_and_nothing_else(proxy: Proxy) -> None:
    with connect(proxy) as idle, connect(proxy) as busy:
        for client in (idle, busy):
            client.sendall(b"a")
            assert received(client, 1) == b"a"
        proxy.close_idle(0.5)
        idle.setblocking(False)
        for _ in range(1000):
            busy.sendall(b"b")
            assert received(busy, 1) == b"b"
            if len(proxy.live) == 1:
                break
            time.sleep(0.01)
        assert idle.recv(1) == b""
        [alive] = proxy.live
        assert alive.to_client > 1


def test_it_forwards_faithfully_and_counts_also_after_a_half_close(proxy: Proxy) -> None:
    data = bytes(range(256)) * 4096
    with connect(proxy) as client:

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        threading.Thread(target=send).start()
        assert received(client, len(data) + 1) == data
    [connection] = proxy.connections
    assert (connection.to_broker, connection.to_client) == (len(data), len(data))


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size", [0, 1, 999])
def test_a_cut_lets_exactly_so_many_bytes_arrive(proxy: Proxy, size: int, reset: bool) -> None:
    proxy.cut_after(to_client=size, reset=reset)
    with connect(proxy) as client:
        client.sendall(b"x" * 1000)
        assert received(client, size) == b"x" * size
        if reset:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        else:
            assert client.recv(1) == b""


def test_a_reset_hits_the_chosen_and_no_others(proxy: Proxy) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        for client in (first, second):
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert proxy.reset(proxy.live[0]) == 1
        with pytest.raises(ConnectionResetError):
            first.recv(1)
        second.sendall(b"y")
        assert second.recv(1) == b"y"
        assert proxy.reset() == 1
        assert proxy.live == []


def test_what_is_sent_into_silence_arrives_after_it(proxy: Proxy) -> None:
    with connect(proxy) as before:
        before.sendall(b"x")
        assert before.recv(1) == b"x"
        proxy.silence(to_broker=False)
        with connect(proxy) as after:
            for client in (before, after):
                client.sendall(b"y")
                client.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    client.recv(1)
            proxy.heal()
            for client in (before, after):
                client.settimeout(10)
                assert client.recv(1) == b"y"


def test_forgotten_connections_stay_silent_and_new_ones_do_not(proxy: Proxy) -> None:
    with connect(proxy) as old:
        old.sendall(b"x")
        assert old.recv(1) == b"x"
        assert proxy.forget() == 1
        proxy.heal()
        old.sendall(b"y")
        old.settimeout(0.2)
        with pytest.raises(TimeoutError):
            old.recv(1)
        with connect(proxy) as new:
            new.sendall(b"z")
            assert new.recv(1) == b"z"


def test_new_connections_are_refused_until_it_is_healed_and_the_others_go_on(proxy: Proxy) -> None:
    with connect(proxy) as old:
        old.sendall(b"x")
        assert old.recv(1) == b"x"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        old.sendall(b"y")
        assert old.recv(1) == b"y"
        proxy.heal()
        with connect(proxy) as new:
            new.sendall(b"z")
            assert new.recv(1) == b"z"


def test_latency_delays_every_byte_and_slices_keep_their_order(proxy: Proxy) -> None:
    data = bytes(range(256))
    with connect(proxy) as client:
        proxy.latency(0.1)
        proxy.slice(1)
        begun = time.monotonic()
        client.sendall(data)
        assert received(client, 256) == data
        assert time.monotonic() - begun >= 0.2


# ---------------------------------------------------------------------------------------------------------- frames

HEARTBEAT = bytes([8, 0, 0, 0, 0, 0, 0, 0xCE])
HEADER = b"AMQP\0\0\x09\x01"


def frame(method: Method, payload: bytes = b"12345678", kind: int = 1) -> bytes:
    body = struct.pack(">HH", *method) + payload
    return struct.pack(">BHI", kind, 1, len(body)) + body + b"\xce"


def test_f114_frames_are_found_wherever_the_stream_is_divided() -> None:
    stream = HEADER + HEARTBEAT + frame(ACK) + frame((0, 0), kind=3) + frame(DELIVER, b"") + HEARTBEAT
    first, second = stream.index(frame(ACK)), stream.index(frame(DELIVER, b""))
    for at in range(len(stream)):
        for chunks in ([stream[:at], stream[at:]], [stream[:at], stream[at : at + 1], stream[at + 1 :]]):
            frames, begin, found = Frames(len(HEADER)), 0, []
            for chunk in chunks:
                found += [(begin + offset, method, size) for offset, method, size in frames.feed(chunk)]
                begin += len(chunk)
            # One that is divided before its method is known has begun already: it cannot be cut before it.
            expected = [(first, ACK, len(frame(ACK))), (second, DELIVER, len(frame(DELIVER, b"")))]
            assert set(found) <= set(expected)
            whole = [each for each in expected if not any(each[0] < cut < each[0] + 11 for cut in (at, at + 1))]
            assert set(whole) <= set(found), chunks
