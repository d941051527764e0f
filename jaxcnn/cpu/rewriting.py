"""Evaluation of a function with other operations instead of some.

The replacement reaches all that is differentiated, scanned or called within the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxprs_in_params, subjaxprs

LOOPS = {"scan", "while", "cond"}
"""Operations whose programs run many times, or only under a condition."""


class Replacement(NamedTuple):
    """Function that is evaluated instead of an operation.

    Attributes:
      function: maps the operation's inputs to its one result.
      materialize: positions of the inputs that are written to memory before it. Later operations
        that need one of them read it and do not compute it again.
    """

    function: Callable[..., Any]
    materialize: tuple[int, ...] = ()


Rule = Callable[[JaxprEqn], Replacement | None]
"""Function of an operation that returns its replacement.

None leaves the operation as it is.
"""


def rewrite(
    function: Callable[..., Any], rule: Rule, loop_rule: Rule | None = None
) -> Callable[..., Any]:
    """Return `function` with the operations that match `rule` replaced.

    The program is read after all transformations. That of a gradient contains the operations of its
    backward pass too. An inner function that has such operations is evaluated inline, so that its
    own derivative rule is lost.

    Args:
      function: of any arrays.
      rule: applies outside loops.
      loop_rule: applies within loops, by default `rule`. It replaces all that `rule` replaces.

    Example:
      >>> import jax.numpy as jnp
      >>> def rule(eqn):
      ...     return Replacement(jnp.cos) if eqn.primitive.name == "sin" else None
      >>> float(rewrite(lambda x: 2 * jax.jit(jnp.sin)(x), rule)(0.0))
      2.0
    """

    def run(*args: Any) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        results = evaluate_jaxpr(program, jax.tree.leaves(args), rule, loop_rule or rule)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return run


def count_matches(program: Any, rule: Rule) -> int:
    """Count the operations that `rule` replaces, in inner functions too."""
    return sum(rule(eqn) is not None for eqn in program.eqns) + sum(
        count_matches(inner, rule) for inner in subjaxprs(program)
    )


def evaluate_jaxpr(program: Any, values: Sequence[Any], rule: Rule, loop_rule: Rule) -> list[Any]:
    """Evaluate a jaxpr with operations replaced.

    Args:
      program: a jaxpr; a closed one has its constants.
      values: of the inputs; for an open jaxpr, the constants come first.
      rule: applies outside loops.
      loop_rule: applies within loops.

    Returns:
      The results, a list.
    """
    variables = [*program.constvars, *program.invars]
    env = dict(zip(variables, [*getattr(program, "consts", ()), *values], strict=True))
    materialized = set()

    def read(v):
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in program.eqns:
        replacement = rule(eqn)
        for v in [eqn.invars[i] for i in replacement.materialize] if replacement else []:
            if not isinstance(v, Literal) and v not in materialized:
                materialized.add(v)
                env[v] = materialize(env[v])
        inputs = [read(v) for v in eqn.invars]
        # The context has the operation's compiler metadata, such as not to be inlined.
        with eqn.ctx.manager:
            outs = (
                [replacement.function(*inputs)]
                if replacement
                else _evaluate_equation(eqn, inputs, rule, loop_rule)
            )
        env |= zip(eqn.outvars, outs, strict=True)
    return [read(v) for v in program.outvars]


def materialize(x: jax.Array) -> jax.Array:
    """Return `x`, which XLA writes to memory once and computes only once.

    XLA would otherwise compute the sum at the end of a residual block again in each user. Each
    computation would include the blocks before, whose sums are cheap one by one.
    `jax.lax.optimization_barrier` is removed before XLA fuses operations. A call that it may not
    inline stays.
    """
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


@jax.jit
def _identity(x):
    return x


def _evaluate_equation(eqn, values, rule, loop_rule) -> list[Any]:
    """Return an operation's results.

    A function with replaced operations is evaluated inline.
    """
    primitive, params = eqn.primitive, eqn.params
    if any(count_matches(inner, loop_rule) for inner in jaxprs_in_params(params)):
        names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
        body = next((params[name] for name in names if name in params), None)
        if primitive.name == "jit":
            run = jax.jit(lambda *args: evaluate_jaxpr(body, args, rule, loop_rule))
            return run(*values)
        if body is not None and primitive.name not in LOOPS:
            return evaluate_jaxpr(body, values, rule, loop_rule)
        params = {name: _rewrite_param(value, loop_rule) for name, value in params.items()}
    outs = primitive.bind(*values, **primitive.get_bind_params(params))
    return list(outs) if primitive.multiple_results else [outs]


def _rewrite_param(value, rule):
    """Return a parameter of an operation, with operations replaced in its programs."""
    if isinstance(value, tuple):
        return tuple(_rewrite_param(item, rule) for item in value)
    if not isinstance(value, ClosedJaxpr):
        return value
    inputs = [jax.ShapeDtypeStruct(v.shape, v.dtype, weak_type=v.weak_type) for v in value.in_avals]
    return jax.make_jaxpr(lambda *args: evaluate_jaxpr(value, args, rule, rule))(*inputs)
