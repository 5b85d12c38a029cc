"""What a job counts when one of its tasks was handed over and the rest is cancelled."""

from __future__ import annotations

from ipos.pool import job as j


def test_cancelled_after_one_was_handed_over() -> None:
    state, _ = j.job.step(j.Preparing(), j.Prepared(5, 1.0))
    for how in ("done", "cancelled"):
        state, _ = j.job.step(state, j.TaskEnded(how, False, 2.0))
    state, _ = j.job.step(state, j.Cancel(3.0))
    assert isinstance(state, j.Stopped)
    assert (state.counts.done, state.counts.cancelled, state.counts.ended) == (1, 4, 5)
