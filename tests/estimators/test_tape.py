"""The tape follows autograd: what is saved lives until its backward, aliases share, casts copy."""

from estimators.allocation import held_bytes
from estimators.tape import Node, Tape, Value
from estimators.units import MIB

UNIT = MIB // 4  # elements of one MiB in float32


def value(elements: int = UNIT, itemsize: int = 4, grad: bool = True) -> Value:
    return Value(elements, itemsize, grad)


def test_a_chain_keeps_what_it_saves_and_frees_the_rest() -> None:
    tape, stream = Tape(), value()
    bent = tape.elementwise(stream, saved=(stream,))
    tape.elementwise(bent)
    footprint = tape.footprint(stream)
    assert footprint.kept == MIB
    assert footprint.forward_peak == 3 * MIB  # input, intermediate, output: the input is saved, the rest passes
    assert footprint.backward_peak == MIB + 2 * MIB  # saved, gradient in, gradient out


def test_a_tensor_saved_twice_is_kept_once() -> None:
    tape, stream = Tape(), value()
    tape.elementwise(stream, saved=(stream,))
    tape.elementwise(stream, saved=(stream,))
    assert tape.footprint(stream).kept == MIB


def test_nothing_is_saved_where_no_gradient_flows() -> None:
    tape, stream = Tape(), value(grad=False)
    tape.elementwise(stream, saved=(stream,))
    assert tape.footprint(stream).kept == 0


def test_a_cast_copies_and_a_cast_to_the_same_type_does_not() -> None:
    tape, stream = Tape(), value()
    assert tape.cast(stream, 4) is stream
    assert tape.cast(stream, 2).size_bytes == MIB // 2


def test_a_sum_hands_one_gradient_to_both_sides() -> None:
    tape, stream = Tape(), value()
    branch = tape.elementwise(stream, saved=(stream,))
    tape.sum(stream, branch)
    # Saved input; the gradient of the sum, shared with the stream; then the branch's own beside it.
    assert tape.footprint(stream).backward_peak == 3 * MIB


def test_a_view_holds_its_whole_storage() -> None:
    tape, stream = Tape(), value(4 * UNIT)
    joint = tape.elementwise(stream)
    view = tape.add(Node("elementwise", (joint,), Value(UNIT, 4, True, view_of=joint)))
    tape.elementwise(view, saved=(view,))
    assert tape.footprint(stream).kept == 4 * MIB


def test_what_the_allocator_does_not_split_off_counts() -> None:
    assert held_bytes(1) == 512
    assert held_bytes(MIB) == MIB
    assert held_bytes(11 * MIB) == 12 * MIB  # a rest of 1 MiB stays with the block
    assert held_bytes(int(10.5 * MIB)) == int(10.5 * MIB)  # 1.5 MiB are split off
    assert held_bytes(5 * MIB) == 5 * MIB  # four fill a segment of 20 MiB
