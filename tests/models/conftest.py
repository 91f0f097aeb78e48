import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    # Two torch threads beside other work are slower than one.
    torch.set_num_threads(1)
