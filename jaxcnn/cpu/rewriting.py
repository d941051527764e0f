"""A function evaluated with other operations in place of some: what is differentiated, scanned or called within it included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxprs_in_params, subjaxprs

LOOPS = {"scan", "while", "cond"}
"""Operations whose programs are run often, or perhaps."""


class Replacement(NamedTuple):
    """What is evaluated in an operation's place."""

    function: Callable[..., Any]
    """From the operation's inputs to its one result."""
    materialize: tuple[int, ...] = ()
    """The inputs that are in memory before it: whoever needs one of them afterwards reads it and does not compute it again."""


Rule = Callable[[JaxprEqn], Replacement | None]
"""An operation -> what to evaluate in its place, or None to leave it as it is."""


def rewrite(function: Callable[..., Any], rule: Rule, looped: Rule | None = None) -> Callable[..., Any]:
    """`function` with the operations for which `rule` knows something else done so; within loops, those that `looped` knows.

    What `rule` replaces `looped` replaces too; by default it is `rule`.

    It is read as it is at the end: of a gradient, say, the operations of its backward pass too. A function in it that has such
    operations is evaluated in its place, so that a derivative rule of its own is not known any more.

    Example:
      >>> import jax.numpy as jnp
      >>> def rule(eqn):
      ...     return Replacement(jnp.cos) if eqn.primitive.name == "sin" else None
      >>> float(rewrite(lambda x: 2 * jax.jit(jnp.sin)(x), rule)(0.0))
      2.0
    """

    def run(*args: Any) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(
            jax.tree.structure(shape), evaluated(program, jax.tree.leaves(args), rule, looped or rule)
        )

    return run


def count_matches(program: Any, rule: Rule) -> int:
    """How many operations of a program `rule` replaces, those of functions within it included."""
    return sum(rule(eqn) is not None for eqn in program.eqns) + sum(
        count_matches(each, rule) for each in subjaxprs(program)
    )


def evaluated(program: Any, values: Sequence[Any], rule: Rule, looped: Rule) -> list[Any]:
    """A jaxpr's results, by `rule` and within its loops by `looped`; where constants belong to it, it has them itself."""
    known = dict(zip([*program.constvars, *program.invars], [*getattr(program, "consts", ()), *values], strict=True))
    at_rest = set()

    def read(v):
        return v.val if isinstance(v, Literal) else known[v]

    for eqn in program.eqns:
        instead = rule(eqn)
        for v in [eqn.invars[i] for i in instead.materialize] if instead else []:
            if not isinstance(v, Literal) and v not in at_rest:
                at_rest.add(v)
                known[v] = materialize(known[v])
        given = [read(v) for v in eqn.invars]
        with eqn.ctx.manager:  # what the operation was to be compiled with, such as not to be inlined
            outs = [instead.function(*given)] if instead else _operated(eqn, given, rule, looped)
        known |= zip(eqn.outvars, outs, strict=True)
    return [read(v) for v in program.outvars]


def materialize(x: jax.Array) -> jax.Array:
    """`x`, which XLA then writes to memory once instead of computing it anew for each of its users.

    Of the sum at the end of a residual block XLA would compute in each user all the blocks before, whose sums are cheap
    one by one. `jax.lax.optimization_barrier` is gone by the time it fuses; a call that it may not inline is not.
    """
    with set_xla_metadata(inlineable="false"):
        return _same(x)


@jax.jit
def _same(x):
    return x


def _operated(eqn, values, rule, looped) -> list[Any]:
    """An operation's results. A function with replaced operations is evaluated in its place."""
    kind, params = eqn.primitive, eqn.params
    if any(count_matches(each, looped) for each in jaxprs_in_params(params)):
        body = next((params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params), None)
        if kind.name == "jit":
            return jax.jit(lambda *given: evaluated(body, given, rule, looped))(*values)
        if body is not None and kind.name not in LOOPS:
            return evaluated(body, values, rule, looped)
        params = {name: _rewritten(value, looped) for name, value in params.items()}
    outs = kind.bind(*values, **kind.get_bind_params(params))
    return list(outs) if kind.multiple_results else [outs]


def _rewritten(value, rule):
    """The same parameter of an operation, with operations replaced in the programs in it."""
    if isinstance(value, tuple):
        return tuple(_rewritten(each, rule) for each in value)
    if not isinstance(value, ClosedJaxpr):
        return value
    inputs = [jax.ShapeDtypeStruct(v.shape, v.dtype, weak_type=v.weak_type) for v in value.in_avals]
    return jax.make_jaxpr(lambda *given: evaluated(value, given, rule, rule))(*inputs)
