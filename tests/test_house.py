"""Imports run one way: a room uses those below it, never one above, and there are no circles."""

import ast
from pathlib import Path

import surveyproc

PACKAGE = Path(surveyproc.__file__).parent

# From the roof to the cellar, as docs/design.md draws it; rooms of one floor keep to themselves.
FLOORS = [
    ["cli"],
    ["testing", "front"],
    ["verbs"],
    ["report"],
    ["releases"],
    ["train"],
    ["run"],
    ["products"],
    ["models"],
    ["measure", "simulate"],
    ["images"],
    ["catalogs"],
    ["places"],
    ["evaluate"],
    ["survey"],
    ["config"],
    ["store", "sky", "progress", "interrupt", "child"],
    ["schemas"],
    ["errors"],
]
HEIGHT = {room: len(FLOORS) - floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What a room takes from one that is not below it, and why that is right.
AGREED = {
    # A front door is at the top, and opens only when somebody calls `surveyproc.open`.
    ("__init__", "front"),
    # `python -m surveyproc` is the command.
    ("__main__", "cli"),
    ("__main__", "interrupt"),
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Rooms that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "surveyproc":
                found |= {parts[1]} if len(parts) > 1 else {one.name for one in node.names}
        elif isinstance(node, ast.Import):
            names = (one.name.split(".") for one in node.names)
            found |= {parts[1] for parts in names if parts[0] == "surveyproc" and len(parts) > 1}
    return found & (HEIGHT.keys() | {"cli"})


def test_every_arrow_points_down():
    arrows = set()
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        for other in imported(ast.parse(path.read_text())):
            if other != room and HEIGHT.get(room, 0) <= HEIGHT[other]:
                arrows.add((room, other))
    assert arrows <= AGREED


def test_every_room_has_its_floor():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms - {"__init__", "__main__"} == HEIGHT.keys()


def test_files_are_short():
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := path.read_text().count("\n")) > 500
    }
    assert long == {}
