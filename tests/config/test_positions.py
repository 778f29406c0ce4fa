import json
import tomllib

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cryptows.config.positions import find_positions

DOCUMENT = '''\
# a comment with [brackets] and a = 1
top = 1
[server]  # why
listen = [
  "a", # ] }
  'b',
]
x.y."z.w" = 5
date = 1979-05-27 07:32:00
text = """
[fake]
k = 1 \\"""
"""""
literal = \'\'\'
[fake2]
\'\'\'\'
in = {a = 1, "b c" = {d = [1, {e = 2}]}}
[[array]]
n = 1
[array.sub]
m = 1
[[array]]
n = 2
[ "q" . 'user_{id}' ]
k = "a # b" # c
"\\u0061" = 1\r
last = 1'''


def test_every_key_is_found_in_its_line():
    tomllib.loads(DOCUMENT)

    lines = find_positions(DOCUMENT)

    assert {".".join(key): line for key, line in lines.items()} == {
        "top": 2,
        "server": 3,
        "server.listen": 4,
        "server.listen.0": 5,
        "server.listen.1": 6,
        "server.x": 8,
        "server.x.y": 8,
        "server.x.y.z.w": 8,
        "server.date": 9,
        "server.text": 10,
        "server.literal": 14,
        "server.in": 17,
        "server.in.a": 17,
        "server.in.b c": 17,
        "server.in.b c.d": 17,
        "server.in.b c.d.0": 17,
        "server.in.b c.d.1": 17,
        "server.in.b c.d.1.e": 17,
        "array": 18,
        "array.0": 18,
        "array.0.n": 19,
        "array.0.sub": 20,
        "array.0.sub.m": 21,
        "array.1": 22,
        "array.1.n": 23,
        "q": 24,
        "q.user_{id}": 24,
        "q.user_{id}.k": 25,
        "q.user_{id}.a": 26,
        "q.user_{id}.last": 27,
    }


def test_a_table_named_twice_stands_where_it_was_named_first():
    lines = find_positions("[a.b]\nc = 1\n[a]\nd = 2\n")

    assert lines == {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 2, ("a", "d"): 4}


# Documents with known places: each entry knows how many lines it takes.
values = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "true",
        '"a = 1 # ]"',
        "'[x]'",
        '"""\n[t]\nb = 2\n"""',
        "'''\n\n# '''",
        "[1, 2]",
        "[\n  1, # ]\n  [ '}' ],\n]",
        "{}",
        "{a.b = 1, c = [{}]}",
        "1979-05-27T07:32:00Z",
    ]
)
gaps = st.sampled_from(["", "\n", "# [no]\n", "  \n\t\n", "\r\n"])
names = (
    st.text(max_size=8)
    .map(lambda name: json.dumps(name, ensure_ascii=True))
    .filter(lambda name: "\\ud" not in name and "\\u007f" not in name)
)


@hypothesis_settings(max_examples=hypothesis_settings().max_examples // 2)
@given(tables=st.dictionaries(names, st.dictionaries(names, st.tuples(gaps, values), max_size=4)))
def test_keys_are_found_whatever_stands_between(tables):
    text, expected = "", {}
    for table, entries in tables.items():
        expected[tomllib.loads(f"v={table}")["v"],] = text.count("\n") + 1
        text += f"[{table}]\n"
        for name, (gap, value) in entries.items():
            text += gap
            path = tuple(tomllib.loads(f"v={part}")["v"] for part in (table, name))
            expected[path] = text.count("\n") + 1
            text += f"{name} = {value} # end\n"
    tomllib.loads(text)

    found = find_positions(text)

    assert {path: line for path, line in found.items() if path in expected} == expected


pieces = st.sampled_from(
    [
        '"',
        "'",
        '"""',
        "'''",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "=",
        ".",
        ",",
        "#",
        "\n",
        "\\",
        "a",
        " ",
        "1",
    ]
)


@given(text=st.one_of(st.text(), st.lists(pieces).map("".join)))
def test_no_text_makes_it_fail(text):
    lines = find_positions(text)

    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_deep_nesting_does_not_make_it_fail():
    assert find_positions("a = 1\nb = " + "[" * 100_000) == {("a",): 1, ("b",): 2} | {
        ("b", *["0"] * depth): 2 for depth in range(1, 102)
    }


def test_it_takes_time_in_proportion_to_the_text():
    text = "".join(f"k{number} = {number}\n" for number in range(5_000))

    lines = find_positions(text)

    assert lines["k4999",] == 5_000
