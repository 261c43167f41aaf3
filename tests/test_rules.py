"""The notation of typing rules, the products of sizes behind Reshape, and the operator table itself."""

from __future__ import annotations

import pytest
from halving import groups, pinned
from hypothesis import given
from hypothesis import strategies as st
from nets import net

import graphprune
from graphprune.inference import infer
from graphprune.monomial import Monomial, monomial, monomials
from graphprune.operators import TABLE, typed
from graphprune.rules import parse


def test_a_rule_lists_operands_and_results() -> None:
    rule = parse("[b,(g i),_...] [(g o),i,_...] [(g o)]? -> [b,(g o),_...]")
    assert [operand.axes for operand in rule.operands] == [
        (("b",), ("g", "i"), ("_...",)),
        (("g", "o"), ("i",), ("_...",)),
        (("g", "o"),),
    ]
    assert [operand.optional for operand in rule.operands] == [False, False, True]
    assert rule.results[0].axes == (("b",), ("g", "o"), ("_...",))
    assert rule.operands[0].names == {"b", "g", "i"}


def test_a_rule_may_have_several_results_and_scalars() -> None:
    rule = parse("[a,b] [] -> [a] [b]")
    assert [operand.axes for operand in rule.operands] == [(("a",), ("b",)), ()]
    assert len(rule.results) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a] [b]", "has no '->'"),
        ("[a] nonsense -> [a]", "cannot read 'nonsense'"),
        ("[a -> [a]", "cannot read"),
        ("[a-b] -> [a]", "cannot read the axis 'a-b'"),
        ("[(a, b)] -> [a]", "cannot read the axis '(a'"),
        ("[_a] -> [a]", "cannot read the axis '_a'"),
        ("[1a] -> [a]", "cannot read the axis '1a'"),
    ],
)
def test_what_is_no_rule_is_an_error_that_names_the_place(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parse(text)
    assert message in str(error.value)
    assert repr(text)[1:-1] in str(error.value)


def test_rests_spread_over_the_rank() -> None:
    operand = parse("[b,...,c] -> []").operands[0]
    assert operand.spread(4) == [("b",), ("...0",), ("...1",), ("c",)]
    assert operand.spread(2) == [("b",), ("c",)]
    assert operand.spread(1) is None
    assert parse("[b,_...] -> []").operands[0].spread(3) == [("b",), ("_",), ("_",)]
    assert parse("[b,c] -> []").operands[0].spread(3) is None


def test_every_entry_of_the_table_has_a_rule_to_show() -> None:
    assert len(TABLE) > 100
    for name, entry in TABLE.items():
        assert entry.name == name
        assert entry.rule.strip()


# ---- rules at work ------------------------------------------------------------------------------


def with_rule(rule: str, **options: object) -> dict[str, int]:
    """The groups of Conv, Wobble, Conv where Wobble has a rule."""
    model = net(
        """
        wobble (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] w1, float[8] p, float[4,8,1,1] w2> {
            a = Conv(x, w1)
            b = my.Wobble(a, p)
            y = Conv(b, w2)
        }""",
        domains=("my",),
    )
    table = TABLE | {"my::Wobble": typed("my::Wobble", rule, **options)}  # type: ignore[arg-type]
    return {group.id: group.size for group in infer(graphprune.load(model), table).groups}


def test_equal_names_are_unified() -> None:
    assert with_rule("[b,c,...] [c] -> [b,c,...]") == {"w1:0": 8}


def test_an_upper_case_name_is_needed_whole() -> None:
    assert with_rule("[b,C,...] [C] -> [b,C,...]") == {}


def test_an_underscore_is_needed_whole() -> None:
    assert with_rule("[b,_,...] [_] -> [b,_,...]") == {}


def test_a_product_with_a_known_factor() -> None:
    assert with_rule("[b,(g c),...] [(g c)] -> [b,(g c),...]", sizes=lambda site: {"g": 2}) == {"w1:0": 2, "w1:0/2": 4}
    assert with_rule("[b,(g C),...] [(g C)] -> [b,(g C),...]", sizes=lambda site: {"g": 2}) == {"w1:0": 2}


def test_a_factor_that_does_not_divide_pins() -> None:
    assert with_rule("[b,(g c),...] [(g c)] -> [b,(g c),...]", sizes=lambda site: {"g": 3}) == {}


def test_a_rank_that_does_not_fit_pins() -> None:
    assert with_rule("[b,c] [c] -> [b,c]") == {}


def test_an_operand_that_is_missing_pins() -> None:
    assert with_rule("[b,c,...] [c] [c] -> [b,c,...]") == {}
    assert with_rule("[b,c,...] [c] [c]? -> [b,c,...]") == {"w1:0": 8}


def test_sizes_that_contradict_pin_with_a_reason() -> None:
    """Values that broadcasting would refuse: the analysis must not fail, whatever the file says."""
    model = net("""
        contradiction (float[N,3,6,6] x) => (float[N,4,K,L] y) <float[8,3,1,1] w1, float[7] s, float[4,8,1,1] w2> {
            a = Conv(x, w1)
            b = BatchNormalization(a, s, s, s, s)
            y = Conv(b, w2)
        }""")
    assert groups(model) == {}
    assert "sizes 8 and 7" in pinned(model)["w1:0"]


# ---- monomials ----------------------------------------------------------------------------------


def test_products_and_quotients() -> None:
    n6 = Monomial(6, ("N",))
    assert n6.times(Monomial(2, ("M",))) == Monomial(12, ("M", "N"))
    assert n6.divide(Monomial(3)) == Monomial(2, ("N",))
    assert n6.divide(Monomial(4)) is None
    assert n6.divide(Monomial(1, ("M",))) is None
    assert n6.divide(Monomial(0)) is None
    assert not n6.is_number
    assert Monomial(6).is_number


def test_one_unknown_target_size_is_what_is_left() -> None:
    source, target = monomials(("N", 6, 4), ("N", None, 8))
    assert source == [Monomial(1, ("N",)), Monomial(6), Monomial(4)]
    assert target == [Monomial(1, ("N",)), Monomial(3), Monomial(8)]


@pytest.mark.parametrize(
    ("dim", "size", "name"),
    [
        (6, Monomial(6), 6),
        ("N", Monomial(1, ("N",)), "N"),
        ("8*N", Monomial(8, ("N",)), "8*N"),
        ("T*B", Monomial(1, ("B", "T")), "B*T"),
        ("2*T*B", Monomial(2, ("B", "T")), "2*B*T"),
        ("0*N", Monomial(1, ("0", "N")), "0*N"),
        ("*", Monomial(1, ("*",)), "*"),
        (None, Monomial(1, ("?",)), "?"),
    ],
)
def test_names_of_sizes_that_are_products(dim: int | str | None, size: Monomial, name: int | str) -> None:
    assert monomial(dim, "?") == size
    assert size.name == name


def test_an_unknown_batch_in_front_is_found_by_division() -> None:
    assert monomials(("N", 6), (None, 3, 2))[1][0] == Monomial(1, ("N",))


def test_two_unknown_sizes_match_nothing_else() -> None:
    source, target = monomials((None, None), (None, None))
    assert not {symbol for size in source for symbol in size.symbols} & {s for size in target for s in size.symbols}


@given(st.lists(st.integers(1, 9), max_size=5), st.lists(st.sampled_from("NMK"), max_size=4))
def test_a_product_divided_by_a_factor_is_the_other(sizes: list[int], symbols: list[str]) -> None:
    factors = [Monomial(size) for size in sizes] + [Monomial(1, (symbol,)) for symbol in symbols]
    whole = Monomial(1)
    for factor in factors:
        whole = whole.times(factor)
    for factor in factors:
        rest = whole.divide(factor)
        assert rest is not None
        assert rest.times(factor) == whole
