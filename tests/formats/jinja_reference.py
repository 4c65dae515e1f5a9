#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Chat templates through PyPI's jinja2, with the sandbox and the settings of transformers.

    jinja_reference.py write          writes jinja_golden.json beside this file (jinja2 3.1.6)
    jinja_reference.py check PROGRAM  compares the program test_jinja_render with jinja2 case by case;
                                      exit code 77 where jinja2 is not installed
"""
import datetime
import json
import pathlib
import subprocess
import sys

import jinja_cases

HERE = pathlib.Path(__file__).resolve().parent
NOW = datetime.datetime(2025, 3, 9, 13, 5, 7)


def environment():
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

        def body(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    env = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[Generation, ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def results():
    """name, template, context and what jinja2 renders: None where it refuses."""
    env = environment()
    for name, template, context in jinja_cases.cases():
        try:
            text = env.from_string(template).render(**context)
        except Exception:  # pylint: disable=broad-except
            text = None
        yield {"name": name, "template": template, "context": context, "text": text}


def write():
    golden, templates = [], {}
    for result in results():
        # A template of the families stands once.
        family = result["name"].split("/")[0]
        if family in jinja_cases.TEMPLATES:
            templates[family] = result.pop("template")
        golden.append(result)
    lines = ",\n".join(json.dumps(g) for g in golden)
    text = f'{{"templates": {json.dumps(templates, indent=0)},\n"cases": [\n{lines}\n]}}\n'
    (HERE / "jinja_golden.json").write_text(text)
    print(f"{len(golden)} cases")


def check(program):
    try:
        expected = list(results())
    except ImportError:
        print("skipped: the Python package jinja2 is not installed")
        return 77
    lines = "".join(json.dumps({k: e[k] for k in ("template", "context")}) + "\n" for e in expected)
    out = subprocess.run([program, "--lines"], input=lines, capture_output=True, text=True,
                         encoding="utf-8", check=True)
    answers = [json.loads(line) for line in out.stdout.rstrip("\n").split("\n")]
    wrong = 0
    for case, answer in zip(expected, answers, strict=True):
        if case["text"] == answer.get("text"):
            continue
        wrong += 1
        print(f"{case['name']}: {case['template'][:300]!r}\n  jinja2 {case['text']!r}\n  here   {answer}")
    print(f"{len(expected)} cases, {sum(c['text'] is None for c in expected)} refused, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(write() if sys.argv[1] == "write" else check(sys.argv[2]))
