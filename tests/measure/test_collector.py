"""The garbage collector while something is timed."""

import gc
import weakref

import pytest

from prunekit.measure.collector import collector_resting


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_as_it_was(collecting):
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with collector_resting():
            assert not gc.isenabled()
        assert gc.isenabled() == collecting
        with pytest.raises(ZeroDivisionError), collector_resting():
            raise ZeroDivisionError
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_nothing_is_collected():
    class Node:
        pass

    node = Node()
    node.own, seen = node, weakref.ref(node)
    with collector_resting():
        del node
        assert seen() is not None
    gc.collect()
    assert seen() is None
