"""The sender `tritonclient_http`: every request through tritonclient.http, in greenlets with one client each.

`python -m loadtest.senders.tritonclient_http SPEC.json NUMBER PARENT_PID`; what it reads and writes, the shell says.
"""

from __future__ import annotations

import gc
import signal
import ssl
import sys
import time
from typing import Any

import gevent
import gevent.ssl
import tritonclient.http
from geventhttpclient.response import HTTPParseError
from tritonclient.utils import InferenceServerException

from brim import guard
from brim.access import open_tls, read_headers
from brim.errors import NotReady
from brim.records import Access, Status
from loadtest.driver import LoadSpec
from loadtest.senders import greenlets, shell
from loadtest.senders.answers import clean
from loadtest.senders.backoff import CONNECT_S, Backoff
from loadtest.senders.dispatch import Dispatcher
from loadtest.senders.job import ramp_s
from loadtest.senders.tritonclient_pool import ClientPool


class Clients:
    """How this process's clients are made: for the judged numeric address, with the name that its TLS is for."""

    def __init__(self, share: shell.Share) -> None:
        spec = share.spec
        self.share, self.redact = share, share.job.redact
        self.pool = ClientPool(tritonclient.http, spec, share.payload)
        endpoint = guard.parse_url(spec.url)
        sock = guard.connect(endpoint.host, endpoint.port, spec.allowed, timeout_s=CONNECT_S)
        host, port = sock.getpeername()[:2]
        if share.job.tls is not None:
            sock = open_tls(sock, share.job.tls, endpoint)
        sock.close()
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._tls: dict[str, Any] = {}
        if share.job.tls is not None:
            context = _context(spec.access)
            self._tls = {
                "ssl": True,
                "ssl_options": {"server_hostname": endpoint.host},
                "ssl_context_factory": lambda cafile: context,  # its own list of authorities is not ours
            }
        self.headers = {"Host": endpoint.netloc, **dict(read_headers(spec.access))}
        if share.payload.compression == "gzip":
            self.pool.infer["request_compression_algorithm"] = "gzip"

    def client(self) -> Any:
        timeout_s = self.share.spec.timeout_s
        return tritonclient.http.InferenceServerClient(
            self._address, connection_timeout=timeout_s, network_timeout=timeout_s, **self._tls
        )


def _context(access: Access) -> ssl.SSLContext:
    """What access.ssl_context makes, for gevent's sockets."""
    context: ssl.SSLContext = gevent.ssl.create_default_context(cafile=access.tls_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if access.tls_cert and access.tls_key:
        context.load_cert_chain(access.tls_cert, access.tls_key, password="")
    return context


class Slot:
    """One request in flight after another, over one client."""

    def __init__(self, clients: Clients) -> None:
        self._clients, self._job, self._pool = clients, clients.share.job, clients.pool
        self.sent_ns, self.overdue = 0, False
        self._client: Any = None
        self._position = len(self._job.users)
        self._payload = self._position % len(self._job.requests)  # slots begin at different payloads
        self._backoff = Backoff(self._job)
        self._job.users.append(self)

    def cut(self) -> None:
        """The total deadline of a request is kept where it is sent."""

    def connect(self) -> None:
        """Open the connection by a question over it; NotReady if there is no answer."""
        self._client = self._clients.client()
        spec = self._clients.share.spec
        try:
            self._client.is_server_live(headers=dict(self._clients.headers))
        except (OSError, ValueError, InferenceServerException) as error:
            raise NotReady(f"{spec.url} does not answer ({clean(self._clients.redact(str(error)))})") from None

    def load(self) -> None:
        """Send until the job is over."""
        job = self._job
        with job.watched():
            gevent.sleep(ramp_s(self._position, self._clients.share.concurrency))
            while not job.stopping:
                gevent.sleep(job.turn_s() + self._backoff.pause_s)
                if not job.stopping:
                    self._one()

    def send_arrivals(self, dispatcher: Dispatcher) -> None:
        """In open loop, send whatever is due for this slot, until the job is over."""
        job = self._job
        with job.watched():
            while not job.stopping:
                due_ns = greenlets.next_arrival(dispatcher)
                if not job.stopping:
                    self._one(due_ns)
                    gevent.sleep(self._backoff.pause_s)

    def _one(self, due_ns: int = 0) -> None:
        """One request from its making to its row, due at an instant in open loop."""
        job, payload, result = self._job, self._payload, None
        self._payload = (payload + 1) % len(job.requests)
        self.sent_ns = sent_ns = time.monotonic_ns()
        status, text = Status.CANCELLED, ""  # unless it ends before the greenlet is killed
        try:
            status, text, result = self._exchange(payload)
        finally:
            done_ns = time.monotonic_ns()
            if status is Status.TIMED_OUT:  # the timer's own clock may be a little ahead
                done_ns = max(done_ns, sent_ns + job.timeout_ns)
            self.sent_ns = 0
            job.record(due_ns or sent_ns, sent_ns, done_ns, status, text)
        if status is Status.OK and done_ns >= job.samples.due_ns:
            job.samples.offer(done_ns, payload, None, self._pool.message(result))

    def _exchange(self, payload: int) -> tuple[Status, str, Any]:
        """Inputs made, sent under the total deadline, and the answer's arrays taken out."""
        timeout_s = self._job.timeout_s
        try:
            with gevent.Timeout(timeout_s, TimeoutError("no answer in time")):
                self._client = self._client or self._clients.client()
                result = self._client.infer(**self._pool.request(payload), headers=dict(self._clients.headers))
                self._backoff.answered()
                return *self._pool.verdict(result), result
        except InferenceServerException as error:
            self._backoff.answered()
            return *self._told(error), None
        except TimeoutError:  # its connection may still bring the answer: it cannot be used again
            self._client = None
            return Status.TIMED_OUT, f"no answer within {timeout_s:g} s", None
        except (OSError, HTTPParseError) as error:
            self._client = None
            return Status.FAILED, self._broken(error), None
        except Exception as error:  # the client's own, over an answer unlike any that it knows
            self._client = None
            return Status.FAILED, self._job.bug(error), None

    def _told(self, error: InferenceServerException) -> tuple[Status, str]:
        status = error.status() or ""
        rejected = status == "503"
        return (
            Status.REJECTED if rejected else Status.FAILED,
            clean(self._clients.redact(f"HTTP {status}: {error.message()}")),
        )

    def _broken(self, error: Exception) -> str:
        text = clean(self._clients.redact(f"connection: {getattr(error, 'strerror', None) or repr(error)}"))
        self._backoff.broke(text if isinstance(error, ConnectionRefusedError) else "")
        return text


class GreenletSender:
    """One process's share of a load point."""

    def __init__(self, spec: LoadSpec, number: int) -> None:
        self._share = shell.Share(spec, number)
        self._slots: list[Slot] = []

    def connect(self) -> None:
        """The first slot's connection; NotReady if it gets none."""
        gevent.signal_handler(signal.SIGTERM, self._share.job.stop, "stopped")
        clients = Clients(self._share)
        self._slots = [Slot(clients) for _ in range(self._share.concurrency)]
        late = NotReady(f"{self._share.spec.url}: no connection within {shell.CONNECT_WITHIN_S:g} s")
        with gevent.Timeout(shell.CONNECT_WITHIN_S, late):
            self._slots[0].connect()
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not walk it between two requests

    def send(self) -> None:
        """Load from the common instant until told to stop or time is over, drain, and write the result."""
        share, dispatcher = self._share, self._share.dispatcher
        start_ns = greenlets.start_ns()
        if dispatcher is not None:
            # The first one, which has its connection, is the last one to be idle, so the first to send.
            loading = [gevent.spawn(slot.send_arrivals, dispatcher) for slot in reversed(self._slots)]
        end_ns = greenlets.begin(share, start_ns)
        keeper = gevent.spawn(greenlets.keep_flushing, share)
        if dispatcher is None:
            loading = [gevent.spawn(slot.load) for slot in self._slots]
        greenlets.load_and_drain(share, end_ns)
        gevent.killall([*loading, keeper])  # what is still in flight, each slot takes down as cancelled
        share.write()


if __name__ == "__main__":
    sys.exit(shell.run(sys.argv[1:], GreenletSender))
