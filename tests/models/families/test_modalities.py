from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surveyproc.errors import ConfigError
from surveyproc.models.families.modalities import draw_kept, modality_name, select_modalities

BANDS = "ugrizyjhk"
# Table C.2 of Ait Ouahmed et al. 2023.
TABLE = {
    (2, 1): "u_g g_r r_i i_z z_y y_j j_h h_k",
    (2, 2): "u_r g_i r_z i_y z_j y_h j_k",
    (2, 3): "u_i g_z r_y i_j z_h y_k",
    (3, 1): "u_g_r g_r_i r_i_z i_z_y z_y_j y_j_h j_h_k",
    (3, 2): "u_r_z g_i_y r_z_j i_y_h z_j_k",
    (3, 3): "u_i_j g_z_h r_y_k",
    (4, 1): "u_g_r_i g_r_i_z r_i_z_y i_z_y_j z_y_j_h y_j_h_k",
    (4, 2): "u_r_z_j g_i_y_h r_z_j_k",
}


@pytest.mark.parametrize(("size", "order"), TABLE)
def test_table_c2(size, order):
    found = select_modalities(9, size, [order])
    assert " ".join(modality_name(m, BANDS) for m in found) == TABLE[size, order]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_number_of_modalities(n_bands, size, order):
    expected = n_bands - order * (size - 1)
    if expected <= 0:
        with pytest.raises(ConfigError, match="none of"):
            select_modalities(n_bands, size, [order])
        return
    found = select_modalities(n_bands, size, [order])
    assert len(found) == len(set(found)) == expected
    for modality in found:
        assert len(modality) == size
        assert all(b - a == order for a, b in pairwise(modality))
        assert 0 <= modality[0] <= modality[-1] < n_bands


def test_orders_and_extra_modalities_are_added():
    assert len(select_modalities(9, 2, [1, 2, 3])) == 8 + 7 + 6
    with_all = select_modalities(9, 2, all_bands=True)
    assert with_all == (*select_modalities(9, 2), tuple(range(9)))
    assert len(select_modalities(9, 2, single_bands=True)) == 8 + 9
    assert select_modalities(9, 9) == (tuple(range(9)),)
    # Nothing comes twice.
    assert len(select_modalities(9, 1, [1, 2], single_bands=True)) == 9


@pytest.mark.parametrize(("size", "orders"), [(0, [1]), (2, [0])])
def test_size_and_order_are_positive(size, orders):
    with pytest.raises(ConfigError, match="1 or more"):
        select_modalities(5, size, orders)


def test_dropout_follows_the_seed_and_drops_0_to_5_equally_often():
    def draws():
        generator = torch.Generator().manual_seed(7)
        return torch.stack([draw_kept(17, generator) for _ in range(3000)])

    kept = draws()
    assert torch.equal(kept, draws())
    share = Counter((~kept).sum(dim=1).tolist())
    assert sorted(share) == [0, 1, 2, 3, 4, 5]
    assert all(abs(count - 500) < 100 for count in share.values())
    # On average 2.5 of 17, whichever.
    torch.testing.assert_close(
        (~kept).float().mean(dim=0), torch.full((17,), 2.5 / 17), atol=0.03, rtol=0
    )


def test_dropout_keeps_one_modality():
    with pytest.raises(ConfigError, match="cannot drop up to 5 of 5"):
        draw_kept(5, torch.Generator())
    assert draw_kept(1, torch.Generator(), most=0).tolist() == [True]
