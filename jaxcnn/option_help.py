"""Text of a script's `--help`, from the fields of its dataclass of options.

Options are in groups, the everyday ones first. Each has its values, what it means and its default.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

COLUMNS = (60, 100)
"""Minimum and maximum columns of the text."""
_FLAG_COLUMNS = 27
"""Columns of a flag and its values. Longer ones have a line of their own."""


@dataclasses.dataclass(frozen=True)
class SharedOptions:
    """What is common to the options of several scripts, by the names of their fields.

    Attributes:
      groups: title of a group of the help -> names of its options. Others are everyday options.
      descriptions: of options whose fields have none.
      bounds: minimum and maximum of integer options.
      exclusive: pairs of options of which one replaces the other.
    """

    groups: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    descriptions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bounds: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    exclusive: Sequence[tuple[str, str]] = ()


class Option(NamedTuple):
    """Option of a command line.

    Attributes:
      group: title of its group; empty for an everyday option.
      name: of the field, such as `batch_size` or `line.points`.
      invocation: flag and values, such as "--batch-size INT".
      description: sentences; empty if the field has none.
      default: of the preset.
    """

    group: str
    name: str
    invocation: str
    description: str
    default: Any


def format_help(
    presets: Mapping[str, Any],
    default: Any,
    description: str | None,
    columns: int,
    shared: SharedOptions | None = None,
    implied: Mapping[str, str] | None = None,
) -> str:
    """Return the text of `--help`.

    Args:
      presets: instances of the dataclass by name.
      default: the preset whose defaults are printed.
      description: docstring of the script. Its first line and its commands are printed.
      columns: of the terminal.
      shared: groups and descriptions of options.
      implied: option -> preset that it selects. Its defaults are printed too, where they differ.
    """
    columns = min(max(columns, COLUMNS[0]), COLUMNS[1])
    shared = shared or SharedOptions()
    options = list(list_options(default, shared))
    others = {
        f"with --{name.replace('_', '-')}": dict(option_values(presets[preset]))
        for name, preset in (implied or {}).items()
        if presets[preset] is not default
    }
    command = command_of(description)
    positional = "".join(
        f" [{option.invocation}]" for option in options if not option.invocation.startswith("-")
    )
    lines = [f"usage: {command} [OPTIONS]{positional}", *_introduction(description, columns)]
    title = "options"
    if len(presets) > 1:
        name = next(name for name, preset in presets.items() if preset is default)
        title = f"options (defaults of --preset {name}; --preset NAME --help shows another's)"
        for flag, preset in (implied or {}).items():
            flag = f"--{flag.replace('_', '-')}"
            text = f"With {flag} the defaults are those of --preset {preset}"
            text += ", unless another --preset is there."
            if presets[preset] is not default:
                text += f' Those that differ are marked "with {flag}".'
            lines += ["", *textwrap.wrap(text, columns)]
    titles = list(dict.fromkeys(["", *shared.groups, *(option.group for option in options)]))
    for group in titles:
        entries = [option for option in options if option.group == group]
        if entries:
            lines += ["", f"{group or title}:"]
            for option in entries:
                differing = {
                    condition: values[option.name]
                    for condition, values in others.items()
                    if values[option.name] != option.default and option.name != "preset"
                }
                lines += _entry(option, columns, differing)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def command_of(description: str | None) -> str:
    r"""Return the command that the user types.

    It is the most frequent command in the script's docstring. The path of a script's file depends
    on the machine.

    Example:
      >>> command_of("Depth study.\n\n    python -m experiments.depth --preset paper")
      'python -m experiments.depth'
    """
    commands = re.findall(r"^ *(python -m [\w.]*\w)", description or "", re.M)
    if not commands:
        return f"python {Path(sys.argv[0]).name}"
    return collections.Counter(commands).most_common(1)[0][0]


def list_options(default: Any, shared: SharedOptions | None = None) -> Iterator[Option]:
    """Yield the options of an instance, in the order of the help.

    An option with one choice is left out: there is nothing to choose.

    Args:
      default: dataclass with the defaults. Dataclasses in it are groups of their own.
      shared: groups and descriptions of options.
    """
    yield from _options(default, "", "", shared or SharedOptions())


def option_values(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the options of an instance.

    The options of a group have names such as `group.name`.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from option_values(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _options(default: Any, prefix: str, group: str, shared: SharedOptions) -> Iterator[Option]:
    hints = typing.get_type_hints(type(default), include_extras=True)
    documented = _field_docs(type(default))
    fields = {field.name for field in dataclasses.fields(default)}
    names = [name for name in documented if name in fields]
    names += [name for name in hints if name in fields and name not in documented]
    for name in sorted(names, key=lambda name: name != "preset"):
        value, hint = getattr(default, name), hints[name]
        text = documented.get(name) or ("" if prefix else shared.descriptions.get(name, ""))
        if dataclasses.is_dataclass(value):
            about = (inspect.getdoc(type(value)) or "").split("\n")[0].rstrip(".")
            title = f"{name} ({about})" if about else name
            yield from _options(value, f"{prefix}{name}.", title, shared)
        elif len(typing.get_args(hint)) != 1 or typing.get_origin(hint) is not Literal:
            in_group = next((key for key, keys in shared.groups.items() if name in keys), "")
            invocation = _invocation(prefix + name, hint)
            yield Option(group or in_group, prefix + name, invocation, text, value)


@functools.cache
def _field_docs(kind: type) -> dict[str, str]:
    """Return the text below each field of a class, its own fields first.

    It is empty for a field without one. Without the source of a class, its fields are missing.
    """
    docs: dict[str, str] = {}
    for base in kind.__mro__[:-1]:
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):
            continue
        (tree,) = ast.parse(textwrap.dedent(source)).body
        body: Sequence[ast.stmt] = tree.body if isinstance(tree, ast.ClassDef) else ()
        for statement, after in zip(body, [*body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign):
                continue
            name, text = ast.unparse(statement.target), ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
            docs[name] = docs.get(name) or text
    return docs


def _invocation(name: str, hint: Any) -> str:
    """Return a flag and its values.

    Example:
      >>> _invocation("num_steps", int), _invocation("flip", bool)
      ('--num-steps INT', '--[no-]flip')
    """
    flag = name.replace("_", "-")
    if hint is bool:
        return f"--[no-]{flag}"
    is_positional = any("Positional" in str(mark) for mark in getattr(hint, "__metadata__", ()))
    return _values(hint) if is_positional else f"--{flag} {_values(hint)}"


def _values(hint: Any) -> str:
    """Return the values of an option of this type.

    Example:
      >>> _values(int | None), _values(tuple[float, ...]), _values(Literal["a", "b"])
      ('INT', 'FLOAT ...', '{a,b}')
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hasattr(hint, "__metadata__"):
        return _values(args[0])
    if origin is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    if origin in (Union, types.UnionType):
        return "|".join(_values(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"{_values(args[0])} ..."
        return " ".join(map(_values, args))
    return {str: "TEXT"}.get(hint, getattr(hint, "__name__", str(hint)).upper())


def _format_default(value: Any) -> str:
    """Return a default for reading: a tuple as its values, and a float in its shortest form.

    Example:
      >>> _format_default((20, 56)), _format_default(False), _format_default(())
      ('20 56', 'no', 'none')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(_format_default, value)) or "none"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _entry(option: Option, columns: int, differing: Mapping[str, Any]) -> list[str]:
    """Return the lines of an option.

    Args:
      option: to describe.
      columns: of the text.
      differing: condition -> the default under it.
    """
    text = option.description
    # An ellipsis stays.
    text = text if text.endswith("..") else text.removesuffix(".")
    defaults = [_format_default(option.default)]
    defaults += [f"{condition}: {_format_default(value)}" for condition, value in differing.items()]
    text = f"{text} (default: {'; '.join(defaults)})".lstrip()
    indent = " " * (_FLAG_COLUMNS + 3)
    lines = textwrap.wrap(
        text,
        columns,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    if len(option.invocation) <= _FLAG_COLUMNS:
        lines[0] = f"  {option.invocation:{_FLAG_COLUMNS}} {lines[0].lstrip()}"
        return lines
    return [f"  {option.invocation}", *lines]


def _introduction(description: str | None, columns: int) -> list[str]:
    """Return a docstring's first line, its commands and where the rest is."""
    paragraphs = inspect.cleandoc(description or "").split("\n\n")
    lines = ["", *textwrap.wrap(" ".join(paragraphs[0].split()), columns)]
    blocks = [text for text in paragraphs[1:] if text.startswith("    ")]
    lines += ["", *blocks[0].split("\n")] if blocks else []
    command = command_of(description)
    if len(paragraphs) > 2 and command.startswith("python -m "):
        module = command.removeprefix("python -m ")
        lines += ["", f"What it expects and writes: python -m pydoc {module}"]
    return lines if description else []
