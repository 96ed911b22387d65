"""One model's engine: a thread that schedules requests, runs the model, and delivers outputs.

Decoded requests share a batch and take one decode step together; given targets take their turns between the steps. What
one request gets does not depend on the others. Whatever happens, each request's output queue ends, and all of them if
the thread should end. Knows nothing of gRPC, and of tensors only that the thread works in inference mode.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from ..errors import RequestError, internal, out_of_memory, report_fault, stopped, too_few_slots
from ..memory import is_out_of_memory, used_bytes
from ..models import LoadedModel, ModelError
from ..operations import RESTING, ModelLoad, ModelMetrics, Watchdog, current_call
from ..request import Request
from ..runner import caches_that_fit, make_runner, slots_that_fit
from .admission import AdmissionQueue, Reservation
from .engine_core import EngineCore
from .follow import EventQueue, FollowPlaces, FollowState
from .output_queue import OutputQueue, ReadyQueues
from .request_state import RequestState
from .waiting_queue import HeldBack

log = logging.getLogger(__name__)

# How often in a row the engine tries to begin again after a fault, before it ends.
_MAX_ATTEMPTS = 5

# Seconds for which `stop` waits for the step that the thread takes.
_LAST_STEP_SECONDS = 1.5


@dataclass(frozen=True)
class EngineConfig:
    """How much an engine takes on."""

    max_running: int = 32  # slots, each with a cache in memory; and requests with given targets that run
    max_waiting: int = 1024  # requests that wait for their turn, before more are refused
    memory_fraction: float = 0.5  # of the memory that is free at start, for the slots' caches
    thread_counts: tuple[int, ...] = ()  # numbers of CPU threads to choose from; none: torch's own
    max_feature_bytes: int = 256 * 1024**2  # of the recordings of requests that wait for their turn
    max_preempted: int = 512  # requests that wait for slow readers, each with a cache
    step_timeout: float = 60.0  # seconds that a step may take before the engine counts as stalled
    max_unread_bytes: int | None = None  # held for one reader; None: the default of OutputQueue


class Engine:
    """One model's engine. `start` before `submit`; `stop` ends what still runs with UNAVAILABLE. For any thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig | None = None,
        on_failure: Callable[[], None] = lambda: None,
        on_progress: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`on_failure` and `on_progress` are called from another thread.

        `on_failure` is called if the engine ends without a call of `stop`; `on_progress` with False if a step takes too
        long, and with True if the engine goes on after that.
        """
        self.loaded, self.config = loaded, config or EngineConfig()
        self._on_failure = on_failure
        self._watchdog = Watchdog(loaded.name, self.config.step_timeout, on_progress)
        self.metrics = ModelMetrics(
            loaded.name, lambda: _read_load(self.loaded, self._admission, self.num_slots, self._core)
        )
        self._admission = AdmissionQueue(self.config.max_waiting, self.config.max_feature_bytes, self.metrics)
        self.follow_places = FollowPlaces(loaded.limits.max_follow_streams)  # for the event loop of the API
        self._wakeup = threading.Event()  # set by a new request, room in a queue, a cancelled request, or the end
        self._is_ready = threading.Event()
        self._startup_error: Exception | None = None
        fraction = self.config.memory_fraction
        self.num_slots = slots_that_fit(loaded, self.config.max_running, fraction)
        # The caches of preempted requests are in the host's memory, beside the slots.
        self._max_preempted = 1  # of a model without slots: its caches stay where they are
        if loaded.backend is not None:
            self._max_preempted = caches_that_fit(loaded, self.config.max_preempted, fraction / 2)
        self._core: EngineCore | None = None  # the thread's
        self._thread = threading.Thread(target=self._run, name=f"engine {loaded.name}", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name=f"watch of {loaded.name}", daemon=True)

    # ---- life cycle -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread, and waits until it can work: a compiled step takes a minute. Raises ModelError."""
        _log_slots(self.loaded, self.num_slots)
        self._thread.start()
        self._watcher.start()
        self._is_ready.wait()
        if self._startup_error is not None:
            log.debug("starting failed", exc_info=self._startup_error)
            reason = str(self._startup_error).strip().partition("\n")[0]
            raise ModelError(f"cannot run {self.loaded.name}: {reason}") from self._startup_error

    def drain(self, seconds: float) -> None:
        """Ends the waiting requests that would not be done in so many seconds with UNAVAILABLE.

        To be called again and again: what can be done is known better later.
        """
        for state in self._admission.drain(seconds, self.num_slots):
            self._admission.close(state, stopped())

    def stop(self) -> None:
        """Ends all requests and the thread, and waits for it. A step that takes too long is not waited for."""
        self._admission.stop()
        self.wake()
        if self._watcher.is_alive():
            self._watcher.join(_LAST_STEP_SECONDS)
        if self._watcher.is_alive():
            _end_all(self._admission)

    @property
    def is_running(self) -> bool:
        """Whether the thread runs, after `stop` too."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Makes the thread look at its requests again."""
        self._wakeup.set()

    # ---- requests ---------------------------------------------------------------------------------------------------

    def new_queue(self, ready: ReadyQueues | None = None) -> OutputQueue:
        """Makes the queue of a request, in the event loop of the task that gets. `ready` as in `OutputQueue`."""
        return OutputQueue(self.wake, ready, self.config.max_unread_bytes)

    def new_events(self) -> EventQueue:
        """Makes the events of a follow stream, in the event loop of the task that puts."""
        return EventQueue(self.wake)

    async def reserve(self, client: Hashable = None, feature_bytes: int = 0) -> Reservation:
        """Takes a place in the queue for a client's request, before any work is done for it. Raises RequestError.

        `feature_bytes` is the size of the recordings in the request. Where the queue is full, the newest waiting
        requests of held-back clients end with QUEUE_FULL and give their places.
        """
        return self._admission.reserve(client, feature_bytes)

    def submit(
        self,
        request: Request,
        queue: OutputQueue,
        deadline: float | None = None,
        reservation: Reservation | None = None,
        events: EventQueue | None = None,
    ) -> RequestState:
        """Queues a request, in a place reserved for it or in a new one. Its outputs come to `queue`.

        `deadline` is of `time.monotonic`; `events` are those of a follow stream. Raises RequestError, also for a beam
        search that is wider than there are slots.
        """
        if request.num_sequences > self.num_slots:
            field = "decoding.beam.width" if request.beam is not None else "contrast"
            raise too_few_slots(request.num_sequences, self.num_slots, field)
        queue.on_full = self.metrics.record_stall
        follow = None if events is None else FollowState(events)
        state = RequestState(request, queue, deadline, follow, current_call.get())
        with reservation or self._admission.reserve(None) as place:
            self._admission.submit(state, place.client)
        self.wake()
        return state

    def hold_back(self, held_back: HeldBack) -> None:
        """Says which requests come after others. To be called again and again."""
        if self._admission.hold_back(held_back):
            self.wake()

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.inference_mode():
            try:
                self._core = self._make_core()
            except Exception as error:  # such as a compiler's
                self._startup_error = error
                return
            finally:
                self._is_ready.set()
            num_restart_faults = num_faults = 0  # in a row
            is_sound, fault = True, internal()
            while not self._admission.is_stopped:
                try:
                    if not is_sound:
                        # A waiting request may be what makes the work fail each time that it is looked at.
                        self._restart(fault, ends_waiting=num_faults >= _MAX_ATTEMPTS)
                    is_sound, num_restart_faults = True, 0
                    self._work()
                    num_faults = 0
                # Not a request's fault, but ours: waiting requests must not wait for ever.
                except Exception as error:  # noqa: PERF203
                    # Nothing keeps the error: its traceback holds the core, whose memory the next core needs.
                    reported = report_fault(log, "", error, f"the engine of {self.loaded.name}")
                    fault = out_of_memory() if is_out_of_memory(error) else reported
                    num_restart_faults += not is_sound
                    num_faults += is_sound
                    is_sound = False
                    if num_restart_faults >= _MAX_ATTEMPTS:
                        return
                    time.sleep(0.1 * num_restart_faults)  # memory may come back

    def _work(self) -> None:
        """Does what there is to do now, or waits until there is something to do."""
        core = self._core
        assert core is not None
        self._watchdog.num_rounds += 1
        self._wakeup.clear()
        if core.schedule() or self._admission.is_stopped:  # the end may have come before the event was cleared
            self._wakeup.set()
        # Whatever happens from here on sets the event again, so that waiting misses nothing.
        if not core.run(lambda: self._admission.is_stopped):
            self._watchdog.activity = RESTING
            self._wakeup.wait(core.patience)

    def _make_core(self) -> EngineCore:
        runner = make_runner(self.loaded, self.num_slots, self.config.thread_counts)
        return EngineCore(
            self.loaded,
            self._admission,
            runner,
            self.num_slots,
            self.config.max_running,
            self._max_preempted,
            self._watchdog,
            self.metrics,
        )

    def _restart(self, fault: RequestError, *, ends_waiting: bool) -> None:
        """Ends started requests, as their state is unknown; with `ends_waiting`, waiting ones too."""
        self._watchdog.activity = RESTING  # a compiled step takes a minute
        for state in self._admission.take_all() if ends_waiting else self._admission.started():
            self._admission.close(state, fault)
        self._core = None  # its memory first
        self._core = self._make_core()

    def _watch(self) -> None:
        """Waits for the end of the thread, whatever its reason, and ends all requests that it has left."""
        while self._thread.is_alive():
            self._watchdog.look(self._thread.ident)
            self._thread.join(self._watchdog.interval)
        self._admission.fail()
        _end_all(self._admission)
        self._is_ready.set()
        if self._admission.has_failed and self._startup_error is None:
            log.critical("the engine of %s has ended: no more requests are served", self.loaded.name)
            self._on_failure()


def _end_all(admission: AdmissionQueue) -> None:
    """Ends all requests with UNAVAILABLE."""
    for state in admission.take_all():
        try:
            admission.close(state, admission.refusal())
        except Exception:  # noqa: PERF203  # the other requests end all the same
            log.exception("request %s was not ended when the engine ended", state.request.request_id)


def _log_slots(loaded: LoadedModel, num_slots: int) -> None:
    backend = loaded.backend
    if backend is not None:
        lengths = f"{loaded.max_source_tokens} source and {loaded.max_target_tokens} target tokens"
        if not loaded.is_encoder_decoder:
            lengths = f"{loaded.max_target_tokens} tokens"
        log.info("%s has %d slots of %s, %.1f MB each", loaded.name, num_slots, lengths, backend.bytes_per_slot / 1e6)


def _read_load(loaded: LoadedModel, admission: AdmissionQueue, num_slots: int, core: EngineCore | None) -> ModelLoad:
    """Returns what an engine works on now. For any thread; the numbers may be of two moments."""
    load = ModelLoad(
        num_waiting=len(admission),
        num_slots=num_slots,
        cache_bytes=0 if loaded.backend is None else num_slots * loaded.backend.bytes_per_slot,
        device_bytes=used_bytes(loaded.model.device),
    )
    return load if core is None else core.requests.add_load(load)
