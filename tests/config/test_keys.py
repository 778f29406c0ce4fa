import pytest

from cryptows.config.keys import KeyFile, Keys, read_keys, require_secret
from cryptows.config.load import defaults, load
from cryptows.model.errors import ConfigError
from tests.config.loading import load_text

KEY = b"0123456789abcdef0123456789abcdef"
OLD = b"fedcba9876543210fedcba9876543210"


def keys(sets: list[str], files: dict[str, KeyFile], **environ: str) -> Keys:
    loaded = load(None, sets, environ)

    def read_file(path: str) -> KeyFile:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    return read_keys(loaded.settings, loaded.origins, read_file, environ)


def problem_with(sets: list[str], files: dict[str, KeyFile], **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        keys(sets, files, **environ)
    return str(caught.value)


def test_a_key_may_stand_in_the_settings():
    assert keys([f"auth.secret={KEY.decode()}"], {}).all == [KEY]


def test_a_key_may_come_from_the_seed_systems_variable():
    assert keys([], {}, JWT_SECRET=KEY.decode()).all == [KEY]


@pytest.mark.parametrize("content", [KEY, KEY + b"\n"])
def test_a_key_may_come_from_a_file_and_one_line_break_at_its_end_is_none_of_it(content):
    assert keys(["auth.secret_file=/k"], {"/k": KeyFile(content, 0o640)}).all == [KEY]


def test_only_one_line_break_is_taken_away():
    assert (
        keys(["auth.secret_file=/k"], {"/k": KeyFile(KEY + b"\n\n", 0o600)}).current == KEY + b"\n"
    )


def test_a_key_may_come_from_a_credential_of_systemd():
    files = {"/run/credentials/c/secret_key": KeyFile(KEY, 0o400)}

    found = keys(
        ["auth.secret_file=credential:secret_key"],
        files,
        CREDENTIALS_DIRECTORY="/run/credentials/c",
    )

    assert found.all == [KEY]


def test_the_key_before_is_accepted_too():
    files = {"/k": KeyFile(KEY, 0o600), "/old": KeyFile(OLD, 0o600)}

    found = keys(["auth.secret_file=/k", "auth.previous_secret_file=/old"], files)

    assert found == Keys(KEY, OLD)
    assert found.all == [KEY, OLD]


def test_keys_do_not_show_when_printed():
    found = keys([f"auth.secret={KEY.decode()}"], {})

    assert repr(found) == "Keys()"
    assert KEY.decode() not in repr(KeyFile(KEY, 0o600))


def test_serve_needs_a_key_from_somewhere():
    assert problem_with([], {}) == (
        "auth.secret is missing; expected auth.secret_file (a path, or credential:NAME), "
        "JWT_SECRET in the environment, or --set auth.secret=…"
    )


def test_a_file_is_enough_for_the_first_look():
    require_secret(load(None, ["auth.secret_file=/k"]).settings)


def test_check_needs_no_key():
    assert defaults().auth.secret == ""


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (None, "/k cannot be read: No such file or directory"),
        (KeyFile(KEY, 0o644), "everybody may use /k (mode 0644); expected at most 0640"),
        (KeyFile(KEY, 0o602), "everybody may use /k (mode 0602); expected at most 0640"),
        (KeyFile(b"", 0o600), "/k is empty"),
        (KeyFile(b"\n", 0o600), "/k is empty"),
        (
            KeyFile(KEY[:-1] + b"\n", 0o600),
            "/k holds 31 bytes; expected at least 32 bytes for HS256, "
            "or auth.insecure_short_key = true",
        ),
    ],
)
def test_which_key_files_are_refused(file, problem):
    files = {} if file is None else {"/k": file}

    assert problem_with(["auth.secret_file=/k"], files) == (
        f'--set: auth.secret_file is "/k"; {problem}'
    )


def test_the_key_before_is_looked_at_as_closely():
    sets = ["auth.secret_file=/k", "auth.previous_secret_file=/old"]

    problem = problem_with(sets, {"/old": KeyFile(b"short", 0o600)})

    assert problem.splitlines() == [
        '--set: auth.secret_file is "/k"; /k cannot be read: No such file or directory',
        '--set: auth.previous_secret_file is "/old"; /old holds 5 bytes; '
        "expected at least 32 bytes for HS256, or auth.insecure_short_key = true",
    ]


def test_a_credential_needs_systemd():
    assert problem_with(["auth.secret_file=credential:key"], {}) == (
        '--set: auth.secret_file is "credential:key"; '
        "expected $CREDENTIALS_DIRECTORY, which systemd's LoadCredential= sets"
    )


@pytest.mark.parametrize("name", ["", "../key", "a/b", ".", ".key", "a b"])
def test_a_credential_is_one_file_name(name):
    with pytest.raises(ConfigError, match=r"expected credential:NAME$"):
        load(None, [f"auth.secret_file=credential:{name}"])


@pytest.mark.parametrize(("algorithm", "length"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_key_must_be_as_long_as_its_signatures(algorithm, length):
    sets = [f"auth.algorithms={algorithm}"]

    assert keys([*sets, f"auth.secret={'x' * length}"], {}).current == b"x" * length
    with pytest.raises(ConfigError) as caught:
        load(None, [*sets, f"auth.secret={'x' * (length - 1)}"])
    assert caught.value.problems == (
        f"--set: auth.secret is *** ({length - 1} bytes); expected at least {length} bytes "
        f"for {algorithm}, or auth.insecure_short_key = true",
    )


def test_the_longest_signature_counts():
    with pytest.raises(ConfigError, match="at least 64 bytes for HS512"):
        load(None, ["auth.algorithms=HS256,HS512", f"auth.secret={'x' * 63}"])


def test_the_length_is_counted_in_bytes():
    assert load(None, [f"auth.secret={'ä' * 16}"]).settings.auth.secret == "ä" * 16


def test_a_short_key_may_be_insisted_on():
    sets = ["auth.insecure_short_key=true", "auth.secret_file=/k"]

    assert keys(sets, {"/k": KeyFile(b"short", 0o600)}).current == b"short"
    assert load(None, [*sets[:1], "auth.secret=short"]).warnings == [
        "--set: auth.secret shows in the list of processes; better auth.secret_file",
        "--set: auth.insecure_short_key is on: a short key can be found by trying",
    ]


def test_of_two_keys_the_stronger_layers_counts_and_the_other_is_told_of():
    text = f"auth.secret = '{OLD.decode()}'\nauth.previous_secret_file = '/old'\n"

    loaded = load_text(text, sets=["auth.secret_file=/k"])

    assert loaded.settings.auth.secret == ""
    assert loaded.settings.auth.secret_file == "/k"
    assert loaded.origins["auth.secret"] == "default"
    assert loaded.warnings == [
        "cryptows.toml:1: auth.secret is not used: --set sets auth.secret_file"
    ]


def test_a_variable_is_stronger_than_a_key_file_of_the_config():
    loaded = load_text("auth.secret_file = '/k'", environ={"JWT_SECRET": KEY.decode()})

    assert loaded.settings.auth.secret_file == ""
    assert loaded.settings.auth.secret == KEY.decode()
    assert loaded.warnings == [
        "cryptows.toml:1: auth.secret_file is not used: environment JWT_SECRET sets auth.secret"
    ]


def test_two_keys_in_one_file_are_refused():
    with pytest.raises(ConfigError) as caught:
        load_text(f"[auth]\nsecret = '{KEY.decode()}'\nsecret_file = '/k'")

    assert caught.value.problems == (
        "cryptows.toml:3: auth.secret_file and auth.secret are both set; expected one of them",
    )
