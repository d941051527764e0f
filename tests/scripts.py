"""Helpers of tests of scripts and of training."""

import contextlib
import functools

import pytest

import jaxcnn as jc
from jaxcnn.parallel import strategy


def train_config(model, config, data, **kwargs):
    """`jaxcnn.train` with the optimizer and the numbers of an `ExperimentConfig`."""
    tx = jc.create_optimizer(config.optimizer, config.train.num_steps)
    loss = jc.create_loss(config.loss, **config.loss_kwargs)
    return jc.train(model, tx, data, config.train, loss=loss, **kwargs)


def refuses(main, args, says, capsys, monkeypatch):
    """`main` answers a mistake with one line that says `says` and exit code 2, and trains nothing."""
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("error: ")
    assert says in error, (says, error)


@contextlib.contextmanager
def on_one_device():
    """Within it a script that asks for a strategy gets one device, whatever it asks for."""

    @functools.wraps(strategy)
    def one(*args, **options):
        return strategy("jit", devices=1)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("jaxcnn.strategy", "jaxcnn.parallel.strategy"):
            patch.setattr(name, one)
        yield
