"""A mask plan survives a round trip bit by bit; a damaged one is refused with the reason."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from prunekit.errors import PlanError, StorageError
from prunekit.importance import find_weights, score_weights
from prunekit.plan import MaskPlan, PackedMask, load_mask_plan, save_mask_plan, select_weights


def plan():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(7, 3))
    weights = find_weights(model)
    scores = score_weights(model, weights)
    return select_weights(weights, scores, sparsity=0.6, scope="global", criterion="magnitude")


@given(st.lists(st.booleans(), max_size=40))
def test_a_mask_is_packed_to_bits_and_back(bits):
    """Oracle: the list itself; eight to a byte."""
    mask = np.array(bits, dtype=bool).reshape(1, -1)
    packed = PackedMask.of(mask)
    assert packed.keep().tolist() == [bits]
    assert packed.kept == sum(bits)
    assert len(packed.bits) == -(-len(bits) // 8)
    assert sum(int(byte).bit_count() for byte in packed.bits) == sum(bits)


def test_a_plan_survives_the_round_trip(tmp_path):
    before = plan()
    save_mask_plan(before, tmp_path / "masks.safetensors")
    after = load_mask_plan(tmp_path / "masks.safetensors")
    assert after == before
    assert after.digest == before.digest
    assert after.kept == before.kept
    save_mask_plan(after, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "masks.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "masks.safetensors"]


def test_a_file_has_one_bit_for_each_weight_and_its_header(tmp_path):
    keep = np.random.default_rng(0).random((1000, 1003)) < 0.5
    large = MaskPlan({"a": PackedMask.of(keep)}, "f", "element", "tensor", "", 0.5)
    save_mask_plan(large, tmp_path / "masks.safetensors")
    size = (tmp_path / "masks.safetensors").stat().st_size
    assert 1_003_000 / 8 <= size < 1_003_000 / 8 + 1000


def test_a_plan_is_immutable_and_its_digest_is_of_everything():
    one = plan()
    with pytest.raises(TypeError):
        one.masks["0.weight"] = one.masks["1.weight"]
    keep = one.masks["1.weight"].keep()
    keep.flat[[0, int(np.flatnonzero(keep != keep.flat[0])[0])]] ^= True
    fields = {name: getattr(one, name) for name in ("fingerprint", "pattern", "scope", "criterion", "asked")}
    other = MaskPlan({**one.masks, "1.weight": PackedMask.of(keep)}, **fields)
    assert other.kept == one.kept
    digests = {one.digest, other.digest}
    for name, value in {
        "fingerprint": "x",
        "pattern": "row",
        "scope": "erk",
        "criterion": "l2",
        "asked": 0.1,
    }.items():
        digests.add(MaskPlan(one.masks, **{**fields, name: value}).digest)
    assert len(digests) == 7


def rewrite(path, change):
    """Save the same file again with its description and its masks changed."""
    one = plan()
    content = {**one.content(), "digest": one.digest}
    arrays = {name: np.frombuffer(mask.bits, dtype=np.uint8).copy() for name, mask in one.masks.items()}
    text = change(content, arrays)
    save_file(arrays, path, metadata={"prunekit": json.dumps(content) if text is None else text})


def change(*keys, to):
    def changed(content, arrays):
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return changed


DAMAGES = {
    "no JSON": (lambda content, arrays: "{", "not JSON"),
    "another schema": (change("schema", to="other/1"), "schema is 'other/1'"),
    "a list": (lambda content, arrays: "[]", "schema is None"),
    "unknown field": (change("more", to=1), "unknown fields \\['more'\\]"),
    "missing field": (
        lambda content, arrays: content.pop("scope") and None,
        "lacks the fields \\['scope'\\]",
    ),
    "wrong type": (change("asked", to="much"), "wrong type"),
    "not a number": (change("asked", to=float("nan")), "wrong type"),
    "negative size": (change("masks", "1.weight", "shape", to=[-3, -7]), "wrong type"),
    "huge size": (change("masks", "1.weight", "shape", to=[2**40, 2**40]), "U8 \\[3\\]"),
    "another shape": (change("masks", "1.weight", "shape", to=[3, 70]), "27 bytes"),
    "same bytes, another shape": (change("masks", "1.weight", "shape", to=[22]), "Its digest is"),
    "wrong count": (change("masks", "1.weight", "kept", to=1), "keeps 1 weights"),
    "another pattern": (change("pattern", to="row"), "Its digest is"),
    "missing mask": (lambda content, arrays: arrays.clear(), "masks are not those"),
    "shorter mask": (
        lambda content, arrays: arrays.update({"1.weight": np.zeros(1, np.uint8)}),
        "U8 \\[1\\]",
    ),
    "wide mask": (lambda content, arrays: arrays.update({"1.weight": np.zeros(3, np.int32)}), "I32 \\[3\\]"),
    "other bits": (
        lambda content, arrays: arrays.update({"1.weight": np.zeros(3, np.uint8)}),
        "does not fit",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_description_is_refused(tmp_path, damage):
    path = tmp_path / "masks.safetensors"
    how, says = DAMAGES[damage]
    rewrite(path, how)
    with pytest.raises(PlanError, match=says):
        load_mask_plan(path)


def test_damaged_bytes_are_refused_wherever_they_are(tmp_path):
    path = tmp_path / "masks.safetensors"
    save_mask_plan(plan(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(PlanError):
            load_mask_plan(path)
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        with pytest.raises(PlanError):
            load_mask_plan(path)
    with pytest.raises(StorageError, match="could not be read"):
        load_mask_plan(tmp_path / "nothing.safetensors")
    with pytest.raises(StorageError, match="could not be written"):
        save_mask_plan(plan(), tmp_path / "nowhere" / "masks.safetensors")


def test_a_mask_that_contradicts_itself_is_refused():
    for shape, kept, bits in (((3,), 1, b""), ((3,), 2, b"\x01"), ((3,), 1, b"\x08"), ((0,), 1, b"")):
        with pytest.raises(PlanError):
            PackedMask(shape, kept, bits)
