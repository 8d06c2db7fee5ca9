"""What the supervisor's `WorkerManager` decides, with a number as clock."""

from __future__ import annotations

import json
import math

from manallm_proxy.process.rollout import PREPARING
from manallm_proxy.process.worker_messages import (
    FROM_WORKER,
    TO_WORKER,
    Abandon,
    Adopt,
    Answer,
    Ask,
    AskPart,
    Drain,
    FinalMetrics,
    HealthUpdate,
    Leaving,
    LineSplitter,
    Part,
    Ping,
    Prepare,
    Prepared,
    Serving,
    ToWorker,
    to_line,
)
from manallm_proxy.process.workers import DELAY_LONGEST, GATHERING, LAST_CHANCE, PROVEN, UPDATES_LIMIT, WorkerManager
from manallm_proxy.routing.circuit import SharedState
from tests.figures import report, value, worker

OPEN = SharedState(1.0, open_until=61.0, reach_failures=2, last_error="connect_error")


def crew(size: int = 2, stall_timeout: float = 20.0) -> WorkerManager:
    """One whose workers all serve."""
    made = WorkerManager(size, stall_timeout, lambda: worker(0))
    for number in made.to_start(0.0):
        made.started(number, 100 + number, 0.0)
        made.received(number, Serving("all well"), 0.0)
    return made


def sent(crew: WorkerManager, number: int | None = None) -> list[ToWorker]:
    """What was to be sent, to all or to one worker; it is gone then."""
    messages = [message for to, message in crew.outbox if number in (None, to)]
    crew.outbox.clear()
    return messages


def ask(crew: WorkerManager, topic: str, now: float, number: int = 1, id_: int = 1) -> dict[int, int]:
    """One worker asks; the question's id by each worker that is asked."""
    crew.outbox.clear()
    crew.received(number, Ask(id_, topic), now)  # type: ignore[arg-type]  # a text that stands for a literal
    asked = {to: message.id for to, message in crew.outbox if isinstance(message, AskPart)}
    crew.outbox.clear()
    return asked


def test_all_start_and_serve() -> None:
    """Numbered from 1; a worker is asked nothing before its first message."""
    made = WorkerManager(2, 20.0, lambda: "")
    assert made.to_start(0.0) == [1, 2]
    made.started(1, 11, 0.0)
    made.received(1, Serving("well", "hello"), 0.0)
    assert (made.all_serve, made.to_start(0.0)) == (False, [2])
    made.started(2, 12, 0.0)
    assert not made.all_serve
    made.received(2, Serving("well", "hello"), 0.0)
    assert (made.all_serve, made.summary, made.banner) == (True, "well", "hello")


def test_a_worker_that_ends_is_restarted() -> None:
    """After a longer delay each time, up to a limit; it resets after a minute of uptime."""
    made = crew()
    now, waits = 0.0, []
    for _ in range(10):
        wait = made.ended(1, now)
        assert wait is not None
        assert made.to_start(now + wait * 0.9) == []
        now += wait
        assert made.to_start(now) == [1]
        made.started(1, 7, now)
        waits.append(wait)
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == DELAY_LONGEST
    assert made.ended(1, now + PROVEN) == 0.1


def test_a_worker_that_cannot_be_started_is_tried_again() -> None:
    """A failed fork leads to the same delay."""
    made = WorkerManager(1, 20.0, lambda: "")
    assert made.ended(1, 0.0) == 0.1
    assert (made.to_start(0.0), made.to_start(0.1)) == ([], [1])


def test_a_drain_starts_nobody() -> None:
    """And is passed on, with the hurry."""
    made = crew()
    made.ended(2, 0.0)
    made.drain(hurry=False)
    made.drain(hurry=True)
    assert sent(made) == [Drain(False), Drain(True)]
    assert (made.ended(1, 1.0), made.to_start(math.inf), made.workers) == (None, [], {})


def test_a_silent_worker_is_ended() -> None:
    """Once with a chance to say where it hangs, then without; one that answers is not."""
    made = crew(2, stall_timeout=8.0)
    made.due(2.0)
    assert sent(made) == [Ping(), Ping()]
    made.received(1, Ping(), 2.0)
    assert made.to_end(9.9) == []
    [(hung, hard)] = made.to_end(10.0)
    assert (hung.number, hard, made.all_answer) == (2, False, False)
    assert made.to_end(10.0 + LAST_CHANCE / 2) == []
    assert made.next_at() <= 10.0 + LAST_CHANCE
    assert made.to_end(10.0 + LAST_CHANCE) == [(hung, True)]
    made.ended(2, 13.0)
    assert made.all_answer


def test_one_that_never_says_a_word_is_silent_too() -> None:
    """It hangs before its loop turns."""
    made = WorkerManager(1, 8.0, lambda: "")
    made.started(1, 11, 0.0)
    made.due(1.0)
    assert [found.number for found, _ in made.to_end(8.0)] == [1]


def test_metrics_of_all() -> None:
    """Added up, once all have answered, for who asked."""
    made = crew()
    asked = ask(made, "metrics", 1.0, number=2, id_=9)
    assert asked.keys() == {1, 2}
    made.received(1, Part(asked[1], worker(3)), 1.1)
    assert sent(made) == []
    made.received(2, Part(asked[2], worker(4)), 1.2)
    [(to, answer)] = made.outbox
    assert to == 2
    assert isinstance(answer, Answer)
    assert answer.id == 9
    assert value(answer.body, "mana_llm_requests_total", endpoint="chat/completions", status="200") == 7
    assert value(answer.body, "mana_llm_worker_up", worker="2") == 1
    assert value(answer.body, "mana_llm_worker_restarts_total") == 0


def served(crew: WorkerManager, now: float, *parts: tuple[int, str]) -> float | None:
    """What a scrape says of the requests served, where these workers answer."""
    asked = ask(crew, "metrics", now)
    for number, text in parts:
        crew.received(number, Part(asked[number], text), now)
    crew.due(now + GATHERING)
    [answer] = [m for m in sent(crew, 1) if isinstance(m, Answer)]
    return value(answer.body, "mana_llm_requests_total", endpoint="chat/completions", status="200")


def test_counters_never_fall() -> None:
    """A worker is silent, killed, another takes its place: counts that were reported once stay."""
    made = crew()
    assert served(made, 1.0, (1, worker(3)), (2, worker(4))) == 7
    assert served(made, 2.0, (1, worker(3))) == 7
    made.ended(2, 3.0)
    assert served(made, 4.0, (1, worker(5))) == 9
    made.started(2, 200, 5.0)
    made.received(2, Ping(), 5.0)
    assert served(made, 6.0, (1, worker(5)), (2, worker(1))) == 10
    made.received(2, FinalMetrics(worker(6)), 7.0)
    made.ended(2, 7.0)
    assert served(made, 8.0, (1, worker(5))) == 15


def test_what_a_dead_worker_had_in_hand_is_over() -> None:
    """Of its last report only what was counted stays: what it was at the time would be so for ever."""
    made = crew()
    busy = worker(2) + '# TYPE mana_llm_requests_in_flight gauge\nmana_llm_requests_in_flight{provider="p"} 5\n'
    made.received(2, FinalMetrics(busy), 1.0)
    made.ended(2, 1.0)
    asked = ask(made, "metrics", 2.0)
    made.received(1, Part(asked[1], busy.replace("} 5", "} 1")), 2.0)
    [answer] = [m for m in sent(made, 1) if isinstance(m, Answer)]
    assert value(answer.body, "mana_llm_requests_in_flight", provider="p") == 1
    assert value(answer.body, "mana_llm_requests_total", endpoint="chat/completions", status="200") == 4


def test_a_stuck_worker_is_left_out_and_named() -> None:
    """The worker that asked waits for it for `GATHERING`, and no longer."""
    made = crew()
    asked = ask(made, "health", 1.0)
    made.received(1, Part(asked[1], json.dumps(report())), 1.0)
    made.due(1.0 + GATHERING * 0.9)
    assert [m for m in sent(made) if isinstance(m, Answer)] == []
    assert made.next_at() <= 1.0 + GATHERING
    made.due(1.0 + GATHERING)
    [answer] = sent(made)
    assert isinstance(answer, Answer)
    said = json.loads(answer.body)
    assert said["workers"] == {"1": {"status": "serving", "pid": 101}, "2": {"status": "silent", "pid": 102}}
    assert said["providers"]["gpu"]["in_flight"] == 1


def test_a_worker_that_ends_is_not_waited_for() -> None:
    """Its part will not come; nor is an answer sent to another process of its number."""
    made = crew()
    asked = ask(made, "health", 1.0, number=2)
    made.ended(2, 1.1)
    made.started(2, 202, 1.2)
    made.received(1, Part(asked[1], json.dumps(report())), 1.3)
    assert sent(made) == []
    asked = ask(made, "health", 2.0)
    assert asked.keys() == {1}
    made.received(1, Part(asked[1], json.dumps(report())), 2.0)
    [answer] = sent(made)
    assert isinstance(answer, Answer)
    assert json.loads(answer.body)["workers"]["2"] == {"status": "starting", "pid": 202}


def test_one_question_at_a_time_however_many_ask() -> None:
    """Those who come meanwhile share the next answer, which is no older than their question."""
    made = crew()
    first = ask(made, "metrics", 1.0)
    assert ask(made, "metrics", 1.0, number=2, id_=5) == {}
    assert ask(made, "metrics", 1.0, number=1, id_=6) == {}
    assert ask(made, "health", 1.0).keys() == {1, 2}
    for number in (1, 2):
        made.received(number, Part(first[number], worker(1)), 1.1)
    answers = [m for _, m in made.outbox if isinstance(m, Answer)]
    asked = {to: m.id for to, m in made.outbox if isinstance(m, AskPart)}
    assert ([m.id for m in answers], set(asked)) == ([1], {1, 2})
    made.outbox.clear()
    for number in (1, 2):
        made.received(number, Part(asked[number], worker(2)), 1.2)
    answers = [m for _, m in made.outbox if isinstance(m, Answer)]
    assert [(m.id, value(m.body, "mana_llm_client_disconnects_total")) for m in answers] == [(5, 0), (6, 0)]


def test_health_changes_go_to_the_others_and_to_later_workers() -> None:
    """Until they no longer hold: the circuit is clear again, or the provider has changed."""
    made = crew(3)
    made.received(1, HealthUpdate("gpu", None, OPEN), 1.0)
    assert [(to, message) for to, message in made.outbox] == [(n, HealthUpdate("gpu", None, OPEN)) for n in (2, 3)]
    made.ended(2, 2.0)
    sent(made)
    made.started(2, 202, 3.0)
    assert sent(made, 2) == [HealthUpdate("gpu", None, OPEN)]
    made.received(3, HealthUpdate("gpu", None, SharedState(4.0)), 4.0)
    made.received(1, HealthUpdate("gpu", None, OPEN), 4.1)
    made.received(1, HealthUpdate("cloud", "m", OPEN), 4.2)
    made.prepare(b"", {"cloud"}, 4.3)
    for number in (1, 2, 3):
        made.received(number, Prepared(1), 4.4)
    made.ended(2, 5.0)
    sent(made)
    made.started(2, 203, 6.0)
    assert sent(made, 2) == [HealthUpdate("gpu", None, OPEN)]


def test_what_a_worker_found_before_it_adopted_is_not_passed_on() -> None:
    """Of a provider that has changed: the others serve the new one already, perhaps another server of that name."""
    made = crew(3)
    made.prepare(b"", {"gpu"}, 1.0)
    for number in (1, 2, 3):
        made.received(number, Prepared(1), 1.1)
    made.received(1, Serving("up"), 1.2)
    made.received(2, HealthUpdate("gpu", None, OPEN), 1.3)
    made.received(2, HealthUpdate("cloud", None, OPEN), 1.3)
    made.received(1, HealthUpdate("gpu", "m", OPEN), 1.3)
    found = [(to, message) for to, message in made.outbox if isinstance(message, HealthUpdate)]
    assert found == [
        *((number, HealthUpdate("cloud", None, OPEN)) for number in (1, 3)),
        *((number, HealthUpdate("gpu", "m", OPEN)) for number in (2, 3)),
    ]
    sent(made)
    made.received(2, Serving("up"), 1.4)
    made.received(2, HealthUpdate("gpu", None, OPEN), 1.5)
    assert sent(made, 1) == [HealthUpdate("gpu", None, OPEN)]


def test_kept_health_changes_are_bounded() -> None:
    """The oldest makes room."""
    made = crew()
    for number in range(UPDATES_LIMIT + 10):
        made.received(1, HealthUpdate("gpu", f"m{number}", OPEN), 1.0)
    sent(made)
    made.ended(2, 2.0)
    made.started(2, 202, 3.0)
    assert len(sent(made, 2)) == UPDATES_LIMIT


def rolled_out(crew: WorkerManager) -> None:
    """A new configuration, prepared by all and adopted."""
    crew.prepare(b"new", (), 0.0)
    messages = sent(crew)
    assert messages == [Prepare(1, b"new")] * len(crew.workers)
    for number in crew.workers:
        assert crew.take_outcome() is None
        crew.received(number, Prepared(1), 0.5)
    assert sent(crew) == [Adopt(1)] * len(crew.workers)
    assert (crew.take_outcome(), crew.take_outcome()) == ((), None)


def test_a_new_configuration_is_served_once_all_serve_it() -> None:
    """Each says so."""
    made = crew()
    rolled_out(made)
    made.received(1, Serving("new"), 1.0)
    assert not made.all_serve
    made.received(2, Serving("new"), 1.0)
    assert made.all_serve
    made.received(2, Leaving(), 2.0)
    assert made.workers[2].leaving


def test_a_configuration_that_one_refuses_is_adopted_by_none() -> None:
    """Not even those that had prepared it, and all serve on; the words are the worker's own."""
    made = crew(3)
    made.prepare(b"new", (), 0.0)
    sent(made)
    made.received(1, Prepared(1), 0.1)
    made.received(2, Prepared(1, ("providers.gpu: bad",)), 0.2)
    assert sent(made) == [Abandon(1)] * 3
    assert made.take_outcome() == ("providers.gpu: bad",)
    assert made.all_serve
    made.received(3, Prepared(1), 0.3)  # too late to matter
    assert (sent(made), made.take_outcome()) == ([], None)


def test_an_answer_to_an_earlier_configuration_does_not_count() -> None:
    """It was given up, and its answer comes while the next one is prepared."""
    made = crew()
    made.prepare(b"old", (), 0.0)
    made.due(PREPARING)
    assert made.take_outcome() == ("worker 1, worker 2 did not open the new configuration within 15 s",)
    made.prepare(b"new", (), 20.0)
    sent(made)
    for answer in (Prepared(1), Prepared(1, ("old",)), Prepared(2)):
        made.received(1, answer, 21.0)
    assert (sent(made), made.take_outcome()) == ([], None)
    assert made.next_at() <= 20.0 + PREPARING
    made.received(2, Prepared(2), 22.0)
    assert made.take_outcome() == ()


def test_a_worker_that_leaves_meanwhile_is_not_waited_for_but_a_new_one_is() -> None:
    """A successor starts with the configuration that serves, so it must prepare the new one as the others do."""
    made = crew(3)
    made.received(3, Leaving(), 0.0)
    made.prepare(b"new", (), 0.0)
    assert sent(made) == [Prepare(1, b"new")] * 2
    made.received(1, Prepared(1), 0.1)
    made.ended(3, 0.1)
    made.started(3, 303, 0.2)
    assert sent(made, 3) == [Prepare(1, b"new")]
    made.received(2, Leaving(), 0.3)
    assert made.take_outcome() is None
    made.received(3, Prepared(1), 0.4)
    assert made.take_outcome() == ()


def test_a_rollout_goes_on_if_the_last_worker_waited_for_ends() -> None:
    """What all others have prepared is adopted; its successor starts with it."""
    made = crew()
    made.prepare(b"new", (), 0.0)
    made.received(1, Prepared(1), 0.1)
    made.ended(2, 0.2)
    assert made.take_outcome() == ()
    assert Adopt(1) in sent(made, 1)
    made.started(2, 202, 0.3)
    assert sent(made, 2) == []


def test_a_drain_ends_a_rollout() -> None:
    """Nobody adopts anything any more."""
    made = crew()
    made.prepare(b"new", (), 0.0)
    made.drain(hurry=False)
    sent(made)
    made.received(1, Prepared(1), 0.1)
    made.received(2, Prepared(1), 0.1)
    assert (sent(made), made.take_outcome()) == ([], None)


def test_every_message_survives_its_journey() -> None:
    """In any pieces; line breaks within are no ends."""
    to_worker = [
        HealthUpdate("gpu", "m\n", OPEN),
        Answer(1, "a\nb\u2028"),
        AskPart(2, "health"),
        Ping(),
        Prepare(3, b"\x00\n"),
        Adopt(3),
        Abandon(3),
        Drain(),
    ]
    from_worker = [
        HealthUpdate("gpu", None, OPEN),
        Serving("a", "b\n"),
        Leaving(),
        FinalMetrics("x\n"),
        Ask(1, "metrics"),
        Part(1, ""),
        Prepared(3, ("a\n",)),
    ]
    for messages, decoder in ((to_worker, TO_WORKER), (from_worker, FROM_WORKER)):
        whole = b"".join(map(to_line, messages))
        for size in (1, 7, len(whole)):
            lines = LineSplitter()
            got = [line for at in range(0, len(whole), size) for line in lines.feed(whole[at : at + size])]
            assert [decoder.decode(line) for line in got] == messages
