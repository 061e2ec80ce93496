"""Writes docs/python.md from the docstrings of the public functions and of what they give.

Usage: python tools/generate_python_docs.py [--check]
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import segtune
from segtune.settings import source_path

TARGET = Path(__file__).resolve().parents[1] / "docs" / "python.md"
HEADINGS = ("Args", "Returns", "Raises")
ITEM = re.compile(r"(\S+): (.*)", re.DOTALL)
START = """<!-- Written by `make docs` from segtune/api.py; change that. -->

# From Python

The command line calls these functions. `import segtune` loads no torch; the first call of one does.

```python
import segtune

model = segtune.load_model("unet", num_classes=3, depth=3, width=16)
applied = segtune.adapt(model, "lora+norm")
applied.counts()  # {"total": ..., "trainable": ..., "adapter": ..., ...}
applied.parameters()  # what to give to an optimiser of your own
applied.remove()  # the base again, bit for bit

result = segtune.fit("DATA", model="unet", method="scratch", out="runs/mine", settings={"train.epochs": 5})
result.scores["miou"]
```
"""


def main(options: Sequence[str]) -> int:
    """Writes the page, or with --check says whether it is up to date."""
    text = page()
    if "--check" in options:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        if not current:
            print("docs/python.md is out of date: run `make docs`", file=sys.stderr)
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    tree = parse("segtune.api")
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    public = [functions[name] for name in segtune.__all__ if name in functions]
    lines = [START, "## Functions", ""]
    for function in public:
        lines += [*section(function), ""]
    lines += ["## What they give", ""]
    returned = " ".join(ast.unparse(function.returns) for function in public if function.returns)
    for module, name in imported_classes(tree):
        if re.search(rf"\b{name}\b", returned):
            lines += [*class_section(module, name), ""]
    errors = ast.get_docstring(parse("segtune.errors")) or ""
    lines += ["## Exceptions", "", "```text", errors.strip(), "```", ""]
    return "\n".join(lines)


def parse(module: str) -> ast.Module:
    """The syntax tree of a module's file."""
    return ast.parse(source_path(module).read_text(encoding="utf-8"))


def section(function: ast.FunctionDef) -> list[str]:
    """A function: its signature, what it does, and what its docstring says of arguments and result."""
    text, parts = sections(ast.get_docstring(function) or "")
    lines = [f"### {function.name}", "", "```python", signature(function), "```", "", text]
    for heading, content in parts:
        lines += ["", f"**{heading}.**" + ("" if heading == "Args" else f" {content}")]
        if heading == "Args":
            lines += ["", *(f"- `{name}`: {meaning}" for name, meaning in items(content))]
    return lines


def signature(function: ast.FunctionDef) -> str:
    """The function's head, on several lines where it is long."""
    result = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    line = f"{function.name}({arguments(function.args)}){result}"
    if len(line) <= 100:
        return line
    split = re.sub(r", (?=\*?\*?\w+(?::|$|,)|\*,)", ",\n    ", arguments(function.args))
    return f"{function.name}(\n    {split},\n){result}"


def sections(docstring: str) -> tuple[str, list[tuple[str, str]]]:
    """The text in front of the first heading, and each heading with what is below it."""
    pieces = re.split(rf"^({'|'.join(HEADINGS)}):\n", docstring, flags=re.MULTILINE)
    named = zip(pieces[1::2], pieces[2::2], strict=True)
    return pieces[0].strip(), [(heading, dedent(content)) for heading, content in named]


def dedent(content: str) -> str:
    """The lines of a section without the indentation of the section."""
    return "\n".join(line.removeprefix("    ") for line in content.strip("\n").splitlines()).strip()


def items(content: str) -> Iterator[tuple[str, str]]:
    """The arguments of a section: name and meaning."""
    for entry in re.split(r"\n(?! )", content):
        found = ITEM.fullmatch(entry)
        assert found is not None, f"not an argument: {entry!r}"
        yield found[1], " ".join(found[2].split())


def imported_classes(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of every class that annotations of a module refer to."""
    for block in tree.body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for node in block.body:
                if isinstance(node, ast.ImportFrom) and node.module:
                    yield from ((node.module, alias.name) for alias in node.names)


def class_section(module: str, name: str) -> list[str]:
    """A class: what it is, its attributes and its methods, each in a sentence."""
    [node] = [n for n in parse(module).body if isinstance(n, ast.ClassDef) and n.name == name]
    text, _ = sections(ast.get_docstring(node) or "")
    return [f"### {name}", "", text, "", *(f"- {member}" for member in members(node))]


def members(node: ast.ClassDef) -> Iterator[str]:
    """The public attributes and methods of a class."""
    for child, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            said = following.value if isinstance(following, ast.Expr) else None
            text = f": {' '.join(said.value.split())}" if isinstance(said, ast.Constant) else ""
            if not child.target.id.startswith("_"):
                yield f"`{child.target.id}` (`{ast.unparse(child.annotation)}`){text}"
        elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            marks = [ast.unparse(mark) for mark in child.decorator_list]
            called = (
                child.name if "property" in marks else f"{child.name}({ast.unparse(without_self(child))})"
            )
            yield f"`{called}`: {(ast.get_docstring(child) or '').partition(chr(10) * 2)[0]}".replace(
                "\n", " "
            )


def arguments(node: ast.arguments) -> str:
    """Arguments as they are written."""
    return re.sub(r"(?<=\S)=(?=\S)", " = ", ast.unparse(node))


def without_self(function: ast.FunctionDef) -> ast.arguments:
    """A method's arguments as a caller gives them."""
    return ast.arguments(**{**dict(ast.iter_fields(function.args)), "args": function.args.args[1:]})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
