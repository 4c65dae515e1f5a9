// SPDX-License-Identifier: Apache-2.0
// column_sum for the CPU: the reference; small beside the products that its rows come from.
#include "kernels/column_sum.h"

namespace mamba::ref {
void column_sum(Stream& stream, const ColumnSumArgs& a) noexcept;
}

namespace mamba::MAMBA_ISA {

void column_sum(Stream& stream, const ColumnSumArgs& a) noexcept { ref::column_sum(stream, a); }

}  // namespace mamba::MAMBA_ISA
