"""List of the experiments, one line each: `python -m experiments`."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent


def commands() -> dict[str, str]:
    """Return what each experiment is about, by the name that `python -m experiments.NAME` takes.

    An experiment is a module whose docstring has its own command. Modules without options are
    programs that others start, and left out. Nothing is imported.

    Example:
      >>> commands()["overfitting"]
      'Overfitting: a network that generalizes, one that overfits, and five remedies.'
    """
    lines = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        source = path.read_text(encoding="utf-8")
        first, *rest = (ast.get_docstring(ast.parse(source)) or "").splitlines() or [""]
        has_command = any(line.split()[:3] == ["python", "-m", module] for line in rest)
        has_options = path.name == "__init__.py" or "class Options" in source
        if has_command and has_options:
            lines[module.removeprefix("experiments.")] = first
    return lines


def main() -> int:
    """Print the list; return the exit code."""
    if sys.argv[1:] and sys.argv[1:] != ["--help"]:
        print(
            f"error: {sys.argv[1]!r} is an argument of no experiment; expected none. "
            "Use python -m experiments.NAME",
            file=sys.stderr,
        )
        return 2
    table = commands()
    width = max(map(len, table))
    print("python -m experiments.NAME [--help], where NAME is one of\n")
    for name, line in table.items():
        print(f"  {name:{width}}  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
