"""GridSample carries channels."""

from warped import warped

from graphprune import analyze, prune


def test_channels_pass_grid_sample() -> None:
    """Both convolutions belong to one group."""
    (group,) = analyze(warped()).groups
    found = {(member.tensor, member.axis, member.role) for member in group.members}
    assert found == {("before.weight", 0, "producer"), ("after.weight", 1, "consumer")}


def test_pruned_equals_the_masked_original() -> None:
    """Half of the channels leave, and the proof holds."""
    result = prune(warped(), targets=["channels=0.5"])
    assert result.proof is not None
    assert result.proof.passed
    assert result.after.channels == 4
