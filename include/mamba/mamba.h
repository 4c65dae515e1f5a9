// SPDX-License-Identifier: Apache-2.0
// The whole public interface.
#pragma once

#include "mamba/chat.h"
#include "mamba/config.h"
#include "mamba/convert.h"
#include "mamba/dtype.h"
#include "mamba/error.h"
#include "mamba/evaluate.h"
#include "mamba/generate.h"
#include "mamba/learner.h"
#include "mamba/model.h"
#include "mamba/sampling.h"
#include "mamba/state.h"
#include "mamba/tokenizer.h"
#include "mamba/train.h"
#include "mamba/version.h"
