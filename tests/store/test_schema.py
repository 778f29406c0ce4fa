"""New files, older files, newer files, and files of others."""

from __future__ import annotations

import sqlite3

import pytest

from cryptows.model.errors import StartError
from cryptows.store.schema import APPLICATION_ID, MIGRATIONS, ForeignError, number, prepare

NEXT = (*MIGRATIONS, ("ALTER TABLE cursors ADD COLUMN touched INTEGER NOT NULL DEFAULT 7",))
BROKEN = (*NEXT, ("CREATE TABLE more(x)", "ALTER TABLE nothing ADD COLUMN x"))


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def test_a_new_file_gets_all_migrations_and_says_whose_it_is(connection):
    assert prepare(connection) == (0, len(MIGRATIONS))
    assert prepare(connection) == (len(MIGRATIONS), len(MIGRATIONS))

    assert number(connection, "PRAGMA application_id") == APPLICATION_ID


def test_an_older_file_is_migrated_with_what_it_holds(connection):
    prepare(connection)
    connection.execute("INSERT INTO cursors VALUES('123', 42)")

    assert prepare(connection, NEXT) == (len(MIGRATIONS), len(NEXT))

    assert connection.execute("SELECT * FROM cursors").fetchall() == [("123", 42, 7)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(connection):
    prepare(connection)

    with pytest.raises(sqlite3.OperationalError):
        prepare(connection, BROKEN)

    assert number(connection, "PRAGMA user_version") == len(MIGRATIONS)
    assert number(connection, "SELECT count(*) FROM sqlite_schema WHERE name = 'more'") == 0
    assert prepare(connection, NEXT) == (len(MIGRATIONS), len(NEXT))


def test_a_file_of_a_newer_cryptows_is_not_touched(connection):
    prepare(connection, NEXT)

    with pytest.raises(StartError, match=r"has schema 2, written by a newer cryptows; .* up to 1"):
        prepare(connection)


@pytest.mark.parametrize(
    "made_by_others",
    ["CREATE TABLE t(x)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"],
)
def test_a_file_of_another_program_is_foreign(connection, made_by_others):
    connection.execute(made_by_others)

    with pytest.raises(ForeignError, match=f"expected {APPLICATION_ID:#x}"):
        prepare(connection)


def test_a_number_that_is_not_there_is_zero(connection):
    prepare(connection)

    assert number(connection, "SELECT max(n) FROM events") == 0
    assert number(connection, "SELECT n FROM events") == 0
