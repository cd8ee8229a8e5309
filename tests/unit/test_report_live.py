import http.client
import json
import re
import threading
from contextlib import contextmanager

import pytest
from synthetic_runs import write_run, write_sft_run

from simplerl.report import live, report
from simplerl.report.live import LivePage, Server, is_held, run_state
from simplerl.storage.files import locked


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reports have their own tests; here a line with the last step stands for one."""
    monkeypatch.setattr(live, "SHARE", 1.0)
    monkeypatch.setattr(live, "render_report", lambda runs, live: f"<p>step {runs[0].last_step} of {live}</p>")


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", steps=10)


def add_step(folder, text='{"step": 11}\n'):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


def html(page):
    return live.gzip.decompress(page.page()).decode()


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_page_is_made_when_something_changed(folder):
    page = LivePage(folder, interval=0)
    first = page.page()
    assert "step 10 of" in html(page)
    assert page.page() is first
    assert page.status()["version"] in html(page)
    before = page.status()["version"]
    add_step(folder)
    assert page.status()["version"] != before
    assert "step 11 of" in html(page)


def test_a_page_is_not_made_too_often(folder):
    page = LivePage(folder, interval=1000)
    before = page.page()
    version = page.status()["version"]
    add_step(folder)
    assert page.page() is before
    assert page.status()["version"] == version


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path):
    page = LivePage(tmp_path / "later", interval=0)
    assert "Waiting for a run in" in html(page) and "Nothing to show yet" in html(page)
    assert page.status()["state"] == "waiting"
    (tmp_path / "later").mkdir()
    assert "Waiting for a run in" in html(page)
    (tmp_path / "later" / "recipe.toml").write_text("[train]\nsteps = 3\n")
    assert "step 0 of 3 done" in html(page)
    (tmp_path / "later" / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "step 1 of" in html(page)


def test_a_torn_line_is_not_read_and_a_damaged_one_leaves_the_page_before(folder):
    page = LivePage(folder, interval=0)
    add_step(folder, '{"step": 11, "rew')
    assert "step 10 of" in html(page)
    add_step(folder, '\n{"step": 12}\n')
    assert "step 10 of" in html(page)
    assert "line 11 is damaged" in page.status()["text"]


def test_a_file_that_goes_while_it_is_read_leaves_the_page_before(folder, monkeypatch):
    page = LivePage(folder, interval=0)
    before = html(page)

    def gone(*_, **__):
        raise FileNotFoundError("step-000010.parquet")

    monkeypatch.setattr(live, "render_report", gone)
    add_step(folder)
    assert html(page) == before
    monkeypatch.setattr(live, "render_report", lambda runs, live: "again")
    assert html(page) == "again"


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_run_is_training_while_its_folder_is_held(folder):
    assert run_state(folder) == ("finished", "Finished: step 10 of 10 done.")
    (folder / "recipe.toml").write_text("[train]\nsteps = 60\n")
    assert run_state(folder)[0] == "stopped"
    with locked(folder):
        assert is_held(folder)
        assert run_state(folder) == ("training", "Training: step 10 of 60 done.")
    assert not is_held(folder)


def test_fine_tuning_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "render_report", report.render_report)
    monkeypatch.setattr(report, "render_panel", lambda *_: b"<svg/>")
    folder = write_sft_run(tmp_path / "warm-up", steps=10)
    assert run_state(folder) == ("finished", "Finished: step 10 (3.00 of 3 passes) done.")
    page = LivePage(folder, interval=0)
    assert "Training loss went from" in html(page)
    version = page.status()["version"]
    with (folder / "validation.jsonl").open("a") as file:
        file.write('{"step": 12, "loss": 0.5, "tokens": 6720, "sequences": 64}\n')
    assert page.status()["version"] != version
    assert "to 0.500 nats" in html(page)


def test_fine_tuning_is_not_finished_before_its_last_pass(tmp_path):
    def state(passes, problems, batch, step, kind="sft"):
        (tmp_path / "recipe.toml").write_text(f'kind = "{kind}"\n[train]\nepochs = {passes}\n')
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": step, "epoch": step * batch / problems}) + "\n")
        return run_state(tmp_path)

    # Three passes over 100 problems are four batches of 64: a fifth would be more.
    assert [state(3, 100, 64, step)[0] for step in (3, 4)] == ["stopped", "finished"]
    assert state(3, 100, 64, 4)[1] == "Finished: step 4 (2.56 of 3 passes) done."
    assert [state(2, 100, 20, step)[0] for step in (9, 10)] == ["stopped", "finished"]
    assert [state(3, 70, 7, step)[0] for step in (29, 30)] == ["stopped", "finished"]
    assert state(2, 100, 20, 10, "train")[1].startswith("No process is training here; step 10 done.")


# --- the server -------------------------------------------------------------------------------------------------------


@contextmanager
def serving(folder):
    server = Server(folder, 0, interval=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_page_and_its_status_are_served_to_this_machine(folder):
    with serving(folder) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", server.url)
        answer, body = ask(server)
        assert (answer.status, body.decode()[:8]) == (200, "<p>step ")
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        packed, body = ask(server, **{"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip" and body[:2] == b"\x1f\x8b"
        status = json.loads(ask(server, "/status")[1])
        assert status["state"] == "finished"
        assert ask(server, Host=f"localhost:{server.server_port}")[0].status == 200


@pytest.mark.parametrize("path", ["/../run/recipe.toml", "/recipe.toml", "//etc/passwd", "/%2e%2e/x", "/status/", "*"])
def test_nothing_else_is_served(folder, path):
    with serving(folder) as server:
        answer, body = ask(server, path)
        assert answer.status == 404 and b"steps" not in body


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}", ""]
)
def test_a_request_for_another_host_is_refused(folder, host):
    with serving(folder) as server:
        assert ask(server, Host=host.format(port=server.server_port))[0].status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_nothing_but_get_is_answered(folder, method):
    with serving(folder) as server:
        assert ask(server, method=method)[0].status == 501


def test_the_port_is_of_this_machine_only(folder):
    with serving(folder) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
