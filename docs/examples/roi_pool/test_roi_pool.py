"""MaxRoiPool carries channels."""

from pooled import pooled

from graphprune import analyze, prune


def test_channels_pass_max_roi_pool() -> None:
    """Both convolutions belong to one group."""
    (group,) = analyze(pooled()).groups
    found = {(member.tensor, member.axis, member.role) for member in group.members}
    assert found == {("before.weight", 0, "producer"), ("after.weight", 1, "consumer")}


def test_pruned_equals_the_masked_original() -> None:
    """Half of the channels leave, and the proof holds."""
    result = prune(pooled(), targets=["channels=0.5"])
    assert result.proof is not None
    assert result.proof.passed
    assert result.after.channels == 4
