"""Socket.IO packets, byte for byte, and everything that is no packet."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.wire import socketio
from cryptows.wire.engineio import ProtocolError
from cryptows.wire.socketio import SocketPacket, Type, assemble, decode, encode


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("0", SocketPacket(Type.CONNECT)),
        ('0{"token":"x"}', SocketPacket(Type.CONNECT, data={"token": "x"})),
        ("0/custom", SocketPacket(Type.CONNECT, "/custom")),
        ("0/custom,", SocketPacket(Type.CONNECT, "/custom")),
        ('0/custom,{"token":"x"}', SocketPacket(Type.CONNECT, "/custom", data={"token": "x"})),
        ("0/", SocketPacket(Type.CONNECT)),
        ("0/ä?b=1,", SocketPacket(Type.CONNECT, "/ä?b=1")),
        ("1", SocketPacket(Type.DISCONNECT)),
        ("1/custom", SocketPacket(Type.DISCONNECT, "/custom")),
        ("1/custom,", SocketPacket(Type.DISCONNECT, "/custom")),
        ('2["a"]', SocketPacket(Type.EVENT, data=["a"])),
        ('2[1,"x"]', SocketPacket(Type.EVENT, data=[1, "x"])),
        ('2[1.5]', SocketPacket(Type.EVENT, data=[1.5])),
        ('20["a",null]', SocketPacket(Type.EVENT, id=0, data=["a", None])),
        ('212["a"]', SocketPacket(Type.EVENT, id=12, data=["a"])),
        ('29007199254740991["a"]', SocketPacket(Type.EVENT, id=(1 << 53) - 1, data=["a"])),
        ('2/custom,7["a",{"b":[]}]', SocketPacket(Type.EVENT, "/custom", 7, ["a", {"b": []}])),
        ("312[]", SocketPacket(Type.ACK, id=12, data=[])),
        ('3/custom,0[{"ok":1}]', SocketPacket(Type.ACK, "/custom", 0, [{"ok": 1}])),
        ('52-["m",1]', SocketPacket(Type.EVENT, data=["m", 1], attachments=2)),
        ('51-/custom,3["m"]', SocketPacket(Type.EVENT, "/custom", 3, ["m"], 1)),
        ('50-["m"]', SocketPacket(Type.EVENT, data=["m"])),
        ("61-3[1]", SocketPacket(Type.ACK, id=3, data=[1], attachments=1)),
    ],
)  # fmt: skip
def test_packets_are_read(text, packet):
    assert decode(text) == packet


@pytest.mark.parametrize(
    "text",
    [
        "", "7", "abc", "²", "-1", " 0", "0[]", '0"x"', "01", "05{}", "0null", "1{}", "1[]", "17",
        "2", "2{}", "2[]", '2"a"', "2null", "27", "2[null]", "2[true]", '2[{"a":1}]', '2[["a"]]',
        '2["connect"]', '2["connect_error"]', '2["disconnect"]', '2["disconnecting"]',
        '2["newListener"]', '2["removeListener"]', '2abc["a"]', '2²["a"]', '2\uff11["a"]',
        '2007["a"]',
        '2-1["a"]', '21.5["a"]', '2 1["a"]', '29007199254740992["a"]', '2' + "9" * 5000 + '["a"]',
        '2["a"', '2["a"]x', '2["\\ud800"]', "2[NaN]", '2["a",Infinity]', '2["a",1e999]',
        '2["a",' + "1" * 5000 + "]", "2" + "[" * 50_000 + "]" * 50_000, '2/custom["a"]',
        '2/a\x1eb,["a"]', '2/a\nb,["a"]', '2/' + "n" * 128 + ',["a"]', "3[]", "312{}", "312", "3",
        '4{"message":"x"}', "4", '5["m"]', '5-["m"]', '511-["m"]', '5100000-["m"]', '5²-["m"]',
        '501-["m"]', '5-1-["m"]', '5 1-["m"]', '51.0-["m"]', "51-", "51-[]", '51-["connect"]',
        "61-[1]", '21-["m"]', "01-{}", '2["a",' + "0," * 100 + "0]", "31[" + "0," * 101 + "0]",
    ],
)  # fmt: skip
def test_everything_else_is_an_error(text):
    with pytest.raises(ProtocolError):
        decode(text)


def test_the_count_of_arguments_is_bounded():
    assert len(decode('2["a",' + "0," * 99 + "0]").data) == 101

    with pytest.raises(ProtocolError, match="101 arguments; 100 may be"):
        decode('2["a",' + "0," * 100 + "0]")


def test_the_length_of_a_namespace_is_bounded():
    assert decode("0/" + "n" * 127).namespace == "/" + "n" * 127

    with pytest.raises(ProtocolError, match="a namespace of 129 characters"):
        decode("0/" + "n" * 128)


def test_ten_attachments_may_be_announced():
    assert decode('510-["m"]').attachments == 10

    with pytest.raises(ProtocolError, match="11 attachments; 10 may be"):
        decode('511-["m"]')


@given(text=st.text() | st.from_regex(r"[0-6](\d{1,2}-)?(/[a-z]{0,3},)?\d{0,3}[\[{\"].{0,9}"))
def test_any_text_is_a_packet_or_a_protocol_error(text):
    try:
        packet = decode(text)
    except ProtocolError:
        return

    assert packet.attachments <= 10
    assert packet.type in (Type.CONNECT, Type.DISCONNECT, Type.EVENT, Type.ACK)


# Attachments


def test_attachments_take_their_places():
    data = decode(
        '52-["m",{"a":[{"_placeholder":true,"num":1}]},{"_placeholder":true,"num":0}]'
    ).data

    assert assemble(data, [b"zero", b"one"]) == ["m", {"a": [b"one"]}, b"zero"]


@pytest.mark.parametrize(
    "data",
    [
        ["m"],
        ["m", {"_placeholder": True}],
        ["m", {"_placeholder": True, "num": 1}],
        ["m", {"_placeholder": True, "num": -1}],
        ["m", {"_placeholder": True, "num": "0"}],
        ["m", {"_placeholder": True, "num": 0.0}],
        ["m", {"_placeholder": True, "num": False}],
        ["m", {"_placeholder": 1, "num": 0}],
        ["m", {"_placeholder": True, "num": 0}, {"_placeholder": True, "num": 0}],
    ],
)
def test_each_attachment_has_exactly_one_place(data):
    with pytest.raises(ProtocolError, match="placeholder"):
        assemble(data, [b"zero"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().filter(lambda key: key != "_placeholder"), inner, max_size=3)
    ),
    max_leaves=6,
)
namespaces = st.sampled_from(["/", "/custom"])
ids = st.none() | st.integers(0, socketio.MAX_SAFE_INTEGER)


@given(namespace=namespaces, id_=ids, arguments=st.lists(json_values, max_size=3))
def test_events_come_back_as_they_were(namespace, id_, arguments):
    head, *attachments = encode(Type.EVENT, namespace, id_, ["name", *arguments])

    packet = decode(head.payload.decode()[1:])

    assert (packet.type, packet.namespace, packet.id) == (Type.EVENT, namespace, id_)
    assert packet.attachments == len(attachments)
    assert all(each.binary for each in attachments)
    data = assemble(packet.data, [each.payload for each in attachments])
    assert data == ["name", *arguments]


# What we send


def payloads(packets):
    return [(packet.payload, packet.binary) for packet in packets]


def test_what_a_server_sends_is_what_the_reference_sends():
    assert payloads(encode(Type.EVENT, "/", None, ["message-back", 1, "2", {"3": [True]}])) == [
        (b'42["message-back",1,"2",{"3":[true]}]', False)
    ]
    assert payloads(encode(Type.ACK, "/", 456, [1, "2", {"3": [False]}])) == [
        (b'43456[1,"2",{"3":[false]}]', False)
    ]
    assert payloads(encode(Type.ACK, "/", 12, [])) == [(b"4312[]", False)]
    assert payloads(encode(Type.EVENT, "/custom", 0, ["q"])) == [(b'42/custom,0["q"]', False)]
    assert payloads(encode(Type.ACK, "/", 789, [b"\x01", b"\x02"])) == [
        (b'462-789[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]', False),
        (b"\x01", True),
        (b"\x02", True),
    ]
    assert payloads(encode(Type.EVENT, "/", None, ["m", {"deep": [b"\x01"]}])) == [
        (b'451-["m",{"deep":[{"_placeholder":true,"num":0}]}]', False),
        (b"\x01", True),
    ]


def test_answers_to_a_connect():
    assert socketio.connected("/", "Qo-d").payload == b'40{"sid":"Qo-d"}'
    assert socketio.connected("/", "a", "b").payload == b'40{"sid":"a","pid":"b"}'
    assert socketio.connected("/custom", "Qo-d").payload == b'40/custom,{"sid":"Qo-d"}'
    assert (
        socketio.refused("/random", "Invalid namespace").payload
        == b'44/random,{"message":"Invalid namespace"}'
    )
    assert json.loads(
        socketio.refused("/", "jwt expired", {"code": "token_expired"}).payload[2:]
    ) == {
        "message": "jwt expired",
        "data": {"code": "token_expired"},
    }
    assert socketio.disconnected("/").payload == b"41"
    assert socketio.disconnected("/custom").payload == b"41/custom,"
