"""Each row of book/guarantees.md names tests that exist, and each test in tests/op/test_guarantees.py has its row."""

import ast
import re


def rows(root):
    """{property: [path::name, …]}"""
    table = (
        (root / "book" / "guarantees.md")
        .read_text(encoding="utf-8")
        .partition(":name: table-guarantees")[2]
        .partition("\n:::")[0]
    )
    cells = [re.split(r"^  - ", row, flags=re.MULTILINE) for row in table.split("\n* - ")[1:]]
    assert all(len(row) == 4 for row in cells), "a row has four cells"
    return {row[0].strip(): re.findall(r"`([^`]*)`", row[3]) for row in cells[1:]}


def named_in(path):
    return {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_each_row_names_tests_that_exist(root):
    table = rows(root)
    assert len(table) > 25
    for what, tests in table.items():
        assert tests, f"{what}: no test"
        for test in tests:
            path, name = test.split("::")
            assert name in named_in(root / path), f"{what}: there is no {test}"


def test_each_test_of_a_guarantee_has_a_row(root):
    path = "tests/op/test_guarantees.py"
    named = {test for tests in rows(root).values() for test in tests}
    assert {f"{path}::{name}" for name in named_in(root / path)} <= named
