import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from diffpolicy_rl import serve
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.runtime import bundle
from diffpolicy_rl.runtime.client import PolicyClient
from diffpolicy_rl.runtime.errors import BundleError
from tests.runtime.served import OBS, FakePolicy

TOKEN = "0123456789abcdef0123456789abcdef"
PROGRAM = """
import sys
from diffpolicy_rl import cli, serve
from diffpolicy_rl.runtime import bundle
from tests.runtime.served import FakePolicy
bundle.load_bundle = lambda path: FakePolicy()
def main(argv):
    serve.main(argv)
    assert "torch" not in sys.modules
cli.run(main)
"""


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(bundle, "load_bundle", lambda path: FakePolicy())
    monkeypatch.delenv("DIFFPOLICY_RL_TOKEN", raising=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_though_a_client_stays(number):
    command = [sys.executable, "-c", PROGRAM, "bundle", "port=0", "seed=1"]
    environment = os.environ | {"DIFFPOLICY_RL_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("serving bundle on 127.0.0.1 port ")
            client = PolicyClient(port=int(line.split()[-1]), token=TOKEN, timeout_s=10)
            client.infer(OBS)
            process.send_signal(number)
            rest, _ = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0
    report = json.loads(rest)
    assert (report["clients"], report["answered"]) == (1, 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bundle", "host=0.0.0.0"], "can be reached from other machines: give a token"),
        (["bundle", "host="], "can be reached from other machines: give a token"),
        (["bundle", "token_file=/no/such/file"], "token_file=/no/such/file cannot be read"),
        (["bundle", "connections=0"], "connections=0 must be above 0"),
        (["bundle", "inference_s=-1"], "must be above 0"),
        (["bundle", "port=70000"], "cannot listen on 127.0.0.1 port 70000"),
        (["bundle", "prot=1"], "did you mean 'port'"),
        ([], "bundle must be given"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(words, sentence):
    with pytest.raises(UserError) as error:
        serve.main(words)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_port_in_use_is_said_to_be():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {port}: .*in use"):
            serve.main(["bundle", f"port={port}"])


def test_a_bundle_that_is_refused_is_not_served(monkeypatch):
    def refuse(path):
        raise BundleError(f"{path} is no bundle")

    monkeypatch.setattr(bundle, "load_bundle", refuse)
    with pytest.raises(UserError, match=r"^x is no bundle$"):
        serve.main(["x"])


def test_tokens_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert serve._token(None) is None
    monkeypatch.setenv("DIFFPOLICY_RL_TOKEN", TOKEN)
    assert serve._token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"  {TOKEN[::-1]}\n")
    assert serve._token(str(file)) == TOKEN[::-1]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        serve._token(str(file))
    file.write_text("")
    with pytest.raises(UserError, match="at least 22 characters"):
        serve.main(["bundle", f"token_file={file}"])


def test_help_is_fast_and_needs_no_torch():
    command = [sys.executable, "-c", "import sys; from diffpolicy_rl import serve; assert 'torch' not in sys.modules"]
    assert subprocess.run(command, timeout=60).returncode == 0
