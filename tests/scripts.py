"""What the tests of all scripts ask alike."""

import pytest


def refuses(main, args, says, capsys, monkeypatch):
    """`main` answers a mistake with one line that says `says` and exit code 2, and trains nothing."""
    monkeypatch.setattr("jaxcnn.study.running.fit", lambda *a, **k: pytest.fail("it trained"))
    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("error: ")
    assert says in error
