import trio
from trio.testing import memory_stream_pair

from cryptows.cli.feeding import EXCERPT, FeedClient, Refused

HELLO = b'{"hello":{"producer":"a-bot","acks":true}}\n'


async def a_client(nursery):
    refused: list[Refused] = []
    here, there = memory_stream_pair()
    client = FeedClient(here, "a-bot", refused.append)
    nursery.start_soon(client.read_answers)
    await client.greet()
    assert await there.receive_some() == HELLO
    return client, there, refused


async def test_lines_are_written_when_flushed_and_counted(nursery):
    client, daemon, _ = await a_client(nursery)

    await client.send(1, b"one")
    await client.send(2, b"two")
    await client.flush()

    assert await daemon.receive_some() == b"one\ntwo\n"
    assert (client.counts.sent, client.counts.sent_bytes) == (2, 8)


async def test_many_lines_are_written_without_being_asked(nursery):
    client, daemon, _ = await a_client(nursery)

    await client.send(1, b"x" * 70_000)

    assert len(await daemon.receive_some(100_000)) == 70_001


async def test_answers_are_matched_with_the_lines_as_the_person_counts(nursery):
    client, daemon, refused = await a_client(nursery)
    await client.send(10, b'{"good":1}')
    await client.send(12, b"bad " + b"x" * 1000)
    await client.finish()

    await daemon.send_all(
        b'{"ok":true,"line":1}\n{"ok":true,"line":2,"offset":"e.1","delivered_to":3}\n'
        b'{"ok":false,"line":3,"error":{"code":"invalid_json","mess'
    )
    await daemon.send_all(b'age":"no"}}\n')
    await daemon.aclose()
    await trio.testing.wait_all_tasks_blocked()

    counts = client.counts
    assert (counts.accepted, counts.refused, counts.delivered) == (1, 1, 3)
    assert refused == [Refused(12, (b"bad " + b"x" * 1000)[: EXCERPT + 1], "invalid_json", "no")]
    assert not client.unanswered


async def test_a_duplicate_is_counted(nursery):
    client, daemon, _ = await a_client(nursery)
    await client.send(1, b"{}")

    await daemon.send_all(b'{"ok":true,"line":2,"delivered_to":0,"duplicate":true}\n')
    await trio.testing.wait_all_tasks_blocked()

    assert (client.counts.accepted, client.counts.duplicates) == (1, 1)


async def test_a_refusal_of_the_connection_has_no_line(nursery):
    client, daemon, refused = await a_client(nursery)
    await client.send(1, b"{}")

    await daemon.send_all(b'{"ok":false,"error":{"code":"forbidden","message":"uid 7"}}\n')
    await trio.testing.wait_all_tasks_blocked()

    assert refused == [Refused(0, b"", "forbidden", "uid 7")]
    assert [sent.number for sent in client.unanswered] == [0, 1]


async def test_lines_that_get_no_answer_stay_unanswered(nursery):
    client, daemon, _ = await a_client(nursery)
    await client.send(1, b"{}")

    await daemon.send_all(b'{"ok":true,"line":1}\n')
    await daemon.aclose()
    await trio.testing.wait_all_tasks_blocked()

    assert [sent.number for sent in client.unanswered] == [1]


async def test_an_answer_to_no_line_of_ours_is_not_attributed_to_one(nursery):
    client, daemon, refused = await a_client(nursery)
    await client.send(1, b"{}")

    await daemon.send_all(
        b'{"ok":true,"line":2}\n{"ok":false,"line":2,"error":{"code":"x","message":"y"}}\n'
    )
    await trio.testing.wait_all_tasks_blocked()

    assert refused == [Refused(0, b"", "x", "y")]
