"""A cluster of Ray that the tests of this folder share."""

import pytest


@pytest.fixture(scope="session")
def cluster():
    """Two machines of one core each, one of which also runs the driver. A test may kill the other."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from collaborative_experts.apps.tasks import Pool, _connect

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    _connect(ray, Pool(cluster.address))
    yield cluster
    ray.shutdown()
    cluster.shutdown()
