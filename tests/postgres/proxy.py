"""A TCP proxy of the tests' own between the product and its database, which can be cut and restored."""

import contextlib
import selectors
import socket
import threading

BUFFER = 1 << 16


class CuttableProxy:
    """Forwards bytes both ways. While it is cut, what was connected is reset and nothing new is let in."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.lock = threading.Lock()
        self.pairs: set[tuple[socket.socket, socket.socket]] = set()
        self.is_cut = False
        self.cuts = self.accepted = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self.accept, name="proxy", daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                if self.is_cut:
                    client.close()
                    continue
                self.accepted += 1
                try:
                    pair = (client, socket.create_connection(self.target))
                except OSError:
                    client.close()
                    continue
                self.pairs.add(pair)
            threading.Thread(target=self.forward, args=(pair,), daemon=True).start()

    def forward(self, pair: tuple[socket.socket, socket.socket]) -> None:
        other = {pair[0]: pair[1], pair[1]: pair[0]}
        with selectors.DefaultSelector() as ready, contextlib.suppress(OSError, ValueError):
            for end in pair:
                ready.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(BUFFER)
                    if not data:
                        raise OSError("closed")
                    other[source].sendall(data)
        with self.lock:
            self.pairs.discard(pair)
        self.close(pair)

    def cut(self) -> int:
        """Ends every connection at once; how many there were."""
        with self.lock:
            self.is_cut = True
            self.cuts += 1
            pairs, self.pairs = self.pairs, set()
        for pair in pairs:
            self.close(pair)
        return len(pairs)

    def restore(self) -> None:
        with self.lock:
            self.is_cut = False

    def close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            # shutdown, because another thread of ours may wait in select on it
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def end(self) -> None:
        self.cut()
        self.listener.close()
