# SPDX-License-Identifier: Apache-2.0
"""mamba-cpp chat in a pseudo-terminal and through pipes. Usage: test_chat.py PROGRAM"""
import fcntl
import json
import os
import pty
import resource
import re
import select
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest

import models

PROGRAM = os.path.abspath(sys.argv[1])
CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"
CHAT = ["chat", "-m", "model", "--threads", "1", "--seed", "5", "-n", "12"]


class Terminal:
    """The program on a terminal of its own; standard output goes to a pipe, so that answers stand
    apart from prompts, echo and notes."""

    def __init__(self, *arguments, **variables):
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "HOME": os.getcwd(), "NO_COLOR": "1",
                       "LC_ALL": "C.UTF-8", **variables}
        if "XDG_STATE_HOME" not in variables:
            environment.pop("XDG_STATE_HOME", None)
        self.process = subprocess.Popen([PROGRAM, *arguments], stdin=slave, stderr=slave,
                                        stdout=subprocess.PIPE, env=environment,
                                        start_new_session=True, preexec_fn=self.control)
        os.close(slave)
        self.seen, self.answers = "", b""
        self.reader = threading.Thread(target=self.collect, daemon=True)
        self.reader.start()

    def collect(self):
        while block := self.process.stdout.read1(1 << 16):
            self.answers += block

    @staticmethod
    def control():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal

    def until(self, text, timeout=60):
        """Reads up to `text`; returns what came before it since the last call."""
        end = time.monotonic() + timeout
        while text not in self.seen:
            if not select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"no {text!r} in {self.seen!r}")
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError as error:
                raise AssertionError(f"ended without {text!r}: {self.seen!r}") from error
        before, self.seen = self.seen.split(text, 1)
        return before

    def prompt(self):
        before = self.until("> ")
        end = time.monotonic() + 60
        while termios.tcgetattr(self.master)[3] & termios.ICANON:  # set behind the prompt
            if time.monotonic() > end:
                raise AssertionError("the line editor does not take keys")
            time.sleep(0.01)
        return before

    def send(self, text):
        os.write(self.master, text if isinstance(text, bytes) else text.encode() + b"\n")

    def ask(self, text):
        """Sends a line and returns what is on the terminal up to the next prompt."""
        self.send(text)
        return self.prompt()

    def close(self):
        """Leaves; returns the answers and the exit code."""
        os.write(self.master, CTRL_D)
        end = time.monotonic() + 60
        try:  # the rest, or the process could wait for a reader
            while select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                if not os.read(self.master, 4096):
                    break
        except OSError:
            pass  # the other side is closed
        if time.monotonic() > end:
            self.process.kill()
        code = self.process.wait(timeout=60)
        self.reader.join()
        self.process.stdout.close()
        os.close(self.master)
        return self.answers, code


def pipe(text, *arguments, code=0):
    result = subprocess.run([PROGRAM, *arguments], input=text.encode(), capture_output=True,
                            timeout=120)
    if result.returncode != code:
        raise AssertionError(f"{arguments}: {result.returncode}\n{result.stderr.decode()[-500:]}")
    return result.stdout


class Chat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        models.byte_model(PROGRAM, "model")

    @classmethod
    def tearDownClass(cls):
        os.chdir("/")
        cls.folder.cleanup()

    def test_lines_through_pipes_give_answers_alone(self):
        out = pipe("Hello\nHow are you?\n", *CHAT)
        self.assertEqual(out, pipe("Hello\n/stats\nHow are you?", *CHAT))  # commands print elsewhere
        self.assertEqual(pipe("Bad\n", *CHAT) + out,
                         pipe("Bad\n/undo\nHello\nHow are you?\n", *CHAT))
        one = pipe("Hello\n", *CHAT)
        self.assertTrue(out.startswith(one))
        self.assertNotEqual(out, pipe("Hello\nHow is he?\n", *CHAT))
        self.assertEqual(pipe("", *CHAT), b"")
        # Several lines are one message, both ways.
        self.assertEqual(pipe("a\\\nb\n", *CHAT), pipe('"""a\nb"""\n', *CHAT))
        self.assertEqual(pipe("a\\\nb\n", *CHAT), pipe('"""\na\nb\n"""\n', *CHAT))
        self.assertNotEqual(pipe("a\\\nb\n", *CHAT), pipe("ab\n", *CHAT))
        self.assertEqual(len(pipe("//x\n", *CHAT)) > 0, True)

    def test_regen_draws_what_the_next_seed_draws(self):
        first = pipe("Hello\n", *CHAT)
        again = pipe("Hello\n/regen\n", *CHAT)
        other = pipe("Hello\n", "chat", "-m", "model", "--seed", "6", "-n", "12")
        self.assertEqual(again, first + other)

    def test_every_template_answers_and_system_prompts_count(self):
        answers = set()
        for name in ("chatml", "falcon-mamba", "mistral", "plain", "zephyr"):
            answers.add(pipe("Hello\nAgain\n", *CHAT, "--chat-template", name))
            answers.add(pipe("Hello\nAgain\n", *CHAT, "--chat-template", name, "--system-prompt",
                             "Be brief."))
        self.assertGreaterEqual(len(answers), 8)  # chatml and falcon-mamba agree
        text = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
        models.write("own.jinja", text)
        self.assertEqual(pipe("Hi\n", *CHAT, "--chat-template", text, "--jinja"),
                         pipe("Hi\n", *CHAT, "--chat-template-file", "own.jinja"))
        models.byte_model(PROGRAM, "with")
        models.write("with/tokenizer_config.json", json.dumps({"chat_template": text}))
        own = ["chat", "-m", "with", *CHAT[3:]]
        self.assertEqual(pipe("Hi\n", *own), pipe("Hi\n", *CHAT, "--chat-template", text))
        models.write("with/tokenizer_config.json", json.dumps(
            {"chat_template": [{"name": "default", "template": "{{ 1 }}"},
                               {"name": "mine", "template": text}]}))
        self.assertEqual(pipe("Hi\n", *own, "--chat-template", "mine"),
                         pipe("Hi\n", *CHAT, "--chat-template", text))

    def test_a_session_goes_on_after_a_restart_as_if_there_had_been_none(self):
        whole = pipe("Hello\nHow are you?\nBye\n", *CHAT)
        parts = b"".join(pipe(line, *CHAT, "--session", "talk")
                         for line in ("Hello\n", "How are you?\n", "Bye\n"))
        self.assertEqual(parts, whole)
        # Its last turn can still be drawn again and taken back.
        self.assertEqual(pipe("Hello\nHow are you?\nBye\n/regen\n", *CHAT),
                         whole + pipe("/regen\n", *CHAT, "--session", "talk"))
        pipe("/undo\n", *CHAT, "--session", "talk")
        self.assertTrue(whole.endswith(pipe("Bye\n", *CHAT, "--session", "talk")))
        self.assertEqual(pipe("Hello\n/save kept\n", *CHAT) + pipe("/load kept\nHow are you?\n",
                                                                    *CHAT),
                         pipe("Hello\nHow are you?\n", *CHAT))

    def test_every_command_on_a_terminal(self):
        t = Terminal(*CHAT, "--history", "none", "--system-prompt", "Be kind.")
        self.assertIn("template plain", t.prompt())
        helped = t.ask("/help")
        for command in ("/reset", "/regen", "/undo", "/save", "/load", "/system", "/stats", "/exit"):
            self.assertIn(command, helped)
        self.assertIn("nothing to undo", t.ask("/undo"))
        self.assertIn("expected an answer", t.ask("/regen"))
        self.assertIn("Be kind.", t.ask("/system"))
        t.ask("Hello")
        t.ask("/regen")
        stats = t.ask("/stats")
        self.assertRegex(stats, r"turns +1")
        self.assertRegex(stats, r"context +\d+ tokens in a state of 4864 bytes")
        self.assertRegex(stats, r"tokens/s \(\d+ read again\)")
        self.assertIn("saved 1 turns", t.ask("/save one"))
        self.assertIn("0 turns left", t.ask("/undo"))
        self.assertIn("goes on after 1 turn ", t.ask("/load one"))
        self.assertIn("reads the conversation again", t.ask("/system Be rude."))
        self.assertIn("Be rude.", t.ask("/system"))
        t.ask("And now?")
        self.assertIn("a new conversation", t.ask("/reset"))
        stats = t.ask("/stats")
        self.assertRegex(stats, r"turns +0")
        self.assertRegex(stats, r"last prompt +0 tokens")
        self.assertRegex(stats, r"last answer +0 tokens")
        self.assertIn("[/undo] expected nothing behind it, got 'extra'", t.ask("/undo extra"))
        self.assertIn("[/exit] expected nothing behind it, got 'now'", t.ask("/exit now"))
        self.assertIn("did you mean '/regen'?", t.ask("/regne"))
        self.assertIn("expected the name of a file", t.ask("/save"))
        self.assertIn("nowhere", t.ask("/load nowhere"))
        self.assertIn("error", t.ask("/load model/model.safetensors"))
        t.send("/exit")
        out, code = t.close()
        self.assertEqual((code, out.count(b"\n") >= 3), (0, True))

    def test_ctrl_c_ends_the_answer_alone(self):
        t = Terminal("chat", "-m", "model", "--seed", "5", "-n", "1000000000", "--history", "none",
                     "--ignore-eos", "--chat-template", "{% for m in messages %}{{ m.content }}{% endfor %}")
        t.prompt()
        t.send(CTRL_C)
        self.assertIn("Ctrl-D or /exit to leave", t.prompt())
        t.send(b"half a line" + CTRL_C)  # drops the line
        t.prompt()
        for _ in range(2):
            before = len(t.answers)
            t.send("Hello")
            while len(t.answers) < before + 20:  # it writes
                time.sleep(0.01)
            t.send(CTRL_C)
            t.until("interrupted")
            t.prompt()
        self.assertRegex(t.ask("/stats"), r"turns +2")
        self.assertEqual(t.close()[1], 0)

    def test_multiple_lines_editing_and_history(self):
        typed = ("chat", "-m", "model", "--seed", "5", "-n", "6")
        state = os.path.abspath("state")
        t = Terminal(*typed, XDG_STATE_HOME=state)
        t.prompt()
        t.send("first \\")
        t.until("... ")
        t.ask("second")
        t.send('"""')
        t.until("... ")
        t.send("block")
        t.until("... ")
        t.ask('"""')
        t.ask(b"Helo\x1b[Dl\n")  # left arrow, then the letter that was forgotten
        t.ask("gr\u00fc\u00df")
        answers, code = t.close()
        self.assertEqual(code, 0)
        want = pipe("first \\\nsecond\n\"\"\"\nblock\n\"\"\"\nHello\ngr\u00fc\u00df\n", *typed)
        self.assertEqual(answers, want)
        history = f"{state}/mamba-cpp/chat_history"
        self.assertEqual(os.stat(history).st_mode & 0o077, 0)
        t = Terminal(*typed, XDG_STATE_HOME=state)
        t.prompt()
        t.send(UP + UP + b"\n")
        t.until("\n")
        t.prompt()
        self.assertEqual(t.close()[0], pipe("Hello\n", *typed))

    def test_pasted_lines_are_one_message(self):
        typed = ("chat", "-m", "model", "--seed", "5", "-n", "6")
        want = pipe("say one\\\ntwo\tx\\\nthr\u00e9e!\nnext\n", *typed)
        t = Terminal(*typed, "--history", "pasted")
        self.assertIn("\x1b[?2004h", t.prompt() + t.seen)
        t.send(b"say \x1b[2")  # the marks may come in pieces
        time.sleep(0.1)
        t.send("00~one\ntwo\tx\rthr\u00e9e\x07\n\x1b[201~".encode() + b"!\n")
        self.assertIn("\x1b[?2004l", t.prompt())
        t.ask("next")
        self.assertRegex(t.ask("/stats"), r"turns +2")
        t.send(b"\x1b[200~without an end" + CTRL_C)
        t.prompt()
        self.assertEqual(t.close(), (want, 0))
        t = Terminal(*typed, "--history", "pasted")  # the whole message is one entry
        t.prompt()
        t.send(UP + UP + UP + b"\n")
        t.until("thr\u00e9e!")
        t.prompt()
        self.assertEqual(t.close()[0], pipe("say one\\\ntwo\tx\\\nthr\u00e9e!\n", *typed))
        t = Terminal(*typed, "--history", "none", TERM="dumb")
        self.assertNotIn("2004", t.prompt() + t.seen)
        t.close()

    def test_ctrl_c_right_behind_a_line_is_meant_for_its_answer(self):
        terminal = Terminal("chat", "-m", "model", "--threads", "1", "-n", "-1")
        terminal.prompt()
        terminal.send(b"Hello\n" + CTRL_C)
        self.assertIn("interrupted; the message does not count", terminal.prompt())
        self.assertEqual(terminal.close()[1], 0)

    def test_bytes_that_are_no_character_do_not_vanish(self):
        terminal = Terminal(*CHAT, "--session", "bytes.chat")
        terminal.prompt()
        terminal.send(b"caf\xe9 ol\xc3\xa9\n")
        self.assertIn("bytes that are no UTF-8 became U+FFFD", terminal.prompt())
        self.assertEqual(terminal.close()[1], 0)
        with open("bytes.chat", "rb") as file:
            content = file.read()
        self.assertIn("caf\ufffd ol\u00e9".encode(), content)

    def test_an_error_behind_lines_of_json_is_one_more_line(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        result = subprocess.run([PROGRAM, *CHAT, "--session", "too_large", "--json"], input=b"Hello\n",
                                capture_output=True, preexec_fn=limit, timeout=60)
        self.assertEqual(result.returncode, 3)
        answer, last = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual((answer["turn"], last["error"]["code"]), (1, 3))

    def test_a_history_that_cannot_be_kept_is_said_once(self):
        os.makedirs("folder", exist_ok=True)
        terminal = Terminal(*CHAT, "--history", "folder")
        seen = terminal.prompt() + terminal.ask("one") + terminal.ask("two")
        self.assertEqual(seen.count("warning: [--history] expected to write"), 1, seen)
        self.assertEqual(terminal.close()[1], 0)
        models.write("thesis.txt", "years of work\n")
        terminal = Terminal(*CHAT, "--history", "thesis.txt")
        terminal.until("which is another")
        self.assertEqual(terminal.process.wait(timeout=60), 2)
        terminal.close()
        with open("thesis.txt") as file:
            self.assertEqual(file.read(), "years of work\n")

    def test_a_session_says_whether_it_goes_on(self):
        def notes(*arguments):
            return subprocess.run([PROGRAM, *CHAT, "--session", "said.chat", *arguments],
                                  input=b"Hello\n", capture_output=True, timeout=120,
                                  check=True).stderr.decode()
        self.assertEqual(notes(), "")
        self.assertEqual(notes(), "")
        self.assertIn("reads again: the system prompt is another", notes("--system-prompt", "Brief."))
        self.assertEqual(notes(), "")
        self.assertIn("held with the template 'plain' and this one is 'chatml'",
                      notes("--chat-template", "chatml"))
        terminal = Terminal(*CHAT, "--session", "said.chat")
        self.assertIn("held with the template 'chatml' and this one is 'plain'", terminal.prompt())
        self.assertEqual(terminal.close()[1], 0)

    def test_colours_only_where_they_are_wanted(self):
        t = Terminal(*CHAT, "--history", "none", "--color", "always")
        self.assertIn("\x1b[2m", t.prompt())  # the editor takes the Ctrl-D of close() from here on
        t.close()
        t = Terminal(*CHAT, "--history", "none")  # with NO_COLOR
        self.assertNotRegex(t.prompt(), re.compile("\x1b\\[[0-9;]*m"))
        t.close()

    def test_wrong_input(self):
        models.byte_model(PROGRAM, "words", vocab_size=64)
        models.byte_model(PROGRAM, "other", seed=2)
        models.write("bad.jinja", "{% if %}")
        models.write("not_a_session", "x" * 100)
        models.byte_model(PROGRAM, "odd")
        models.write("odd/tokenizer_config.json", '{"chat_template": 5}')
        pipe("Hello\n", *CHAT, "--session", "mine")
        with open("mine", "rb") as file:
            content = file.read()
        models.write("cut", content[:-10])
        models.write("lies", content.replace(b'\\"lengths\\":[', b'\\"lengths\\":[9999999,', 1)
                     if b'\\"lengths\\":[' in content else content[:50])
        for arguments, code, parts in [
                (["chat"], 2, ["--model"]),
                (["chat", "-m", "words"], 3, ["tokenizer"]),
                ([*CHAT, "--chat-template", "chatlm"], 2, ["chatml", "chatlm"]),
                ([*CHAT, "--chat-template", "{{ x"], 3, ["line 1"]),
                ([*CHAT, "--chat-template", "{% include 'x' %}"], 3, ["include", "not supported"]),
                ([*CHAT, "--chat-template", "{{ raise_exception('no ' ~ 1) }}"], 2, ["no 1"]),
                ([*CHAT, "--chat-template", "{% for i in range(99999) %}{% for j in range(99999) %}"
                  "{{ i }}{% endfor %}{% endfor %}"], 3, ["steps"]),
                ([*CHAT, "--chat-template", "chatml", "--chat-template-file", "x"], 2, ["both"]),
                ([*CHAT, "--chat-template-file", "nowhere"], 3, ["nowhere"]),
                ([*CHAT, "--chat-template-file", "bad.jinja"], 3, ["line 1"]),
                (["chat", "-m", "odd"], 3, ["chat_template", "5"]),
                ([*CHAT, "--session", "not_a_session"], 3, ["not_a_session"]),
                ([*CHAT, "--session", "model/model.safetensors"], 3,
                 ["/save FILE", "'model/model.safetensors', which is", "format", "name such a file"]),
                ([*CHAT, "--session", "model/config.json"], 3,
                 ["/save FILE", "another or a damaged file", "model/config.json"]),
                (["chat", "-m", "nofolder"], 3, ["nofolder", "neither a folder nor a file"]),
                ([*CHAT, "--session", "cut"], 3, ["cut"]),
                ([*CHAT, "--session", "lies"], 3, ["lies"]),
                (["chat", "-m", "other", "--session", "mine"], 3, ["model_fingerprint"]),
                ([*CHAT, "--session", "mine", "--dtype", "bf16"], 3, ["bf16"]),
                ([*CHAT, "--session", "nowhere/x"], 3, ["nowhere"]),
                ([*CHAT, "--session", "model"], 2, ["folder"]),
                ([*CHAT, "--color", "green"], 2, ["--color", "green"]),
                ([*CHAT, "--temp", "warm"], 2, ["--temp"]),
        ]:
            with self.subTest(arguments=arguments):
                result = subprocess.run([PROGRAM, *arguments], input=b"Hello\n", timeout=120,
                                        capture_output=True)
                error = result.stderr.decode()
                self.assertEqual((result.returncode, result.stdout), (code, b""), error)
                self.assertEqual(error.count("\n"), 1)
                self.assertTrue(error.startswith("error: "), error)
                for part in parts:
                    self.assertIn(part, error)
        for line, code, part in [("/frob\n", 2, "/frob"), ("/save nowhere/x\n", 3, "nowhere"),
                                 ("/regen\n", 2, "answer")]:
            result = subprocess.run([PROGRAM, *CHAT], input=line.encode(), capture_output=True)
            self.assertEqual(result.returncode, code)
            self.assertIn(part, result.stderr.decode())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
