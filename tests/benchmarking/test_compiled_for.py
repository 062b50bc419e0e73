"""benchmarks/compiled_for.py: what it reads from the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

PROGRAM = """\
HloModule jit_f

%fused (p: f32[2,3]) -> f32[2,3] {
  ROOT %inner = f32[2,3]{1,0} negate(%p), metadata={op_name="jit(f)/UNet/conv_in/neg"}
}

ENTRY %main (x: f32[2,3], y: bf16[4]) -> f32[2,3] {
  %x = f32[2,3]{1,0} parameter(0)
  %y = bf16[4]{0} parameter(1)
  %a = (f32[2,3]{1,0}, pred[5]{0}) fusion(%x, %y), kind=kLoop, calls=%fused, \
metadata={op_name="jit(f)/jvp(UNet)/down_0_block_0/norm_1/norm/mul"}, backend_config={"estimated_cycles":"70"}
  %b = f32[2,3]{1,0:T(8,128)} get-tuple-element(%a), index=0
  ROOT %c = f32[2,3]{1,0} add(%b, %x), metadata={op_name="jit(f)/add"}, backend_config={"estimated_cycles":"5"}
}
"""


@pytest.fixture(scope="module")
def compiled_for(benchmark_module):
    return benchmark_module("compiled_for")


def test_operations_of_the_entry(compiled_for):
    """What is inside of a fusion is not counted; what an operation reads and writes is."""
    assert list(compiled_for.operations(PROGRAM)) == [
        ("norms", 70, (24 + 5) + (24 + 8), True),
        ("optimiser, EMA, norms", 5, 3 * 24, False),
    ]


@pytest.mark.parametrize(
    "name,kind",
    [
        ("jit(f)/UNet/down_0_block_0/conv_1/conv_general_dilated", "convolutions"),
        ("jit(f)/transpose(jvp(UNet))/up_1_upsample/conv/conv_general_dilated", "resampling"),
        ("jit(f)/UNet/mid_attention/norm/norm/mul", "norms"),
        ("jit(f)/UNet/mid_attention/query/dot_general", "attention"),
        ("jit(f)/UNet/up_0_block_0/shortcut/dot_general", "shortcuts"),
        ("jit(f)/UNet/time_1/dot_general", "the rest of the network"),
        ("jit(f)/mul", "optimiser, EMA, norms"),
    ],
)
def test_kinds(compiled_for, name, kind):
    assert compiled_for.kind_of(name) == kind


def test_bytes_of_a_real_program(compiled_for):
    """A product on this CPU reads both factors and writes the result."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (32, 16))]
    (only,) = compiled_for.operations(jax.jit(jnp.matmul).lower(*shapes).compile().as_text())
    assert only.num_bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
