// All kernels for one instruction set: this file is compiled once per set, with LONGSEQ_ISA its
// name.
#include "biased_gelu.h"
#include "block_linear.h"
#include "causal_conv.h"
#include "cross_scan.h"
#include "decay.h"
#include "delta_rule.h"
#include "depthwise_conv.h"
#include "dplr.h"
#include "gated_conv.h"
#include "glu.h"
#include "gated_norm.h"
#include "linear_scan.h"
#include "mamba_inner_backward.h"
#include "mamba_step.h"
#include "rms_norm.h"
#include "selective_scan_backward.h"
#include "slstm.h"
#include "turned.h"
#include "two_way_recurrence.h"

#define LONGSEQ_STRING2(x) #x
#define LONGSEQ_STRING(x) LONGSEQ_STRING2(x)
#define LONGSEQ_JOIN2(a, b) a##b
#define LONGSEQ_JOIN(a, b) LONGSEQ_JOIN2(a, b)

namespace LONGSEQ_ISA {
template <class P, void (*F32)(const P&), void (*F64)(const P&)> void by_type(const P& p) {
  p.compute == kFloat64 ? F64(p) : F32(p);
}
}  // namespace LONGSEQ_ISA

namespace longseq {
using namespace LONGSEQ_ISA;
extern const Kernels LONGSEQ_JOIN(kernels_, LONGSEQ_ISA) = {
    LONGSEQ_STRING(LONGSEQ_ISA),
    by_type<SelectiveScan, selective_scan_forward_as<float>, selective_scan_forward_as<double>>,
    by_type<SelectiveScan, selective_scan_backward_as<float>, selective_scan_backward_as<double>>,
    by_type<LinearScan, linear_scan_forward_as<float>, linear_scan_forward_as<double>>,
    by_type<LinearScan, linear_scan_backward_as<float>, linear_scan_backward_as<double>>,
    by_type<TwoWay, two_way_forward_as<float>, two_way_forward_as<double>>,
    by_type<TwoWay, two_way_backward_as<float>, two_way_backward_as<double>>,
    by_type<CausalConv, causal_conv_forward_as<float>, causal_conv_forward_as<double>>,
    by_type<CausalConv, causal_conv_backward_as<float>, causal_conv_backward_as<double>>,
    by_type<CausalConv, causal_conv_update_as<float>, causal_conv_update_as<double>>,
    by_type<CausalConv, causal_conv_shift_as<float>, causal_conv_shift_as<double>>,
    by_type<StateUpdate, state_update_as<float>, state_update_as<double>>,
    by_type<MambaStep, mamba_step_as<float>, mamba_step_as<double>>,
    by_type<MambaInner, mamba_inner_as<float>, mamba_inner_as<double>>,
    by_type<MambaInner, mamba_inner_backward_as<float>, mamba_inner_backward_as<double>>,
    by_type<CrossScan, cross_scan_as<float>, cross_scan_as<double>>,
    by_type<CrossScan, cross_scan_backward_as<float>, cross_scan_backward_as<double>>,
    by_type<SLSTM, slstm_forward_as<float>, slstm_forward_as<double>>,
    by_type<SLSTM, slstm_backward_as<float>, slstm_backward_as<double>>,
    by_type<LongConv, long_conv_forward_as<float>, long_conv_forward_as<double>>,
    by_type<LongConv, long_conv_backward_as<float>, long_conv_backward_as<double>>,
    by_type<GatedConv, gated_conv_forward_as<float>, gated_conv_forward_as<double>>,
    by_type<GatedConv, gated_conv_backward_as<float>, gated_conv_backward_as<double>>,
    by_type<GLU, glu_forward_as<float>, glu_forward_as<double>>,
    by_type<GLU, glu_backward_as<float>, glu_backward_as<double>>,
    by_type<BiasedGelu, biased_gelu_forward_as<float>, biased_gelu_forward_as<double>>,
    by_type<BiasedGelu, biased_gelu_backward_as<float>, biased_gelu_backward_as<double>>,
    by_type<Turned, turned_as<float>, turned_as<double>>,
    by_type<DepthwiseConv, depthwise_conv_forward_as<float>, depthwise_conv_forward_as<double>>,
    by_type<DepthwiseConv, depthwise_conv_backward_as<float>, depthwise_conv_backward_as<double>>,
    by_type<ChunkDecay, decay_weights_as<float>, decay_weights_as<double>>,
    by_type<ChunkDecay, decay_slopes_as<float>, decay_slopes_as<double>>,
    by_type<BlockLinear, block_linear_forward_as<float>, block_linear_forward_as<double>>,
    by_type<BlockLinear, block_linear_backward_as<float>, block_linear_backward_as<double>>,
    by_type<GatedNorm, gated_norm_forward_as<float>, gated_norm_forward_as<double>>,
    by_type<GatedNorm, gated_norm_backward_as<float>, gated_norm_backward_as<double>>,
    by_type<RmsNorm, rms_norm_forward_as<float>, rms_norm_forward_as<double>>,
    by_type<RmsNorm, rms_norm_backward_as<float>, rms_norm_backward_as<double>>,
    by_type<DeltaRule, delta_rule_forward_as<float>, delta_rule_forward_as<double>>,
    by_type<DeltaRule, delta_rule_backward_as<float>, delta_rule_backward_as<double>>,
    by_type<Dplr, dplr_forward_as<float>, dplr_forward_as<double>>,
    by_type<Dplr, dplr_backward_as<float>, dplr_backward_as<double>>,
};
}  // namespace longseq
