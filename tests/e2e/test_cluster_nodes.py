"""Two Ray nodes on this machine: a run that loses one ends with the numbers of an undisturbed run."""

import importlib.util
import threading

import pytest
from test_cluster import assert_same_metrics, make_recipe

from simplerl.storage.records import RunFolder

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"),
    pytest.mark.filterwarnings("ignore"),
]


def test_a_run_survives_the_loss_of_a_node(tiny_model, tmp_path, capsys, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    from simplerl.train.run import train

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    folder, recorded, lost = tmp_path / "run", threading.Event(), threading.Event()
    append = RunFolder.append_metrics

    def append_and_wait(self, row):
        append(self, row)
        if self.path == folder and row["step"] == 3:
            recorded.set()
            lost.wait(120)

    def lose_a_node():
        recorded.wait()
        nodes.remove_node(second, allow_graceful=False)
        lost.set()

    monkeypatch.setattr(RunFolder, "append_metrics", append_and_wait)
    thread = threading.Thread(target=lose_a_node)
    try:
        thread.start()
        train(
            make_recipe(tiny_model, ray=nodes.address, learners=2, engines=2, heartbeat_timeout=6.0), folder, plain=True
        )
        thread.join()
        assert_same_metrics(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), folder)
        engines = max(row["cluster/engines_lost"] for row in RunFolder(folder).read_metrics())
        assert engines or "resuming from the last checkpoint" in capsys.readouterr().out, "no process ran on that node"
    finally:
        recorded.set()
        ray.shutdown()
        nodes.shutdown()
