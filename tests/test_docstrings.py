"""What a public function's docstring says: the shapes of the tensors it takes or returns, and the errors it raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from sources import broken

DIMENSION = r"(?:\d+ |[A-Z] )?\*?[\w.]+(?: ?[*/+-] ?[\w.]+)*"
SHAPE = re.compile(
    rf"(?<!\w)[(\[]{DIMENSION},(?: {DIMENSION},?)*[)\]]"  # "(batch, seq, hidden)", "(..., k)", "(heads,)", "[E, 2 I]"
    r"|\b(?:[Ss]hapes?|[Ss]calars?)\b"  # "any shape", "of the same shape and dtype", "a scalar"
    r"|\b[Aa]s `\w",  # "as `Placement.shard`", which says it
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Public functions, and public methods of public classes, by name."""
    for child in node.body:
        if isinstance(child, (Function, ast.ClassDef)) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from public_functions(child, f"{prefix}{child.name}.")
            else:
                yield prefix + child.name, child


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All that a function's own body holds, without the functions and classes defined in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (Function, ast.Lambda, ast.ClassDef)):
            yield child
            yield from own_nodes(child)


def raised(function: Function) -> set[str]:
    """The names of the errors that the function's own body makes and raises."""
    calls = [node.exc for node in own_nodes(function) if isinstance(node, ast.Raise)]
    names = [ast.unparse(call.func).split(".")[-1] for call in calls if isinstance(call, ast.Call)]
    return {name for name in names if name[0].isupper()}


def takes_or_gives_tensors(function: Function) -> bool:
    """Whether an argument's or the result's annotation speaks of tensors."""
    result = ast.unparse(function.returns) if function.returns else ""
    return bool(re.search(r"\bTensors?\b", f"{ast.unparse(function.args)} {result}"))


def unsaid(text: str) -> list[str]:
    """What the docstrings of a module leave out, one sentence each."""
    found = []
    for name, function in public_functions(ast.parse(text)):
        doc = ast.get_docstring(function) or ""
        missing = () if "Raises:" in doc else sorted(error for error in raised(function) if error not in doc)
        found += [f"{name} raises {error}: say when, under 'Raises:'" for error in missing]
        if takes_or_gives_tensors(function) and not SHAPE.search(doc):
            found.append(f"{name} takes or returns tensors: give their shapes, as '(batch, seq)' or 'any shape'")
    return found


def test_docstrings_give_shapes_and_errors() -> None:
    assert broken(lambda source: unsaid(source.text)) == {}


@pytest.mark.parametrize(
    ("signature", "doc"),
    [
        ("x: Tensor", "Map (*L, heads..., head_dim / 2) to the rest."),
        ("x: torch.Tensor", "Sum x, of any shape, over ranks."),
        ("x: Mapping[str, torch.Tensor]", "Read x [E, 2 I, H] (which is large, or not)."),
        ("x: Tensor, y: str", "As `other`."),
        ("x: NkiTensor", "Other things."),
    ],
)
def test_a_shape_is_found(signature: str, doc: str) -> None:
    assert unsaid(f'def f({signature}) -> None:\n    """{doc}"""') == []


@pytest.mark.parametrize("signature", ["x: torch.Tensor", "*x: Tensor", "x: Mapping[str, 'Tensor']", "x: Tensors"])
def test_a_missing_shape_would_be_found(signature: str) -> None:
    doc = "Sum x (over ranks, if there are several). Fast (a second, or less), by `wrong(x, rank)`."
    assert unsaid(f'class C:\n    def f(self, {signature}) -> int:\n        """{doc}"""') == [
        "C.f takes or returns tensors: give their shapes, as '(batch, seq)' or 'any shape'"
    ]
    assert len(unsaid(f'def f() -> torch.Tensor:\n    """{doc}"""')) == 1


def test_a_missing_error_would_be_found() -> None:
    body = "    if x:\n        raise m.BadError(x)\n    raise\n    def inner():\n        raise InnerError(x)\n"
    assert unsaid(f'def f(x):\n    """Do it."""\n{body}') == ["f raises BadError: say when, under 'Raises:'"]
    assert unsaid(f'def f(x):\n    """Do it, or raise BadError."""\n{body}') == []
    assert unsaid(f'def f(x):\n    """Do it.\n\n    Raises:\n        OtherError: always.\n    """\n{body}') == []
    assert unsaid(f'def _f(x):\n    """Do it."""\n{body}') == []
