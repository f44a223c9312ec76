"""Every threshold that a judgement rests on, in one place, each with its reason.

Reads and writes nothing.
"""

from __future__ import annotations

from typing import Final

from brim.records import PARITY_BOUNDS

# ---------------------------------------------------------------------------- windows and steady state

#: Shorter windows are moved too much by one batch more or less, and by the once-a-second reads around them.
WINDOW_MIN_S: Final = 10.0
#: One batch cut off at an edge then weighs at most 1/40; whole-batch edges take most of that away, too.
WINDOW_MIN_BATCHES: Final = 40
#: Longer windows only cost time; a model too slow for 40 batches in 60 s has windows that state how many.
WINDOW_MAX_S: Final = 60.0

#: MSER-5 averages this many neighbouring bins (the 5 of its name).
STEADY_GROUP: Final = 5
#: Shorter bins only add noise: clients and servers hiccup for tens of milliseconds.
STEADY_BIN_S: Final = 0.1
#: Below this the statistic's minimum lands in the second half of stationary noise too often.
STEADY_BINS: Final = 100
#: Ten groups: with fewer, d may not go beyond the half any more (k - 5 < k / 2), so the test could not fail.
STEADY_BINS_LEAST: Final = 50
#: The statistic shrinks to 0 where few groups are left, so the last five are never cut into.
STEADY_END_GUARD: Final = 5
#: Smaller ripples of the rate are not told from steadiness; a drift that moves the halves by 3% is seven times it.
STEADY_RESOLUTION: Final = 0.005
#: What is taken as warm-up where a record is too short for MSER-5: a convention, and flagged as one.
STEADY_SHORT_WARMUP_SHARE: Final = 0.2
#: Halves of a record that differ by more than a plateau may are not one steady state.
STEADY_HALVES: Final = 0.03

# ---------------------------------------------------------------------------- figures

#: Closer rates count as the same: gain of a doubling, gain of one more sender, choice of the load point.
PLATEAU: Final = 0.03
#: Batch means of an interval: 10 to 30 are usual; 10 keeps each as long, and so as independent, as can be.
SEGMENTS: Final = 10
#: Batches that a stretch must hold before an interval is drawn from it: four to each segment.
INTERVAL_MIN_BATCHES: Final = 40
CONFIDENCE: Final = 0.95
#: With two starts the t quantile is 12.7: an interval that says nothing.
STARTS_LEAST: Final = 3

# ---------------------------------------------------------------------------- checks

#: Little's law holds for honest bookkeeping; the rest is the client's time between requests.
LITTLE: Final = 0.05
#: Two generators that share cores with the server take different amounts of its time …
AGREE_SHARED: Final = 0.05
#: … pinned apart from it, or with the work on a GPU, they cannot.
AGREE_APART: Final = 0.03
#: A cross-check compares medians, and one window has none.
AGREE_WINDOWS: Final = 2
#: A server cannot beat its own engine; this is the noise of two runs at different times.
CEILING: Final = 1.05
#: |served - in process| / max |in process|: rounding of another order of additions, no more.
PARITY: Final = PARITY_BOUNDS

# ---------------------------------------------------------------------------- what limits, and the verdict

#: Busier than this, an engine has no time left to give.
FULL_BUSY: Final = 0.98
#: Fuller than this, batches have no place left; the first and last of a window may be short.
FULL_BATCH: Final = 0.98
#: A further sender that finds less than a tenth of the machine idle proves nothing by gaining nothing.
CPU_ROOM: Final = 0.90
#: From here on a server's own cores count as full: the rest is the kernel's bookkeeping.
CPU_FULL: Final = 0.95
#: Requests that wait longer than this share of their latency do queue; less is the batcher's own hand-over.
QUEUE_WAITS: Final = 0.05
#: Of full cores, server and senders use at least this share, or what fills them is other work.
OURS: Final = 0.5
#: Busier than this, with full batches and requests that always wait, an engine is the limit all the same: Triton takes
#: 0.1 to 0.6 ms to hand over from one batch to the next, a large part of a short one.
RUNS_ON: Final = 0.90
#: Requests that spend half of their latency in the queue, half of that while nothing runs, are held back.
HELD: Final = 0.5
#: TCP and the frames around it leave no more of a link for the payload than about this.
LINK_FULL: Final = 0.8
#: More requests than this not answered well, and the rate is that of another workload.
FAILING: Final = 0.01

# ---------------------------------------------------------------------------- overload

#: A server has recovered when the SLO holds again for so long …
RECOVERED_S: Final = 1.0
#: … and for so many requests: fewer can be in time between two that are not.
RECOVERED_REQUESTS: Final = 20
#: Queue limits that cost more than this of the goodput at the SLO rate are paid for by users on ordinary days.
LIMITS_MAY_COST: Final = 0.01
#: Limits that gain no more than a plateau's noise are not worth a change of the configuration.
LIMITS_GAIN: Final = 0.03
#: A queue that just fits the SLO loses all goodput once batches take a little longer, as they do while rejections take
#: the server's processor time: limits are chosen so that requests still have a tenth of the SLO left.
LIMITS_WITHIN: Final = 0.9
#: A request that is sent later than this part of the SLO after it was due is the client's fault …
LATE_SHARE: Final = 0.1
#: … unless this share of the places for requests in flight was taken: then it waited for the server.
PLACES_FULL: Final = 0.9
#: More requests than this, or than an SLO allows to be late, sent late by the client's own fault: it shows the client.
SENT_LATE: Final = 0.01

# ---------------------------------------------------------------------------- open loop

#: Samples of what waits, evenly over a record: enough for the slope's error, far apart enough to tell something new.
BACKLOG_SAMPLES: Final = 40
#: A backlog that grows so surely is overload …
BACKLOG_P: Final = 0.01
#: … if it grows by more than this share of what arrives: a queue near its capacity wanders.
BACKLOG_RATE: Final = 0.005
#: More requests than this never sent, and the load was not the one that was asked for.
UNSENT_SHARE: Final = 0.01
#: Where the server has a request for less than this part of the time until its answer, it is not what holds the places.
INSIDE: Final = 0.5
