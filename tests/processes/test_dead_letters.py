"""`workq dead` before it asks a broker: mistakes on its command line, and what comes out of an editor."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from supervisor.commands.dead import dead
from supervisor.commands.dead.edit import edited
from supervisor.commands.dead.letter import Letter
from tests import wire

Editor = Callable[[str], None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("drop --where eror~x --yes", "there is no field eror. Did you mean error? The fields are id,"),
        ("drop --where error --yes", "expected FIELD~TEXT"),
        ("list --since soon", "expected a time ago"),
        ("list --until=", "expected a time ago"),
        ("drop --since 1h --until 2h --yes", "--since is not before --until"),
        ("drop v0 --where error~x --yes", "not both"),
        ("drop v0 --all --yes", "not both"),
        ("drop --yes", "Give IDs"),
        ("requeue v0 --rate fast", "such as 20/s"),
        ("requeue --all --edit", "--edit is for one dead letter"),
        ("requeue a b --edit", "--edit is for one dead letter"),
        ("requeue a --edit --rate 1/s", "--edit is for one dead letter"),
        ("list --ids --json", "--ids prints ids and nothing else"),
    ],
)
def test_a_mistake_is_said_before_anything_is_done(arguments: str, words: str) -> None:
    # Nothing listens there: who tried would exit with 75.
    done = CliRunner().invoke(dead, [*arguments.split(), "--url", "amqp://127.0.0.1:1/"])
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.output.split())


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """Makes a piece of Python the editor; it has the file as `path`."""

    def make(code: str) -> None:
        script = tmp_path / "editor"
        script.write_text(f"#!{sys.executable}\nimport pathlib, sys\npath = pathlib.Path(sys.argv[-1])\n{code}\n")
        script.chmod(0o700)
        monkeypatch.setenv("VISUAL", str(script))

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return make


def letter(body: bytes) -> Letter:
    return Letter(1, wire.properties(message_id=wire.short(b"m")), body, "q")


@pytest.mark.parametrize(
    ("before", "code", "after"),
    [
        (b"one", "path.write_text('two')", b"two"),
        (b"one", "path.write_text('two\\n')", b"two"),  # most editors end the last line
        (b"one", "path.write_text('two\\n\\n')", b"two\n"),
        (b"one\n", "path.write_text('two\\n')", b"two\n"),
        (b"one\n", "path.write_text('one')", b"one"),
        ("\u00fc\r\n".encode(), "path.write_bytes(path.read_bytes() * 2)", "\u00fc\r\n\u00fc\r\n".encode()),
        (b"", "path.write_text('two')", b"two"),
    ],
)
def test_what_comes_out_of_the_editor_is_the_body(editor: Editor, before: bytes, code: str, after: bytes) -> None:
    editor(code)
    assert edited(letter(before), "guest", "q") == after


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"one", "sys.exit(3)", "the editor failed"),
        (b"one", "path.unlink()", "has removed its file"),
        (b"one", "pass", "the body is unchanged"),
        (b"one", "path.write_text('one\\n')", "the body is unchanged"),
        (b"one", "path.write_text('')", "the edited body is empty"),
        (b"one", "path.write_text('\\n')", "the edited body is empty"),
        (b"one", "path.write_bytes(b'\\xff')", "the edited body is not text in UTF-8"),
        (b"\xff\x00", "sys.exit('not asked')", "is binary"),
        (b"\xff\x00", "sys.exit('not asked')", "workq publish --queue q --id m --file FILE"),
        (b"x" * (32 * 1024 + 1), "sys.exit('not asked')", "at most 32,768 can be edited"),
    ],
)
def test_otherwise_it_is_said_why_nothing_happens(
    editor: Editor,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    body: bytes,
    code: str,
    words: str,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # an edited body that is refused is kept
    editor(code)
    with pytest.raises(SystemExit) as ended:
        edited(letter(body), "guest", "q")
    assert ended.value.code == 1
    said = capfd.readouterr().err
    assert words in said
    assert "Nothing was requeued" in said
    assert "not asked" not in said


@pytest.mark.parametrize(
    ("editor", "words"),
    [("/nonexistent/editor", "the editor failed"), ("vi 'x", "$VISUAL or $EDITOR cannot be read as a command")],
)
def test_an_editor_that_does_not_exist_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], editor: str, words: str
) -> None:
    monkeypatch.setenv("VISUAL", editor)
    with pytest.raises(SystemExit):
        edited(letter(b"one"), "guest", "q")
    assert words in capfd.readouterr().err
