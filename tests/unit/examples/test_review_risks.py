from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from examples.review.risks import find_risks
from examples.review.types import Finding

# Built from pieces, so that no scanner takes this file for a leak.
TOKEN = "ghp_" + "a1B2" * 9
KEY = "AKIA" + "IOSFODNN7EXAMPLZ"
PRIVATE = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEAxyz0123456789\n"
SECRET = "q7Zr" + "9tLm2xKp"


def scan(code: str, *, path: str = "app.py") -> list[Finding]:
    text = dedent(code)
    return find_risks(text, ast.parse(text), path)[0]


def rules(code: str, *, path: str = "app.py") -> list[tuple[str, str]]:
    return [(finding.rule, finding.severity) for finding in scan(code, path=path)]


@pytest.mark.parametrize(
    ("expected", "code"),
    [
        (("eval", "high"), "eval(x)"),
        (("eval", "low"), "eval('1 + 1')"),
        (("exec", "high"), "import builtins; builtins.exec(x)"),
        (("shell", "high"), "import os; os.system(x)"),
        (("shell", "low"), "import os; os.system('clear')"),
        (("shell", "high"), "from os import system as run; run(x)"),
        (("shell", "high"), "import os\nos.popen(f'ls {x}')"),
        (("shell", "high"), "import subprocess as sp; sp.run(x, shell=True)"),
        (("shell", "low"), "from subprocess import Popen; Popen('ls | wc', shell=1)"),
        (("shell", "high"), "import asyncio; asyncio.create_subprocess_shell(x)"),
        (("unpickling", "medium"), "import pickle; pickle.loads(x)"),
        (("unpickling", "medium"), "from pickle import load; load(x)"),
        (("yaml-load", "high"), "import yaml; yaml.load(x)"),
        (("yaml-load", "high"), "import yaml; yaml.load(x, Loader=yaml.FullLoader)"),
        (("yaml-load", "high"), "from yaml import unsafe_load; unsafe_load(x)"),
        (("no-tls-check", "high"), "import requests; requests.get(x, verify=False)"),
        (("no-tls-check", "high"), "session.post(x, verify=False)"),
        (("no-tls-check", "high"), "import httpx; httpx.Client(verify=False)"),
        (("mktemp", "medium"), "import tempfile; tempfile.mktemp()"),
        (("bare-except", "medium"), "try: x()\nexcept: pass"),
        (("assert", "low"), "assert x > 0"),
        (("sql-text", "high"), "db.execute(f'SELECT * FROM t WHERE id = {x}')"),
        (("sql-text", "low"), "db.execute(f'SELECT * FROM {TABLE}')"),
        (("sql-text", "high"), "db.execute('delete from t where id = ' + x)"),
        (("sql-text", "high"), "db.execute('update t set a = ' + x + ' where b')"),
        (("sql-text", "high"), "db.executemany('insert into t values (%s)' % x, rows)"),
        (("sql-text", "high"), "await_(con.fetch('select {}'.format(x)))"),
        (("secret", "high"), f"password = 'hunter2{SECRET}'"),
        (("secret", "high"), f"self.api_key: str = '{SECRET}'"),
        (("secret", "high"), f"connect(auth_token='{SECRET}')"),
        (("secret", "high"), f"settings = {{'secret-key': '{SECRET}'}}"),
        (("secret", "high"), f"def f(user, *, token='{SECRET}'): pass"),
        (("secret", "high"), f"def f(user, token='{SECRET}'): pass"),
        (("secret", "high"), f"os_environ['API_KEY'] = '{SECRET}'"),
        (("secret", "high"), f"header = 'Bearer {TOKEN}'"),
        (("secret", "high"), f"x = {KEY!r}"),
        (("secret", "high"), f"x = {PRIVATE!r}"),
    ],
)
def test_risky_code_is_found(expected: tuple[str, str], code: str) -> None:
    assert [expected] == rules(code)


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "ast.literal_eval(x)",
        "def eval(x): return x\neval(y)",
        "'eval(x)'  # eval(x)",
        "import subprocess; subprocess.run(['ls', x])",
        "import subprocess; subprocess.run(x, shell=False)",
        "import json; json.loads(x)",
        "import yaml; yaml.load(x, Loader=yaml.SafeLoader)",
        "import yaml; yaml.load(x, yaml.CSafeLoader)",
        "import yaml; yaml.safe_load(x)",
        "import requests; requests.get(x, verify='ca.pem')",
        "import requests; requests.get(x)",
        "session.get(x, timeout=1)",
        "check(x, verify=False)",
        "import tempfile; tempfile.mkstemp()",
        "try: x()\nexcept ValueError: pass",
        "try: x()\nexcept:\n    undo()\n    raise",
        "db.execute('SELECT * FROM t WHERE id = ?', (x,))",
        "db.execute('SELECT 1' + ' FROM t')",
        "db.execute(f'SELECT 1')",
        "pool.execute(f'{x}')",
        "password = os.environ['PASSWORD']",
        "password = ''",
        "password = 'changeme-please'",
        "api_key = 'OPENAI_API_KEY'",
        "token = 'access_token'",
        "token_url = 'https://example.org/t0ken'",
        "api_key = '${API_KEY_2}'",
        "password = '********'",
        "secret = 'aaaaaaaaaaaa1'",
        "primary_key = 'customer_id_1'",
        "PATTERN = '-----BEGIN PRIVATE KEY-----'",
    ],
)
def test_harmless_code_is_left_alone(code: str) -> None:
    assert [] == rules(code)


def test_a_finding_says_where_and_quotes_the_line() -> None:
    [finding] = scan("import os\n\n\ndef f(x):\n    os.system(x)  # here\n")

    assert (5, "os.system(x)  # here") == (finding.line, finding.snippet)
    assert "list of arguments" in finding.message


def test_a_secret_is_never_quoted() -> None:
    [finding] = scan(f"password = '{SECRET}'")

    assert SECRET not in finding.model_dump_json()


def test_a_quoted_line_carries_no_terminal_escapes() -> None:
    [finding] = scan("eval(x)  # \x1b[31mred\u202e")

    assert finding.snippet.isprintable()


def test_a_long_line_is_cut() -> None:
    [finding] = scan(f"eval(x, {'y' * 500})")

    assert len(finding.snippet) <= 110
    assert finding.snippet.endswith("…")


def test_test_code_counts_one_step_less_and_may_assert() -> None:
    code = "import pickle\nassert eval(x) == pickle.loads(y)\n"

    assert [("eval", "high"), ("unpickling", "medium"), ("assert", "low")] == sorted(
        rules(code), key=lambda rule: ["high", "medium", "low"].index(rule[1])
    )
    assert [("eval", "medium"), ("unpickling", "low")] == rules(code, path="tests/test_app.py")


@pytest.mark.parametrize(
    "comment", ["# nosec", "# nosec B307", "# noqa", "# noqa: S307", "# noqa: E501, S307 (by us)"]
)
def test_acknowledged_lines_are_counted_not_listed(comment: str) -> None:
    text = f"eval(x)  {comment}\n"

    assert ([], 1) == find_risks(text, ast.parse(text), "app.py")


def test_a_noqa_for_something_else_acknowledges_nothing() -> None:
    assert [("eval", "high")] == rules("eval(x)  # noqa: E501")


def test_findings_come_in_line_order_without_repeats() -> None:
    findings = scan("eval(a); eval(b)\nimport os\nos.system(c)\nassert d\n")

    assert [(1, "eval"), (3, "shell"), (4, "assert")] == [(it.line, it.rule) for it in findings]
