// SPDX-License-Identifier: Apache-2.0
// What a block of scan's CUDA backward pass (scan_back.cuh) is given and what it keeps in shared
// memory.
#pragma once

#include "kernels/mma.cuh"
#include "kernels/scan_walk.cuh"

namespace mamba::cuda {

constexpr int kSteps = kCheckpoint;  // tokens that are walked back through at a time
constexpr int kBlockWarps = 8, kThreads = kBlockWarps * kWarp;

// Channels lie on lanes as in the walk. Two blocks share a multiprocessor where registers for that
// are enough: these chains of instructions need other warps beside them.
template <class T, int R>
struct BackLanes : Lanes<R> {
  static constexpr int kTile = R == 4 && sizeof(T) == 2 ? 16 : 8;  // tokens of a tile
  static constexpr int kHalves = kTile / kSteps;
  static constexpr int kStages = 2;
  static constexpr int kBlocks = R == 4 ? 2 : 1;  // of a multiprocessor
  static constexpr int kVec = R == 4 ? 2 : 1;     // elements that a lane prepares together
};

template <class T>
struct Back {
  Walk<T> walk;  // inputs, segments, checkpoints
  const float* dhT;
  T *du, *ddelta, *dz;
  int64_t du_stride, ddelta_stride, dz_stride;
  float* dh0;
  // Sums of blocks: (blocks of a group, B L, groups, 2, kN) of B and C; of parameters, by sequence
  // and segment: (N, E), (E), (E); with constant B and C (E, N) each.
  float *partial_bc, *partial_A, *partial_bias, *partial_D, *partial_B, *partial_C;
  int64_t slabs, tiles, groups;  // of the walk, of a sequence, of channels
};

template <class T, int R>
struct BackMemory : BackLanes<T, R> {
  using L = BackLanes<T, R>;
  // Lanes that hold a sum over channels side by side: of different channels, same states.
  static constexpr int kGroups = L::kChannels >= 4 ? L::kChannels / 4 : 1;
  static constexpr int kSlots = kBlockWarps * kGroups, kSlot = 2 * L::kN * kSteps + 8;
  struct alignas(16) Stage {
    T u[L::kTile * L::kChannels], delta[L::kTile * L::kChannels], z[L::kTile * L::kChannels];
    T dy[L::kTile * L::kChannels];
  };
  // What the lanes of a channel leave of 8 tokens to whoever adds it; rows of tokens are padded so
  // that both sides touch every bank once.
  static constexpr int kParts = R == 4 ? 4 : 1, kPart = kParts * L::kChannels;
  static constexpr int kRow = kPart + (R == 4 ? 8 : 0);
  struct alignas(16) Warp {
    Stage stages[L::kStages];
    alignas(16) float h[L::kHalves][kWarp * L::kStates];  // states before tokens 0 and 8
    // d (infinite at a reset) and d u; the gradient of the ungated y and d.
    alignas(16) float2 step[L::kTile * L::kChannels];
    alignas(16) float2 out[L::kTile * L::kChannels];
    alignas(16) float2 pairs[kSteps * kRow];  // sums over states of g B and g a h A
    alignas(16) float y[kSteps * kRow];       // of C h
    alignas(8) float bias[L::kChannels], D[L::kChannels];
    alignas(16) float dbias[kWarp * L::kVec], dD[kWarp * L::kVec];  // sums of lanes
  };
  Warp warps[kBlockWarps];
  // What is asked for once a tile: kept here, it takes no registers in between.
  struct Place {
    int64_t b, segment, block, group, begin, end;  // the block's work
    int64_t first_slab, first_channel, limit;      // its first ones, and the end of its channels
    int width;                                     // channels of the block
  };
  Place place;
  // Where a tile begins, in the block's first channel, with the bytes of a row: `row` is that of
  // tokens, and of checkpoints for the states. Inputs are those of the tile that is copied next,
  // outputs those of the tile at hand.
  enum { kU, kZ, kDelta, kDy, kB, kC, kStatesBefore, kDu, kDdelta, kDz, kTensors };
  struct alignas(16) Tensor {
    char* at;
    int64_t row;
  };
  Tensor tensors[kTensors];
  struct alignas(16) StageBC {
    T B[L::kTile * L::kN], C[L::kTile * L::kN];
  };
  StageBC bc[L::kStages];
  alignas(16) float B[L::kTile * L::kN], C[L::kTile * L::kN];
  alignas(16) float sums[L::kHalves][kSlots * kSlot];
};

}  // namespace mamba::cuda
