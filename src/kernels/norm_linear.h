// SPDX-License-Identifier: Apache-2.0
// norm_linear: rms_norm and the product behind it, for steps of generation, where a kernel less
// counts.
#pragma once

#include "kernels/linear.h"
#include "kernels/rms_norm.h"

namespace mamba {

// rms_norm_forward(norm), then linear_forward(product): product.x is norm.y. What norm.y holds
// afterwards is not defined, rstd is null, and residual_out, which is given, is neither residual
// nor x. Where both are one kernel, the normed values are rounded to the type of norm.y as they are
// in two, and sums may run in another order.
struct NormLinearArgs {
  RmsNormArgs norm;
  LinearArgs product;
};

}  // namespace mamba
