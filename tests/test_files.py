import os

import pytest

from cryptows.config.load import load
from cryptows.files import MAX_KEY, read_documents, read_key_file
from cryptows.model.errors import ConfigError


def test_the_main_file_comes_first_and_its_drop_ins_by_name(tmp_path):
    main = tmp_path / "cryptows.toml"
    main.write_text("server.drain = 1")
    (tmp_path / "conf.d").mkdir()
    for name in ("20-b.toml", "10-a.toml", "README", "30.toml.bak"):
        (tmp_path / "conf.d" / name).write_text(f"# {name}")

    documents = read_documents(str(main))

    folder = f"{tmp_path}/conf.d"
    assert [document.name for document in documents] == [
        str(main), f"{folder}/10-a.toml", f"{folder}/20-b.toml"
    ]  # fmt: skip
    assert documents[0].content == b"server.drain = 1"


def test_without_a_path_the_usual_file_is_taken_if_there_is_one(tmp_path):
    usual = tmp_path / "cryptows.toml"
    assert read_documents(None, usual) == ()

    usual.write_text("server.drain = 1")

    assert [document.name for document in read_documents(None, usual)] == [str(usual)]


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(f"{tmp_path}/no.toml", read=read_documents)

    assert caught.value.problems == (
        f"{tmp_path}/no.toml: cannot be read: No such file or directory",
    )


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path), read=read_documents)


def test_a_file_in_the_current_folder_may_be_named_without_it(tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text("auth.secret_file = 'key'")
    monkeypatch.chdir(tmp_path)

    loaded = load("c.toml", read=read_documents)

    assert loaded.settings.auth.secret_file == "key"
    assert loaded.origins["auth.secret_file"] == "c.toml:1"


def test_a_key_file_is_read_with_its_permissions(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"secret\n")
    path.chmod(0o640)

    file = read_key_file(str(path))

    assert (file.content, file.mode) == (b"secret\n", 0o640)


def test_a_file_without_an_end_does_not_fill_the_memory():
    with pytest.raises(OSError, match=f"more than {MAX_KEY} bytes"):
        read_key_file("/dev/zero")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert read_key_file(str(tmp_path / "pipe")).content == b""
