"""A lint of kernel sources for what NKI compilers 0.3 to 0.6 reject and what this project does not write.

The interpreter runs any Python; AWS's parser frontend does not. Findings carry file, line, rule and advice.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tp_harness.kernels.nki_interpreter.isa import SIGNATURES

KERNEL_FILES = ("attention", "expert_mlp", "linear", "rmsnorm", "rope", "router", "tiling")
_LOOPS = ("affine_range", "sequential_range", "static_range", "dynamic_range", "fori_loop", "while_loop")
_LANGUAGE = ("ndarray", "ds")

RULES = {
    "lambda": "write a function at module level",
    "inner-function": "move the function to module level",
    "comprehension": "write a for loop",
    "identity": "compare with == or pass a bool argument; `is` is not supported",
    "keyword-marker": "drop the bare * and call with keywords",
    "variadic": "name every parameter",
    "list-argument": "pass a tuple or numbers; kernels take no lists",
    "unpack-subscript": "unpack into plain names",
    "statement": "kernels use assignments, for, if, calls, with constant bounds, and return",
    "infinity": "use a finite number such as -1e30",
    "deprecated-loop": "use range(...)",
    "functional-layer": "use an nki.isa instruction",
    "instruction": "use one of the instructions that the interpreter covers",
    "positional": "pass every argument of an instruction by keyword",
    "accumulate": "say accumulate=(i > 0), True or False",
    "old-package": "import from tp_harness.kernels.compat",
    "decorator": "decorate kernels with @nki.jit only",
}
_REJECTED: dict[type[ast.AST], str] = {
    ast.Lambda: "lambda",
    ast.ListComp: "comprehension",
    ast.SetComp: "comprehension",
    ast.DictComp: "comprehension",
    ast.GeneratorExp: "comprehension",
    ast.While: "statement",
    ast.Try: "statement",
    ast.With: "statement",
    ast.Global: "statement",
    ast.Nonlocal: "statement",
    ast.Yield: "statement",
    ast.YieldFrom: "statement",
    ast.Await: "statement",
    ast.AsyncFunctionDef: "statement",
    ast.AsyncFor: "statement",
    ast.AsyncWith: "statement",
    ast.NamedExpr: "statement",
    ast.Match: "statement",
    ast.Delete: "statement",
    ast.ClassDef: "statement",
    ast.Raise: "statement",
    ast.Starred: "variadic",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One place that a compiler would reject."""

    path: str
    line: int
    rule: str
    detail: str

    def __str__(self) -> str:
        """Show place, rule, what was found and what to write."""
        return f"{self.path}:{self.line}: {self.rule}: {self.detail}; {RULES[self.rule]}"


def check_file(path: Path) -> list[Finding]:
    """Return the findings in one kernel source."""
    return check_source(path.read_text(), str(path))


def check_kernels() -> list[Finding]:
    """Return the findings in all kernel sources of this project."""
    folder = Path(__file__).parent
    return [finding for name in KERNEL_FILES for finding in check_file(folder / f"{name}.py")]


def check_source(source: str, path: str) -> list[Finding]:
    """Return the findings in a source text, in order of lines."""
    tree = ast.parse(source)
    found = list(_imports(tree))
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        found += _signature(function)
        for statement in function.body:
            for node in ast.walk(statement):
                found += _node(node)
    return [Finding(path=path, line=line, rule=rule, detail=detail) for line, rule, detail in sorted(found)]


_Raw = tuple[int, str, str]


def _imports(tree: ast.Module) -> Iterator[_Raw]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            if module.split(".")[0] in ("neuronxcc", "nki"):
                yield node.lineno, "old-package", f"import of {module}"


def _signature(function: ast.FunctionDef) -> Iterator[_Raw]:
    arguments = function.args
    if arguments.kwonlyargs:
        yield function.lineno, "keyword-marker", f"{function.name} has keyword-only parameters"
    if arguments.vararg or arguments.kwarg:
        yield function.lineno, "variadic", f"{function.name} takes *args or **kwargs"
    for argument in arguments.args:
        if argument.annotation is not None and "list" in ast.unparse(argument.annotation).lower():
            yield function.lineno, "list-argument", f"parameter {argument.arg}"
    for default in arguments.defaults:
        if isinstance(default, ast.List | ast.Dict | ast.Set):
            yield function.lineno, "list-argument", f"default {ast.unparse(default)}"
    for decorator in function.decorator_list:
        if ast.unparse(decorator) != "nki.jit":
            yield function.lineno, "decorator", f"@{ast.unparse(decorator)}"


def _node(node: ast.AST) -> Iterator[_Raw]:
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.FunctionDef):
        yield line, "inner-function", f"def {node.name} inside a function"
    elif type(node) in _REJECTED:
        yield line, _REJECTED[type(node)], type(node).__name__
    elif isinstance(node, ast.Compare) and any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
        yield line, "identity", ast.unparse(node)
    elif isinstance(node, ast.Assign):
        yield from _targets(node)
    elif isinstance(node, ast.Call):
        yield from _call(node)
    elif isinstance(node, ast.Attribute):
        yield from _attribute(node)


def _targets(node: ast.Assign) -> Iterator[_Raw]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and not all(isinstance(item, ast.Name) for item in target.elts):
            yield node.lineno, "unpack-subscript", ast.unparse(target)


def _call(node: ast.Call) -> Iterator[_Raw]:
    text = ast.unparse(node.func)
    if text == "float" and node.args and "inf" in ast.unparse(node.args[0]):
        yield node.lineno, "infinity", ast.unparse(node)
    if text.startswith("nl.") and text.removeprefix("nl.") not in (*_LANGUAGE, *_LOOPS):
        yield node.lineno, "functional-layer", text
    if not text.startswith("nisa."):
        return
    if node.args:
        yield node.lineno, "positional", f"{text} with {len(node.args)} positional arguments"
    if text == "nisa.nc_matmul" and "accumulate" not in {keyword.arg for keyword in node.keywords}:
        yield node.lineno, "accumulate", "nisa.nc_matmul without accumulate"


def _attribute(node: ast.Attribute) -> Iterator[_Raw]:
    text = ast.unparse(node)
    name = node.attr
    if text.startswith("nl.") and name in _LOOPS:
        yield node.lineno, "deprecated-loop", text
    if text in ("np.inf", "math.inf", "numpy.inf", "torch.inf"):
        yield node.lineno, "infinity", text
    if text == f"nisa.{name}" and name not in (*SIGNATURES, "engine", "reduce_cmd", "dge_mode"):
        yield node.lineno, "instruction", text
