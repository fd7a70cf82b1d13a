"""The tape follows autograd: what is saved lives until its backward, aliases share, casts copy."""

from estimators.allocation import held_bytes
from estimators.footprint import footprint
from estimators.tape import Node, Tape, Value
from estimators.units import MIB

UNIT = MIB // 4  # elements of one MiB in float32


def value(elements: int = UNIT, itemsize: int = 4, grad: bool = True) -> Value:
    return Value(elements, itemsize, grad)


def test_a_chain_keeps_what_it_saves_and_frees_the_rest() -> None:
    tape, stream = Tape(), value()
    bent = tape.elementwise(stream, saved=(stream,))
    tape.elementwise(bent)
    made = footprint(tape, stream)
    assert made.kept == MIB
    assert made.forward_peak == 3 * MIB  # input, intermediate, output: the input is saved, the rest passes
    assert made.backward_peak == MIB + 2 * MIB  # saved, gradient in, gradient out


def test_a_tensor_saved_twice_is_kept_once() -> None:
    tape, stream = Tape(), value()
    tape.elementwise(stream, saved=(stream,))
    tape.elementwise(stream, saved=(stream,))
    assert footprint(tape, stream).kept == MIB


def test_nothing_is_saved_where_no_gradient_flows() -> None:
    tape, stream = Tape(), value(grad=False)
    tape.elementwise(stream, saved=(stream,))
    assert footprint(tape, stream).kept == 0


def test_a_cast_copies_and_a_cast_to_the_same_type_does_not() -> None:
    tape, stream = Tape(), value()
    assert tape.cast(stream, 4) is stream
    assert tape.cast(stream, 2).size_bytes == MIB // 2


def test_a_sum_hands_one_gradient_to_both_sides() -> None:
    tape, stream = Tape(), value()
    branch = tape.elementwise(stream, saved=(stream,))
    tape.sum(stream, branch)
    # Saved input; the gradient of the sum, shared with the stream; then the branch's own beside it.
    assert footprint(tape, stream).backward_peak == 3 * MIB


def test_a_view_holds_its_whole_storage() -> None:
    tape, stream = Tape(), value(4 * UNIT)
    joint = tape.elementwise(stream)
    view = tape.add(Node("elementwise", (joint,), Value(UNIT, 4, True, view_of=joint)))
    tape.elementwise(view, saved=(view,))
    assert footprint(tape, stream).kept == 4 * MIB


def test_what_the_allocator_does_not_split_off_counts() -> None:
    assert held_bytes(1) == 512
    assert held_bytes(MIB) == MIB
    assert held_bytes(11 * MIB) == 12 * MIB  # a rest of 1 MiB stays with the block
    assert held_bytes(int(10.5 * MIB)) == int(10.5 * MIB)  # 1.5 MiB are split off
    assert held_bytes(5 * MIB) == 5 * MIB  # four fill a segment of 20 MiB


def test_a_checkpointed_stretch_runs_again_beside_the_gradients_that_wait() -> None:
    """Its last sum reads nothing that was saved: the gradient of its branch is made before the rest runs again."""
    tape, stream = Tape(), value()
    branch = tape.elementwise(stream, saved=(stream,))
    tape.sum(stream, tape.elementwise(branch))
    made = footprint(tape, stream, checkpointed=True)
    assert made.passing_peak == 3 * MIB  # input and two that pass
    assert made.recompute_peak == 2 * MIB + 2 * MIB  # input and branch; two gradients, one of them the stream's


def test_a_checkpoint_holds_what_it_was_handed_to_the_end_of_the_stretch() -> None:
    """Also where the stretch itself is done with it, and has saved nothing of it."""
    tape, stream = Tape(), value()
    branch = tape.elementwise(stream)
    bent = tape.elementwise(branch, saved=(branch,))
    tape.elementwise(bent, saved=(bent,))
    made = footprint(tape, stream, checkpointed=True)
    assert made.passing_peak == 3 * MIB  # input and two that pass
    assert made.recompute_peak == 4 * MIB + MIB  # input, branch, bent and the output; the gradient that waits


def test_what_a_variable_holds_outlives_its_last_use() -> None:
    peaks = []
    for held in (False, True):
        tape, stream = Tape(), value()
        narrow = tape.cast(stream, 2)
        wide = tape.cast(narrow, 4)
        tape.elementwise(wide)
        if held:
            tape.hold(narrow)
        peaks.append(footprint(tape, stream).forward_peak)
    assert peaks[1] - peaks[0] == MIB // 2


def test_gradients_of_weights_add_up_or_pass() -> None:
    tape, stream = Tape(), value()
    for _ in range(3):
        stream_bytes = stream.size_bytes
        node = Node("matmul", (tape.nodes[-1].output if tape.nodes else stream,), value(), weight_gradient=stream_bytes)
        tape.add(node)
    made = footprint(tape, stream)
    assert made.growing_peak - made.backward_peak == 3 * MIB
    assert made.accumulating_peak - made.backward_peak == MIB
