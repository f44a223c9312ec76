"""The compiled event loop of the simulator: a request arrives, a batch is done, a queue delay has passed.

Reads and fills arrays. The machine code is kept beside this file or in the user's cache, where either may be written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])
Floats = NDArray[np.float64]
Counts = NDArray[np.int32]
Sizes = NDArray[np.int64]
Marks = NDArray[np.uint8]
Flags = NDArray[np.bool_]

OK, REJECTED = 0, 1  # as brim.records.Status, which compiled code cannot hold
DONE, ARRIVAL, DELAY = 0, 1, 2  # what happens next


def compiled(function: Function) -> Function:
    """The function as machine code, made when it is first called."""
    try:
        return cast(Function, njit(cache=True)(function))
    except RuntimeError:  # there is no folder to keep it in
        return cast(Function, njit(function))


@compiled
def run(
    arrival: Floats, clients: int, items: Counts, service: Floats, occupancy: Floats, contended: bool, additive: float,
    max_batch: int, preferred: Flags, delay: float, max_queue: int, timeout: float,
    noise: Floats, noise_until: Floats,
    start: Floats, done: Floats, outcome: Marks,
    batch_start: Floats, batch_end: Floats, batch_items: Counts, batch_instance: Counts,
) -> int:  # fmt: skip
    """Serve all requests and give the number of batches; times in seconds, outcome all OK at first.

    `clients` > 0 closes the loop: they send the first arrivals, and each answer brings on the next.
    No items = one a request. `preferred` by batch size, up to the largest. Noise repeats when it is used up; with
    `noise_until` a batch takes the first whose instant lies behind its start, or the last.
    """
    instances = service.shape[0]
    ends = np.full(instances, np.inf)  # inf = idle
    since, left = np.zeros(instances), np.zeros(instances)  # share of its batch that was to do at `since`
    size, factor = np.zeros(instances, np.int64), np.zeros(instances)
    first, last, number = np.zeros(instances, np.int64), np.zeros(instances, np.int64), np.zeros(instances, np.int64)
    known = clients if clients > 0 else arrival.size
    arrived = head = waiting = busy = batches = 0
    while True:
        ending = np.argmin(ends)
        now, event = ends[ending], DONE
        if arrived < known and arrival[arrived] < now:
            now, event = arrival[arrived], ARRIVAL
        if delay > 0.0 and waiting > 0 and busy < instances and arrival[head] + delay < now:
            now, event = arrival[head] + delay, DELAY
        if now == np.inf:
            return batches
        busy_until_now = busy

        if event == DONE:
            ends[ending] = np.inf
            batch_end[number[ending]] = now
            busy -= 1
            for request in range(first[ending], last[ending]):
                if outcome[request] == OK:
                    done[request] = now + additive
                    known = send_next(arrival, known, clients, done[request])
        elif event == ARRIVAL:
            if max_queue > 0 and waiting >= max_queue:
                outcome[arrived], done[arrived] = REJECTED, now + additive
                known = send_next(arrival, known, clients, done[arrived])
            else:
                waiting += 1
            arrived += 1

        while waiting > 0 and busy < instances:
            while waiting > 0 and (outcome[head] == REJECTED or (timeout > 0.0 and now - arrival[head] > timeout)):
                if outcome[head] == OK:
                    outcome[head], done[head] = REJECTED, now + additive
                    known = send_next(arrival, known, clients, done[head])
                    waiting -= 1
                head += 1
            if waiting == 0:
                break
            stop, formed = form(now, head, arrived, arrival, items, outcome, max_batch, preferred, delay)
            if formed == 0:
                break
            for request in range(head, stop):
                if outcome[request] == OK:
                    start[request] = now
                    waiting -= 1
            idle = np.argmax(ends)
            busy += 1
            drawn = np.searchsorted(noise_until, now) if noise_until.size > 0 else batches % noise.size
            size[idle], factor[idle] = formed, noise[drawn]
            since[idle], left[idle] = now, 1.0
            ends[idle] = now + held(service, occupancy, busy, size[idle], factor[idle])
            first[idle], last[idle], number[idle] = head, stop, batches
            batch_start[batches], batch_items[batches], batch_instance[batches] = now, formed, idle
            batches += 1
            head = stop

        if contended and busy != busy_until_now:
            retime(now, ends, since, left, size, factor, service, occupancy, busy_until_now, busy)


@compiled
def retime(
    now: float, ends: Floats, since: Floats, left: Floats, size: Sizes, factor: Floats,
    service: Floats, occupancy: Floats, busy_until_now: int, busy: int,
) -> None:  # fmt: skip
    """What is left of each batch goes on at the pace of so many busy instances."""
    for i in range(ends.size):
        if ends[i] != np.inf:
            if now > since[i]:
                left[i] -= (now - since[i]) / held(service, occupancy, busy_until_now, size[i], factor[i])
            since[i] = now
            ends[i] = now + max(left[i], 0.0) * held(service, occupancy, busy, size[i], factor[i])


@compiled
def held(service: Floats, occupancy: Floats, busy: int, size: int, factor: float) -> float:
    """How long a batch would hold its instance if so many were busy all the while."""
    seconds: float = service[busy - 1, size - 1] * factor + occupancy[size - 1]
    return seconds


@compiled
def send_next(arrival: Floats, known: int, clients: int, at: float) -> int:
    """In a closed loop the client that has its answer sends the next request; gives how many are known."""
    if clients > 0 and known < arrival.size:
        arrival[known] = at
        return known + 1
    return known


@compiled
def form(
    now: float, head: int, arrived: int, arrival: Floats, items: Counts, outcome: Marks,
    max_batch: int, preferred: Flags, delay: float,
) -> tuple[int, int]:  # fmt: skip
    """The batch that begins with the request `head`: the request it ends before and its items; no items: it waits.

    Once the oldest has waited the delay, all that fits goes. Before, and without delay, no more than the largest
    preferred size: the largest that is reached, and one that is short of all of them only without delay.
    """
    expired = delay > 0.0 and now >= arrival[head] + delay
    largest = max_batch if expired else preferred.size - 1
    stop, size, best_stop, best_size, full = head, 0, head, 0, False
    while stop < arrived and not full:
        if outcome[stop] == OK:
            more = items[stop] if items.size > 0 else 1
            if size > 0 and size + more > largest:
                full = True
                break
            size += more
            full = size >= largest
            if size < preferred.size and preferred[size]:
                best_stop, best_size = stop + 1, size
        stop += 1
    if best_size > 0 and not expired:
        return best_stop, best_size
    if full or expired or delay == 0.0:
        return stop, size
    return head, 0
