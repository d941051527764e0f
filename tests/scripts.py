"""What the tests of all scripts ask alike."""

import contextlib
import functools

import pytest

from jaxcnn.parallel import driver


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


@contextlib.contextmanager
def on_one_device():
    """Within it a script that asks for a driver gets one device, whatever it asks for."""

    @functools.wraps(driver)
    def one(*args, **options):
        return driver("jit", devices=1)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("jaxcnn.driver", "jaxcnn.parallel.driver"):
            patch.setattr(name, one)
        yield
