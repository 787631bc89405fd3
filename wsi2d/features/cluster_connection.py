"""A Dask cluster as far as an extraction needs one: found or started, listened to, and left as it was."""

from __future__ import annotations

import logging
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from wsi2d.compute import CORES_VARIABLE, available_cores
from wsi2d.errors import ClusterError, ConfigError, one_line

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

CONNECT_S = 10.0
_ASK_S = 60.0  # for an answer of the scheduler's
_SILENT = logging.CRITICAL + 1
_GPU = "GPU"  # the resource by which workers say that they have one


class Connection:
    """A client of a scheduler.

    Attributes:
        address: as the user gave it.
    """

    def __init__(self, address: str, client: Client) -> None:
        self.address, self._client = address, client

    def is_alive(self) -> bool:
        """Whether the scheduler is there."""
        return str(self._client.status) == "running"

    def workers(self) -> dict[str, bool]:
        """The workers by address, and whether they have declared a GPU.

        Raises:
            ClusterError: the scheduler is gone.
        """
        identity = getattr(self._client.scheduler, "identity", None)  # None while it is not there
        found = self._ask(identity, n_workers=-1)["workers"]
        return {address: float(about["resources"].get(_GPU, 0)) >= 1 for address, about in found.items()}

    def misfits(self, addresses: Iterable[str]) -> dict[str, str]:
        """Workers with other versions than ours, and what is wrong with them.

        Raises:
            ClusterError: the scheduler is gone, or is itself of another version.
        """
        found = self._ask(self._client._get_versions)
        if problem := _difference(found["scheduler"]):
            raise ClusterError(f"{self.address}: the scheduler {problem}")
        return {
            address: problem for address in addresses if (problem := _difference(found["workers"].get(address, {})))
        }

    def submit(self, worker: str, gpu: bool, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a function on one worker, and take its GPU for it if asked to."""
        return self._client.submit(
            function, *arguments, workers=[worker], resources={_GPU: 1} if gpu else None, pure=False
        )

    def listen(self, topic: str, handler: Callable[[dict[str, Any]], None]) -> None:
        """Have a handler called with what workers say under a topic, in another thread."""
        self._client.subscribe_topic(topic, lambda event: handler(event[1]))

    def run_everywhere(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function on all workers, whether it succeeds or not."""
        with suppress(Exception):
            if self.is_alive():
                self._client.sync(self._client._run, function, *arguments, on_error="ignore", callback_timeout=5)

    def _ask(self, question: Callable[..., Any] | None, **arguments: Any) -> Any:
        try:
            if self.is_alive() and question is not None:
                return self._client.sync(question, callback_timeout=_ASK_S, **arguments)
        except (OSError, TimeoutError):
            pass
        raise ClusterError(f"{self.address}: the scheduler is gone; run the same command again to go on")


def parse_cluster(address: str) -> int:
    """Number of local processes that an address asks for; 0 where it is that of a scheduler.

    Raises:
        ConfigError: it is no address.
    """
    if found := re.fullmatch(r"local:([0-9]{1,4})", address):
        if int(found[1]) >= 1:
            return int(found[1])
    elif re.fullmatch(r"(tcp|tls)://[^\s/:]+:[0-9]{1,5}", address) or re.fullmatch(
        r"(tcp|tls)://\[[0-9a-fA-F:]+\]:[0-9]{1,5}", address
    ):
        return 0
    raise ConfigError(f"cluster '{address}': must be tcp://HOST:PORT of a Dask scheduler, or local:N for N processes")


@contextmanager
def connect(address: str) -> Iterator[Connection]:
    """A connection to a scheduler, or to one with N processes of this machine that end with the block.

    Raises:
        ConfigError: the address is none, or Dask is not installed.
        ClusterError: nobody answers there, or the processes do not start.
    """
    processes = parse_cluster(address)
    try:
        import distributed
    except ImportError as error:
        raise ConfigError("--cluster needs Dask, which is not installed; pip install 'wsi2d[cluster]'") from error

    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # differences of versions are told in words of ours
        local = stack.enter_context(_local_cluster(processes)) if processes else None
        try:
            client = distributed.Client(local or address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise ClusterError(
                f"{address}: no Dask scheduler answers there ({one_line(str(error))[:120] or type(error).__name__}); "
                "start one with `dask scheduler`, or check the address"
            ) from error
        stack.callback(_close, client)
        yield Connection(address, client)


@contextmanager
def _local_cluster(processes: int) -> Iterator[LocalCluster]:
    import dask
    from distributed import LocalCluster

    cores = max(1, available_cores() // processes)
    # Each file says what it needs; Dask's own limit would count a worker's readers out and its encoder in.
    with dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}):
        try:
            with _interrupts_are_ours():
                cluster = LocalCluster(
                    n_workers=processes,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address=None,
                    memory_limit=None,
                    silence_logs=_SILENT,
                    env={CORES_VARIABLE: str(cores)},
                )
        except (OSError, RuntimeError, TimeoutError) as error:
            raise ClusterError(f"local:{processes}: the processes do not start ({one_line(str(error))})") from error
        try:
            yield cluster
        finally:
            with suppress(Exception):
                cluster.close(timeout=10)


@contextmanager
def _quiet() -> Iterator[None]:
    """What Dask logs of workers that come and go is told in words of ours; after an interrupt it says nothing more."""
    handlers = {handler: handler.level for handler in logging.getLogger("distributed").handlers}
    for handler in handlers:
        handler.setLevel(_SILENT)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        _restore(handlers)
        raise
    _restore(handlers)


def _restore(levels: dict[logging.Handler, int]) -> None:
    for handler, level in levels.items():
        handler.setLevel(level)


@contextmanager
def _interrupts_are_ours() -> Iterator[None]:
    """Threads that begin within do not take Ctrl-C, nor do the processes that they start, which a terminal sends it
    too: they are ended by the main thread, which does."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's own, which would let interrupts through again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close(client: Client) -> None:
    with suppress(Exception):
        client.close(timeout=5)


def _difference(versions: dict[str, Any]) -> str:
    """How the versions of a scheduler or a worker differ from ours; empty for not at all."""
    if not versions:
        return "does not say which versions it has; start it anew"
    theirs, python = versions["packages"], ".".join(str(versions["host"]["python"]).split(".")[:2])
    ours = "{}.{}".format(*sys.version_info)
    if python != ours:
        return f"has Python {python}, not {ours}; {_SAME}"
    ours = metadata.version("distributed")
    return "" if theirs["distributed"] == ours else f"has distributed {theirs['distributed']}, not {ours}; {_SAME}"


_SAME = "install the same on all machines"
