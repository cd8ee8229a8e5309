"""Two Ray nodes on this machine, of which one goes away: the run ends as if it had stayed."""

import importlib.util
import threading
import time

import pytest
from run_processes import contents
from test_cluster import make_recipe

from simplerl.records import RunFolder

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("ray"),
]


def test_a_lost_node_is_made_good_by_the_other(tiny_model, tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    from simplerl.train.run import train

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    recipe = make_recipe(tiny_model, ray=nodes.address, learners=2, engines=2)
    folder, ended = tmp_path / "run", threading.Event()

    def lose_a_node():
        while not ended.is_set() and len(RunFolder(folder).read_metrics()) < 3:
            time.sleep(0.02)
        nodes.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=lose_a_node)
    try:
        undisturbed = train(recipe, tmp_path / "undisturbed", plain=True)
        thread.start()
        train(recipe, folder, plain=True)
        thread.join()
        assert len([node for node in ray.nodes() if node["Alive"]]) == 1
        assert contents(folder) == contents(undisturbed)
    finally:
        ended.set()
        ray.shutdown()
        nodes.shutdown()
