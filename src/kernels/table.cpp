// SPDX-License-Identifier: Apache-2.0
// The table of one backend; compiled once per backend with MAMBA_ISA set to its name.
#include "kernels/table.inc"
