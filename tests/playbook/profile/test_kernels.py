"""Kernels by their names, as profilers recorded them and as the sources of this project and Transformer Engine say."""

import re
from pathlib import Path

import pytest

from playbook.profile.kernels import Kind, of_kernel, of_operator

TORCH = "void at::native::"
TENSOR_LISTS = "multi_tensor_apply_kernel<at::native::(anonymous namespace)::FusedOptimizerTensorListMetadata<4>"
TE = "void transformer_engine::"
NAMES = {
    Kind.PRODUCTS: [
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT",
        "nvjet_hsh_256x128_64x4_1x2_h_bz_coopB_TNN",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x",
        "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>(Params)",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, false, __nv_bfloat16>(Params)",
    ],
    Kind.ATTENTION: [
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0",
        "cudnn_generated_fort_native_sdpa_sm100_flash_bprop_wgmma_f16_knob_34_64x128x128_4x1x1_kernel0_0",
        "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutlass::bfloat16_t> >()",
        "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::Loop> > >(Params)",
        "fmha_cutlassB_bf16_aligned_64x64_k128_sm80(PyTorchMemEffAttention::AttentionBackwardKernel)",
    ],
    Kind.QUANTIZATION: [
        f"{TE}(anonymous namespace)::cast_transpose_general_kernel<8, 8, float, __nv_bfloat16, __nv_fp8_e4m3>()",
        f"{TE}nvfp4::quantize_transpose_nvfp4_kernel<false, true, __nv_bfloat16>(CUtensorMap)",
        f"{TE}detail::swizzle_row_scaling_kernel<int4, 128, 4>(void const*, void*, int, int)",
        f"{TE}(anonymous namespace)::amax_kernel<8, true, __nv_bfloat16>(__nv_bfloat16 const*, float*)",
        f"{TE}(anonymous namespace)::block_scaled_1d_cast_transpose_kernel<true, float, __nv_bfloat16>()",
    ],
    Kind.OPTIMIZER: [
        f"{TORCH}(anonymous namespace)::{TENSOR_LISTS}, FusedAdamMathFunctor<float, 4, (ADAM_MODE)0, false> >()",
        f"{TE}multi_tensor_apply_kernel<TensorListMetadata<5, false>, AdamFunctorMaster<__nv_bfloat16, float> >()",
        "void multi_tensor_apply_kernel<TensorListMetadata<1>, L2NormFunctor<float>, float*, float*, bool, int>()",
    ],
    Kind.NORMS: [
        f"{TE}normalization::rmsnorm_fwd_tuned_kernel<Kernel_traits<__nv_bfloat16, float, 4096u, 1u> >()",
        f"{TE}fused_rope_forward_kernel<__nv_bfloat16>(__nv_bfloat16 const*, int const*, float const*)",
        f"{TE}gated_act_kernel<8, float, __nv_bfloat16, &transformer_engine::silu>(void const*)",
        "cross_entropy_kernel",
        "online_softmax_kernel",
    ],
    Kind.COMMUNICATION: [
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "ncclKernel_AllGather_RING_LL_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)",
    ],
    Kind.COPIES: [
        "Memcpy DtoD (Device -> Device)",
        "Memset (Device)",
        f"{TORCH}vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul> >()",
        f"{TORCH}(anonymous namespace)::CatArrayBatchedCopy_contig<at::native::OpaqueType<2u>, unsigned int, 3>()",
        f"{TORCH}(anonymous namespace)::distribution_elementwise_grid_stride_kernel<float, 4, normal_and_transform>()",
        f"{TORCH}reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float> > >()",
    ],
    Kind.OTHER: ["a_kernel_of_tomorrow"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_kernels(kind: Kind, name: str) -> None:
    assert of_kernel(name) is kind


def test_every_kernel_of_this_project_quantizes(project: Path) -> None:
    source = (project / "assets" / "pretraining" / "numerics" / "nvfp4_triton.py").read_text()
    launched = set(re.findall(r"(\w+_kernel)\[", source))
    assert launched == {"_quantize_kernel", "_tiles_kernel", "_amax_kernel"} <= set(re.findall(r"def (\w+)\(", source))
    assert {of_kernel(name) for name in launched} == {Kind.QUANTIZATION}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", Kind.PRODUCTS),
        ("aten::bmm", Kind.ATTENTION),
        ("aten::baddbmm", Kind.ATTENTION),
        ("aten::_softmax_backward_data", Kind.ATTENTION),
        ("_Linear", Kind.QUANTIZATION),
        ("_LinearBackward", Kind.QUANTIZATION),
        ("_VocabParallelCrossEntropy", Kind.NORMS),
        ("aten::_fused_rms_norm", Kind.NORMS),
        ("Optimizer.step#AdamW.step", Kind.OPTIMIZER),
        ("c10d::allreduce_", Kind.COMMUNICATION),
        ("aten::copy_", Kind.COPIES),
        ("autograd::engine::evaluate_function: MulBackward0", Kind.OTHER),
    ],
)
def test_operators(name: str, kind: Kind) -> None:
    assert of_operator(name) is kind


def test_the_linear_layers_of_the_cpu_are_still_called_so(project: Path) -> None:
    assert "class _Linear(torch.autograd.Function):" in (
        project / "assets" / "pretraining" / "numerics" / "cpu_layers.py"
    ).read_text(encoding="utf-8")
